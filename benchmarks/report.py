"""Time and memory of `scdiff evaluate`: 10,000 real and 10,000 synthetic cells x 2000 genes, as a user runs it.

python benchmarks/report.py [--cells N] [--genes G] [--out FOLDER]

The cells are drawn from negative binomials of ten types, so nothing has to be downloaded. Each command runs in a
process of its own; memory is that process's peak. Writes report.json and report.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

N_TYPES, COUNTS = 10, 3000
COMMANDS = {"default": [], "--fast": ["--fast"], "--max-cells 2000": ["--max-cells", "2000"]}


def cells(n: int, n_genes: int, seed: int) -> AnnData:
    """Negative binomial counts (n, n_genes), about 3000 a cell, of ten types that differ in a tenth of the genes."""
    of_types, rng = np.random.default_rng(0), np.random.default_rng(seed)
    base = of_types.lognormal(0, 1.5, n_genes)
    rates = base * np.exp(of_types.normal(0, 1.5, (N_TYPES, n_genes)) * (of_types.random((N_TYPES, n_genes)) < 0.1))
    types = rng.integers(N_TYPES, size=n)
    sizes = COUNTS * rng.lognormal(0, 0.3, n)
    blocks = []
    for rows in np.array_split(np.arange(n), max(1, n // 2000)):
        mean = rates[types[rows]] / rates[types[rows]].sum(axis=1, keepdims=True) * sizes[rows, None]
        blocks.append(sparse.csr_matrix(rng.poisson(mean * rng.gamma(2.0, 0.5, mean.shape)).astype(np.float32)))
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([f"type {t}" for t in types])}, index=[f"cell{i}" for i in range(n)]
    )
    return AnnData(
        sparse.vstack(blocks, format="csr"), obs=obs, var=pd.DataFrame(index=[f"gene{g}" for g in range(n_genes)])
    )


def measure(command: list[str]) -> dict[str, float]:
    """Seconds on the clock and of all cores together, and peak memory in GiB, of a command."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed.")
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "memory_gib": used.ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=10_000, help="on each side")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed, name in enumerate(("real", "synthetic"), 1):
            cells(options.cells, options.genes, seed).write_h5ad(f"{folder}/{name}.h5ad")
        for name, extra in COMMANDS.items():
            command = ["scdiff", "evaluate", f"{folder}/real.h5ad", f"{folder}/synthetic.h5ad", "--label", "cell_type"]
            report = f"{folder}/report {name}"
            found[name] = measure([sys.executable, "-c", RUN, *command[1:], "-o", report, *extra])
            found[name]["html_mb"] = (Path(report) / "report.html").stat().st_size / 1e6
            print(name, {key: round(value, 2) for key, value in found[name].items()}, flush=True)
    about = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count(), "commit": _commit()}
    result = {"cells": options.cells, "genes": options.genes, **about, "commands": found}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "report.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "report.md").write_text(_table(result))


RUN = "import sys; from scdiffkit.cli import main; sys.argv[0] = 'scdiff'; main()"


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def _table(result: dict) -> str:
    rows = [
        f"| {name} | {f['seconds']:.0f} | {f['cpu_seconds']:.0f} | {f['memory_gib']:.2f} | {f['html_mb']:.1f} |"
        for name, f in result["commands"].items()
    ]
    return "\n".join(
        [
            "# Time and memory of `scdiff evaluate`",
            "",
            f"{result['cells']} real and {result['cells']} synthetic cells x {result['genes']} genes, "
            f"{result['cores']} cores, commit {result['commit']}. Written by `python benchmarks/report.py`.",
            "",
            "| options | seconds | CPU seconds | peak memory, GiB | report, MB |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    main()
