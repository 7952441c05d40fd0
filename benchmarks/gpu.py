"""One CUDA device in under eight minutes: rates, use of the device, White-Box against DiT, the papers' presets trained.

    python benchmarks/gpu.py [--data pbmc3k.h5ad:cell_type] [--device cuda] [--minutes 8] [--only rates|trained]

Rates: training and sampling as a user does, on cells of benchmarks/atlas.py with 2000 genes, as benchmarks/speed.py
does on a CPU. Utilisation: floating-point operations of the network, forward and backward, a second of training, over
the best rate of bfloat16 products measured on this device. "One by one": the same without recording a step's kernels
(a CUDA graph) and without compiling. With --data, the papers' presets and ours are trained on real cells in what is
left of the minutes and scored on held-out ones as benchmarks/quality.py does. Writes results/gpu.json and
results/gpu.md; what is not measured again stays as it was.
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
from scdiffkit import gradients
from scdiffkit.config import SampleConfig
from scdiffkit.device import make_fabric
from scdiffkit.run import Run

PAPERS = [("scrdit", "gene", "dit"), ("whitebox-dit", "gene", "whitebox")]
RATES = [
    *PAPERS,
    *[("large", codec, arch) for codec in ("gene", "count") for arch in ("dit", "whitebox")],
    *[("small", codec, arch) for codec in ("gene", "count") for arch in ("dit", "whitebox")],
]
ONE_BY_ONE = [*PAPERS, ("large", "gene", "dit"), ("small", "gene", "dit")]
TRAINED = [  # with the share of the minutes that each may take
    (("scrdit", "gene", "dit"), 0.5),
    (("whitebox-dit", "gene", "whitebox"), 0.3),
    (("base", "gene", "dit"), 0.1),
    (("base", "count", "dit"), 0.1),
]
SCORES = ["auc_components", "auc_genes", "recall", "coverage", "zeros_mae", "mean_mae", "f1_loss", "nn_ratio"]
NONE = "not measured"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="FILE:LABEL of counts to train the papers' presets on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seconds", type=float, default=5, help="of training for each row of the rates")
    parser.add_argument("--only", choices=["rates", "trained"])
    options = parser.parse_args()
    path = measuring.RESULTS / "gpu.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rates": {}, "trained": {}}
    if options.device == "cuda" and not torch.cuda.is_available():
        if not path.exists():
            (measuring.RESULTS / "gpu.md").write_text(text(result) + "\n")
        raise SystemExit("There is no CUDA device here: nothing was measured.")
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        if options.only != "trained":
            measure_rates(result, Path(folder), options)
        if options.data and options.only != "rates":
            train_on(options.data, result, Path(folder), options.device, end)


def measure_rates(result: dict[str, Any], folder: Path, options: argparse.Namespace) -> None:
    data, fabric = folder / "cells.h5ad", make_fabric(options.device)
    write_atlas(data, speed.CELLS, speed.GENES)
    found = result["rates"] = {"made_by": made_by(fabric), "peak_tflops": peak_rate(fabric) / 1e12, "rows": []}
    for which, one_by_one in [*((row, False) for row in RATES), *((row, True) for row in ONE_BY_ONE)]:
        preset, codec, arch = which
        settings: dict[str, Any] = {"codec.name": codec, "train.device": options.device}
        if codec == "count":
            settings |= {"codec.max_steps": 50, "codec.hidden_size": 128}
        out = folder / f"{preset}-{codec}-{arch}{'-one-by-one' * one_by_one}"
        if fabric.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with mock.patch.object(gradients, "WARM_UP", math.inf if one_by_one else gradients.WARM_UP):
            seen = measuring.train_for(
                options.seconds, data, out, settings | ({"train.compile": False} if one_by_one else {}),
                preset=preset, arch=arch,
            )  # fmt: skip
        memory = torch.cuda.max_memory_allocated() / 2**30 if fabric.device.type == "cuda" else 0.0
        run = Run.open(out)
        step_s = run.config().train.batch_size / measuring.cells_per_s(seen)
        row = {"which": which, "one_by_one": one_by_one, "batch": run.config().train.batch_size}
        row |= {"ms_per_step": round(step_s * 1e3, 3), "memory_gib": round(memory, 2)}
        row["utilisation"] = round(flops_of_step(run, fabric) / step_s / found["peak_tflops"] / 1e12, 4)
        if not one_by_one:
            speed.save_untrained(run, run.new_denoiser())
            drawing = SampleConfig(steps=speed.STEPS, device=options.device)
            row["sampled_per_s"] = round(speed.sampling_rate(run, drawing, options.seconds / 4))
        found["rows"].append(row)
        measuring.save("gpu", result, text(result))


def train_on(spec: str, result: dict[str, Any], folder: Path, device: str, end: float) -> None:
    """Train and score within the time: each row in its share of what is left."""
    dataset = quality.DataSet.parse(spec, Path())
    train, test, reference = quality.split(quality.load(dataset), dataset.keys)
    found = result["trained"] = {"made_by": made_by(make_fabric(device)), "cells": train.n_obs, "rows": []}
    floor = quality.score(reference, train, test, label=dataset.label, reference=reference)
    found["reference"] = {name: round(floor[name], 4) for name in SCORES}
    for i, (which, share) in enumerate(TRAINED):
        preset, codec, arch = which
        seconds = (end - time.monotonic()) * share / sum(s for _, s in TRAINED[i:])
        started = time.monotonic()
        run = scdiffkit.train(
            train, preset=preset, arch=arch, label=dataset.label, out=folder / f"trained-{preset}-{codec}-{arch}",
            max_time=0.85 * seconds, overrides={"train.device": device, "codec.name": codec},
        )  # fmt: skip
        row: dict[str, Any] = {"which": which, "seconds": round(time.monotonic() - started)}
        cells = train.n_obs - round(run.config().train.val_fraction * train.n_obs)
        row |= {"step": run.steps()[-1], "of": scdiffkit.fit.steps_planned(run.config().train, cells)}
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "The cells of --like tell no library sizes"
            )  # labels alone, as they should
            like, config = AnnData(obs=test.obs), SampleConfig(device=device)
            drawn = scdiffkit.sample(run, train.n_obs, like=like, config=config)
        cells = AnnData(drawn.layers["counts"].astype(np.float32), obs=drawn.obs, var=drawn.var)
        scores = quality.score(cells, train, test, label=dataset.label, reference=reference)
        row["losses"] = [round(m["loss"], 4) for m in run.metrics()][:: max(1, len(run.metrics()) // 10)]
        found["rows"].append(row | {name: round(scores[name], 4) for name in SCORES})
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
        lines += [f"{measuring.in_words(rates['made_by'])} {rates['made_by']['precision']}."]
        lines += ["Written by `python benchmarks/gpu.py`.", ""]
        lines += [f"Best measured rate of bfloat16 products: {rates['peak_tflops']:.0f} TFLOP/s.", ""]
    else:
        lines += ["Of `python benchmarks/gpu.py`: no CUDA device was at hand.", ""]
    rows = rates.get("rows", [])
    of = {tuple(row["which"]): row for row in rows if not row["one_by_one"]}
    plain = {tuple(row["which"]): row for row in rows if row["one_by_one"]}
    columns = [
        "preset", "codec", "architecture", "batch", "training, cells/s", "ms/step", "one by one, ms/step",
        "utilisation", "memory, GiB", "sampling, cells/s",
    ]  # fmt: skip
    lines.append(measuring.table(columns, [
        [*which, r["batch"], round(1e3 * r["batch"] / r["ms_per_step"]), f"{r['ms_per_step']:.2f}",
         f"{plain[which]['ms_per_step']:.2f}" if which in plain else "", f"{r['utilisation']:.0%}",
         f"{r['memory_gib']:.1f}", r["sampled_per_s"]]
        if (r := of.get(which)) else [*which, *[NONE] * 7] for which in RATES
    ]))  # fmt: skip
    dit, whitebox = (of[which]["ms_per_step"] if which in of else math.nan for which in PAPERS)
    ratio = f"{whitebox / dit:.2f}" if dit and whitebox / dit > 0 else NONE
    lines += ["", f"White-Box over DiT at the papers' shape, time of a step: {ratio}.", ""]
    if trained:
        lines += [f"Trained on {trained['cells']} cells, scored on held-out ones (benchmarks/quality.py):"]
        lines += [f"{measuring.in_words(trained['made_by'])}", ""]
        names = [name.replace("_", " ") for name in SCORES]
        floor = ["other real cells", "", "", "", "", *(f"{trained['reference'][n]:.3f}" for n in SCORES)]
        lines.append(measuring.table(["preset", "codec", "architecture", "seconds", "steps", *names], [floor, *(
            [*r["which"], r["seconds"], f"{r['step']} of {r['of']}", *(f"{r[n]:.3f}" for n in SCORES)]
            for r in trained["rows"]
        )]))  # fmt: skip
    else:
        lines.append(measuring.table(["trained", "codec", "architecture", "scores"], [[*w, NONE] for w, _ in TRAINED]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
