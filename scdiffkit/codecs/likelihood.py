"""How counts scatter about their expectation: likelihoods to learn from, and draws.

Sources: negative binomial as a gamma mixture of Poissons; Poisson counts of a known total are multinomial.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEGLIGIBLE_OVERDISPERSION = 0.02  # of a Poisson variance
NEGLIGIBLE_PAIRS = 0.001  # twice the change of the probability of a zero, or of two counts, that nobody sees
RARE = 0.05  # counts a cell, below which it is quicker to draw counts than genes
LEAST_RATE = 1e-8
LOG_THETA = (-3.0, 8.0)  # range
MAX_CHUNK = 2**21  # values of a dense block: the memory of larger ones is fetched anew each time
LOW, USUAL, HIGH = range(3)


@dataclass(frozen=True)
class Tails:
    """Of some genes, that a few cells hold far less or far more than the others: a mixture of three levels.

    genes: (M,) their places. log_weights, log_factors: (M, 3), of cells at the low, usual and high level, and of the
    level over the expectation; the weighted mean of the factors is 1.
    """

    genes: Tensor
    log_weights: Tensor
    log_factors: Tensor


@dataclass(frozen=True)
class Dispersion:
    """Theta of the negative binomial, variance = rate + rate^2 / theta: every gene's own, times a power of the rate.

    genes: (M,) places, in order, of those that it is for; the others are Poisson. log_theta, slope, usual: (M,);
    theta = exp(log_theta + slope * (log rate - usual)). A gene that is on in one cell type and off in others is not
    equally noisy in both.
    """

    genes: Tensor
    log_theta: Tensor
    slope: Tensor
    usual: Tensor

    def at(self, rates: Tensor, which: Tensor | None = None) -> Tensor:
        """Theta at rates, whose last dimension are genes[which], or all."""
        log_theta, slope, usual = self.log_theta, self.slope, self.usual
        if which is not None:
            log_theta, slope, usual = (values.index_select(0, which) for values in (log_theta, slope, usual))
        relative = rates.clamp(min=LEAST_RATE).log() - usual
        return (log_theta + slope * relative).clamp(*LOG_THETA).exp()


def negative_log_likelihood(counts: Tensor, rates: Tensor, dispersion: Dispersion | None) -> Tensor:
    """Minus the log probability of counts (B, G) a cell, (B,), in nats, with means `rates` (B, G).

    dispersion: of the negative binomial; None: Poisson. What only counts above zero need is computed for those alone.
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
    """The same, of the genes that `tails` names alone: negative binomial within each of their three levels."""
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
    """Counts (B, G), float32 integers that add up to library_size (B,), of genes with the given shares (B, G).

    A negative binomial is a Poisson whose rate is gamma distributed, and Poisson counts of a given total are
    multinomial: rates are drawn, then counts. Where dispersion adds next to nothing to the variance of a gene in a
    cell, the rate is taken as it is.
    """
    if dispersion is not None:
        rates = shares.index_select(1, dispersion.genes) * library_size[:, None]
        theta = dispersion.at(rates)
        excess = rates / theta
        matters = (excess > NEGLIGIBLE_OVERDISPERSION) & (excess * rates > NEGLIGIBLE_PAIRS)
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
    """Counts (B, G) that add up to total (B,), with chances in proportion to shares (B, G).

    Most come from Poisson draws that fall a little short of the total, where rare genes share one draw among them, and
    the rest one by one. Should the first be too many, a random choice of them is taken away. Either way the result is
    multinomial.
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
    for row in (missing < 0).nonzero()[:, 0].tolist():  # one cell in tens of thousands
        gene = torch.arange(shares.shape[1], device=shares.device).repeat_interleave(counts[row].long())
        taken = torch.randperm(len(gene), generator=generator, device=shares.device)[: int(-missing[row])]
        counts[row] -= torch.bincount(gene[taken], minlength=shares.shape[1])
    return counts.add_(_one_by_one(shares, missing, generator))


def _one_by_one(shares: Tensor, total: Tensor, generator: torch.Generator | None) -> Tensor:
    """The same, with time that grows with the total; none where it is negative or there are no genes."""
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
