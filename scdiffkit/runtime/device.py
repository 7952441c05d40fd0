"""Choose the device and the precision. Training uses them through Lightning Fabric."""

from __future__ import annotations

import logging
import time
import warnings
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from joblib import cpu_count

from scdiffkit.errors import ConfigError

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # slow to import, and not needed for sampling

MIN_SPEEDUP = 1.5  # bfloat16 must be clearly faster: the measurement is noisy and the choice must be stable
PRECISIONS: dict[str, Any] = {"bf16": "bf16-mixed", "32": "32-true"}  # Fabric's names
log = logging.getLogger("scdiffkit")
logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # hides advice that every process would repeat


def make_fabric(device: str = "auto", precision: str = "auto") -> Fabric:
    """Make a Fabric on one device. Precision "auto" is bfloat16 if it is fast on the device, else float32.

    Raises ConfigError if the device does not exist.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment

    accelerator, precision = accelerator_of(device), precision_of(device, precision)
    index = int(device.partition(":")[2] or 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hides advice for cluster users
        fabric = Fabric(
            accelerator=accelerator,
            devices=[index] if accelerator == "cuda" else 1,
            precision=PRECISIONS[precision],
            plugins=[LightningEnvironment()],  # a single process, even within a distributed job
        )
    fabric.launch()
    log_device(accelerator, fabric.device, precision)
    return fabric


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context of a forward pass in precision bf16 or 32, equal to that of Fabric."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def device_of(device: str) -> torch.device:
    """Return the device that `make_fabric` would use."""
    return torch.device(device if ":" in device else accelerator_of(device))


def precision_of(device: str, precision: str = "auto") -> str:
    """Return the precision, bf16 or 32, with "auto" resolved for the device."""
    if precision != "auto":
        return precision
    return "bf16" if has_fast_bfloat16(accelerator_of(device)) else "32"


def devices_of(device: str, n: int) -> list[str]:
    """Return the device of each of n processes: GPUs 0 to n-1, or the CPU, whose cores they share.

    Raises ConfigError if there are fewer than n GPUs or cores, or if `device` names a single device.
    """
    accelerator = accelerator_of(device)
    if n == 1:
        return [device]
    if ":" in device:
        raise ConfigError(f"--device {device} is one device, and --devices asks for {n}: leave one of them out.")
    if accelerator == "cpu":
        cores = cpu_count()
        if n > cores:
            raise ConfigError(
                f"--devices {n} is more than the {cores} processor core{'s' * (cores > 1)} that this process may use: "
                f"give --devices {cores} or fewer."
            )
        return ["cpu"] * n
    there = torch.cuda.device_count() if accelerator == "cuda" else 1
    if n > there:
        raise ConfigError(
            f"--devices {n}: this machine has {there} {accelerator} device{'s' * (there > 1)}, so give at most "
            f"--devices {there}."
        )
    return [f"cuda:{k}" for k in range(n)]


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether an error means that memory of the device or the machine has run out."""
    if isinstance(e, MemoryError | torch.OutOfMemoryError):
        return True
    return "DefaultCPUAllocator" in str(e) or "not enough memory" in str(e)  # torch's messages on a CPU


def log_device(accelerator: str, device: torch.device, precision: str) -> None:
    name = torch.cuda.get_device_name(device) if accelerator == "cuda" else accelerator
    log.info("computing on %s in %s", name, {"bf16": "bfloat16", "32": "float32"}[precision])


def accelerator_of(device: str) -> str:
    """Return cpu, cuda or mps. Raises ConfigError if the device does not exist."""
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
    """Return whether bfloat16 is fast: known for GPUs, measured once on a CPU (MIN_SPEEDUP over float32)."""
    if accelerator == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if accelerator == "mps":
        return False
    return _seconds_of_product(torch.float32) > MIN_SPEEDUP * _seconds_of_product(torch.bfloat16)


def _seconds_of_product(dtype: torch.dtype, size: int = 384, repeats: int = 3) -> float:
    a = torch.ones(size, size, dtype=dtype)
    times = []
    for _ in range(repeats + 1):  # the first repeat is a warm-up
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return min(times[1:])
