"""One CUDA device in under eight minutes: rates, use of the device, White-Box against DiT, the papers' presets trained.

    python benchmarks/gpu.py [--data pbmc3k.h5ad:cell_type] [--device cuda] [--minutes 8] [--only rates|trained|scored]

Rates: training and sampling as a user does, on cells of benchmarks/atlas.py with 2000 genes, as benchmarks/speed.py
does on a CPU. Utilisation: floating-point operations of the network, forward and backward, a second of training, over
the best rate of bfloat16 products measured on this device. "One by one": the same without recording a step's kernels
(a CUDA graph) and without compiling. With --data, the papers' presets and ours are trained on real cells in what is
left of the minutes, and cells drawn from them are scored against held-out ones as benchmarks/quality.py does, which
needs no GPU: --cells keeps them in a folder, for --only scored on another machine. Writes results/gpu.json and
results/gpu.md; rows that are not measured again stay as they were.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import measuring
import quality  # imports scdiffkit before torch
import speed

# isort: split
import numpy as np
import torch
from anndata import AnnData
from atlas import write_atlas
from torch.utils.flop_counter import FlopCounterMode

import scdiffkit
from scdiffkit.config import SampleConfig
from scdiffkit.run import Run
from scdiffkit.runtime.device import make_fabric
from scdiffkit.training import step as training_step

PAPERS = [("scrdit", "gene", "dit", 16), ("whitebox-dit", "gene", "whitebox", 16)]  # the last: cells in a batch
FULL = [("scrdit", "gene", "dit", 256), ("whitebox-dit", "gene", "whitebox", 256)]  # the same where they fill a GPU
LARGE = [("large", codec, arch, n) for codec, n in (("gene", 256), ("count", 1024)) for arch in ("dit", "whitebox")]
SMALL = [("small", codec, arch, n) for codec, n in (("gene", 64), ("count", 256)) for arch in ("dit", "whitebox")]
RATES = [*PAPERS, *FULL, *LARGE, *SMALL]
ONE_BY_ONE = [*PAPERS, LARGE[0], SMALL[0]]
TRAINED = [  # with the share of the minutes that each may take
    (("scrdit", "gene", "dit"), 0.45),
    (("whitebox-dit", "gene", "whitebox"), 0.28),
    (("base", "gene", "dit"), 0.15),
    (("small", "count", "dit"), 0.12),
]
SCORES = ["auc_components", "auc_genes", "recall", "coverage", "zeros_mae", "mean_mae", "f1_loss", "nn_ratio"]
NONE = "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="FILE:LABEL of counts to train the papers' presets on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument(
        "--seconds", type=float, default=4, help="of training, and of sampling, for each row of the rates"
    )
    parser.add_argument("--only", choices=["rates", "trained", "scored"], action="append")
    parser.add_argument("--rows", type=int, nargs="+", help="of the rates, numbers from 0; default all")
    parser.add_argument("--cells", type=Path, help="folder for the cells that are drawn")
    options = parser.parse_args()
    only = options.only or (["rates", "trained", "scored"] if options.data else ["rates"])
    path = measuring.RESULTS / "gpu.json"
    result: dict[str, Any] = {"rates": {}, "trained": {}}
    if path.exists():
        result = json.loads(path.read_text())
    if options.device == "cuda" and not torch.cuda.is_available() and only != ["scored"]:
        if not path.exists():
            (measuring.RESULTS / "gpu.md").write_text(text(result) + "\n")
        raise SystemExit("There is no CUDA device here: nothing was measured.")
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        cells = options.cells or folder / "cells"
        cells.mkdir(exist_ok=True)
        if "rates" in only:
            measure_rates(result, folder, options)
        if "trained" in only:
            train_on(options.data, result, folder, cells, options.device, end)
        if "scored" in only:
            score(options.data, result, cells)


def measure_rates(result: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    data, fabric = folder / "cells.h5ad", make_fabric(options.device)
    write_atlas(data, speed.CELLS, speed.GENES)
    found = result["rates"]
    found |= {"made_by": made_by(fabric), "peak_tflops": peak_rate(fabric) / 1e12}
    rows = {(tuple(row["which"]), row["one_by_one"]): row for row in found.get("rows", [])}
    asked = [*((which, False) for which in RATES), *((which, True) for which in ONE_BY_ONE)]
    for which, one_by_one in [asked[i] for i in options.rows] if options.rows else asked:
        preset, codec, arch, batch_size = which
        settings: dict[str, Any] = {"codec.name": codec, "train.device": options.device, "train.batch_size": batch_size}
        if codec == "count":
            settings |= {"codec.max_steps": 50, "codec.hidden_size": 128}
        if preset == "small" or one_by_one:
            settings |= {"train.compile": False}  # as in the 1500 steps that `small` has
        out = folder / f"{preset}-{codec}-{arch}-{batch_size}{'-one-by-one' * one_by_one}"
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with mock.patch.object(training_step, "WARM_UP", math.inf if one_by_one else training_step.WARM_UP):
            seen = measuring.train_for(options.seconds, data, out, settings, preset=preset, arch=arch)
        memory = torch.cuda.max_memory_allocated() / 2**30 if fabric.device.type == "cuda" else 0.0
        run = Run.open(out)
        step_s = batch_size / measuring.cells_per_s(seen)
        row = {"which": which, "one_by_one": one_by_one, "commit": found["made_by"]["commit"]}
        row |= {"ms_per_step": round(step_s * 1e3, 3), "memory_gib": round(memory, 2)}
        row["utilisation"] = round(flops_of_step(run, fabric) / step_s / found["peak_tflops"] / 1e12, 4)
        if not one_by_one and which not in FULL:
            speed.save_untrained(run, run.load().new_denoiser())
            drawing = SampleConfig(steps=speed.STEPS, device=options.device)
            row["sampled_per_s"] = round(speed.sampling_rate(run, drawing, options.seconds))
        rows[which, one_by_one] = row
        found["rows"] = list(rows.values())
        measuring.save("gpu", result, text(result))


def parts_of(spec: str) -> tuple[str, AnnData, AnnData, AnnData]:
    """The label, and the cells to train on, to score against, and to score as a perfect model."""
    dataset = quality.DataSet.parse(spec, Path())
    return dataset.label, *quality.split(quality.load(dataset), dataset.keys)


def train_on(spec: str, result: dict[str, Any], folder: Path, cells: Path, device: str, end: float) -> None:
    """Train within the time, each row in its share of what is left, and draw as many cells."""
    label, train, test, _ = parts_of(spec)
    rows: list[dict[str, Any]] = []
    result["trained"] = {"made_by": made_by(make_fabric(device)), "cells": train.n_obs, "rows": rows}
    for i, (which, share) in enumerate(TRAINED):
        preset, codec, arch = which
        seconds = (end - time.monotonic()) * share / sum(s for _, s in TRAINED[i:])
        started = time.monotonic()
        run = scdiffkit.train(
            train, preset=preset, arch=arch, label=label, out=folder / "-".join(which), max_time=0.9 * seconds,
            overrides={"train.device": device, "codec.name": codec},
        )  # fmt: skip
        trained = time.monotonic()
        c, metrics = run.config().train, run.metrics()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The library sizes of the cells of .*like"
            )  # labels alone, as they should
            like, config = AnnData(obs=test.obs), SampleConfig(device=device)
            drawn = scdiffkit.sample(run, train.n_obs, like=like, config=config)
        counts = drawn.layers["counts"].astype(np.float32)
        AnnData(counts, obs=drawn.obs, var=drawn.var).write_h5ad(cells / f"{'-'.join(which)}.h5ad", compression="gzip")
        kept = train.n_obs - round(c.val_fraction * train.n_obs)
        tenths = np.array_split([m["loss"] for m in metrics], min(10, len(metrics)))
        rows.append({
            "which": which, "seconds": round(trained - started), "step": run.steps()[-1],
            "of": c.max_steps or math.ceil((c.max_epochs or 1) * kept / c.batch_size),
            "sampling_seconds": round(time.monotonic() - trained, 1),
            "losses": [round(float(np.mean(part)), 4) for part in tenths],
        })  # fmt: skip
        measuring.save("gpu", result, text(result))


def score(spec: str, result: dict[str, Any], cells: Path) -> None:
    """Add to each row of training the scores of the cells drawn from it."""
    label, train, test, reference = parts_of(spec)
    trained = result["trained"]
    for row in [trained.setdefault("reference", {}), *trained["rows"]]:
        made = scdiffkit.read(cells / f"{'-'.join(row['which'])}.h5ad") if "which" in row else reference
        scores = quality.score(made, train, test, label=label, reference=reference)
        row["scores"] = {name: round(scores[name], 4) for name in SCORES}
        measuring.save("gpu", result, text(result))


def made_by(fabric: Any) -> dict[str, Any]:
    about = measuring.about() | {"precision": fabric.strategy.precision.precision}
    return about | ({"machine": torch.cuda.get_device_name()} if fabric.device.type == "cuda" else {})


def peak_rate(fabric: Any) -> float:
    """Best operations per second of bfloat16 products."""
    best = 0.0
    for size in (4096, 8192) if fabric.device.type == "cuda" else (128,):
        a, b = (torch.randn(size, size, device=fabric.device, dtype=torch.bfloat16) for _ in range(2))
        for _ in range(20):
            speed._synchronise(fabric)
            start = time.perf_counter()
            for _ in range(5):
                a @ b
            speed._synchronise(fabric)
            best = max(best, 5 * 2 * size**3 / (time.perf_counter() - start))
    return best


def flops_of_step(run: Run, fabric: Any) -> float:
    """Operations of one training step of a run's network, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        speed.training_step(run, fabric)
    return float(counter.get_total_flops())


