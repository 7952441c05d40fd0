"""A training step on a device: compute the gradients of a batch with as few kernel launches as possible."""

from __future__ import annotations

import contextlib
import logging
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.errors import ConfigError
from scdiffkit.models.dit import DiT
from scdiffkit.runtime.device import is_out_of_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

COMPILED_FROM = 10_000  # steps from which 10 to 30 seconds of compiling pay off on a GPU
WARM_UP = 3  # steps before recording, in which libraries choose kernels and allocate memory
Batch = tuple[Tensor, Tensor, Tensor, Tensor]
T = TypeVar("T")
log = logging.getLogger("scdiffkit")


def pays_to_compile(network: nn.Module, device: torch.device, steps: int) -> bool:
    """Return whether to compile a network by default for `steps` steps.

    This is the case for a transformer on a GPU, with Triton and a C compiler. No timing enters the decision, so runs
    are reproducible.
    """
    if device.type != "cuda" or steps < COMPILED_FROM or not isinstance(network, DiT):
        return False
    compiler = shutil.which("gcc") or shutil.which("cc")
    return bool(compiler) and find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= (7, 0)


def compile_in_place(denoiser: Denoiser) -> list[nn.Module]:
    """Compile a denoiser in parts and return these. All blocks of a transformer share one compilation."""
    torch.compiler.reset()  # torch counts compilations per process and stops at a limit
    parts: list[nn.Module] = [denoiser.network]
    if isinstance(denoiser.network, DiT):
        parts = [denoiser.network.x_embedder, *denoiser.network.blocks, denoiser.network.final_layer]
    if denoiser.head is not None:
        parts.append(denoiser.head)
    for part in parts:
        part.compile(dynamic=False)
    return parts


def clip(model: nn.Module, max_norm: float) -> None:
    """Clip gradients to a norm of `max_norm`.

    torch also multiplies gradients below the limit (by 1). On a CPU that pass costs more than the norm, so it is
    skipped.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if gradients[0].device.type == "cpu" and torch.stack([g.norm() for g in gradients]).norm() <= max_norm:
        return
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)


class TrainStep:
    """Compute the gradients of a batch of `batch_size` cells, shared by `size` processes.

    If memory does not hold the batch, it is split into micro-batches (gradient accumulation), with the same result. On
    one GPU the kernels of a step are recorded as a CUDA graph and launched at once, because launching them one by one
    takes longer than a small network computes. `optional` are the parts of the network that were compiled by default
    and also work uncompiled.
    """

    def __init__(
        self,
        fabric: Fabric,
        size: int,
        model: nn.Module,
        optimizer: Any,
        batch_size: int,
        optional: Sequence[nn.Module] = (),
    ) -> None:
        self.fabric, self.size, self.model, self.optimizer, self.optional = fabric, size, model, optimizer, optional
        self.batch_size = self.at_once = batch_size
        self.recorded: _Recorded | None = None
        self.stream = torch.cuda.Stream(fabric.device) if fabric.device.type == "cuda" and size == 1 else None
        self.until_recorded = WARM_UP if self.stream else math.inf

    def __call__(self, batch: Batch) -> Tensor:
        """Return the mean loss of this process's cells; the gradients are those of the mean over the whole batch."""
        if self.until_recorded == 0 and self.at_once >= self.batch_size and not self.recorded:
            self._record(batch)
        if self.recorded:
            return self.recorded(batch)
        self.until_recorded -= 1
        while True:
            try:
                with _on(self.stream):
                    return self._accumulate(batch)
            except (MemoryError, RuntimeError) as e:  # includes torch.OutOfMemoryError
                if type(e).__module__.startswith(("torch._dynamo", "torch._inductor", "triton")):
                    said = " ".join(str(e).split())[:200]
                    if not self.optional:
                        raise ConfigError(
                            f"train.compile: the network cannot be compiled here ({said}). It needs a C++ compiler, "
                            "and on a GPU Triton: install them, or give --set train.compile=false."
                        ) from e
                    log.warning("the network cannot be compiled here and is trained without compilation (%s)", said)
                    for part in self.optional:
                        part._compiled_call_impl = None  # undoes `compile`; torch has no public way
                    self.optional = ()
                    continue
                if not is_out_of_memory(e):
                    raise
                here = min(self.at_once, len(batch[0]))
                if here == 1 or self.size > 1:
                    raise ConfigError(
                        f"{here} cells and this model do not fit into memory: give a smaller --batch-size or model"
                        + (", or more devices." if self.size > 1 else ".")
                    ) from e
                self.at_once = math.ceil(here / 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.warning(
                "a batch of %d cells does not fit into memory: it is split into micro-batches of %d, with the "
                "same result",
                here, self.at_once,
            )  # fmt: skip

    def _accumulate(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        n = len(batch[0])
        total = torch.zeros((), device=self.fabric.device)
        for start in range(0, n, self.at_once):
            x0, conditions, t, eps = (values[start : start + self.at_once] for values in batch)
            losses = self.model(x0, conditions, t, eps)
            # Fabric averages over processes, whose numbers of cells may differ: scale to the whole batch.
            self.fabric.backward(losses.sum() * (self.size / self.batch_size))
            total += losses.detach().sum()
        return total / n

    def without_graph_on_oom(self, work: Callable[[], T]) -> T:
        """Return the result of `work`; if memory runs out, drop the CUDA graph, which holds memory, and try again."""
        try:
            return work()
        except RuntimeError as e:
            if self.recorded is None or not is_out_of_memory(e):
                raise
        self.recorded = None
        self._free()
        log.info(
            "the CUDA graph of a step and the held-out cells do not fit into memory together: steps run "
            "without a CUDA graph"
        )
        return work()

    def _record(self, batch: Batch) -> None:
        assert self.stream
        self.until_recorded = math.inf  # recording is tried once
        self._free()  # a CUDA graph has a memory pool of its own and cannot use cached memory
        # Restore the current stream if the recording fails.
        with torch.cuda.stream(torch.cuda.current_stream(self.stream.device)):
            try:
                self.recorded = _Recorded(self._accumulate, batch, self.stream)
            except RuntimeError as e:
                log.info("steps run without a CUDA graph: %s", " ".join(str(e).split())[:200])
        if not self.recorded:
            self._free()

    def _free(self) -> None:
        self.optimizer.zero_grad()
        torch.cuda.empty_cache()


@contextlib.contextmanager
def _on(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Run the block on `stream`, on which steps are also recorded, in order with the work before and after it."""
    if stream is None:
        yield
        return
    stream.wait_stream(torch.cuda.current_stream(stream.device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(stream.device).wait_stream(stream)


class _Recorded:
    """A recorded step (CUDA graph), replayed with each batch. Gradients keep the addresses of the recording."""

    def __init__(self, step: Callable[[Batch], Tensor], batch: Batch, stream: torch.cuda.Stream) -> None:
        self.batch = cast(Batch, tuple(values.clone() for values in batch))
        self.graph = torch.cuda.CUDAGraph()
        # Capture this thread only: another one makes batches at the same time.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            self.loss = step(self.batch)

    def __call__(self, batch: Batch) -> Tensor:
        for mine, given in zip(self.batch, batch, strict=True):
            mine.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.loss
