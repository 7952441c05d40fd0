"""Does a change keep the results? Hashes of what the command line makes of three data sets, before and after it.

    python benchmarks/golden.py before.json --package ../checkout-of-before
    python benchmarks/golden.py after.json --against before.json

Cells, labels and genes of generated cells, weights and scores are hashed by their values: not the files' bytes, and
neither dates, versions nor paths. Same machine, same libraries: sums of floating-point numbers differ elsewhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
DATA = {  # 400 cells of each: label and condition
    "pbmc3k": ("cell_type", None), "kang_ifnb_2k": ("cell_type", "condition"), "oligo_marques": ("cell_type", None),
}  # fmt: skip
CODECS = ("count", "gene")
ARCHITECTURES = ("dit", "whitebox", "unet")
CELLS = 400
SAMPLES = {
    "ddim": ["--ddim", "10"],
    "dpm": ["--sampler", "dpm", "--steps", "8"],
    "ddpm": ["--ddpm", "-n", "20"],
    "guided": ["--steps", "10", "--cfg-scale", "2"],
    "like": ["--steps", "10", "--like", "data.h5ad"],
    "devices": ["--steps", "10", "--devices", "2"],
    "library": ["--steps", "10", "--library-size", "3000"],  # the count codec alone
}
ASIDE = {  # of metrics.json and uns: not results, or their wording
    "versions", "command", "seconds", "definition",
    "source", "files", "sha256", "remarks", "notes", "warnings", "definitions",
    "reasons", "sentence", "basis", "privacy", "findings", "skipped", "schema", "text", "scale",
}  # fmt: skip
RENAMED: dict[str, str] = {  # keys and values of metrics.json and uns: before -> after
    "dpm": "dpm++", "floor": "real_reference", "floor_range": "real_reference_range", "at_floor": "at_real_reference",
    "bad_model": "baseline_name",
}  # fmt: skip


def main() -> int:
    options = arguments()
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.data:
            found |= {f"{name}/{what}": value for what, value in outputs(options, name, Path(folder) / name)}
    options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{len(found)} hashes: {options.out}")
    if options.against is None:
        return 0
    before = json.loads(options.against.read_text(encoding="utf-8"))
    made = {"/".join(what.split("/")[:3]) for what in found}
    before = {what: value for what, value in before.items() if "/".join(what.split("/")[:3]) in made}
    differ = sorted(what for what in before.keys() | found.keys() if before.get(what) != found.get(what))
    print("\n".join(f"differs: {what}" for what in differ) or f"all {len(before)} as before")
    return int(bool(differ))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="JSON file for the hashes")
    parser.add_argument("data", nargs="*", default=list(DATA), help=f"default: {' '.join(DATA)}")
    parser.add_argument("--codecs", nargs="+", choices=CODECS, default=list(CODECS))
    parser.add_argument("--archs", nargs="+", choices=ARCHITECTURES, default=list(ARCHITECTURES))
    parser.add_argument("--data-dir", type=Path, default=HERE.parents[1] / "shared" / "data")
    parser.add_argument("--package", type=Path, default=HERE.parent, help="checkout whose scdiffkit is run")
    parser.add_argument("--against", type=Path, help="hashes that must be the same")
    return parser.parse_args()


def outputs(options: argparse.Namespace, name: str, folder: Path) -> Iterator[tuple[str, str]]:
    """What preprocess, train, resume, sample and evaluate write, part by part, with hashes."""
    import anndata
    import numpy as np

    folder.mkdir()
    label, condition = DATA[name]
    adata = anndata.read_h5ad(options.data_dir / f"{name}.h5ad")
    rows = np.sort(np.random.default_rng(0).permutation(adata.n_obs)[:CELLS])
    adata[rows].copy().write_h5ad(folder / "data.h5ad")
    columns = ["--label", label, *(["--condition", condition] if condition else [])]

    scdiff(options, folder, "preprocess", "data.h5ad", "-o", "prepared.h5ad", "--label", label, "--n-top-genes", "500")
    yield from cells("preprocess", folder / "prepared.h5ad")
    for codec, arch in product(options.codecs, options.archs):
        run, at = f"{codec}-{arch}", f"{codec}/{arch}"
        train = [
            "train", "data.h5ad", "--codec", codec, "--arch", arch, *columns, "--holdout", "0.2", "--out", run,
            *(["--set", "codec.max_steps=40"] if codec == "count" else ["--n-top-genes", "500"]),
        ]  # fmt: skip
        scdiff(options, folder, *train, "--max-steps", "20")
        yield from weights(f"{at}/train", folder / run)
        scdiff(options, folder, *train, "--max-steps", "40", "--resume")
        yield from weights(f"{at}/resume", folder / run)
        for what, how in SAMPLES.items():
            if what == "library" and codec != "count":
                continue
            n = [] if {"-n", "--like"} & set(how) else ["-n", "100"]
            out = f"{run}-{what}.h5ad"
            scdiff(options, folder, "sample", run, *n, *how, "-o", out)
            yield from cells(f"{at}/{what}", folder / out)
        # All scores once; with the other architectures, that the way there is the same.
        metrics = "fast" if arch == "dit" else "minimal"
        scdiff(
            options,
            folder,
            "evaluate",
            "data.h5ad",
            f"{run}-like.h5ad",
            *columns,
            "--metrics",
            metrics,
            "-o",
            f"{run}-report",
        )
        report = json.loads((folder / f"{run}-report" / "metrics.json").read_text(encoding="utf-8"))
        for key, value in plain(report).items():
            yield f"{at}/evaluate/{key}", digest(value)


SERVER = """
import json, sys
from scdiffkit.cli import main
answers, sys.stdout = sys.stdout, sys.stderr
for line in sys.stdin:
    sys.argv = ["scdiff", "-q", *json.loads(line)]
    try:
        code = main() or 0
    except SystemExit as e:
        code = e.code or 0
    print(json.dumps(code), file=answers, flush=True)
