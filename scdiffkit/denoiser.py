"""Network + schedule + prediction type: the only place where eps, v and x0 are turned into one another.

Sources: DDPM (Ho et al. 2020, eq. 9-14), v-prediction (Salimans & Ho 2022, appendix D), min-SNR weighting
(Hang et al. 2023), classifier-free guidance (Ho & Salimans 2022).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scdiffkit.config import PredictionType
from scdiffkit.models.layers import UNKNOWN
from scdiffkit.schedule import Schedule


class Denoiser(nn.Module):
    """What a sampler and a training loop need of a network, whatever the network predicts.

    bounds: smallest and largest value that x0 can take; predictions of x0 are clamped to it when sampling, since
    an error in the first steps is otherwise carried along.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType,
        min_snr_gamma: float | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.min_snr_gamma = min_snr_gamma
        self.bounds = bounds

    def to_x0_and_eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output (B, D) read as its prediction type -> x0 (B, D) and eps (B, D)."""
        signal, noise = self.schedule.signal_and_noise(t, x_t)
        if self.prediction_type == "eps":
            return (x_t - noise * output) / signal, output
        if self.prediction_type == "v":
            return signal * x_t - noise * output, noise * x_t + signal * output
        return output, (x_t - signal * output) / noise

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should have predicted."""
        if self.prediction_type == "eps":
            return eps
        if self.prediction_type == "x0":
            return x0
        signal, noise = self.schedule.signal_and_noise(t, x0)
        return signal * eps - noise * x0

    def loss_weights(self, t: Tensor) -> Tensor:
        """(B,): ones, or min(SNR, gamma) expressed in the unit of the predicted quantity."""
        if self.min_snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.schedule.snr(t)
        clamped = snr.clamp(max=self.min_snr_gamma)
        per_unit = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.prediction_type]
        return (clamped / per_unit).float()

    def forward(self, x0: Tensor, conditions: Tensor | None, t: Tensor, eps: Tensor) -> Tensor:
        """Training loss of each cell (B,): weighted mean squared error of the prediction."""
        output = self.network(self.schedule.add_noise(x0, eps, t), t, conditions)
        error = (output.float() - self.target(x0, eps, t)).square().mean(dim=1)
        return self.loss_weights(t) * error

    def predict(
        self, x_t: Tensor, t: Tensor, conditions: Tensor | None = None, cfg_scale: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """x0 (B, D) and eps (B, D) at step t (B,), guided when cfg_scale is not 1, with x0 within bounds."""
        if cfg_scale == 1.0 or conditions is None:
            output = self.network(x_t, t, conditions)
        else:
            both = torch.cat([conditions, torch.full_like(conditions, UNKNOWN)])
            given, free = self.network(x_t.repeat(2, 1), t.repeat(2), both).chunk(2)
            output = free + cfg_scale * (given - free)
        x0, eps = self.to_x0_and_eps(output.float(), x_t, t)
        if self.bounds is not None:
            x0 = x0.clamp(*self.bounds)
            signal, noise = self.schedule.signal_and_noise(t, x_t)
            eps = (x_t - signal * x0) / noise  # the noise that belongs to the clamped x0
        return x0, eps


def drop_conditions(conditions: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Each entry of conditions (B, K) becomes "unknown" with probability p, independently."""
    if p == 0:
        return conditions
    keep = torch.rand(conditions.shape, generator=generator, device=conditions.device) >= p
    return torch.where(keep, conditions, UNKNOWN)
