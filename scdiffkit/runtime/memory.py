"""Available memory, its release to the operating system, and its formatting."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def trim_memory() -> None:
    """Return freed heap memory to the operating system (malloc_trim); glibc would keep it after a pass over a file."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> float:
    """Return the bytes that this process can still allocate, given the limits of machine, container and job."""
    import psutil

    return max(0.0, min([float(psutil.virtual_memory().available), *_left_of_limits()]))


def _left_of_limits(root: Path = Path("/")) -> Iterator[float]:
    """Yield the bytes left under each limit of Linux control groups, which containers and SLURM jobs set."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # control groups, version 2
            top, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cache = root / "sys/fs/cgroup/memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        lowest = top / group.lstrip("/")
        for folder in [lowest, *lowest.parents]:
            with suppress(OSError, ValueError):  # a missing file, or "max", means no limit
                kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                in_use = float((folder / used).read_text()) - float(kinds.get(cache, 0))  # cached files are reclaimable
                yield float((folder / limit).read_text()) - in_use
            if folder == top:
                break


def in_bytes(n: float) -> str:
    """Format bytes: 1.5e9 -> "1.5 GB"."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