def text(result: dict[str, Any]) -> str:
    rates, trained = result["rates"], result["trained"]
    lines = ["# One GPU", ""]
    if rates:
        lines += [f"{measuring.in_words(rates['made_by'])} {rates['made_by']['precision']}.",
                  "Written by `python benchmarks/gpu.py`.", "",
                  f"Best measured rate of bfloat16 products: {rates['peak_tflops']:.0f} TFLOP/s.", ""]  # fmt: skip
    else:
        lines += ["Of `python benchmarks/gpu.py`: no CUDA device was at hand.", ""]
    rows = rates.get("rows", [])
    of = {tuple(row["which"]): row for row in rows if not row["one_by_one"]}
    plain = {tuple(row["which"]): row for row in rows if row["one_by_one"]}
    columns = [
        "preset", "codec", "architecture", "batch", "training, cells/s", "ms/step", "one by one, ms/step",
        "utilisation", "memory, GiB", "sampling, cells/s", "commit",
    ]  # fmt: skip
    lines.append(measuring.table(columns, [
        [*which, round(1e3 * which[3] / r["ms_per_step"]), f"{r['ms_per_step']:.2f}",
         f"{plain[which]['ms_per_step']:.2f}" if which in plain else "", f"{r['utilisation']:.0%}",
         f"{r['memory_gib']:.1f}", r.get("sampled_per_s", ""), r["commit"]]
        if (r := of.get(which)) else [*which, *[NONE] * 7] for which in RATES
    ]))  # fmt: skip
    lines += ["", *([rates["note"], ""] if "note" in rates else [])]
    for (dit, whitebox), where in (PAPERS, "batch 16, as published"), (FULL, "batch 256"):
        there = dit in of and whitebox in of
        ratio = f"{of[whitebox]['ms_per_step'] / of[dit]['ms_per_step']:.2f}" if there else NONE
        lines.append(f"White-Box over DiT at the papers' shape, time of a step, {where}: {ratio}.")
    lines.append("")
    if not trained:
        lines.append(measuring.table(["trained", "codec", "architecture", "scores"], [[*w, NONE] for w, _ in TRAINED]))
        return "\n".join(lines)
    lines += [f"Trained on {trained['cells']} cells; as many drawn, scored on held-out ones (benchmarks/quality.py).",
              f"{measuring.in_words(trained['made_by'])}", ""]  # fmt: skip
    names = [name.replace("_", " ") for name in SCORES]
    columns = ["preset", "codec", "architecture", "seconds", "steps", "sampling, s", *names]
    listed = [["other real cells", "", "", "", "", "", *scores_of(trained.get("reference", {}))]]
    listed += [
        [*r["which"], r["seconds"], f"{r['step']} of {r['of']}", r["sampling_seconds"], *scores_of(r)]
        for r in trained["rows"]
    ]
    lines += [measuring.table(columns, listed), "", "Training loss, mean over each tenth of the training:", ""]
    lines.append(measuring.table(["preset", "codec", "architecture", *(f"{i}" for i in range(1, 11))], [
        [*r["which"], *r["losses"], *[""] * (10 - len(r["losses"]))] for r in trained["rows"]
    ]))  # fmt: skip
    return "\n".join(lines)


def scores_of(row: dict[str, Any]) -> list[str]:
    return [f"{row['scores'][name]:.3f}" for name in SCORES] if "scores" in row else [NONE] * len(SCORES)


if __name__ == "__main__":
    main()
