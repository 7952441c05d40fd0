"""The denoiser combines network, schedule and prediction type. Only this module converts between eps, v and x0.

Sources: DDPM (Ho et al. 2020, eq. 9-14), v-prediction (Salimans & Ho 2022, appendix D), min-SNR weighting
(Hang et al. 2023), classifier-free guidance (Ho & Salimans 2022), guidance per condition (Liu et al. 2022,
compositional diffusion, arXiv 2206.01714).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from scdiffkit.config import PredictionType
from scdiffkit.diffusion.schedule import Schedule
from scdiffkit.models.layers import UNKNOWN


class SpikeSlab(nn.Module):
    """A head that computes x0 of a gene, either exactly zero (spike) or near its usual level (slab), by Bayes' rule.

    The network sees the whole cell and outputs, per gene, shifts of the log odds of detection and of the level of
    detected values, (B, 2, D). Bayes' rule combines them with the noisy value of the gene. So the network does not have
    to learn the sharp step between zero and nonzero for every gene. Before training, the head is the exact denoiser of
    independent genes.

    `spike` is x0 of a zero, `log_odds` (D,) are the log odds of detection, and `mean` and `std` (D,) are those of x0 of
    detected genes.
    """

    GAIN = 4.0  # log odds have a wider range than the network's outputs

    def __init__(self, spike: float, log_odds: Tensor, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.spike = spike
        self.log_odds, self.mean, self.log_std = (nn.Parameter(a.clone()) for a in (log_odds, mean, std.log()))

    def forward(self, output: Tensor, x_t: Tensor, signal: Tensor, noise: Tensor) -> Tensor:
        """Return the posterior mean of x0 (B, D), given x_t ~ N(signal * x0, noise^2)."""
        shift_odds, shift_mean = output.unbind(1)
        std = self.log_std.exp()
        mean = torch.addcmul(self.mean, shift_mean, std)
        slab_part = signal * std.square()
        variance = torch.addcmul(noise**2, slab_part, signal)  # variance of x_t if the gene is detected
        off = x_t - signal * mean
        share = off / variance
        of_spike = ((x_t - signal * self.spike) / noise).square() + 2 * noise.log()
        twice = of_spike - off * share - variance.log()  # twice the log likelihood ratio, slab over spike
        log_odds = torch.add(self.log_odds, shift_odds, alpha=self.GAIN)
        p = torch.sigmoid(torch.add(log_odds, twice, alpha=0.5))
        slab = torch.addcmul(mean, slab_part, share)
        return torch.addcmul((1 - p) * self.spike, p, slab)


class Denoiser(nn.Module):
    """The interface of a network for samplers and the training loop, independent of what the network predicts.

    `bounds` are the smallest and largest value of x0. Sampling clamps predictions of x0 to them, because errors of the
    first steps would otherwise propagate.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType,
        min_snr_gamma: float | None = None,
        bounds: tuple[float, float] | None = None,
        head: SpikeSlab | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        self.min_snr_gamma = min_snr_gamma
        self.bounds = bounds
        self.head = head

    def to_x0_and_eps(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Convert the network's output (B, D), or (B, 2, D) with a head, to x0 and eps, each (B, D)."""
        signal, noise = self.schedule.signal_and_noise(t, x_t)
        if self.head is not None:
            output = self.head(output, x_t, signal, noise)
            return output, (x_t - signal * output) / noise
        if self.prediction_type == "eps":
            return (x_t - noise * output) / signal, output
        if self.prediction_type == "v":
            return signal * x_t - noise * output, noise * x_t + signal * output
        return output, (x_t - signal * output) / noise

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return the target of the network's prediction (B, D)."""
        if self.prediction_type == "eps":
            return eps
        if self.prediction_type == "x0":
            return x0
        signal, noise = self.schedule.signal_and_noise(t, x0)
        return signal * eps - noise * x0

    def loss_weights(self, t: Tensor) -> Tensor:
        """Return loss weights (B,): ones, or min(SNR, gamma) converted to the unit of the prediction."""
        if self.min_snr_gamma is None:
            return torch.ones_like(t, dtype=torch.float32)
        snr = self.schedule.snr(t)
        clamped = snr.clamp(max=self.min_snr_gamma)
        per_unit = {"eps": snr, "v": snr + 1, "x0": torch.ones_like(snr)}[self.prediction_type]
        return (clamped / per_unit).float()

    def forward(self, x0: Tensor, conditions: Tensor | None, t: Tensor, eps: Tensor) -> Tensor:
        """Return the training loss of each cell (B,), the weighted mean squared error of the prediction."""
        x_t = self.schedule.add_noise(x0, eps, t)
        output = self.network(x_t, t, conditions).float()
        if self.head is not None:
            output = self.target(*self.to_x0_and_eps(output, x_t, t), t)
        error = (output - self.target(x0, eps, t)).square().mean(dim=1)
        return self.loss_weights(t) * error

    def predict(
        self, x_t: Tensor, t: Tensor, conditions: Tensor | None = None, cfg_scale: float | Sequence[float] = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Predict x0 (B, D) and eps (B, D) at step t (B,), with guidance unless cfg_scale is 1, and x0 within bounds.

        `conditions` are codes (B, K). `cfg_scale` is one w for all columns together, f(none) + w * (f(all) - f(none))
        (Ho & Salimans 2022, eq. 6, where w = 0 means no guidance), or one w_k for each of the K columns,
        f(all) + sum_k (w_k - 1) * (f(only k) - f(none)). The latter samples
        p(x | c_1..c_K) * prod_k [p(x | c_k) / p(x)]^(w_k - 1) (Liu et al. 2022, arXiv 2206.01714), as far as adding
        noise commutes with the product. A column with w_k = 1 needs no extra evaluation of the network.
        """
        if conditions is not None and not isinstance(cfg_scale, (int, float)) and conditions.shape[1] == 1:
            (cfg_scale,) = cfg_scale  # with one column, f(only k) is f(all)
        if cfg_scale == 1.0 or conditions is None:
            ((x0, eps),) = self._evaluate(x_t, t, [conditions])
        elif isinstance(cfg_scale, (int, float)):
            (x0, eps), (free_x0, free_eps) = self._evaluate(x_t, t, [conditions, _only(None, conditions)])
            x0, eps = torch.lerp(free_x0, x0, cfg_scale), torch.lerp(free_eps, eps, cfg_scale)
        else:
            if len(cfg_scale) != conditions.shape[1]:
                raise ValueError(f"{len(cfg_scale)} guidance scales for {conditions.shape[1]} columns of conditions")
            guided = [k for k, w in enumerate(cfg_scale) if w != 1]
            alone = [_only(k, conditions) for k in ([None, *guided] if guided else [])]
            (x0, eps), *parts = self._evaluate(x_t, t, [conditions, *alone])
            for k, (x0_k, eps_k) in zip(guided, parts[1:], strict=True):
                x0 = x0 + (cfg_scale[k] - 1) * (x0_k - parts[0][0])
                eps = eps + (cfg_scale[k] - 1) * (eps_k - parts[0][1])
        if self.bounds is not None:
            x0 = x0.clamp(*self.bounds)
            signal, noise = self.schedule.signal_and_noise(t, x_t)
            eps = (x_t - signal * x0) / noise  # the noise that is consistent with the clamped x0
        return x0, eps

    def _evaluate(self, x_t: Tensor, t: Tensor, given: Sequence[Tensor | None]) -> list[tuple[Tensor, Tensor]]:
        """Return x0 and eps, each (B, D), for each of several conditions (B, K), in one forward pass."""
        n = len(given)
        conditions = torch.cat([c for c in given if c is not None]) if given[0] is not None else None
        outputs = self.network(x_t.repeat(n, 1), t.repeat(n), conditions).float().chunk(n)
        return [self.to_x0_and_eps(output, x_t, t) for output in outputs]


def _only(column: int | None, conditions: Tensor) -> Tensor:
    """Return conditions (B, K) with all columns but `column` set to "unknown", or all columns if it is None."""
    unknown = torch.full_like(conditions, UNKNOWN)
    if column is not None:
        unknown[:, column] = conditions[:, column]
    return unknown


def drop_conditions(conditions: Tensor, p: float, generator: torch.Generator) -> Tensor:
    """Set each entry of conditions (B, K) independently to "unknown" with probability p."""
    if p == 0:
        return conditions
    keep = torch.rand(conditions.shape, generator=generator, device=conditions.device) >= p
    return torch.where(keep, conditions, UNKNOWN)
