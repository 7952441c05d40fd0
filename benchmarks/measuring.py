"""What the benchmarks share: commands with their time and memory, and what was measured where."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def scdiff(*args: object) -> dict[str, Any]:
    """Run a command to its end, in a process of its own: seconds, peak resident memory in MiB, and what it printed.

    said: the lines of its log, with the seconds after which each came.
    """
    command = [sys.executable, "-m", "scdiffkit", "--verbose", *map(str, args)]
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = [(time.monotonic() - started, line) for line in process.stderr]
        printed = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    log = "".join(line for _, line in said)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log}")
    return {
        "seconds": time.monotonic() - started,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "memory_mib": used.ru_maxrss / 1024,
        "printed": printed,
        "log": log,
        "said": said,
    }


def train_for(
    seconds: float,
    data: Path,
    out: Path,
    overrides: Mapping[str, object],
    on_status: Callable[[list[Any]], None] | None = None,
    **options: object,
) -> list[Any]:
    """Train as a user does until diffusion has lasted so long: what it reported, about once a second (TrainStatus)."""
    import scdiffkit

    seen: list[Any] = []

    def watch(status: Any) -> None:
        if status.stage != "diffusion":
            return
        seen.append(status)
        if on_status:
            on_status(seen)
        if status.seconds - seen[0].seconds > seconds:
            raise KeyboardInterrupt

    endless = {"train.val_every_steps": 100_000, "train.max_steps": 100_000}
    with suppress(KeyboardInterrupt):
        scdiffkit.train(data, label="cell_type", out=out, overrides=endless | overrides, on_progress=watch, **options)
    return seen


def cells_per_s(seen: list[Any]) -> float:
    """The median rate; the first report has the first step in it, which is slow."""
    rates = sorted(status.cells_per_s for status in seen[1:] or seen)
    return float(rates[len(rates) // 2])


def about() -> dict[str, Any]:
    """Machine, versions and commit."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    commit = ""
    if shutil.which("git"):
        command = ["git", "rev-parse", "--short", "HEAD"]
        commit = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False).stdout
    return {
        "machine": model or platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in ("scdiffkit", "torch", "anndata", "numpy")},
        "commit": commit.strip() or "unknown",
    }


def in_words(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{found['machine']}, {found['cores']} cores; {versions}; commit {found['commit']}."


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Markdown; figures to the right."""
    right = [
        all(isinstance(row[i], (int, float)) or str(row[i])[:1].isdigit() for row in rows) for i in range(len(columns))
    ]
    lines = [columns, ["---:" if r else "---" for r in right], *([f"{v}" for v in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def save(name: str, result: dict[str, Any], text: str) -> None:
    """results/NAME.json and results/NAME.md."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(text.rstrip() + "\n")
    print(text)
