"""The status of training, for callbacks and metrics.jsonl, and the conditions that end training."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from scdiffkit.config import TrainConfig
from scdiffkit.run import Run


@dataclass(frozen=True)
class TrainStatus:
    """The status of training. The codec's losses are in nats per cell, those of diffusion are mean squared errors."""

    stage: Literal["codec", "diffusion"]
    step: int
    max_steps: int
    loss: float
    val_loss: float | None
    cells_per_s: float
    seconds: float

    def progress(self) -> tuple[float, str, float]:
        """Return the steps done, a line of text for the progress bar, and the number of steps."""
        held_out = "" if self.val_loss is None else f", held out {self.val_loss:.4f}"
        note = f"{self.stage}: loss {self.loss:.4f}{held_out}, {self.cells_per_s:.0f} cells/s"
        return self.step, note, self.max_steps

    def figures(self) -> dict[str, Any]:
        """Return a line of metrics.jsonl."""
        values = {key: value for key, value in vars(self).items() if key != "stage"}
        return {key: round(value, 6) if isinstance(value, float) else value for key, value in values.items()}


class LossMeter:
    """Mean loss and cells per second since the last status."""

    def __init__(self, device: torch.device, started: float) -> None:
        self.started, self.last = started, time.monotonic()
        self._sum, self._steps = torch.zeros((), device=device), 0

    def add(self, loss: Tensor) -> None:
        self._sum += loss
        self._steps += 1

    def status(self, step: int, max_steps: int, val_loss: float | None, batch_size: int) -> TrainStatus:
        """Return the status and reset loss and speed."""
        now = time.monotonic()
        rate = self._steps * batch_size / max(now - self.last, 1e-9)
        loss = self._sum.item() / self._steps
        self._sum.zero_()
        self._steps, self.last = 0, now
        return TrainStatus("diffusion", step, max_steps, loss, val_loss, rate, now - self.started)


class Best:
    """The step with the lowest held-out loss; `loss` is None before the first validation."""

    def __init__(self, run: Run, first_step: int) -> None:
        self.step = run.best_step() or first_step
        self.loss = next((m["val_loss"] for m in reversed(run.metrics()) if m["step"] == self.step), None)

    def improved(self, step: int, val_loss: float) -> bool:
        if self.loss is not None and val_loss >= self.loss:
            return False
        self.loss, self.step = val_loss, step
        return True


class Stopper:
    """Decide when to stop: at the last step, at the deadline, on an interrupt, or when the held-out loss plateaus.

    `deadline` is on the monotonic clock. `validated` is True if a held-out loss is computed.
    """

    def __init__(
        self, c: TrainConfig, max_steps: int, deadline: float, interrupted: threading.Event, *, validated: bool
    ) -> None:
        self.max_steps, self.deadline, self.interrupted = max_steps, deadline, interrupted
        self.patience = c.patience * c.val_every_steps if c.patience and validated else math.inf
        self.out_of_time = False

    def ends(self, step: int) -> bool:
        """Return whether training ends at this step, regardless of the held-out loss."""
        self.out_of_time = time.monotonic() >= self.deadline
        return self.interrupted.is_set() or self.out_of_time or step == self.max_steps

    def converged(self, step: int, best: Best) -> bool:
        return step - best.step >= self.patience

    def reason(self, best: Best) -> str:
        return (
            "time is up (--resume continues)" if self.out_of_time else f"no lower held-out loss since step {best.step}"
        )
