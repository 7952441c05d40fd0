"""The training state (weights, their moving average, optimizer), and how checkpoints save and restore it."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from scdiffkit.config import TrainConfig
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.errors import RunError
from scdiffkit.run import Run


class TrainState:
    """A denoiser, the exponential moving average of its weights (`ema`, None if not kept) and the optimizer.

    `optimizer` may be replaced before training begins, because Fabric wraps it.
    """

    def __init__(self, denoiser: Denoiser, c: TrainConfig, *, average: bool) -> None:
        self.denoiser, self.config = denoiser, c
        self.optimizer: Any = torch.optim.AdamW(
            denoiser.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True
        )
        self.ema = copy.deepcopy(denoiser).requires_grad_(False).eval() if average and c.ema_decay else None
        self._weights: list[Tensor] = []
        self._averages: list[Tensor] = []

    def to(self, device: torch.device) -> None:
        """Move the average to `device`, where the denoiser already is."""
        self._weights = [p.detach() for p in self.denoiser.parameters()]  # share memory with the parameters
        if self.ema:
            self._averages = list(self.ema.to(device).parameters())

    @property
    def trained(self) -> Denoiser:
        """The denoiser used for sampling: the averaged one if it is kept."""
        return self.ema or self.denoiser

    def set_learning_rate(self, step: int, max_steps: int) -> None:
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = learning_rate(self.config, step, max_steps)

    def average(self, step: int) -> None:
        """Update the average. Its decay is smaller in early steps, to forget the initial weights."""
        if self.ema and self.config.ema_decay:
            decay = min(self.config.ema_decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    def save(self, run: Run, step: int, val_loss: float | None) -> None:
        """Write a checkpoint. Raises RunError, without writing one, if weights are no longer finite."""
        if not torch.stack([p.isfinite().all() for p in self._weights]).all():
            raise RunError(
                f"The weights are no longer finite at step {step}; they were not saved. Start a new run with a "
                "smaller --lr, or with --precision 32."
            )
        weights = {k: v.contiguous() for k, v in self.denoiser.state_dict().items()}
        average = {k: v.contiguous() for k, v in self.ema.state_dict().items()} if self.ema else None
        moments = {
            f"{i}.{name}": value.contiguous()
            for i, entry in self.optimizer.state_dict()["state"].items()
            for name, value in entry.items()
        }
        run.save_checkpoint(step, weights, average, moments, val_loss, self.config.keep_checkpoints)

    def restore(self, run: Run) -> int:
        """Load the newest checkpoint and return its step."""
        saved = run.load_checkpoint()
        self.denoiser.load_state_dict(saved["weights"])
        if self.ema:
            self.ema.load_state_dict(saved["ema"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in saved["optimizer"].items():
            index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        return saved["state"]["step"]


def learning_rate(c: TrainConfig, step: int, max_steps: int) -> float:
    """Return the learning rate of a step: linear warm-up, then constant or a half cosine down to 1% of the peak."""
    warmup = min(1.0, step / max(1, c.warmup_steps))
    if c.lr_schedule == "constant":
        return c.lr * warmup
    progress = max(0, step - c.warmup_steps) / max(1, max_steps - c.warmup_steps)
    return c.lr * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
