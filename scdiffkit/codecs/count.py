"""The count codec: an autoencoder with a count likelihood, which decodes integer counts of all genes.

A few latent coordinates and the library size describe a cell. The encoder takes principal components of the
log-normalised cell, and the decoder returns each gene's share of the counts. Two measures prevent memorisation of small
data sets: the decoder's weights have a Gaussian prior, and the components of a training cell come from a PCA that has
not seen the cell (cross-fitting), as for any new cell. In a last stage, abundant genes get tails: a mixture of levels
for the few cells with far fewer or far more counts than expected.

Sources: variational autoencoder with a negative binomial (scVI, Lopez et al. 2018); cross-fitting (Chernozhukov et al.
2018).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor

from scdiffkit.codecs.autoencoder import Autoencoder
from scdiffkit.codecs.components import (
    FEWEST_CELLS,
    FEWEST_GENES,
    UNSEEN_FOLD,
    CrossFittedPCA,
    assign_folds,
    check_variation,
)
from scdiffkit.codecs.contract import OnStep
from scdiffkit.codecs.fitting import AutoencoderFit
from scdiffkit.codecs.likelihood import (
    MAX_CHUNK,
    draw_counts,
)
from scdiffkit.codecs.source import CellSource, batches
from scdiffkit.config import CountCodecConfig
from scdiffkit.errors import ConfigError, DataError, warn
from scdiffkit.io import Rows, Selected
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.normalise import lognormalise

log = logging.getLogger("scdiffkit")
BEYOND_SAMPLE = 1.5  # factor on the range of x0 in a sample of cells, which may miss rare cell types
OWN = {name: name for name in ("mean", "std", "lowest", "highest", "sizes")} | {  # key in the state -> attribute
    "net.loadings": "loadings",
    "net.offsets": "offsets",
}


class CountCodec:
    """Maps counts (B, G) and library sizes (B,) to x0 (B, D) and back, with D = latent coordinates + 1.

    `encode` samples the posterior of the latent coordinates, appends the log library size, and standardises both.
    `decode` computes rates = softmax(decoder(latent, conditions)) and draws counts that add up to the library size.
    """

    name: ClassVar[str] = "count"
    compact: ClassVar[bool] = True
    takes_library_size: ClassVar[bool] = True

    def __init__(
        self,
        config: CountCodecConfig,
        num_genes: int,
        target_sum: float,
        num_categories: list[int] | tuple[int, ...] = (),
        latent_dim: int | None = None,
    ) -> None:
        self.config = config
        self.num_genes = num_genes
        self.target_sum = target_sum
        self.num_categories = list(num_categories)
        self.latent_dim = latent_dim or config.latent_dim
        self.mean = self.std = torch.empty(0)  # (D,), of the coordinates of x0 before standardisation
        self.lowest = self.highest = torch.empty(0)  # (D,), of x0 in the training cells
        self.sizes = torch.zeros(2)  # median and largest library size
        self.loadings = self.offsets = torch.empty(0)  # (folds + 1, G, K) and (folds + 1, K), see CrossFittedPCA
        self.net: Autoencoder | None = None
        if self.latent_dim:
            self.net = self._new_net()

    def _new_net(self) -> Autoencoder:
        assert self.latent_dim is not None
        net = Autoencoder(self.config, self.num_genes, self.latent_dim, self.num_categories)
        return net.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        """D, the length of the diffused vector."""
        if self.latent_dim is None:
            raise RuntimeError("fit the codec first")
        return self.latent_dim + 1

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value of x0 in the training cells, with a margin of 10%."""
        return 1.1 * float(self.lowest.min()), 1.1 * float(self.highest.max())

    def library_sizes(self) -> tuple[float, float]:
        """Return median and largest library size of the training cells."""
        return float(self.sizes[0]), float(self.sizes[1])

    def fit(
        self,
        cells: CellSource,
        rows: np.ndarray,
        val_rows: np.ndarray,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_step: OnStep | None = None,
    ) -> None:
        """Fit to the training cells `rows`, with early stopping if there are held-out cells `val_rows`.

        `on_step` receives losses that are negative evidence lower bounds in nats per cell. Warns (ScdiffWarning) if
        config.latent_dim exceeds what the cells allow. Raises DataError with fewer than 3 cells or 2 genes.
        """
        c = self.config
        if len(rows) < FEWEST_CELLS or self.num_genes < FEWEST_GENES:
            raise DataError(
                f"{len(rows)} training cells x {self.num_genes} genes: the count codec needs at least "
                f"{FEWEST_CELLS} cells and {FEWEST_GENES} genes. Give more cells, hold out fewer (--val-fraction), "
                "or filter less."
            )
        sampled, folds = np.arange(len(rows)), self.folds(len(rows))
        if len(rows) > c.max_pca_cells:
            sampled = np.random.default_rng([seed, 5]).choice(len(rows), c.max_pca_cells, replace=False)
            sampled.sort()
        values = self._log_normalised(cells, rows[sampled])
        check_variation(values)
        totals = torch.from_numpy(_sums(cells.counts, rows))
        log.info("count codec: principal components of %d of %d training cells", len(sampled), len(rows))
        spectral = CrossFittedPCA(values, folds[sampled], c, seed)
        if c.latent_dim and spectral.components < c.latent_dim:
            warn(
                f"codec.latent_dim {c.latent_dim} is more than {len(rows)} training cells and {self.num_genes} genes "
                f"allow: {spectral.components} latent coordinates are used."
            )
        self.latent_dim = spectral.components
        share = spectral.reproducibility
        log.info(
            "count codec: %d latent coordinates (the last keeps %.0f%% of its spread in unseen cells)",
            self.latent_dim, 100 * share[-1],
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = Autoencoder(c, self.num_genes, self.latent_dim, self.num_categories)
        self.loadings, self.offsets = spectral.loadings, spectral.offsets
        components = self._projected(values, folds[sampled])
        del values
        with torch.no_grad():
            net.bias.copy_(((totals + 0.5) / (totals + 0.5).sum()).log())
        net.mean_count.copy_((totals / len(rows)).float())
        sizes = torch.from_numpy(cells.library_size[rows]).log()
        net.log_size.copy_(torch.stack([sizes.mean(), sizes.std().clamp(min=0.05)]))
        self.sizes = torch.stack([sizes.exp().median(), sizes.exp().max()])
        self.net = net.to(device)
        fit = AutoencoderFit(c, net, self.components, cells, rows, seed, device)
        fit.train(val_rows, on_step)
        net.requires_grad_(False).eval()
        if c.likelihood == "nb" and c.tails_steps and (net.mean_count >= c.tails_min_counts).any():
            fit.tails()
        self._standardise(components, cells.library_size[rows[sampled]], cells.library_size[rows], device)

    def _log_normalised(self, cells: CellSource, rows: np.ndarray) -> sparse.csr_matrix:
        """Return log1p values normalised to target_sum, sparse (n, G)."""
        parts = [lognormalise(part.counts[:], self.target_sum, part.library_size) for part in batches(cells, rows)]
        return sparse.vstack(parts, format="csr")

    def components(self, counts: sparse.csr_matrix, library_size: np.ndarray, fold: np.ndarray) -> Tensor:
        """Return the principal components (B, K) of cells, each from the PCA that left out its fold (B,).

        `counts` are sparse, because a dense product takes many times as long.
        """
        return self._projected(lognormalise(counts, self.target_sum, library_size), fold)

    def _projected(self, values: sparse.csr_matrix, fold: np.ndarray) -> Tensor:
        """Return the principal components of log-normalised values (B, G), see `components`."""
        components = torch.empty(len(fold), self.dim - 1)
        for k in np.unique(fold):
            here = np.flatnonzero(fold == k)
            components[here] = torch.from_numpy(values[here] @ self.loadings[k].numpy()) - self.offsets[k]
        return components

    @torch.no_grad()
    def _standardise(
        self, components: Tensor, library_size: np.ndarray, of_all: np.ndarray, device: torch.device | str
    ) -> None:
        """Compute mean, standard deviation and range of each coordinate of x0 in the training cells.

        `components` (n, K) are cross-fitted, so the statistics are those of unseen cells. They and `library_size` (n,)
        may be of a sample of the training cells; `of_all` are the library sizes of all.
        """
        self.mean, self.std = torch.zeros(self.dim), torch.ones(self.dim)
        generator = torch.Generator(device).manual_seed(1)
        total, squares = torch.zeros(2, self.dim, dtype=torch.float64)
        lowest, highest = torch.full((self.dim,), torch.inf), torch.full((self.dim,), -torch.inf)
        sizes = torch.from_numpy(library_size)
        for some, size in zip(components.split(1024), sizes.split(1024), strict=True):
            x0 = _draw(*self._posterior(some, size, device), generator).cpu()
            total += x0.sum(0, dtype=torch.float64)
            squares += x0.double().square().sum(0)
            lowest, highest = torch.minimum(lowest, x0.amin(0)), torch.maximum(highest, x0.amax(0))
        n = len(components)
        variance = (squares - total.square() / n) / max(1, n - 1)
        self.mean = (total / n).float()
        self.std = variance.clamp(min=0).sqrt().float().clamp(min=1e-3)
        self.lowest, self.highest = (lowest - self.mean) / self.std, (highest - self.mean) / self.std
        if n < len(of_all):
            self.lowest, self.highest = self.lowest * BEYOND_SAMPLE, self.highest * BEYOND_SAMPLE
            log_size = torch.from_numpy(of_all).log().double()
            self.mean[-1], self.std[-1] = log_size.mean(), log_size.std().clamp(min=1e-3)
            ends = torch.stack([log_size.min(), log_size.max()])
            self.lowest[-1], self.highest[-1] = (ends - self.mean[-1]) / self.std[-1]
        self.net = self._net().cpu()

    def posterior(
        self, counts: Tensor, library_size: Tensor, codes: Tensor | None = None, fold: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (B, D) of x0 given a cell; that of the known library size is 0.

        `fold` (B,) is given for training cells, see `folds`, and None for other cells.
        """
        of = np.full(len(counts), UNSEEN_FOLD) if fold is None else fold.cpu().numpy()
        rows = sparse.csr_matrix(counts.cpu().numpy())
        return self._posterior(self.components(rows, library_size.cpu().numpy(), of), library_size, counts.device)

    def posteriors(
        self, cells: CellSource, rows: np.ndarray, device: torch.device | str
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the posteriors of the training cells `rows` in order, block by block."""
        folds, done = self.folds(len(rows)), 0
        for part in batches(cells, rows):
            components = self.components(part.counts[:], part.library_size, folds[done : done + len(part)])
            yield self._posterior(components, torch.from_numpy(part.library_size), device)
            done += len(part)

    def _posterior(self, components: Tensor, library_size: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Return the posterior of cells with these principal components (B, K)."""
        size = library_size.to(device, torch.float32)
        mean, log_var = self._net().to(device).encode(components.to(device), size)
        center, spread = self.mean.to(mean), self.std.to(mean)
        mean = torch.cat([mean, size.log()[:, None]], dim=1)
        deviation = F.pad((0.5 * log_var).exp(), (0, 1))
        return (mean - center) / spread, deviation / spread

    def encode(
        self,
        counts: Tensor,
        library_size: Tensor,
        codes: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        fold: Tensor | None = None,
    ) -> Tensor:
        """Encode raw counts (B, G) and library sizes (B,) as x0 (B, D), one sample of each cell's posterior.

        `fold` (B,) is given for training cells, as in `posterior`. Without it, their coordinates spread more widely
        than those of unseen cells.
        """
        return _draw(*self.posterior(counts, library_size, codes, fold), generator)

    def folds(self, n: int) -> np.ndarray:
        return assign_folds(n, self.config.folds)

    def library_size(self, x0: Tensor) -> Tensor:
        """Return the library sizes (B,) encoded in x0 (B, D)."""
        log_size = x0[:, -1].float() * self.std[-1].to(x0) + self.mean[-1].to(x0)
        return log_size.exp().clamp(1, 2 * float(self.sizes[1]))

    def decode(
        self,
        x0: Tensor,
        codes: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode x0 (B, D) to raw counts (B, G), integers in float32, and their sums, the library sizes (B,).

        `codes` (B, K) are condition codes, 0 for unknown; None means that all are unknown. `library_size` (B,), if
        given, replaces the library sizes in x0.
        """
        net = self._net().to(x0.device)
        if codes is None:
            codes = torch.zeros(len(x0), len(self.num_categories), dtype=torch.long, device=x0.device)
        z = x0.float() * self.std.to(x0) + self.mean.to(x0)
        if library_size is None:
            library_size = self.library_size(x0)
        library_size = library_size.to(x0.device, torch.float32).round().clamp(min=1)
        chunk = max(1, MAX_CHUNK // max(self.num_genes, int(library_size.max())))
        counts = []
        for part, c, size in zip(z[:, :-1].split(chunk), codes.split(chunk), library_size.split(chunk), strict=True):
            shares = net.shares(part, c)
            counts.append(draw_counts(shares, size, net.dispersion(), generator, net.tails()))
        return torch.cat(counts), library_size

    def spike_slab(self) -> tuple[float, Tensor, Tensor, Tensor]:
        raise ConfigError("diffusion.output 'spike-slab' is read only with --codec gene.")

    def state(self) -> dict[str, Tensor]:
        """Return everything that `fit` learnt, as tensors."""
        own = {key: getattr(self, name).contiguous() for key, name in OWN.items()}
        return own | {f"net.{k}": v.contiguous() for k, v in self._net().state_dict().items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for key, name in OWN.items():
            setattr(self, name, state[key])
        learnt = {key.removeprefix("net."): value for key, value in state.items() if key not in OWN}
        self._net().load_state_dict(learnt)

    def settings(self) -> dict[str, Any]:
        """Return what a run must record, besides the configuration, to build this codec again."""
        return {
            "num_genes": self.num_genes,
            "target_sum": self.target_sum,
            "num_categories": self.num_categories,
            "latent_dim": self.latent_dim,
        }

    def _net(self) -> Autoencoder:
        if self.net is None:
            raise RuntimeError("fit the codec first")
        return self.net


def _draw(mean: Tensor, deviation: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw one sample (B, D) from each posterior."""
    return mean + torch.randn(mean.shape, generator=generator, device=mean.device) * deviation


def _sums(counts: Rows, rows: np.ndarray) -> np.ndarray:
    """Return the sum (G,) of each gene's counts over `rows`."""
    sums = np.zeros(counts.shape[1])
    for _, block in iter_row_blocks(Selected(counts, rows)):
        sums += np.bincount(block.indices, block.data, len(sums))
    return sums
