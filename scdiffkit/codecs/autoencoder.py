"""The network of the count codec: it maps principal components to latent coordinates, and these to gene rates."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scdiffkit.codecs.likelihood import (
    Dispersion,
    Tails,
)
from scdiffkit.config import CountCodecConfig

TAILS_START = ((-3.0, 0.0, -3.0), (-1.2, 0.0, 0.8))  # initial log odds and log levels of the low, usual and high level


class Autoencoder(nn.Module):
    """An encoder and a decoder with K latent coordinates and G genes."""

    log_size: Tensor
    mean_count: Tensor

    def __init__(self, config: CountCodecConfig, num_genes: int, latent_dim: int, num_categories: list[int]) -> None:
        super().__init__()
        self.config, self.latent_dim = config, latent_dim
        hidden = config.hidden_size
        self.register_buffer("mean_count", torch.ones(num_genes))
        self.register_buffer("log_size", torch.tensor([0.0, 1.0]))  # mean and std of the log library size
        self.skip = nn.Linear(latent_dim + 1, latent_dim)
        self.encoder = nn.Sequential(*_layer(latent_dim + 1, hidden), *_layer(hidden, hidden))
        self.moments = nn.Linear(hidden, 2 * latent_dim)
        self.decoder = nn.Sequential(*_layer(latent_dim, hidden))
        self.output = nn.Linear(hidden, num_genes, bias=False)
        self.bias = nn.Parameter(torch.zeros(num_genes))
        columns = num_categories if config.condition_decoder else []
        self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(n, num_genes)) for n in columns])
        self.log_dispersion = nn.Parameter(torch.full((num_genes,), math.log(config.dispersion_start)))
        self.dispersion_slope = nn.Parameter(torch.zeros(num_genes))
        odds, levels = torch.tensor(TAILS_START)
        self.tail_odds = nn.Parameter(odds.repeat(num_genes, 1))
        self.tail_levels = nn.Parameter(levels.repeat(num_genes, 1))
        with torch.no_grad():  # initially, the latent coordinates are scaled components
            self.skip.weight.zero_()
            self.skip.weight[:, :latent_dim] = 0.8 * torch.eye(latent_dim)
            self.skip.bias.zero_()
            self.moments.weight.mul_(0.1)
            self.moments.bias.zero_()
            self.moments.bias[latent_dim:] = -1.0
            self.output.weight.mul_(0.1)

    def encode(self, components: Tensor, library_size: Tensor) -> tuple[Tensor, Tensor]:
        """Map principal components (B, K) to mean and log variance (B, K) of the posterior."""
        size = (library_size.log() - self.log_size[0]) / self.log_size[1]
        features = torch.cat([components, size[:, None]], dim=1)
        shift, log_var = self.moments(self.encoder(features)).chunk(2, dim=1)
        return self.skip(features) + shift, log_var.clamp(-8, 4)

    def shares(self, z: Tensor, codes: Tensor) -> Tensor:
        """Return each gene's expected share of the counts (B, G), given z (B, K) and condition codes (B, columns)."""
        logits = self.output(self.decoder(z)) + self.bias
        for k, shift in enumerate(self.shifts):
            logits = logits + F.embedding(codes[:, k], F.pad(shift, (0, 0, 1, 0)))  # code 0 (unknown) has no shift
        return F.softmax(logits, dim=1)

    def dispersion(self) -> Dispersion | None:
        """Return the dispersion of the genes' counts, or None with a Poisson likelihood."""
        if self.config.likelihood == "poisson":
            return None
        usual = F.log_softmax(self.bias, dim=0).detach() + self.log_size[0]  # log expected count of the average cell
        genes = (self.mean_count >= self.config.dispersion_min_counts).nonzero()[:, 0]
        return Dispersion(genes, self.log_dispersion[genes], self.dispersion_slope[genes], usual[genes])

    def tails(self) -> Tails | None:
        """Return the tails of the genes that have them, or None if no tails are learnt."""
        if self.config.likelihood == "poisson" or self.config.tails_steps == 0:
            return None
        genes = (self.mean_count >= self.config.tails_min_counts).nonzero()[:, 0]
        log_weights = F.log_softmax(self.tail_odds[genes], dim=1)
        log_factors = self.tail_levels[genes]
        log_factors = log_factors - torch.logsumexp(log_weights + log_factors, dim=1, keepdim=True)
        return Tails(genes, log_weights, log_factors)

    def penalty(self) -> Tensor:
        """Return the negative log density, up to a constant, of the Gaussian priors on the decoder's weights."""
        # Rare genes carry little information on their variation, so their prior is narrower.
        c = self.config
        informed = (self.mean_count / (self.mean_count + c.informed_counts)).clamp(min=0.01)
        total = (self.output.weight.square().sum(1) / (2 * c.weight_prior * informed)).sum()
        total = total + self.slope_penalty()
        return total + sum((s.square().sum() for s in self.shifts), total.new_zeros(())) / (2 * c.condition_prior)

    def slope_penalty(self) -> Tensor:
        """Return the negative log prior of the dispersion slopes, which is centred on their mean over genes."""
        variance = self.config.dispersion_slope_prior
        return (self.dispersion_slope - self.dispersion_slope.mean()).square().sum() / (2 * variance)


def _layer(n_in: int, n_out: int) -> list[nn.Module]:
    return [nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.SiLU()]
