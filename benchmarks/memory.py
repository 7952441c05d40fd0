"""Peak memory of `scdiff sample` with ten times the cells, each in a process of its own.

    python benchmarks/memory.py [--cells 10000 100000]

The run is made here: a small model of 2000 genes on cells drawn from random rates, trained for two steps (what the
cells look like does not matter for memory).
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

GENES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data.h5ad", Path(folder) / "run"
        cells().write_h5ad(data)
        scdiff("train", data, "--label", "cell_type", "--max-steps", 2, "--out", run)
        rows = []
        for n in sorted(options.cells):
            start = time.perf_counter()
            peak = scdiff("sample", run, "-n", n, "--ddim", 2, "-o", Path(folder) / f"{n}.h5ad")
            rows.append((n, peak, time.perf_counter() - start))
    lines = [
        "# Peak memory of `scdiff sample`",
        "",
        f"{GENES} genes, preset small, DDIM with 2 steps, h5ad. Written by `python benchmarks/memory.py`.",
        "",
        "| cells | peak memory, MiB | over the first | seconds |",
        "|---:|---:|---:|---:|",
        *(f"| {n:,} | {peak:.0f} | {peak / rows[0][1]:.2f} | {s:.0f} |" for n, peak, s in rows),
    ]
    print("\n".join(lines))
    options.out.write_text("\n".join(lines) + "\n")


def cells(n: int = 500) -> ad.AnnData:
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.3, 0.3, size=(2, GENES))
    kind = rng.integers(0, 2, n)
    counts = sparse.csr_matrix(rng.poisson(rates[kind]).astype(np.float32))
    return ad.AnnData(counts, obs=pd.DataFrame({"cell_type": kind.astype(str)}, index=[f"c{i}" for i in range(n)]))


def scdiff(*args: object) -> float:
    """Run a command to its end; peak resident memory of the largest such process so far, MiB."""
    command = [str(Path(sys.executable).parent / "scdiff"), "--quiet", *map(str, args)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


if __name__ == "__main__":
    main()
