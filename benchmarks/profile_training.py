"""Where the time of a training step goes: by torch's operators, those of the thread that makes batches included.

    python benchmarks/profile_training.py [--models count-whitebox gene-whitebox] [--seconds 6]

Trains the preset small as a user does, on cells of benchmarks/atlas.py with 2000 genes. Writes
results/profile-training.json and .md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import measuring

import scdiffkit  # noqa: F401  before torch

# isort: split
import torch
from atlas import write_atlas
from torch.profiler import ProfilerActivity, profile

from scdiffkit.training.status import TrainStatus

OPERATORS, WARM = 14, 2  # statuses, one a second, before the profile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["count-whitebox", "count-dit", "gene-whitebox", "gene-dit"],
        help="CODEC-ARCH",
    )  # fmt: skip
    parser.add_argument("--seconds", type=int, default=6, help="of training in the profile")
    options = parser.parse_args()
    result: dict[str, Any] = {"made_by": measuring.about(), "models": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cells.h5ad"
        write_atlas(data, 2000, 2000)
        for model in options.models:
            result["models"][model] = profiled(data, Path(folder) / model, *model.split("-"), options.seconds)
            measuring.save("profile-training", result, text(result))


def profiled(data: Path, out: Path, codec: str, arch: str, seconds: int) -> dict[str, Any]:
    """Milliseconds a step takes, and of each operator itself: milliseconds and calls a step."""
    every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    profiler = profile(activities=[ProfilerActivity.CPU], experimental_config=every_thread)

    def look(seen: list[TrainStatus]) -> None:
        if len(seen) == WARM:
            profiler.start()

    settings: dict[str, object] = {"codec.name": codec}
    if codec == "count":
        settings |= {"codec.max_steps": 20, "codec.hidden_size": 16}
    seen = measuring.train_for(seconds + WARM, data, out, settings, on_status=look, arch=arch)
    profiler.stop()
    steps = seen[-1].step - seen[WARM - 1].step
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    return {
        "ms_per_step": round(1e3 * (seen[-1].seconds - seen[WARM - 1].seconds) / steps, 1),
        "operators": [
            {"name": r.key, "ms": round(r.self_cpu_time_total / 1e3 / steps, 2), "calls": round(r.count / steps)}
            for r in rows[:OPERATORS]
        ],
        "others_ms": round(sum(r.self_cpu_time_total for r in rows[OPERATORS:]) / 1e3 / steps, 1),
    }


def text(result: dict[str, Any]) -> str:
    lines = ["# Where the time of a training step goes", "", measuring.in_words(result["made_by"]),
             "Written by `python benchmarks/profile_training.py`.", "",
             "Preset `small`; milliseconds a step of each operator itself, while the profiler looks on, which makes a",
             "step longer; the thread that makes batches is among them."]  # fmt: skip
    for model, found in result["models"].items():
        lines += ["", f"## {model}: {found['ms_per_step']} ms a step", ""]
        lines.append(measuring.table(["operator", "ms a step", "calls a step"], [
            *([f"`{r['name']}`", r["ms"], r["calls"]] for r in found["operators"]),
            ["all others", found["others_ms"], ""],
        ]))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
