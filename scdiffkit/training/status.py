"""Where training stands, as callers are told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TrainStatus:
    """Where training stands. Losses: of the codec in nats a cell, of diffusion the prediction's mean squared error."""

    stage: Literal["codec", "diffusion"]
    step: int
    max_steps: int
    loss: float
    val_loss: float | None
    cells_per_s: float
    seconds: float
