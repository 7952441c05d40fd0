"""Which device and precision to compute with, through Lightning Fabric."""

from __future__ import annotations

import logging
import time
import warnings
from functools import lru_cache

import torch
from lightning_fabric import Fabric

from scdiffkit.errors import ConfigError

MIN_SPEEDUP = 1.5  # bfloat16 must be clearly faster: the measurement is noisy and the choice must be stable
log = logging.getLogger("scdiffkit")


def make_fabric(device: str = "auto", precision: str = "auto") -> Fabric:
    """A Fabric on one device. precision "auto": bfloat16 where the device computes it fast, else float32.

    Raises ConfigError when the device is not there.
    """
    accelerator = _accelerator(device)
    if precision == "auto":
        precision = "bf16" if has_fast_bfloat16(accelerator) else "32"
    index = int(device.partition(":")[2] or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for cluster users
        fabric = Fabric(
            accelerator=accelerator,
            devices=[index] if accelerator == "cuda" else 1,
            precision={"bf16": "bf16-mixed", "32": "32-true"}[precision],  # type: ignore[arg-type]
        )
    fabric.launch()
    name = torch.cuda.get_device_name(fabric.device) if accelerator == "cuda" else accelerator
    log.info("computing on %s in %s", name, {"bf16": "bfloat16", "32": "float32"}[precision])
    return fabric


def _accelerator(device: str) -> str:
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    name, _, index = device.partition(":")
    if not there[name] or (index and int(index) >= torch.cuda.device_count()):
        found = ", ".join(n for n, ok in there.items() if ok)
        raise ConfigError(f"There is no device {device!r} on this machine; there is: {found}. Use --device auto.")
    return name


@lru_cache
def has_fast_bfloat16(accelerator: str) -> bool:
    """Whether bfloat16 matrix products beat float32 by MIN_SPEEDUP: known for GPUs, measured once on a CPU."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "mps":
        return False
    return _seconds_of_product(torch.float32) > MIN_SPEEDUP * _seconds_of_product(torch.bfloat16)


def _seconds_of_product(dtype: torch.dtype, size: int = 384, repeats: int = 3) -> float:
    a = torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(repeats + 1):  # the first one warms up
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times[1:])
