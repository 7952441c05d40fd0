"""One CUDA device in under eight minutes: rates, use of the device, White-Box against DiT, the papers' presets trained.

    python benchmarks/gpu.py [--data pbmc3k.h5ad:cell_type] [--device cuda] [--minutes 8]

Rates and the time of the matrix products alone are those of benchmarks/speed.py, at the papers' shape and for the
preset `large`. Utilisation: floating-point operations of the network, forward and backward, a second, over the best
rate of bfloat16 products measured on this device. With --data, the papers' presets are trained in what is left of the
minutes, in equal shares, and scored on held-out cells as benchmarks/quality.py does, beside the count codec. Writes
results/gpu.json and results/gpu.md; without a device, the latter says of each row that it was not measured, unless
there are results already.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
from scdiffkit.device import make_fabric
from scdiffkit.run import Run

SPEED = [
    ("scrdit", "gene", "dit"), ("whitebox-dit", "gene", "whitebox"),
    ("large", "gene", "dit"), ("large", "gene", "whitebox"), ("large", "count", "dit"), ("large", "count", "whitebox"),
]  # fmt: skip
TRAINED = [("scrdit", "dit"), ("whitebox-dit", "whitebox"), ("small", "dit"), ("small", "whitebox")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="FILE:LABEL of counts to train the papers' presets on")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--seconds", type=float, default=10, help="of training for each row of the rates")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        if not (measuring.RESULTS / "gpu.json").exists():
            (measuring.RESULTS / "gpu.md").write_text(not_measured())
        raise SystemExit("There is no CUDA device here: nothing was measured.")
    end = time.monotonic() + 60 * options.minutes
    fabric = make_fabric(options.device)
    name = torch.cuda.get_device_name() if fabric.device.type == "cuda" else measuring.about()["machine"]
    result: dict[str, Any] = {"made_by": measuring.about() | {"machine": name}, "rows": [], "scores": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        data = folder / "cells.h5ad"
        write_atlas(data, speed.CELLS, speed.GENES)
        peak = result["peak_tflops"] = round(peak_rate(fabric.device) / 1e12, 2)
        asked = SimpleNamespace(device=options.device, precision="auto", seconds=options.seconds)
        for preset, codec, arch in SPEED:
            run = folder / f"{preset}-{codec}-{arch}"
            row = speed.measure(data, run, preset, codec, arch, asked)
            flops = flops_of_step(Run.open(run), fabric)
            row["utilisation"] = round(flops / (row["train_ms_per_step"] / 1e3) / (peak * 1e12), 3)
            result["rows"].append(row)
            print(row, flush=True)
            measuring.save("gpu", result, text(result))
        if options.data:
            dataset = quality.DataSet.parse(options.data, None)
            train, test, reference = quality.split(quality.load(dataset), dataset.keys)
            for i, (preset, arch) in enumerate(TRAINED):
                left = (end - time.monotonic()) / (len(TRAINED) - i)
                run_path = folder / f"trained-{preset}-{arch}"
                started = time.monotonic()
                run = scdiffkit.train(
                    train, preset=preset, arch=arch, label=dataset.label, out=run_path, max_time=0.7 * left,
                    overrides={"train.device": options.device},
                )  # fmt: skip
                seconds = time.monotonic() - started
                drawn = scdiffkit.sample(run, like=AnnData(obs=test.obs), config=SampleConfig(device=options.device))
                cells = AnnData(drawn.layers["counts"].astype(np.float32), obs=drawn.obs, var=drawn.var)
                scores = quality.score(cells, train, test, label=dataset.label, reference=reference)
                steps = run.config().train.max_steps or "-"
                done = {"preset": preset, "arch": arch, "step": run.steps()[-1], "of": steps, "seconds": round(seconds)}
                result["scores"].append(done | {k: round(v, 4) for k, v in scores.items()})
                measuring.save("gpu", result, text(result))


def not_measured() -> str:
    none = "not measured"
    lines = ["# One GPU", "", "Of `python benchmarks/gpu.py`: no CUDA device was at hand.", ""]
    lines.append(measuring.table(
        ["preset", "codec", "architecture", "training, cells/s", "ms/step", "utilisation", "sampling, cells/s"],
        [[*row, none, none, none, none] for row in SPEED],
    ))  # fmt: skip
    lines += ["", f"White-Box over DiT at the papers' shape, time of a step: {none}.", ""]
    lines.append(measuring.table(
        ["trained and scored on held-out cells", "architecture", "scores"], [[*row, none] for row in TRAINED]
    ))  # fmt: skip
    return "\n".join(lines) + "\n"


def peak_rate(device: torch.device, size: int = 4096) -> float:
    """Best operations per second of bfloat16 products."""
    size = size if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    fabric = SimpleNamespace(device=device)
    taken = []
    for _ in range(20):
        speed._synchronise(fabric)
        start = time.perf_counter()
        for _ in range(5):
            a @ b
        speed._synchronise(fabric)
        taken.append((time.perf_counter() - start) / 5)
    return 2 * size**3 / min(taken)


def flops_of_step(run: Run, fabric: Any) -> float:
    """Operations of one training step of a run's network, forward and backward."""
    denoiser, batch = run.new_denoiser().to(fabric.device), run.config().train.batch_size
    random = torch.randn(2, batch, run.codec().dim, device=fabric.device)
    t = torch.randint(1000, (batch,), device=fabric.device)
    codes = torch.zeros(batch, 1, dtype=torch.long, device=fabric.device)
    with FlopCounterMode(display=False) as counter, fabric.autocast():
        denoiser(random[0], codes, t, random[1]).mean().backward()
    return float(counter.get_total_flops())


def text(result: dict[str, Any]) -> str:
    lines = ["# One GPU", "", f"{measuring.in_words(result['made_by'])}", "Written by `python benchmarks/gpu.py`.", ""]
    lines += [f"Best measured rate of bfloat16 products: {result['peak_tflops']:g} TFLOP/s.", ""]
    columns = ["preset", "codec", "architecture", "batch", "training, cells/s", "ms/step", "products' share",
               "utilisation", "sampling, cells/s"]  # fmt: skip
    lines.append(measuring.table(columns, [
        [r["preset"], r["codec"], r["arch"], r["batch"], r["train_cells_per_s"], r["train_ms_per_step"],
         f"{r['train_share']:.0%}", f"{r['utilisation']:.0%}", r["sample_cells_per_s"]] for r in result["rows"]
    ]))  # fmt: skip
    step = {(r["preset"], r["arch"]): r["train_ms_per_step"] for r in result["rows"]}
    if ("whitebox-dit", "whitebox") in step:
        ratio = step["whitebox-dit", "whitebox"] / step["scrdit", "dit"]
        lines += ["", f"White-Box over DiT at the papers' shape, time of a step: {ratio:.2f}."]
    if result["scores"]:
        names = ["auc_components", "auc_genes", "recall", "coverage"]
        lines += ["", "Trained and scored on held-out cells:", ""]
        lines.append(measuring.table(["preset", "architecture", "seconds", "steps", *names], [
            [r["preset"], r["arch"], r["seconds"], f"{r['step']} of {r['of']}", *(f"{r[n]:.3f}" for n in names)]
            for r in result["scores"]
        ]))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
