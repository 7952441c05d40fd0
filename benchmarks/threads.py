"""How long should threads that wait for one another spin? A training step's time, on an idle machine and a busy one.

    python benchmarks/threads.py [--codecs gene count] [--arch whitebox] [--seconds 5]

Each figure is a process of its own, which trains the preset small as a user does, in turns; busy: beside as many
processes that compute without end as there are cores. Writes results/threads.json and .md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import measuring

import scdiffkit

# isort: split
from atlas import write_atlas

POLICIES = {
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "spin for a moment (ours)": {},
    "spin for longer": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "100000"},
    "spin on": {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "INFINITE"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", default=["gene", "count"])
    parser.add_argument("--arch", default="whitebox")
    parser.add_argument("--seconds", type=float, default=5, help="of training for each figure")
    parser.add_argument("--one", nargs=2, metavar=("DATA", "CODEC"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(f"{step_of(*options.one, options):.1f}")
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "cells.h5ad"
        write_atlas(data, 2000, 2000)
        for codec in options.codecs:
            for busy in (False, True):
                for name, policy in POLICIES.items():
                    rows.append({"codec": codec, "busy": busy, "policy": name, "ms": asked(data, codec, busy, policy)})
                    print(rows[-1], flush=True)
    result = {"made_by": measuring.about(), "arch": options.arch, "rows": rows}
    measuring.save("threads", result, text(result))


def asked(data: Path, codec: str, busy: bool, policy: dict[str, str]) -> float:
    """Milliseconds a step takes in a process with this policy."""
    environment = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | policy
    command = [sys.executable, *sys.argv, "--one", str(data), codec]
    with ExitStack() as stack:
        for _ in range(os.cpu_count() or 1 if busy else 0):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(other.kill)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def step_of(data: str, codec: str, options: argparse.Namespace) -> float:
    """Milliseconds a training step takes."""
    settings: dict[str, object] = {"codec.name": codec}
    if codec == "count":
        settings |= {"codec.max_steps": 20, "codec.hidden_size": 16}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        seen = measuring.train_for(options.seconds, Path(data), out, settings, arch=options.arch)
        return 1e3 * scdiffkit.Run.open(out).config().train.batch_size / measuring.cells_per_s(seen)


def text(result: dict[str, Any]) -> str:
    codecs = list(dict.fromkeys(r["codec"] for r in result["rows"]))
    of = {(r["codec"], r["busy"], r["policy"]): r["ms"] for r in result["rows"]}
    lines = ["# Threads that wait", "", measuring.in_words(result["made_by"]),
             "Written by `python benchmarks/threads.py`.", "",
             f"Milliseconds of a training step (`--arch {result['arch']}`, preset `small`) by what threads of OpenMP",
             "do that wait for one another; busy: beside as many computing processes as cores.", ""]  # fmt: skip
    columns = ["threads that wait", *(f"{codec}, {when}" for codec in codecs for when in ("idle", "busy"))]
    lines.append(measuring.table(columns, [
        [name, *(of[codec, busy, name] for codec in codecs for busy in (False, True))] for name in POLICIES
    ]))  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    main()
