"""Cross-fitted principal components: the axes for each cell are computed without that cell."""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse

from scdiffkit.config import CountCodecConfig
from scdiffkit.errors import DataError

UNSEEN_FOLD = 0  # fold of a cell that was not in training; folds of training cells count from 1
# The smallest data from which a PCA that leaves out a fold has a component.
FEWEST_CELLS = 3
FEWEST_GENES = 2


class CrossFittedPCA:
    """A PCA of log-normalised cells (n, G), and one PCA per fold that leaves out the cells of this fold.

    `fold` (n,) holds 1..config.folds. There are config.latent_dim components. If that is None, there are at most
    config.max_latent_dim: they end at the first one whose standard deviation in unseen cells is below the fraction
    config.min_reproducible of that in seen cells, as such a component is noise.

    `loadings` (folds + 1, G, K) and `offsets` (folds + 1, K) give components = values @ loadings - offsets. Index 0 is
    the fit to all cells; the other fits are rotated to match it. Components have unit standard deviation in unseen
    cells.
    """

    def __init__(self, values: sparse.csr_matrix, fold: np.ndarray, config: CountCodecConfig, seed: int) -> None:
        n, genes = values.shape
        limit = max(1, min(config.latent_dim or config.max_latent_dim, genes - 1, int(0.8 * n) - 1))
        full, center = _principal_axes(values, limit, seed)  # (G, K), (G,)
        unseen = np.zeros((n, full.shape[1]))
        fits = [(full, center)]
        for k in range(1, config.folds + 1):
            axes, mean = _principal_axes(values[fold != k], full.shape[1], seed)
            u, _, vt = np.linalg.svd(axes.T @ full)
            axes = axes @ (u @ vt)
            fits.append((axes, mean))
            unseen[fold == k] = values[fold == k] @ axes - mean @ axes
        seen_spread = np.maximum((values @ full).std(axis=0), 1e-6)
        spread = np.maximum(unseen.std(axis=0), 1e-6)
        self.reproducibility = np.minimum(spread / seen_spread, 1.0)
        kept = full.shape[1]
        if config.latent_dim is None:  # drop the first component that is noise and all after it
            noise = np.flatnonzero(self.reproducibility < config.min_reproducible)
            kept = max(2, int(noise[0])) if len(noise) else kept
            kept = min(kept, full.shape[1])
        self.components = kept
        self.reproducibility = self.reproducibility[:kept]
        stacked = [(axes[:, :kept] / spread[:kept], mean) for axes, mean in fits]
        self.loadings = torch.from_numpy(np.stack([axes for axes, _ in stacked]).astype(np.float32))
        self.offsets = torch.from_numpy(np.stack([mean @ axes for axes, mean in stacked]).astype(np.float32))


def check_variation(values: sparse.csr_matrix) -> None:
    """Raise DataError if no gene varies among the log-normalised cells (n, G)."""
    values = values.astype(np.float64)
    mean = np.asarray(values.mean(axis=0))
    if float((values.multiply(values).mean(axis=0) - mean**2).max()) < 1e-9:
        raise DataError(
            "Every gene has the same share of the counts in all cells, so there is nothing to learn. Give other cells."
        )


def _principal_axes(values: sparse.csr_matrix, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k principal axes (G, k) of cells (n, G), and the mean cell (G,)."""
    from sklearn.decomposition import PCA

    k = min(k, min(values.shape) - 1)
    if (values.max(axis=0) - values.min(axis=0)).max() < 1e-5:  # nothing varies, so any axes will do
        return np.eye(values.shape[1], k), np.asarray(values.mean(axis=0)).ravel()
    pca = PCA(k, svd_solver="arpack", random_state=seed).fit(values)
    return pca.components_.T, np.asarray(pca.mean_).ravel()


def assign_folds(n: int, folds: int) -> np.ndarray:
    """Return the folds (n,), 1..folds, of n training cells in order."""
    return np.arange(n) % folds + 1
