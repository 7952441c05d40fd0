"""Where the time of `scdiff sample` goes: by stage, and by torch's operators.

    python benchmarks/profile_sampling.py RUN [RUN ...] [-n 5000] [--ddim 20] [--devices 1]

Stages are timed on one torch thread, as processor time of the thread that does them: overlapping stages do not hide one
another. Then the same command's time from start to end as a user has it, the cells to a file.
"""

from __future__ import annotations

import argparse
import collections
import functools
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import scdiffkit  # before torch

import torch  # isort: skip
from torch.profiler import ProfilerActivity, profile

from scdiffkit.codecs import CODECS
from scdiffkit.config import SampleConfig, make
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.io import CellWriter
from scdiffkit.sampling import worker

OPERATORS = 12
spent: dict[str, float] = collections.defaultdict(float)
lock = threading.Lock()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("-n", type=int, default=5000)
    parser.add_argument("--ddim", type=int, default=20)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    config = make(SampleConfig, steps=options.ddim, precision="32", device="cpu")
    many = config if options.devices == 1 else make(SampleConfig, **config.model_dump() | {"devices": options.devices})
    threads = torch.get_num_threads()
    for run in options.runs:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "cells.h5ad"

            def draw(n: int = options.n, config: SampleConfig = config, run: Path = run, out: Path = out) -> float:
                start = time.perf_counter()
                scdiffkit.sample(run, n, out=out, config=config, force=True)
                return time.perf_counter() - start

            draw(200)  # warm
            times = [draw(config=many) for _ in range(options.repeats)]
            print(f"\n## {run.name}\n")
            described = ", ".join(f"{t:.1f}" for t in sorted(times))
            print(
                f"{options.n} cells, DDIM {options.ddim}, {threads} threads, devices {options.devices}: {described} s"
            )
            torch.set_num_threads(1)
            with timed():
                whole = draw()
            print("\n| stage, one thread | seconds | share |\n|---|---:|---:|")
            for stage, seconds in sorted(spent.items(), key=lambda item: -item[1]):
                print(f"| {stage} | {seconds:.2f} | {seconds / sum(spent.values()):.0%} |")
            print(f"| from start to end | {whole:.2f} | |")
            every_thread = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
            with profile(activities=[ProfilerActivity.CPU], experimental_config=every_thread) as found:
                draw(options.n // 5)
            torch.set_num_threads(threads)
            total = sum(row.self_cpu_time_total for row in found.key_averages())
            print("\n| operator, itself | share | calls |\n|---|---:|---:|")
            for row in sorted(found.key_averages(), key=lambda row: -row.self_cpu_time_total)[:OPERATORS]:
                print(f"| {row.key} | {row.self_cpu_time_total / total:.0%} | {row.count} |")


class timed:
    """Within the block, the stages' processor time is added up in `spent`."""

    def __enter__(self) -> None:
        spent.clear()
        self.before: list[tuple[Any, str, Any]] = []
        self.wrap(Denoiser, "predict", "network and sampler")
        for codec in CODECS.values():
            self.wrap(codec, "decode", "decode: shares, counts")
        self.wrap(worker, "_csr", "dense counts to sparse")
        self.wrap(worker, "lognormalise", "log-normalise")
        self.wrap(CellWriter, "append", "write")

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        function: Callable[..., Any] = getattr(owner, name)
        self.before.append((owner, name, function))

        @functools.wraps(function)
        def measured(*args: Any, **kwargs: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                with lock:
                    spent[stage] += time.thread_time() - start

        setattr(owner, name, measured)

    def __exit__(self, *error: object) -> None:
        for owner, name, function in self.before:
            setattr(owner, name, function)


if __name__ == "__main__":
    main()
