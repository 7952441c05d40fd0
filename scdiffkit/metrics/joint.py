"""Distances between whole distributions of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.registry import metric

SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)


@metric(
    "mmd_pca",
    direction="lower is better",
    best=0.0,
    space="pca",
    max_cells=2000,
    definition="Squared maximum mean discrepancy, unbiased (it may be slightly negative), in 20 principal "
    "components of both sets; mean of 5 Gaussian kernels exp(-d^2 / b), b = median d^2 between "
    "real cells x {1/4, 1/2, 1, 2, 4}; at most 2000 cells a side.",
    source="Gretton et al. 2012 (JMLR 13), eq. 3",
)
def mmd_pca(real: np.ndarray, synthetic: np.ndarray) -> float:
    """real (n, D), synthetic (m, D) -> unbiased MMD^2; 0 when a side has a single cell."""
    n, m = len(real), len(synthetic)
    if min(n, m) < 2:
        return 0.0
    within_real = squared_distances(real, real)
    bandwidth = float(np.median(within_real[np.triu_indices(n, 1)])) or float(within_real.mean()) or 1.0

    def mean_kernel(d2: np.ndarray) -> np.ndarray:
        return np.mean([np.exp(-d2 / (scale * bandwidth)) for scale in SCALES], axis=0)

    xx, yy = mean_kernel(within_real), mean_kernel(squared_distances(synthetic, synthetic))
    xy = mean_kernel(squared_distances(real, synthetic))
    # the diagonals, k(x, x) = 1, are what biases the V-statistic
    return float((xx.sum() - n) / (n * (n - 1)) + (yy.sum() - m) / (m * (m - 1)) - 2 * xy.mean())


def squared_distances(a: Any, b: Any) -> np.ndarray:
    """Squared Euclidean distances (n, m) between the rows of a (n, D) and b (m, D), dense or both CSR."""
    if sparse.issparse(a):
        products = (a @ b.T).toarray()
        norms = [np.asarray(side.multiply(side).sum(axis=1)).ravel() for side in (a, b)]
    else:
        products = a @ b.T
        norms = [np.einsum("ij,ij->i", side, side) for side in (a, b)]
    d2 = np.maximum(norms[0][:, None] + norms[1][None, :] - 2 * products, 0)
    if a is b:
        np.fill_diagonal(d2, 0)
    return d2
