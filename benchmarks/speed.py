"""How fast training and sampling are, per architecture, beside what the machine's matrix products alone would take.

    python benchmarks/speed.py [--seconds 30] [--device auto] [--precision auto] [--only small-count ...]

Each row trains and samples as a user does (`scdiffkit.train`, `scdiffkit.sample`, on cells of benchmarks/atlas.py with
2000 genes) and takes the rates that these report. "Products": every matrix product, convolution and attention of the
network in one step, forward and backward, is recorded with its shape, strides and precision, and timed on its own on
this machine, every other second of the training, which waits meanwhile; their sum over the time of the whole step is
the share (medians, for machines are noisy). The rest is normalising, gating, the optimiser, the moving average, data,
and waiting. Writes results/speed-DEVICE.json and .md; rows that are not measured again stay as they were.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring

import scdiffkit

# isort: split
import numpy as np
import torch
from atlas import write_atlas
from torch.utils._python_dispatch import TorchDispatchMode

from scdiffkit.config import SampleConfig
from scdiffkit.run import Run
from scdiffkit.runtime.device import make_fabric
from scdiffkit.training.status import TrainStatus

CELLS, GENES, TYPES = 2000, 2000, 12
STEPS = 20  # of DDIM
aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default, aten.addmm.default, aten.bmm.default, aten.baddbmm.default,
    aten.convolution.default, aten.convolution_backward.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
    aten._scaled_dot_product_flash_attention.default, aten._scaled_dot_product_flash_attention_backward.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_efficient_attention_backward.default,
    aten._scaled_dot_product_cudnn_attention.default, aten._scaled_dot_product_cudnn_attention_backward.default,
}  # fmt: skip
SETS: dict[str, list[tuple[str, str, str]]] = {  # name -> preset, codec, architecture
    "papers": [("scrdit", "gene", "dit"), ("whitebox-dit", "gene", "whitebox"), ("scrdit", "gene", "unet")],
    "small-gene": [("small", "gene", arch) for arch in ("dit", "whitebox", "unet")],
    "small-count": [("small", "count", arch) for arch in ("dit", "whitebox", "unet")],
    "base-count": [("base", "count", arch) for arch in ("dit", "whitebox", "unet")],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds",
        type=float,
        default=30,
        help="of training and measuring for each row; and a third of sampling",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--only", choices=list(SETS), action="append")
    options = parser.parse_args()
    fabric = make_fabric(options.device, options.precision)
    made_by = measuring.about() | {"precision": fabric.strategy.precision.precision, "threads": torch.get_num_threads()}
    if fabric.device.type == "cuda":
        made_by["machine"] = torch.cuda.get_device_name()
    name = f"speed-{fabric.device.type}"
    path = measuring.RESULTS / f"{name}.json"
    rows = {key_of(row): row for row in (json.loads(path.read_text())["rows"] if path.exists() else [])}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cells.h5ad"
        write_atlas(data, CELLS, GENES)
        for chosen in options.only or SETS:
            for preset, codec, arch in SETS[chosen]:
                row = measure(data, Path(folder) / f"{chosen}-{arch}", preset, codec, arch, options)
                rows[key_of(row)] = row | {"commit": made_by["commit"]}
                result = {"made_by": made_by, "rows": list(rows.values())}
                measuring.save(name, result, text(result))


def key_of(row: dict[str, Any]) -> tuple[str, ...]:
    return row["preset"], row["codec"], row["arch"]


def measure(data: Path, folder: Path, preset: str, codec: str, arch: str, options: Any) -> dict[str, Any]:
    settings = {"codec.name": codec, "train.device": options.device, "train.precision": options.precision}
    if codec == "count":
        settings |= {"codec.max_steps": 50, "codec.hidden_size": 128}
    fabric = make_fabric(options.device, options.precision)
    of_step: list[tuple[float, float]] = []  # seconds of a training step, and of its products
    calls: Counter[Call] = Counter()

    def look(seen: list[TrainStatus]) -> None:
        if len(seen) % 2:  # this second had the beginning, or the last measurement, in it
            return
        if not calls:
            calls.update(products(lambda: training_step(Run.open(folder), fabric)))
        of_step.append((Run.open(folder).config().train.batch_size / seen[-1].cells_per_s, seconds_of(calls, fabric)))

    measuring.train_for(options.seconds, data, folder, settings, preset=preset, arch=arch, on_status=look)
    run = Run.open(folder)
    batch, denoiser = run.config().train.batch_size, run.load().new_denoiser().to(fabric.device)
    train_s, products_s = np.median(of_step, axis=0).tolist()
    share = float(np.median([products / step for step, products in of_step]))
    save_untrained(run, denoiser)
    drawn_per_s = sampling_rate(run, SampleConfig(steps=STEPS, device=options.device, precision=options.precision),
                                options.seconds / 3)  # fmt: skip
    denoiser.eval()
    random, codes, t = batch_of(run, fabric)

    def sample_step() -> None:
        with torch.no_grad(), fabric.autocast():
            denoiser.predict(random[0], torch.full_like(t, 500), codes)

    sampled_s = seconds_of(products(sample_step), fabric) / batch * STEPS
    return {
        "preset": preset, "codec": codec, "arch": arch,
        "parameters": sum(p.numel() for p in denoiser.parameters()), "batch": batch,
        "train_cells_per_s": round(batch / train_s, 1), "train_ms_per_step": round(train_s * 1e3, 2),
        "products_ms_per_step": round(products_s * 1e3, 2), "train_share": round(share, 3),
        "sample_cells_per_s": round(drawn_per_s, 1), "sample_share": round(sampled_s * drawn_per_s, 3),
    }  # fmt: skip


def sampling_rate(run: Run, config: SampleConfig, seconds: float) -> float:
    """Cells a second as a user draws them, of enough cells that it takes so many seconds."""
    n, elapsed = 64, 0.0
    while elapsed < seconds:
        n *= 2
        start = time.perf_counter()
        scdiffkit.sample(run, n, config=config)
        elapsed = time.perf_counter() - start
    return n / elapsed


def batch_of(run: Run, fabric: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x0 and noise (2, B, D), codes (B, 1) and steps (B,), at random, as large as the run trains on."""
    batch, device = run.config().train.batch_size, fabric.device
    return (
        torch.randn(2, batch, run.codec().dim, device=device),
        torch.randint(TYPES + 1, (batch, 1), device=device),
        torch.randint(1000, (batch,), device=device),
    )


