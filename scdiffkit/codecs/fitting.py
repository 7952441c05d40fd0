"""Fit the autoencoder of the count codec."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn

from scdiffkit.codecs.autoencoder import Autoencoder
from scdiffkit.codecs.components import UNSEEN_FOLD, assign_folds
from scdiffkit.codecs.contract import OnStep
from scdiffkit.codecs.likelihood import mixture_negative_log_likelihood, negative_log_likelihood
from scdiffkit.codecs.source import CellSource, batches
from scdiffkit.config import CountCodecConfig
from scdiffkit.errors import DataError
from scdiffkit.runtime.prefetch import prefetch

log = logging.getLogger("scdiffkit")

Components = Callable[[sparse.csr_matrix, np.ndarray, np.ndarray], Tensor]  # from counts, library sizes, folds


class Batch(NamedTuple):
    """A batch: counts (B, G), library sizes (B,), condition codes (B, columns), principal components (B, K)."""

    counts: Tensor
    size: Tensor
    codes: Tensor
    components: Tensor


class AutoencoderFit:
    """Fits a network to the training cells `rows`. `components` computes principal components (B, K)."""

    def __init__(
        self,
        config: CountCodecConfig,
        net: Autoencoder,
        components: Components,
        cells: CellSource,
        rows: np.ndarray,
        seed: int,
        device: torch.device | str,
    ) -> None:
        self.config, self.net, self.components = config, net, components
        self.cells, self.rows, self.seed, self.device = cells, rows, seed, device

    def train(self, val_rows: np.ndarray, on_step: OnStep | None) -> None:
        """Fit everything but the tails, with early stopping if there are held-out cells `val_rows`."""
        c, net, cells, rows = self.config, self.net, self.cells, self.rows
        net.requires_grad_(True).train()
        noise = {"log_dispersion", "dispersion_slope", "tail_odds", "tail_levels"}
        weights = [p for name, p in net.named_parameters() if name not in noise]
        groups = [{"params": weights, "scale": 1.0}]
        if c.likelihood == "nb":
            groups.append({"params": [net.log_dispersion, net.dispersion_slope], "scale": c.dispersion_lr_scale})
        optimizer = torch.optim.Adam(groups, lr=c.lr, fused=True)
        generator = torch.Generator(self.device).manual_seed(self.seed)
        held_out = cells.take(val_rows[:: max(1, math.ceil(len(val_rows) / c.max_val_cells))])
        best: tuple[float, int, dict[str, Tensor]] | None = None
        shuffled = self._shuffled(c.batch_size, 3)
        for step in range(1, c.max_steps + 1):
            batch = next(shuffled)
            hidden = torch.rand(batch.codes.shape, generator=generator, device=batch.codes.device) < c.condition_dropout
            batch = batch._replace(codes=batch.codes.masked_fill(hidden, 0))
            warm = min(1.0, step / c.warmup_steps)
            progress, fall = step / c.max_steps, (1 - c.final_lr) / 2
            for group in optimizer.param_groups:
                group["lr"] = c.lr * group["scale"] * warm * (c.final_lr + fall * (1 + math.cos(math.pi * progress)))
            optimizer.zero_grad()
            nll, kl = self._elbo(batch, generator)
            loss = nll + c.kl_weight * kl + net.penalty() / len(rows)
            loss.backward()
            nn.utils.clip_grad_norm_(weights, c.grad_clip)
            optimizer.step()
            validate = step % c.val_every_steps == 0 or step == c.max_steps
            if not validate and not (on_step and step % 10 == 0):
                continue
            val_loss = self._val_loss(held_out) if validate and len(held_out) else None
            if not (math.isfinite(loss.item()) and math.isfinite(val_loss or 0.0)):
                raise DataError(
                    "The count codec's loss is no longer finite. Give a smaller codec.lr (--set codec.lr=0.0005)."
                )
            if val_loss is not None and (best is None or val_loss < best[0]):
                best = (val_loss, step, {k: v.detach().clone() for k, v in net.state_dict().items()})
            if on_step and on_step(step, c.max_steps, loss.item(), val_loss, step * c.batch_size):
                break
            if best and step - best[1] >= c.patience * c.val_every_steps:
                break
        shuffled.close()
        if best:
            net.load_state_dict(best[2])
            log.info("count codec: lowest held-out loss %.1f nats per cell at step %d of %d", best[0], best[1], step)

    def tails(self) -> None:
        """Fit dispersions and tails while all other parameters are frozen. Only abundant genes have tails."""
        c, net = self.config, self.net
        generator = torch.Generator(self.device).manual_seed(self.seed)
        learnt = [net.log_dispersion, net.dispersion_slope, net.tail_odds, net.tail_levels]
        start = [p.detach().clone() for p in learnt]
        optimizer = torch.optim.Adam(learnt, betas=(0.9, 0.99), fused=True)
        shuffled = self._shuffled(c.tails_batch_size, 6)
        for step in range(c.tails_steps):
            batch = next(shuffled)
            with torch.no_grad():
                rates, *_ = self._rates(batch, generator)
            for p in learnt:
                p.requires_grad_(True)
            dispersion, tails = net.dispersion(), net.tails()
            assert dispersion is not None
            assert tails is not None
            nll = mixture_negative_log_likelihood(batch.counts, rates, dispersion, tails).mean()
            prior = net.slope_penalty()
            for p, p0, variance in zip(learnt[2:], start[2:], (c.tails_odds_prior, c.tails_level_prior), strict=True):
                prior = prior + (p - p0).square().sum() / (2 * variance)
            optimizer.param_groups[0]["lr"] = c.tails_lr * (0.04 + 0.5 * (1 + math.cos(math.pi * step / c.tails_steps)))
            optimizer.zero_grad()
            (nll + prior / len(self.rows)).backward()
            optimizer.step()
        shuffled.close()
        for p in learnt:
            p.requires_grad_(False)

    def _shuffled(self, batch_size: int, stream: int) -> Generator[Batch]:
        """Yield endless shuffled batches of training cells. The next batch is prefetched."""
        folds = assign_folds(len(self.rows), self.config.folds)
        shuffled = self.cells.shuffled(self.rows, batch_size, [self.seed, stream])
        return prefetch(self._batch(part, folds[places]) for places, part in shuffled)

    def _batch(self, cells: CellSource, fold: np.ndarray) -> Batch:
        """Make a batch of cells in memory with the given folds (B,)."""
        components = self.components(cells.counts[:], cells.library_size, fold)
        return Batch(*cells.batch(np.arange(len(cells)), self.device), components.to(self.device))

    def _elbo(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return mean negative log likelihood and mean KL divergence of a batch, in nats per cell."""
        rates, mean, log_var = self._rates(batch, generator)
        nll = negative_log_likelihood(batch.counts, rates, self.net.dispersion()).mean()
        kl = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum(1).mean()
        return nll, kl

    def _rates(self, batch: Batch, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the posteriors; return expected counts (B, G), and posterior means and log variances (B, K)."""
        net = self.net
        mean, log_var = net.encode(batch.components, batch.size)
        z = mean + torch.randn(mean.shape, generator=generator, device=mean.device) * (0.5 * log_var).exp()
        return net.shares(z, batch.codes) * batch.size[:, None], mean, log_var

    @torch.no_grad()
    def _val_loss(self, cells: CellSource) -> float:
        generator = torch.Generator(self.device).manual_seed(self.seed)
        net, total = self.net.eval(), 0.0
        for part in batches(cells, np.arange(len(cells)), 256):
            batch = self._batch(part, np.full(len(part), UNSEEN_FOLD))
            nll, kl = self._elbo(batch, generator)
            total += (nll + self.config.kl_weight * kl).item() * len(part)
        net.train()
        return total / len(cells)
