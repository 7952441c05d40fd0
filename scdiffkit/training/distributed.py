"""Distributed training on one machine or several: how ranks are started and how they communicate.

There is one process per device. torchrun and SLURM's srun start all ranks with the same command. Otherwise rank 0
starts the other ranks on its machine once the data are prepared.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing.spawn
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from joblib import cpu_count

from scdiffkit.errors import ConfigError, RunError
from scdiffkit.runtime.device import PRECISIONS, accelerator_of, log_device, make_fabric, precision_of

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STEP_TIMEOUT = timedelta(seconds=50)  # timeout within a step
VALIDATION_TIMEOUT = timedelta(hours=1)  # timeout while rank 0 validates, or saves to a slow disk
PREPARATION_TIMEOUT = timedelta(days=30)  # timeout while rank 0 prepares the data
READY = b"ready\n"  # a spawned rank prints this once its imports are done
log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class ProcessGroup:
    """This process within its process group. Rank 0 prepares the data, reports progress and saves checkpoints."""

    fabric: Fabric
    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def broadcast(self, value: Any) -> Any:
        """Wait for rank 0 and return its value."""
        if self.size == 1:
            return value
        values = [value]
        with failing_together():
            dist.broadcast_object_list(values, src=0, group=_group(PREPARATION_TIMEOUT), device=torch.device("cpu"))
        return values[0]

    def any_stop(self, stop: bool) -> bool:
        """Wait for all ranks to call this, and return whether any of them passed True."""
        if self.size == 1:
            return stop
        flag = torch.tensor([stop], dtype=torch.uint8)
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=_group(VALIDATION_TIMEOUT))
        return bool(flag.item())


_groups: dict[timedelta, Any] = {}


def _group(timeout: timedelta) -> Any:
    """Return a CPU (gloo) group of all ranks, which may wait for `timeout` but notice at once if a rank ends."""
    if timeout not in _groups:
        _groups[timeout] = dist.new_group(backend="gloo", timeout=timeout)
    return _groups[timeout]


def launcher() -> Literal["torchrun", "srun"] | None:
    """Return the launcher that started this process as one of several, if any."""
    if not any(name.startswith(("SLURM_", "LOCAL_RANK")) for name in os.environ):
        return None  # without the slow import
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment

    if TorchElasticEnvironment.detect():
        return "torchrun"
    # Only srun sets the variable of the step; SLURM_NTASKS is also set in a batch script that does not use srun.
    if SLURMEnvironment.detect() and int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        return "srun"
    return None


def world_size_from_environment(devices: int = 1, num_nodes: int = 1) -> int:
    """Return the number of processes that torchrun or srun started for this training, or 0 without a launcher.

    Raises ConfigError if `devices` x `num_nodes` asks for another number.
    """
    asked = devices * num_nodes
    if launcher() == "torchrun":
        size = int(os.environ["WORLD_SIZE"])
        if asked not in (1, size):
            raise ConfigError(
                f"torchrun started {size} processes, but --devices {devices} x --num-nodes {num_nodes} asks for "
                f"{asked}: give the number to torchrun alone."
            )
        return size if size > 1 else 0
    if launcher() == "srun":
        size = int(os.environ["SLURM_STEP_NUM_TASKS"])
        if size == asked:
            return size
        raise ConfigError(
            f"srun started {size} processes, but --devices {devices} x --num-nodes {num_nodes} asks for {asked}: give "
            f"the processes on each machine as --devices and the machines as --num-nodes. For {asked}: srun --nodes "
            f"{num_nodes} --ntasks-per-node {devices}."
        )
    if num_nodes > 1:
        raise ConfigError(
            f"--num-nodes {num_nodes}: the other machines' processes must be started from outside. Start the same "
            f"command on each machine: torchrun --nnodes {num_nodes} --nproc-per-node {devices} --rdzv-backend c10d "
            f"--rdzv-endpoint HOST:29500 -m scdiffkit train ..., or with srun --nodes {num_nodes} "
            f"--ntasks-per-node {devices}. For this machine alone: --num-nodes 1."
        )
    return 0


def is_main_process(devices: int = 1, num_nodes: int = 1) -> bool:
    """Return whether this process is rank 0 or the only process."""
    if not world_size_from_environment(devices, num_nodes):
        return True
    return os.environ["RANK" if launcher() == "torchrun" else "SLURM_PROCID"] == "0"


def init_process_group(device: str, precision: str, devices: int = 1, num_nodes: int = 1) -> ProcessGroup:
    """Join the process group; every rank calls this. Raises ConfigError for devices that do not exist."""
    size = world_size_from_environment(devices, num_nodes)
    if not size and devices == 1:
        return ProcessGroup(make_fabric(device, precision))
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    accelerator = accelerator_of(device)
    srun = launcher() == "srun"
    local = devices if srun else int(os.environ.get("LOCAL_WORLD_SIZE", devices))
    total = devices * num_nodes if srun else int(os.environ.get("WORLD_SIZE", devices))
    if accelerator == "cuda" and local > torch.cuda.device_count():
        raise ConfigError(
            f"{local} processes on this machine see {torch.cuda.device_count()} GPUs: start as many as there are GPUs, "
            "and let each see all of them (srun --gpus-per-node, not --gpus-per-task)."
        )
    precision = precision_of(device, precision)
    strategy = DDPStrategy(timeout=STEP_TIMEOUT, gradient_as_bucket_view=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hides advice for cluster users
        try:
            fabric = Fabric(
                accelerator=accelerator,
                devices=local,
                num_nodes=max(1, total // local),
                strategy=strategy,
                precision=PRECISIONS[precision],
                plugins=[SLURMEnvironment(auto_requeue=False) if srun else TorchElasticEnvironment()],
            )
        except (ValueError, MisconfigurationException) as e:
            raise ConfigError(f"These processes cannot train together: {e}") from e
    with failing_together():
        fabric.launch()
        for timeout in (VALIDATION_TIMEOUT, PREPARATION_TIMEOUT):
            _group(timeout)  # a collective call
    group = ProcessGroup(fabric, fabric.global_rank, fabric.world_size)
    if group.is_main:
        log_device(accelerator, fabric.device, precision)
        log.info("%d processes share every batch", group.size)
    return group


@contextlib.contextmanager
def spawn_ranks(command: list[str], devices: int) -> Iterator[None]:
    """Start ranks 1..devices-1 on this machine and make this process rank 0.

    The environment variables of the group are set within the block. On exit the other ranks are ended.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    threads = max(1, cpu_count() // devices)
    shared = {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
    }
    before = dict(os.environ)  # Fabric also changes it (number of threads)
    of_torch = torch.get_num_threads()
    others: list[subprocess.Popen[bytes]] = []
    executable = os.fsdecode(multiprocessing.spawn.get_executable() or sys.executable)  # inside R, sys.executable is R
    try:
        for rank in range(1, devices):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": str(threads)}
            environment = {**os.environ, **shared, **own, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            # In a new session, Ctrl-C reaches rank 0 only, which stops the others.
            others.append(
                subprocess.Popen(
                    [executable, *command], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                    start_new_session=True,
                )
            )  # fmt: skip
        for rank, other in enumerate(others, start=1):
            assert other.stdout
            if not any(line == READY for line in other.stdout):  # no timeout: imports may take long
                raise RunError(
                    f"Process {rank} of {devices} could not start (exit code {other.wait()}); its messages are "
                    "above. Give --devices 1."
                )
        os.environ.update({**shared, "RANK": "0", "LOCAL_RANK": "0"})
        torch.set_num_threads(threads)
        yield
    finally:
        shutdown()
        torch.set_num_threads(of_torch)
        os.environ.clear()
        os.environ.update(before)
        for other in others:
            try:
                other.wait(10)
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()
            if other.stdout:
                other.stdout.close()


def shutdown() -> None:
    """Leave the process group. The other ranks notice the closed connections."""
    _groups.clear()
    if dist.is_initialized():
        with contextlib.suppress(Exception):  # the group may be broken already
            dist.destroy_process_group()


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """Raise RunError if another rank is lost."""
    try:
        yield
    except RuntimeError as e:
        if not (isinstance(e, dist.DistError) or "gloo" in str(e).lower() or "nccl" in str(e).lower()):
            raise
        reason = str(e).splitlines()[0][:200]
        raise RunError(
            f"Another process of this training has ended, or cannot be reached ({reason}). Look for the message of "
            "that process, and continue from the last checkpoint with --resume."
        ) from e