def training_step(run: Run, fabric: Any) -> None:
    denoiser = run.load().new_denoiser().to(fabric.device)
    (x0, eps), codes, t = batch_of(run, fabric)
    with fabric.autocast():
        loss = denoiser(x0, codes, t, eps).mean()
    loss.backward()


def save_untrained(run: Run, denoiser: torch.nn.Module) -> None:
    """What is sampled does not matter here, but a run without a checkpoint cannot be sampled from."""
    if not run.steps():
        weights = {name: value.detach().cpu().contiguous() for name, value in denoiser.state_dict().items()}
        run.save_checkpoint(1, weights, None, {}, None, 1)


Call = tuple[Any, tuple[Any, ...]]


def products(step: Callable[[], None]) -> Counter[Call]:
    """The products of one step, with the shapes, strides and types of their arguments, and how often each occurs."""
    found: Counter[Call] = Counter()

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in PRODUCTS:
                found[function, tuple(_form(a) for a in args)] += 1
            return function(*args, **(kwargs or {}))

    with Recorder():
        step()
    return found


def _form(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return ("tensor", tuple(argument.shape), argument.stride(), argument.dtype)
    return tuple(argument) if isinstance(argument, list) else argument


def seconds_of(calls: Counter[Call], fabric: Any, at_least: float = 0.05) -> float:
    """The time that all of these take on their own, one after another."""
    total = 0.0
    with torch.no_grad():
        for (function, forms), times in calls.items():
            arguments = [_made(form, fabric.device) for form in forms]
            function(*arguments)
            taken: list[float] = []
            while len(taken) < 3 or (sum(taken) < at_least and len(taken) < 1000):
                _synchronise(fabric)
                start = time.perf_counter()
                function(*arguments)
                _synchronise(fabric)
                taken.append(time.perf_counter() - start)
            total += times * float(np.median(taken))
    return total


def _made(form: Any, device: torch.device) -> Any:
    if isinstance(form, tuple) and form[:1] == ("tensor",):
        _, shape, stride, dtype = form
        made = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        return made.normal_() if dtype.is_floating_point else made.zero_()
    return list(form) if isinstance(form, tuple) else form


def _synchronise(fabric: Any) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()


def text(result: dict[str, Any]) -> str:
    made, rows = result["made_by"], result["rows"]
    step = {(r["preset"], r["codec"], r["arch"]): r["train_ms_per_step"] for r in rows}
    ratios = {
        "papers' shape": (("whitebox-dit", "gene", "whitebox"), ("scrdit", "gene", "dit")),
        "small, gene": (("small", "gene", "whitebox"), ("small", "gene", "dit")),
        "small, count": (("small", "count", "whitebox"), ("small", "count", "dit")),
    }
    found = [f"{name} {step[a] / step[b]:.2f}" for name, (a, b) in ratios.items() if a in step and b in step]
    columns = [
        "preset", "codec", "architecture", "parameters", "batch", "training, cells/s", "ms/step", "products, ms/step",
        "share", "sampling, cells/s", "share of products", "commit",
    ]  # fmt: skip
    figures = [
        [
            r["preset"], r["codec"], r["arch"], f"{r['parameters']:,}", r["batch"], r["train_cells_per_s"],
            r["train_ms_per_step"], r["products_ms_per_step"], f"{r['train_share']:.0%}", r["sample_cells_per_s"],
            f"{r['sample_share']:.0%}", r["commit"],
        ]
        for r in rows
    ]  # fmt: skip
    lines = [
        "# Speed",
        "",
        f"{measuring.in_words(made)} {made['precision']}, {made['threads']} threads.",
        "Written by `python benchmarks/speed.py`.",
        "",
        f"Training and DDIM sampling with 20 steps as a user runs them, {CELLS} cells x {GENES} genes. Share: the time",
        "of the network's matrix products, measured one by one on this machine at these shapes, over the time of",
        "everything; sampling with the count codec also decodes and draws the counts, and a share over 100% comes of",
        "drawing a batch on each core at once, where the products were timed with all cores for each.",
        "",
        measuring.table(columns, figures),
        "",
    ]
    if found:
        lines.append(f"White-Box over DiT, time of a training step: {', '.join(found)}.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
