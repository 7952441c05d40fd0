"""Memory that is free, in words, and given back."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def trim_memory() -> None:
    """Memory that a pass over a file has left free between what stays goes back to the system; glibc would keep it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> float:
    """Bytes that this process can still have: of the machine, or of the container or job it runs in."""
    import psutil

    return max(0.0, min([float(psutil.virtual_memory().available), *_left_of_limits()]))


def _left_of_limits(root: Path = Path("/")) -> Iterator[float]:
    """Bytes left under each limit that Linux's control groups set for this process: of a container, of a SLURM job."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cache = root / "sys/fs/cgroup/memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        lowest = top / group.lstrip("/")
        for folder in [lowest, *lowest.parents]:
            with suppress(OSError, ValueError):  # not there, or "max": no limit
                kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                in_use = float((folder / used).read_text()) - float(kinds.get(cache, 0))  # files read are given up
                yield float((folder / limit).read_text()) - in_use
            if folder == top:
                break


def in_bytes(n: float) -> str:
    """1.5e9 -> "1.5 GB"."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"
