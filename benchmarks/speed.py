"""Training and sampling rates per architecture, beside the machine's measured matrix-product rate.

    python benchmarks/speed.py [--seconds 20] [--device auto] [--precision auto]

The papers' shape: 2000 genes, patch 10, hidden 768, depth 3, batch 16; and the preset `small` as it stands.
Random numbers stand for cells: the arithmetic does not depend on them. "share of peak" is the floating-point work of
the network's matrix products (counted by torch, forward and backward) over what the same seconds would hold at the
best rate measured for products of this machine, around each row.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch.utils.flop_counter import FlopCounterMode

import scdiffkit
from scdiffkit import models
from scdiffkit.config import RunConfig, build_run_config
from scdiffkit.denoiser import Denoiser, SpikeSlab
from scdiffkit.device import make_fabric
from scdiffkit.sampling import ddim
from scdiffkit.schedule import Schedule

GENES, TYPES = 2000, 10
# Cells per second of the papers' own code where it was timed: another 2-core CPU, float32, batch 16.
PAPERS = {"dit": 11.1, "whitebox": 21.2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20, help="for each figure")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    fabric = make_fabric(options.device, options.precision)
    cases = [
        ("papers", arch, build_run_config(p, arch)) for p, arch in (("scrdit", "dit"), ("whitebox-dit", "whitebox"))
    ]
    cases += [("papers", "unet", build_run_config("scrdit", "unet"))]
    of_genes = {"codec.name": "gene"}  # the codec whose vectors are as long as GENES
    cases += [("small", arch, build_run_config("small", arch, None, of_genes)) for arch in ("dit", "whitebox", "unet")]
    rows = [measure(fabric, name, arch, config, options.seconds) for name, arch, config in cases]
    report = {
        "machine": machine(fabric),
        "rows": rows,
        "whitebox_over_dit_step": {
            name: round(step_seconds(rows, name, "whitebox") / step_seconds(rows, name, "dit"), 3)
            for name in ("papers", "small")
        },
    }
    text = table(report)
    print(text)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = f"speed-{fabric.device.type}"
    (options.out / f"{stem}.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.out / f"{stem}.md").write_text(text + "\n")


def matrix_peak(fabric: Fabric) -> float:
    """Best floating-point operations per second over a few shapes that transformers use, in the chosen precision."""
    best = 0.0
    for m, k, n in ((3200, 768, 768), (3200, 768, 3072), (2048, 2048, 2048), (8192, 768, 3072)):
        a, b = torch.randn(m, k, device=fabric.device), torch.randn(k, n, device=fabric.device)
        with fabric.autocast(), torch.no_grad():
            if torch.is_autocast_enabled(fabric.device.type):
                a, b = (x.to(torch.get_autocast_dtype(fabric.device.type)) for x in (a, b))
            seconds = per_call(lambda a=a, b=b: a @ b, fabric, 0.5)
        best = max(best, 2 * m * k * n / seconds)
    return best


def measure(fabric: Fabric, name: str, arch: str, config: RunConfig, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    batch = config.train.batch_size
    head = None
    if config.diffusion.output == "spike-slab":
        head = SpikeSlab(-0.3, torch.zeros(GENES), torch.full((GENES,), 3.0), torch.full((GENES,), 0.2))
    network = models.build(GENES, config.model, [TYPES], outputs=2 if head else 1)
    schedule = Schedule.from_config(config.diffusion)
    denoiser = Denoiser(network, schedule, config.diffusion.prediction_type, head=head)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-5, fused=True)
    model, optimizer = fabric.setup(denoiser, optimizer)
    x0, eps = torch.randn(2, batch, GENES, device=fabric.device)
    codes = torch.randint(TYPES + 1, (batch, 1), device=fabric.device)
    t = torch.randint(schedule.num_train_timesteps, (batch,), device=fabric.device)

    def train_step() -> None:
        optimizer.zero_grad()
        fabric.backward(model(x0, codes, t, eps).mean())
        optimizer.step()

    def sample_step() -> None:
        with torch.inference_mode(), fabric.autocast():
            list(ddim(denoiser, x0, [500], conditions=codes))

    with FlopCounterMode(display=False) as counter:
        train_step()
    train_flops = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        sample_step()
    sample_flops = counter.get_total_flops()
    peaks = [matrix_peak(fabric)]  # before and after: a shared machine is not equally fast all the time
    train_s, sample_s = per_call(train_step, fabric, seconds), per_call(sample_step, fabric, seconds / 2)
    peaks.append(matrix_peak(fabric))
    peak = max(peaks)
    return {
        "shape": name,
        "arch": arch,
        "parameters": sum(p.numel() for p in denoiser.parameters()),
        "batch": batch,
        "peak_gflops": round(peak / 1e9, 1),
        "train_ms_per_step": round(train_s * 1e3, 1),
        "train_cells_per_s": round(batch / train_s, 1),
        "train_share_of_peak": round(train_flops / train_s / peak, 3),
        "train_cells_per_s_at_peak": round(batch * peak / train_flops, 1),
        "sample_cells_per_s_per_call": round(batch / sample_s, 1),
        "sample_cells_per_s_ddim20": round(batch / sample_s / 20, 2),
        "sample_share_of_peak": round(sample_flops / sample_s / peak, 3),
    }


def per_call(work: Callable[[], Any], fabric: Fabric, seconds: float) -> float:
    """Median seconds of one call, over calls that fill the time given (at least 3, after one to warm up)."""
    times: list[float] = []
    work()
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        synchronise(fabric)
        start = time.perf_counter()
        work()
        synchronise(fabric)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def synchronise(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize()


def step_seconds(rows: list[dict[str, Any]], name: str, arch: str) -> float:
    return next(r["train_ms_per_step"] for r in rows if r["shape"] == name and r["arch"] == arch)


def machine(fabric: Fabric) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False
    ).stdout.strip()
    device = fabric.device.type
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else f"{model}, {torch.get_num_threads()} threads",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "precision": fabric.strategy.precision.precision,
        "torch": str(torch.__version__),
        "scdiffkit": scdiffkit.__version__,
        "commit": commit,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def table(report: dict[str, Any]) -> str:
    m = report["machine"]
    lines = [
        "# Speed",
        "",
        f"{m['device']} ({m['instructions']}), {m['precision']}, torch {m['torch']}, commit {m['commit']}; "
        "Written by `python benchmarks/speed.py`.",
        "",
        "| shape | architecture | parameters | batch | peak, GFLOP/s | training, cells/s | share of peak | "
        "cells/s at 100% of peak | "
        "DDIM 20, cells/s | share of peak |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r['shape']} | {r['arch']} | {r['parameters']:,} | {r['batch']} | {r['peak_gflops']:g} | "
        f"{r['train_cells_per_s']:g} | "
        f"{r['train_share_of_peak']:.0%} | {r['train_cells_per_s_at_peak']:g} | {r['sample_cells_per_s_ddim20']:g} | "
        f"{r['sample_share_of_peak']:.0%} |"
        for r in report["rows"]
    ]
    ratio = report["whitebox_over_dit_step"]
    lines += [
        "",
        f"White-Box over DiT, time of a training step: {ratio['papers']:.2f} (papers' shape), {ratio['small']:.2f} "
        "(small).",
        f"The papers' own code where it was timed (another CPU, float32): DiT {PAPERS['dit']}, White-Box "
        f"{PAPERS['whitebox']} cells/s.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