"""


@cache
def server(package: Path, folder: Path) -> subprocess.Popen[str]:
    """A process that runs commands of a checkout one after another, which imports it once."""
    environment = {**os.environ, "PYTHONPATH": str(package.resolve()), "OMP_NUM_THREADS": "1"}
    environment["NUMBA_NUM_THREADS"] = "1"  # else numba changes the number of OpenMP threads, and so the rounding
    with (folder / "stderr").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-c", SERVER], cwd=folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip


def scdiff(options: argparse.Namespace, folder: Path, *command: str) -> None:
    process = server(options.package, folder)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(command) + "\n")
    process.stdin.flush()
    code = json.loads(process.stdout.readline() or "1")
    if code:
        said = (folder / "stderr").read_text(encoding="utf-8")
        raise SystemExit(f"scdiff {' '.join(command)} ended with {code}:\n{said}")


def cells(what: str, file: Path) -> Iterator[tuple[str, str]]:
    import anndata

    adata = anndata.read_h5ad(file)
    for layer, matrix in {"X": adata.X, **adata.layers}.items():
        matrix = matrix.tocsr()
        yield f"{what}/{layer}", digest([matrix.dtype.str, matrix.data, matrix.indices, matrix.indptr])
    yield f"{what}/obs", digest([adata.obs.to_csv(), [str(kind) for kind in adata.obs.dtypes]])
    yield f"{what}/var", digest([adata.var.to_csv(), [str(kind) for kind in adata.var.dtypes]])
    yield f"{what}/uns", digest(plain(adata.uns.get("scdiffkit", {})))


def weights(what: str, run: Path) -> Iterator[tuple[str, str]]:
    from safetensors.numpy import load_file

    newest = max((run / "checkpoints").iterdir())
    for file in sorted([*run.glob("*.safetensors"), *newest.glob("*.safetensors")]):
        tensors = load_file(file)
        yield f"{what}/{file.name}", digest([[name, tensors[name]] for name in sorted(tensors)])


def plain(value: Any) -> Any:
    """Without what is not a result, and under the names of after."""
    if isinstance(value, dict):
        now = {RENAMED.get(key, key): plain(part) for key, part in value.items() if key not in ASIDE}
        return dict(sorted(now.items()))
    if isinstance(value, str):
        return RENAMED.get(value, value)
    return [plain(part) for part in value] if isinstance(value, list | tuple) else value


def digest(value: Any) -> str:
    import numpy as np

    found = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, dict):
            add(list(part.items()))
        elif isinstance(part, list | tuple):
            found.update(f"[{len(part)}".encode())
            for item in part:
                add(item)
        elif isinstance(part, np.ndarray) and part.dtype != object:
            found.update(f"{part.dtype.str}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        elif isinstance(part, np.ndarray):
            add(part.tolist())
        else:
            found.update(repr(part.item() if isinstance(part, np.generic) else part).encode() + b";")

    add(value)
    return found.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
