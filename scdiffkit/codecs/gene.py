"""The gene codec of the papers: a cell is the vector of its log-normalised values, with zeros moved far below them.

Source: scRDiT (arXiv 2404.06153), zero-negation. Decoding to counts is an addition: the papers stop at log values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from scdiffkit.codecs.contract import OnStep
from scdiffkit.codecs.source import CellSource, batches
from scdiffkit.config import GeneCodecConfig
from scdiffkit.errors import ConfigError, DataError

NO_LIBRARY_SIZE = "The gene codec derives each cell's library size from its values: do not give one."
MAX_CELLS_TO_ORDER = 20_000
MAX_GENES_TO_ORDER = 10_000  # ordering by correlation needs a genes x genes matrix


class GeneCodec:
    """Maps counts (B, G) and library sizes (B,) to x0 (B, D) and back, with D = G genes.

    `encode` computes counts / library size * target_sum -> log1p -> zeros to -zero_negation -> order ->
    (x - mean) / std. `decode` inverts this and rounds to integers; values below the threshold become exact zeros.
    """

    name: ClassVar[str] = "gene"
    compact: ClassVar[bool] = False
    takes_library_size: ClassVar[bool] = False  # it is estimated from the values, see decode

    def __init__(
        self, config: GeneCodecConfig, num_genes: int, target_sum: float, num_categories: Sequence[int] = ()
    ) -> None:
        self.config = config
        self.num_genes = num_genes
        self.target_sum = target_sum
        self.order = torch.arange(num_genes)
        self.mean, self.std = torch.tensor(0.0), torch.tensor(1.0)
        self.threshold = torch.tensor(config.zero_threshold or 0.0)
        self.smallest, self.largest = torch.tensor(0.0), torch.tensor(0.0)  # nonzero log values in the training cells
        self.depth_coef = torch.zeros(4)  # regression of the log library size, see _depth_features
        self.depth_range = torch.zeros(2)  # smallest and largest library size in the training cells
        self.log_odds = torch.zeros(num_genes)  # log odds of detection
        self.slab_mean, self.slab_std = torch.zeros(num_genes), torch.ones(num_genes)  # of detected log values

    @property
    def dim(self) -> int:
        """D, the length of the diffused vector."""
        return self.num_genes

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest value of x0."""
        low = torch.tensor(-self.config.zero_negation)
        return float((low - self.mean) / self.std), float((self.largest - self.mean) / self.std)

    def fit(
        self,
        cells: CellSource,
        rows: np.ndarray,
        val_rows: np.ndarray | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        on_step: OnStep | None = None,
    ) -> None:
        """Fit scaling, threshold, gene order and library sizes to the cells `rows`. Other arguments are not used.

        Scaling and threshold use all cells, gene order and library sizes the first MAX_CELLS_TO_ORDER.
        """
        total = squares = n = 0.0
        detected, slab, slab_squares = torch.zeros(3, self.num_genes, dtype=torch.float64)
        kept: list[Tensor] = []
        sizes: list[Tensor] = []
        smallest, largest = torch.inf, 0.0
        for part in batches(cells, rows):
            counts, library_size, _ = part.batch(np.arange(len(part)))
            x = self._log_normalise(counts, library_size)
            y = self._negate_zeros(x).double()
            total, squares, n = total + y.sum().item(), squares + y.square().sum().item(), n + y.numel()
            detected += (x > 0).sum(0)
            slab, slab_squares = slab + x.double().sum(0), slab_squares + x.double().square().sum(0)
            smallest = min(smallest, torch.where(x > 0, x, torch.inf).min().item())
            largest = max(largest, x.max().item())
            if sum(map(len, sizes)) < MAX_CELLS_TO_ORDER:
                kept.append(x)
                sizes.append(library_size)
        self.smallest, self.largest = torch.tensor(smallest), torch.tensor(largest)
        self._fit_spike_slab(detected, slab, slab_squares, n / self.num_genes)
        if self.config.scale:
            mean = total / n
            if squares / n - mean**2 < 1e-9:
                raise DataError(
                    "All values of the chosen genes are the same in all cells, so there is nothing to learn. Choose "
                    "more genes (--n-top-genes) or other cells."
                )
            self.mean = torch.tensor(mean, dtype=torch.float32)
            self.std = torch.tensor((squares / n - mean**2) ** 0.5, dtype=torch.float32)
        if self.config.zero_threshold is None:
            self.threshold = torch.tensor((smallest - self.config.zero_negation) / 2)
        log_values, library_size = torch.cat(kept), torch.cat(sizes)
        if self.config.gene_order == "correlation":
            self.order = _coexpressed_neighbours(log_values)
        self._fit_library_size(log_values, library_size)

    def posteriors(
        self, cells: CellSource, rows: np.ndarray, device: torch.device | str
    ) -> Iterator[tuple[Tensor, None]]:
        """Yield x0 (B, D) for blocks of the cells `rows`, in order."""
        for part in batches(cells, rows):
            counts, library_size, _ = part.batch(np.arange(len(part)), device)
            yield self.encode(counts, library_size), None

    def encode(
        self,
        counts: Tensor,
        library_size: Tensor,
        codes: Tensor | None = None,
        *,
        generator: torch.Generator | None = None,
        fold: Tensor | None = None,
    ) -> Tensor:
        """Encode raw counts (B, G) and library sizes (B,) as x0 (B, D). Other arguments are not used."""
        y = self._negate_zeros(self._log_normalise(counts, library_size))
        return (y[:, self.order] - self.mean) / self.std

    def folds(self, n: int) -> None:
        return None

    def decode(
        self,
        x0: Tensor,
        codes: Tensor | None = None,
        library_size: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode x0 (B, D) to raw counts (B, G), integers in float32, and library sizes (B,).

        Real log values lie on a lattice, log1p(k * target_sum / library size). The library size of a cell is estimated
        from its values by a regression on the training cells. Each value is rounded to the nearest k, which is at
        least 1 for values above the threshold. Decoding is deterministic: `generator` and `codes` are not used. Raises
        ConfigError if a library size is given, which this codec does not support.
        """
        if library_size is not None:
            raise ConfigError(NO_LIBRARY_SIZE)
        y = torch.empty_like(x0)
        y[:, self.order.to(x0.device)] = x0 * self.std + self.mean
        y = y.clamp(max=float(self.largest))
        detected = y > self.threshold
        values = y.clamp(min=float(self.smallest)).expm1()  # normalised counts, which sum to target_sum
        library_size = self._library_size(values, detected)
        counts = (values * (library_size / self.target_sum)[:, None]).round().clamp(min=1)
        return torch.where(detected, counts, 0.0), library_size

    def library_size(self, x0: Tensor) -> Tensor:
        raise ConfigError(NO_LIBRARY_SIZE)

    def library_sizes(self) -> tuple[float, float]:
        raise ConfigError(NO_LIBRARY_SIZE)

    def spike_slab(self) -> tuple[float, Tensor, Tensor, Tensor]:
        """Return the value of a zero in x0, the log odds of detection, and mean and std of detected values (D,)."""
        mean, std = (self.slab_mean[self.order] - self.mean) / self.std, self.slab_std[self.order] / self.std
        return self.bounds[0], self.log_odds[self.order], mean, std

    def _fit_spike_slab(self, detected: Tensor, slab: Tensor, squares: Tensor, n: float, prior: float = 5.0) -> None:
        """Fit each gene from sums over n cells, with a prior from all genes that has the weight of `prior` cells."""
        share = (detected + 0.5) / (n + 1)
        self.log_odds = (share / (1 - share)).log().float()
        mean = (slab.sum() / detected.sum()).item()
        variance = (squares.sum() / detected.sum()).item() - mean**2
        means = (slab + prior * mean) / (detected + prior)
        spread = squares - 2 * means * slab + means.square() * detected
        self.slab_mean = means.float()
        self.slab_std = ((spread + prior * variance) / (detected + prior)).clamp(min=1e-4).sqrt().float()

    def state(self) -> dict[str, Tensor]:
        """Return everything that `fit` learnt, as tensors."""
        names = (
            "order",
            "mean",
            "std",
            "threshold",
            "smallest",
            "largest",
            "depth_coef",
            "depth_range",
            "log_odds",
            "slab_mean",
            "slab_std",
        )
        return {name: getattr(self, name).contiguous() for name in names}

    def load_state(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def settings(self) -> dict[str, Any]:
        """Return what a run must record, besides the configuration, to build this codec again."""
        return {"num_genes": self.num_genes, "target_sum": self.target_sum}

    def _log_normalise(self, counts: Tensor, library_size: Tensor) -> Tensor:
        return (counts * (self.target_sum / library_size)[:, None]).log1p()

    def _negate_zeros(self, x: Tensor) -> Tensor:
        return torch.where(x > 0, x, -self.config.zero_negation)

    def _depth_features(self, values: Tensor, detected: Tensor) -> Tensor:
        """Return features (B, 4) that predict the log library size.

        Most detected genes have one count, so low quantiles of a cell's values reflect its library size.
        """
        values = torch.where(detected, values, torch.nan)
        low, mid = values.nanquantile(torch.tensor([0.2, 0.5], device=values.device), dim=1).log()
        number = detected.sum(1).clamp(min=1).log()
        features = torch.stack([low, mid, number, torch.ones_like(number)], dim=1)
        return torch.where(features.isfinite(), features, 0.0)

    def _fit_library_size(self, log_values: Tensor, library_size: Tensor) -> None:
        features = self._depth_features(log_values.expm1(), log_values > 0).double()
        gram = features.T @ features + 1e-6 * torch.eye(4, dtype=torch.float64)
        self.depth_coef = torch.linalg.solve(gram, features.T @ library_size.double().log()).float()
        self.depth_range = torch.stack([library_size.min(), library_size.max()]).float()

    def _library_size(self, values: Tensor, detected: Tensor) -> Tensor:
        log_size = self._depth_features(values, detected) @ self.depth_coef.to(values.device)
        return log_size.exp().clamp(*self.depth_range.tolist()).round()


def _coexpressed_neighbours(log_values: Tensor) -> Tensor:
    """Return an order (G,) that places correlated genes side by side: the leaves of average linkage."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if log_values.shape[1] > MAX_GENES_TO_ORDER:
        raise ConfigError(
            f"codec.gene_order 'correlation' needs a genes x genes matrix and is limited to {MAX_GENES_TO_ORDER} "
            f"genes; there are {log_values.shape[1]}. Use codec.gene_order=data or a smaller --n-top-genes."
        )
    x = log_values.float()
    x = x - x.mean(0)
    x = x / x.norm(dim=0).clamp(min=1e-6)
    distance = (1 - x.T @ x).clamp(min=0).numpy()
    np.fill_diagonal(distance, 0)
    return torch.from_numpy(leaves_list(linkage(squareform(distance, checks=False), "average")).astype(np.int64))
