"""Samplers that turn noise into x0 step by step. They deal with vectors and steps, not with cells.

Each sampler is a generator that yields `(t, x)` after every step, so the caller can show progress and stop. The last x
is the sample. `cfg_scale` is one guidance scale, or one for each column of conditions (see Denoiser.predict).
`noise(x)` draws standard normal noise of the shape of x (B, D).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from scdiffkit.diffusion.denoiser import Denoiser


def ddim(
    denoiser: Denoiser,
    x: Tensor,
    timesteps: Sequence[int],
    *,
    conditions: Tensor | None = None,
    eta: float = 0.0,
    cfg_scale: float | Sequence[float] = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[tuple[int, Tensor]]:
    """Sample with DDIM, from x (B, D) at timesteps[0] = T-1 downwards. eta 0 is deterministic, 1 as noisy as DDPM.

    Source: DDIM (Song et al. 2021), eq. 12 and 16.
    """
    alphas = denoiser.schedule.alphas_cumprod
    for i, step in enumerate(timesteps):
        a = alphas[step].item()
        a_prev = alphas[timesteps[i + 1]].item() if i + 1 < len(timesteps) else 1.0
        x0, eps = denoiser.predict(x, _at(step, x), conditions, cfg_scale)
        sigma = eta * ((1 - a_prev) / (1 - a) * (1 - a / a_prev)) ** 0.5
        x = a_prev**0.5 * x0 + (1 - a_prev - sigma**2) ** 0.5 * eps
        if sigma > 0:
            x = x + sigma * noise(x)
        yield step, x


def ddpm(
    denoiser: Denoiser,
    x: Tensor,
    *,
    conditions: Tensor | None = None,
    cfg_scale: float | Sequence[float] = 1.0,
    noise: Callable[[Tensor], Tensor] = torch.randn_like,
) -> Iterator[tuple[int, Tensor]]:
    """Sample with DDPM (ancestral sampling) over all T steps, with the posterior variance.

    Source: DDPM (Ho et al. 2020), eq. 6-7.
    """
    alphas, betas = denoiser.schedule.alphas_cumprod, denoiser.schedule.betas
    for step in range(denoiser.schedule.num_train_timesteps - 1, -1, -1):
        a, beta = alphas[step].item(), betas[step].item()
        a_prev = alphas[step - 1].item() if step > 0 else 1.0
        x0, _ = denoiser.predict(x, _at(step, x), conditions, cfg_scale)
        mean = a_prev**0.5 * beta / (1 - a) * x0 + (1 - beta) ** 0.5 * (1 - a_prev) / (1 - a) * x
        sigma = (beta * (1 - a_prev) / (1 - a)) ** 0.5
        x = mean + sigma * noise(x) if sigma > 0 else mean
        yield step, x


def dpm(
    denoiser: Denoiser,
    x: Tensor,
    timesteps: Sequence[int],
    *,
    conditions: Tensor | None = None,
    cfg_scale: float | Sequence[float] = 1.0,
) -> Iterator[tuple[int, Tensor]]:
    """Sample with DPM-Solver++(2M), from x (B, D) at timesteps[0] = T-1 downwards.

    The sampler is deterministic and calls the network once per step. It uses DDIM's equation at eta 0, but extrapolates
    x0 between two steps linearly from the last two predictions, so the error falls with the square of the number of
    steps. The first step has only one prediction, and the last step goes to infinite log-SNR, where there is no linear
    extrapolation. Both are DDIM steps.

    Source: DPM-Solver++ (Lu et al. 2022, arXiv 2211.01095), algorithm 2.
    """
    alphas = denoiser.schedule.alphas_cumprod
    signal, noise = alphas.sqrt().tolist(), (1 - alphas).sqrt().tolist()
    log_snr = (alphas / (1 - alphas)).log().div(2).tolist()  # lambda in the paper, log(SNR) / 2
    before: Tensor | None = None  # the previous prediction of x0
    for i, step in enumerate(timesteps):
        x0, _ = denoiser.predict(x, _at(step, x), conditions, cfg_scale)
        if i + 1 == len(timesteps):
            x = x0
        else:
            to = timesteps[i + 1]
            target = x0
            if before is not None:
                r = (log_snr[step] - log_snr[timesteps[i - 1]]) / (log_snr[to] - log_snr[step])
                target = x0 + (x0 - before) / (2 * r)
            shrink = noise[to] / noise[step]
            x = shrink * x + (signal[to] - signal[step] * shrink) * target
        before = x0
        yield step, x


def _at(step: int, x: Tensor) -> Tensor:
    return torch.full((len(x),), step, dtype=torch.long, device=x.device)
