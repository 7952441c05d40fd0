"""Distances between whole distributions of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.registry import metric

WIDEST = 4.0  # times the median; each further kernel is half as wide
N_KERNELS = 5
DENSE = 0.05  # share of values that are not zero


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
    median = float(np.median(within_real[np.triu_indices(n, 1)])) or float(within_real.mean()) or 1.0
    xx, yy, xy = (
        kernel_sum(d2, WIDEST * median, N_KERNELS) / N_KERNELS
        for d2 in (within_real, squared_distances(synthetic, synthetic), squared_distances(real, synthetic))
    )
    # the diagonals, n and m times k(x, x) = 1, are what biases the V-statistic
    return (xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - 2 * xy / (n * m)


def kernel_sum(d2: np.ndarray, widest: float, n_kernels: int) -> float:
    """Sum over all pairs and over kernels exp(-d^2 / b), b = widest x {1, 1/2, 1/4, ...}, of distances d^2."""
    k = np.exp(d2 / -widest)
    total = k.sum(dtype=np.float64)
    for _ in range(n_kernels - 1):
        k *= k  # squaring a Gaussian kernel halves its b: one exp for all of them
        total += k.sum(dtype=np.float64)
    return float(total)


def squared_distances(a: Any, b: Any) -> np.ndarray:
    """Squared Euclidean distances (n, m) between the rows of a (n, D) and b (m, D), dense or both CSR."""
    from scipy.spatial.distance import cdist

    if not sparse.issparse(a):  # few dimensions: a loop beats a product of matrices
        return cdist(a, b, "sqeuclidean")
    is_dense = a.nnz > DENSE * np.prod(a.shape)  # then a product of dense matrices is faster
    products = a.toarray() @ b.toarray().T if is_dense else (a @ b.T).toarray()
    norms = [np.asarray(side.multiply(side).sum(axis=1)).ravel() for side in (a, b)]
    d2 = np.maximum(norms[0][:, None] + norms[1][None, :] - 2 * products, 0)
    if a is b:
        np.fill_diagonal(d2, 0)
    return d2
