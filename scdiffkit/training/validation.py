"""The loss on held-out cells during training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from scdiffkit.codecs import Codec
from scdiffkit.config import RunConfig
from scdiffkit.data.cells import TrainingCells
from scdiffkit.diffusion.denoiser import Denoiser

if TYPE_CHECKING:
    from lightning_fabric import Fabric

MAX_VAL_CELLS = 1024  # enough to see a trend, and fast enough for frequent validation


class Validation:
    """The loss on held-out cells, with fixed noise and timesteps so that values of different steps are comparable."""

    def __init__(
        self,
        cells: TrainingCells,
        codec: Codec,
        rows: np.ndarray,
        run_config: RunConfig,
        fabric: Fabric,
    ) -> None:
        self.fabric, self.batches = fabric, []
        rows = rows[:: max(1, math.ceil(len(rows) / MAX_VAL_CELLS))]
        generator = torch.Generator().manual_seed(run_config.seed)
        last = run_config.diffusion.num_train_timesteps - 1
        t = torch.linspace(0, last, max(len(rows), 1)).round().long()
        t = t[torch.randperm(len(t), generator=generator)]
        held_out = cells.take(rows)
        for start in range(0, len(rows), run_config.train.batch_size):
            part = slice(start, start + run_config.train.batch_size)
            counts, library_size, codes = held_out.batch(np.arange(len(rows))[part])
            x0 = codec.encode(counts, library_size, codes, generator=generator)
            eps = torch.randn(x0.shape, generator=generator)
            self.batches.append(tuple(a.to(fabric.device) for a in (x0, codes, t[part], eps)))

    def __bool__(self) -> bool:
        return bool(self.batches)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser) -> float:
        with self.fabric.autocast():
            losses = [denoiser(*batch) for batch in self.batches]
        return torch.cat(losses).mean().item()
