"""What changes while a model is trained: weights, their moving average and the optimizer; to and from checkpoints."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from scdiffkit.config import TrainConfig
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.run import Run


def optimizer_of(denoiser: nn.Module, c: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(denoiser.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True)


def learning_rate(c: TrainConfig, step: int, max_steps: int) -> float:
    """Linear warm-up, then constant or a half cosine down to 1% of the peak."""
    warmup = min(1.0, step / max(1, c.warmup_steps))
    if c.lr_schedule == "constant":
        return c.lr * warmup
    progress = max(0, step - c.warmup_steps) / max(1, max_steps - c.warmup_steps)
    return c.lr * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def save_state(
    run: Run,
    step: int,
    denoiser: Denoiser,
    ema: Denoiser | None,
    optimizer: Any,
    val_loss: float | None,
    keep: int,
) -> None:
    weights = {k: v.contiguous() for k, v in denoiser.state_dict().items()}
    average = {k: v.contiguous() for k, v in ema.state_dict().items()} if ema else None
    moments = {
        f"{i}.{name}": value.contiguous()
        for i, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    run.save_checkpoint(step, weights, average, moments, val_loss, keep)


def restore_state(run: Run, denoiser: Denoiser, ema: Denoiser | None, optimizer: Any) -> int:
    saved = run.load_checkpoint()
    denoiser.load_state_dict(saved["weights"])
    if ema:
        ema.load_state_dict(saved["ema"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in saved["optimizer"].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return saved["state"]["step"]
