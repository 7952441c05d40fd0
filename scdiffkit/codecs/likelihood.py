"""The distribution of counts around their expectation: likelihoods for fitting, and sampling.

Sources: a negative binomial is a gamma mixture of Poissons; Poisson counts given their total are multinomial.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE_OVERDISPERSION = 0.02  # share of the Poisson variance
NEGLIGIBLE_PROBABILITY = 0.001  # twice a change in the probability of 0 or 2 counts that does not matter
RARE = 0.05  # expected counts per cell below which drawing count by count is faster than by gene
LEAST_RATE = 1e-8
LOG_THETA = (-3.0, 8.0)  # range of log theta
MAX_CHUNK = 2**21  # values in a dense block; memory of larger ones is not reused but allocated again
LOW, USUAL, HIGH = range(3)


@dataclass(frozen=True)
class Tails:
    """A mixture of three levels for genes with far fewer or far more counts than expected in a few cells.

    `genes` (M,) are their indices. `log_weights` (M, 3) are the log shares of cells at the low, usual and high level.
    `log_factors` (M, 3) are the logs of these levels relative to the expectation, whose weighted mean is 1.
    """

    genes: Tensor
    log_weights: Tensor
    log_factors: Tensor


@dataclass(frozen=True)
class Dispersion:
    """Inverse dispersion theta of the negative binomial, variance = rate + rate^2 / theta.

    Each gene has its own theta, times a power of its rate: theta = exp(log_theta + slope * (log rate - usual)), because
    the noise of a gene differs between cell types that express it and those that do not. `genes` (M,) are the sorted
    indices of these genes; all others are Poisson. `log_theta`, `slope` and `usual` are (M,).
    """

    genes: Tensor
    log_theta: Tensor
    slope: Tensor
    usual: Tensor

    def at(self, rates: Tensor, which: Tensor | None = None) -> Tensor:
        """Return theta at `rates`, whose last dimension is genes[which], or all of `genes`."""
        log_theta, slope, usual = self.log_theta, self.slope, self.usual
        if which is not None:
            log_theta, slope, usual = (values.index_select(0, which) for values in (log_theta, slope, usual))
        relative = rates.clamp(min=LEAST_RATE).log() - usual
        return (log_theta + slope * relative).clamp(*LOG_THETA).exp()


def negative_log_likelihood(counts: Tensor, rates: Tensor, dispersion: Dispersion | None) -> Tensor:
    """Return the negative log likelihood (B,) of counts (B, G) with means `rates` (B, G), in nats per cell.

    Counts are negative binomial with `dispersion`, or Poisson if it is None. Terms that vanish for zero counts are
    computed for nonzero counts only.
    """
    row, column = counts.nonzero(as_tuple=True)
    k = counts[row, column]
    rate = rates.flatten().index_select(0, row * rates.shape[1] + column).clamp(min=1e-12)
    everywhere = rates.sum(1)
    seen = k * rate.log() - torch.lgamma(k + 1)
    if dispersion is not None:
        some = rates.index_select(1, dispersion.genes)
        theta = dispersion.at(some)
        everywhere = everywhere + (theta * torch.log1p(some / theta) - some).sum(1)
        place = torch.full((rates.shape[1],), -1, device=rates.device)
        place[dispersion.genes] = torch.arange(len(dispersion.genes), device=rates.device)
        noisy = (place[column] >= 0).nonzero()[:, 0]
        k, rate = k[noisy], rate.index_select(0, noisy)
        theta = dispersion.at(rate, place[column[noisy]])
        more = torch.lgamma(k + theta) - torch.lgamma(theta) - k * (rate + theta).log()
        seen = seen.index_add(0, noisy, more)
    return everywhere.index_add(0, row, -seen)


def mixture_negative_log_likelihood(counts: Tensor, rates: Tensor, dispersion: Dispersion, tails: Tails) -> Tensor:
    """Return the negative log likelihood (B,) of the genes in `tails`: negative binomial at each of three levels."""
    counts, rates = counts[:, tails.genes], rates[:, tails.genes]
    theta = dispersion.at(rates, torch.searchsorted(dispersion.genes, tails.genes))
    level = rates.clamp(min=LEAST_RATE)[..., None] * tails.log_factors.exp() / theta[..., None]  # (B, M, 3)
    spread = torch.log1p(level)
    of_level = counts[..., None] * (level.log() - spread) - theta[..., None] * spread + tails.log_weights
    common = torch.lgamma(counts + theta) - torch.lgamma(theta) - torch.lgamma(counts + 1)
    return -(common + torch.logsumexp(of_level, dim=2)).sum(1)


def draw_counts(
    shares: Tensor,
    library_size: Tensor,
    dispersion: Dispersion | None,
    generator: torch.Generator | None,
    tails: Tails | None = None,
) -> Tensor:
    """Draw counts (B, G), float32 integers that add up to library_size (B,), given the genes' shares (B, G).

    A negative binomial is a Poisson with a gamma-distributed rate, and Poisson counts given their total are
    multinomial. So the rates are drawn first, and then the counts. If dispersion adds a negligible amount to the
    variance of a gene in a cell, its rate is not drawn.
    """
    if dispersion is not None:
        rates = shares.index_select(1, dispersion.genes) * library_size[:, None]
        theta = dispersion.at(rates)
        excess = rates / theta
        matters = (excess > NEGLIGIBLE_OVERDISPERSION) & (excess * rates > NEGLIGIBLE_PROBABILITY)
        places = matters.flatten().nonzero()[:, 0]
        shape = theta.flatten().index_select(0, places)
        noise = torch.ones_like(theta).flatten()
        noise[places] = torch._standard_gamma(shape, generator=generator) / shape  # never exactly 0
        some = shares.index_select(1, dispersion.genes) * noise.view_as(theta)
        shares = shares.index_copy(1, dispersion.genes, some)
    if tails is not None and len(tails.genes):
        chance = torch.rand(len(shares), len(tails.genes), generator=generator, device=shares.device)
        weights, factors = tails.log_weights.exp(), tails.log_factors.exp()
        factor = factors[:, USUAL].expand_as(chance)
        factor = torch.where(chance < weights[:, LOW], factors[:, LOW], factor)
        factor = torch.where(chance > 1 - weights[:, HIGH], factors[:, HIGH], factor)
        shares = shares.index_copy(1, tails.genes, shares.index_select(1, tails.genes) * factor)
    return _multinomial(shares, library_size, generator)


def _multinomial(shares: Tensor, total: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw counts (B, G) that add up to `total` (B,), with probabilities proportional to `shares` (B, G).

    Most counts come from Poisson draws with an expectation slightly below the total, in which all rare genes share one
    draw. The missing counts are drawn one by one. If the Poisson draws exceed the total, randomly chosen counts are
    removed. The result is multinomial in both cases.
    """
    shares = shares / shares.sum(1, keepdim=True)
    counts = torch.zeros_like(shares)
    short = (total - 4 * total.sqrt()).clamp(min=0)
    is_rare = shares.mean(0) * short.mean() < RARE
    often, rare = (~is_rare).nonzero()[:, 0], is_rare.nonzero()[:, 0]
    counts.index_copy_(1, often, torch.poisson(shares.index_select(1, often) * short[:, None], generator=generator))
    of_rare = shares.index_select(1, rare)
    n = torch.poisson(of_rare.sum(1) * short, generator=generator)
    counts.index_copy_(1, rare, _one_by_one(of_rare, n, generator))
    missing = total - counts.sum(1)
    for row in (missing < 0).nonzero()[:, 0].tolist():  # rare: one cell in tens of thousands
        gene = torch.arange(shares.shape[1], device=shares.device).repeat_interleave(counts[row].long())
        taken = torch.randperm(len(gene), generator=generator, device=shares.device)[: int(-missing[row])]
        counts[row] -= torch.bincount(gene[taken], minlength=shares.shape[1])
    return counts.add_(_one_by_one(shares, missing, generator))


def _one_by_one(shares: Tensor, total: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw multinomial counts in time proportional to `total` (B,). Negative totals, or no genes, give zeros."""
    counts = torch.zeros_like(shares)
    if not shares.shape[1]:
        return counts
    edges = shares.cumsum(1)
    most, width = int(total.max()), max(1, MAX_CHUNK // len(shares))
    for start in range(0, most, width):
        n = min(width, most - start)
        u = torch.rand(len(shares), n, generator=generator, device=shares.device)
        gene = torch.searchsorted(edges, u * edges[:, -1:], right=True).clamp_(max=shares.shape[1] - 1)
        drawn = (torch.arange(start, start + n, device=shares.device) < total[:, None]).to(torch.float32)
        counts.scatter_add_(1, gene, drawn)
    return counts
