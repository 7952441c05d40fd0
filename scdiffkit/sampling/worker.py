"""Draw the cells of a batch on one device."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, nn

from scdiffkit.data.cells import LIBRARY_SIZE
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.diffusion.samplers import ddim, ddpm, dpm
from scdiffkit.errors import RunError
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.run import Run, TrainedModel
from scdiffkit.runtime.device import accelerator_of, autocast, device_of, is_out_of_memory, log_device
from scdiffkit.sampling.plan import BatchRequest, SamplingPlan

log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class Batch:
    """A batch of decoded cells: X (log-normalised) and counts (raw integers) are CSR (B, G), obs has B rows."""

    X: sparse.csr_matrix
    counts: sparse.csr_matrix
    obs: pd.DataFrame


class BatchSampler:
    """Draws batches of cells from a run on one device. Several threads may call it."""

    def __init__(self, model: TrainedModel | Run, plan: SamplingPlan, device: str) -> None:
        """Load the model. In a worker process, `model` is a Run, which is read from disk."""
        model = model.load() if isinstance(model, Run) else model
        self.plan = plan
        self.device, self.precision = device_of(device), plan.config.precision
        log_device(accelerator_of(device), self.device, self.precision)
        self.denoiser, self.codec = model.denoiser().to(self.device), model.codec
        self.network = self.denoiser.network = _Network(self.denoiser.network, plan.config.batch_size)
        self.conditions = model.conditions

    def __call__(self, job: BatchRequest) -> Batch:
        try:
            with torch.inference_mode(), autocast(self.device, self.precision):
                raw, size = self._drawn(job)
            X = lognormalise(raw, self.codec.target_sum, size)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
            fewer = " or fewer --devices" if self.plan.config.devices > 1 else ""
            raise RunError(
                f"A batch of {len(job.codes)} cells does not fit into memory: give a smaller --batch-size{fewer}."
            ) from e
        obs = self.conditions.decode(job.codes)
        obs[LIBRARY_SIZE] = size
        obs.index = self.plan.request.names(job.start, len(job.codes))
        return Batch(X, raw.astype(np.int32), obs)

    def _drawn(self, job: BatchRequest) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Draw raw counts (B, G) and library sizes (B,)."""
        device = self.device
        generators = [torch.Generator(device).manual_seed(self.plan.request.seed_of_block(i)) for i, _ in job.blocks]
        codes = torch.from_numpy(job.codes).to(device)

        def noise(x: Tensor) -> Tensor:
            parts = [
                torch.randn(part.shape, generator=generator, device=device, dtype=x.dtype)
                for part, generator in zip(x.split(job.block), generators, strict=True)
            ]
            return torch.cat(parts)

        x0 = _diffuse(self.denoiser, codes, self.codec.dim, self.plan, noise)
        parts, sizes = [], []
        for generator, (_, cells) in zip(generators, job.blocks, strict=True):
            size = None if job.sizes is None else torch.from_numpy(job.sizes[cells]).to(device)
            if size is not None:
                size = _match_ranks(size, self.codec.library_size(x0[cells]), codes[cells])
            counts, library_size = self.codec.decode(x0[cells], codes[cells], size, generator)
            parts.append(_csr(counts.cpu()))
            sizes.append(library_size.cpu().numpy())
        return sparse.vstack(parts, format="csr"), np.concatenate(sizes)


class _Network(nn.Module):
    """A network that evaluates at most `most` cells at once, fewer if memory runs out, and can be stopped."""

    def __init__(self, network: nn.Module, most: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.most = most
        self.stopped = threading.Event()

    def forward(self, x_t: Tensor, t: Tensor, conditions: Tensor | None = None) -> Tensor:
        while True:
            if self.stopped.is_set():
                raise CancelledError
            most = min(self.most or len(x_t), len(x_t))
            parts = (a.split(most) for a in (x_t, t, *(() if conditions is None else (conditions,))))
            try:
                return torch.cat([self.network(*part) for part in zip(*parts, strict=True)])
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
            # The noise is drawn for the whole batch, so smaller parts give the same cells.
            self.most = most // 2
            log.info("%d cells do not fit into memory at once: the network processes %d at a time", most, self.most)
            if x_t.is_cuda:
                torch.cuda.empty_cache()


def _csr(counts: torch.Tensor) -> sparse.csr_matrix:
    """Convert dense counts (B, G) on the CPU to CSR; torch finds nonzeros several times as fast as scipy."""
    row, column = counts.nonzero(as_tuple=True)
    starts = F.pad(torch.bincount(row, minlength=len(counts)).cumsum(0), (1, 0))
    arrays = (counts[row, column], column.to(torch.int32), starts.to(torch.int32))
    return sparse.csr_matrix(tuple(a.numpy() for a in arrays), shape=counts.shape)


def _match_ranks(sizes: torch.Tensor, drawn: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Permute library sizes (B,) among cells with equal codes (B, K) so that they rank as the sizes `drawn` (B,) do.

    The content of a cell depends on its library size: a cell drawn as small would be unrealistic at a large size.
    """
    _, combination = torch.unique(F.pad(codes, (0, 1)), dim=0, return_inverse=True)  # torch refuses K = 0
    by_size, by_drawn = (_sorted_within(values, combination) for values in (sizes, drawn))
    return torch.empty_like(sizes).index_copy_(0, by_drawn, sizes[by_size])


def _sorted_within(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Return the indices that sort `values` (B,) by `group` (B,), and by value within a group."""
    by_value = values.argsort(stable=True)
    return by_value[group[by_value].argsort(stable=True)]


def _diffuse(
    denoiser: Denoiser,
    codes: torch.Tensor,
    dim: int,
    plan: SamplingPlan,
    noise: Callable[[Tensor], Tensor],
) -> torch.Tensor:
    """Sample x0 (B, D) for codes (B, K) from new noise."""
    x = noise(torch.empty(len(codes), dim, device=codes.device))
    conditions = codes if codes.shape[1] else None
    if plan.config.sampler == "ddpm":
        path = ddpm(denoiser, x, conditions=conditions, cfg_scale=plan.guidance, noise=noise)
    elif plan.config.sampler == "dpm++":
        timesteps = denoiser.schedule.timesteps(plan.steps, "trailing")
        path = dpm(denoiser, x, timesteps, conditions=conditions, cfg_scale=plan.guidance)
    else:
        path = ddim(
            denoiser, x, denoiser.schedule.timesteps(plan.steps),
            conditions=conditions, eta=plan.config.eta, cfg_scale=plan.guidance, noise=noise,
        )  # fmt: skip
    for _, x in path:  # noqa: B007
        pass
    return x
