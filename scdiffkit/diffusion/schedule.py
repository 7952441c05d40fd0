"""The forward process: noise schedules, and the remaining signal at step t of T.

Source: DDPM (Ho et al. 2020) for the linear schedule, Nichol & Dhariwal 2021 for the cosine one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from scdiffkit.config import DiffusionConfig
from scdiffkit.errors import ConfigError

Spacing = Literal["linspace", "trailing"]


@dataclass(frozen=True)
class Schedule:
    """A noise schedule, defined by betas (T,) in float64.

    The forward process is `x_t = sqrt(alphas_cumprod[t]) * x0 + sqrt(1 - alphas_cumprod[t]) * eps`, t in 0..T-1.
    """

    betas: Tensor  # (T,)

    @classmethod
    def linear(cls, num_train_timesteps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> Schedule:
        return cls(torch.linspace(beta_start, beta_end, num_train_timesteps, dtype=torch.float64))

    @classmethod
    def cosine(cls, num_train_timesteps: int, offset: float = 0.008, max_beta: float = 0.999) -> Schedule:
        u = torch.arange(num_train_timesteps + 1, dtype=torch.float64) / num_train_timesteps
        alpha_bar = torch.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta))

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Schedule:
        if config.schedule == "cosine":
            return cls.cosine(config.num_train_timesteps)
        assert config.beta_start is not None
        assert config.beta_end is not None
        return cls.linear(config.num_train_timesteps, config.beta_start, config.beta_end)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        return torch.cumprod(1 - self.betas, dim=0)  # (T,)

    @cached_property
    def _tables(self) -> dict[torch.device, Tensor]:
        return {}

    @property
    def num_train_timesteps(self) -> int:
        return len(self.betas)

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return sqrt(alphas_cumprod[t]) and sqrt(1 - alphas_cumprod[t]), each (B, 1), in the dtype of `like`."""
        a = self._alphas_cumprod_at(t)[:, None]  # float64 up to the square root: 1 - a is tiny at t=0
        return a.sqrt().to(like.dtype), (1 - a).sqrt().to(like.dtype)

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t (B, D) for x0 (B, D), eps (B, D) and t (B,)."""
        signal, noise = self.signal_and_noise(t, x0)
        return signal * x0 + noise * eps

    def snr(self, t: Tensor) -> Tensor:
        """Return the signal-to-noise ratio (B,) at t (B,), in float64."""
        a = self._alphas_cumprod_at(t)
        return a / (1 - a)

    def _alphas_cumprod_at(self, t: Tensor) -> Tensor:
        """Return alphas_cumprod[t] (B,) in float64. The table stays on the device of t: copies would stall a GPU."""
        table = self._tables.get(t.device)
        if table is None:
            table = self._tables[t.device] = self.alphas_cumprod.to(t.device)
        return table[t]

    def timesteps(self, n: int, spacing: Spacing = "linspace") -> list[int]:
        """Return n evenly spaced steps from T-1 down to 0 ("linspace"; only T-1 for n=1) or T/n - 1 ("trailing").

        With "trailing", the last step is as long as the others. "linspace" spends a network call on the little noise
        that is left at 0, and the two steps before it differ widely in log-SNR, which harms a multistep sampler.
        Raises ConfigError if n is not in 1..T.

        Source: the names follow Lin et al. 2023 (arXiv 2305.08891), table 2.
        """
        T = self.num_train_timesteps
        if not 1 <= n <= T:
            raise ConfigError(f"The number of sampling steps must be in 1..{T}, not {n}.")
        if spacing == "trailing":
            return [round(T * (n - i) / n) - 1 for i in range(n)]
        if n == 1:
            return [T - 1]
        return [round((T - 1) * (n - 1 - i) / (n - 1)) for i in range(n)]
