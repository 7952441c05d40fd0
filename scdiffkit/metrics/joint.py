"""Metrics of the joint distribution: MMD, optimal transport, gene-gene correlations and mixing of cells."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.marginals import COMMON, correlation
from scdiffkit.metrics.registry import metric

WIDEST_BANDWIDTH = 4.0  # bandwidth of the widest kernel, in medians; each further kernel has half the bandwidth
N_KERNELS = 5
DENSE = 0.05  # share of nonzero values above which a dense product is faster
N_CORRELATED = 500
PERPLEXITY = 30


@metric(
    "mmd_pca",
    direction="lower is better",
    best=0.0,
    space="pca",
    max_cells=2000,
    definition="Squared maximum mean discrepancy, unbiased (it may be slightly negative), in 20 principal "
    "components of both sets; mean of 5 Gaussian kernels exp(-d^2 / b), b = median d^2 between "
    "real cells x {1/4, 1/2, 1, 2, 4}; at most 2000 cells per set.",
    source="Gretton et al. 2012 (JMLR 13), eq. 3",
)
def mmd_pca(real: np.ndarray, synthetic: np.ndarray) -> float:
    """real (n, D), synthetic (m, D) -> unbiased MMD^2; 0 if either set has a single cell."""
    n, m = len(real), len(synthetic)
    if min(n, m) < 2:
        return 0.0
    within_real = squared_distances(real, real)
    median = float(np.median(within_real[np.triu_indices(n, 1)])) or float(within_real.mean()) or 1.0
    xx, yy, xy = (
        kernel_sum(d2, WIDEST_BANDWIDTH * median, N_KERNELS) / N_KERNELS
        for d2 in (within_real, squared_distances(synthetic, synthetic), squared_distances(real, synthetic))
    )
    # subtract the diagonals, n and m terms k(x, x) = 1, which bias the V-statistic
    return (xx - n) / (n * (n - 1)) + (yy - m) / (m * (m - 1)) - 2 * xy / (n * m)


@metric(
    "wasserstein_pca",
    direction="lower is better",
    best=0.0,
    space="pca",
    max_cells=1000,
    definition="2-Wasserstein distance, by exact optimal transport, in 20 principal components of both sets: how far "
    "cells have to be moved to turn one set into the other. Above 0 even for equal distributions, and higher with "
    "fewer cells; at most 1000 cells per set.",
    source="Flamary et al. 2021 (JMLR 22:78), POT's emd2",
)
def wasserstein_pca(real: np.ndarray, synthetic: np.ndarray) -> float:
    import ot

    cost = squared_distances(real, synthetic)
    return float(np.sqrt(max(ot.emd2([], [], cost, numItermax=1_000_000), 0.0)))


@metric(
    "correlation_structure",
    direction="higher is better",
    best=1.0,
    space="variable",
    definition=f"Are the same genes correlated? Pearson correlations between all pairs of the {N_CORRELATED} most "
    "variable genes, within real and within synthetic cells, and the correlation of the one with the other. "
    "A gene that is constant in one set has correlation 0 with all others there.",
    source=COMMON,
)
def correlation_structure(real: np.ndarray, synthetic: np.ndarray) -> float:
    """real (n, D), synthetic (m, D) -> correlation; 1 if there are no pairs of genes, or if all are equal."""
    genes = np.argsort(-np.vstack([real, synthetic]).var(axis=0), kind="stable")[:N_CORRELATED]
    if len(genes) < 2:
        return 1.0
    pairs = np.triu_indices(len(genes), 1)
    return correlation(*(_correlations(side[:, genes])[pairs] for side in (real, synthetic)))


@metric(
    "lisi",
    direction="higher is better",
    best=1.0,
    space="pca",
    max_cells=2000,
    definition="How well real and synthetic cells mix: effective number of sets among a cell's neighbours (local "
    f"inverse Simpson's index, perplexity {PERPLEXITY}) minus 1, mean over cells, in 20 principal components of both "
    "sets. 1: half of every neighbourhood is synthetic; 0: no neighbourhood is mixed. At most 2000 cells per set.",
    source="Korsunsky et al. 2019 (Nature Methods 16:1289), integration LISI",
)
def lisi(real: np.ndarray, synthetic: np.ndarray) -> float:
    cells = np.vstack([real, synthetic])
    is_synthetic = np.repeat([False, True], [len(real), len(synthetic)])
    return float(lisi_of_cells(cells, is_synthetic).mean() - 1)


def lisi_of_cells(cells: np.ndarray, side: np.ndarray, perplexity: float = PERPLEXITY) -> np.ndarray:
    """Compute the local inverse Simpson's index of each cell (n, D) -> (n,).

    The index is the effective number of sets among a cell's neighbours: 1 if all are from one set, 2 if both sets are
    equally frequent. side: (n,) bool, the set of each cell. The number of neighbours is three times the perplexity;
    their weights are exp(-beta d), with beta such that the entropy of a cell's weights is log(perplexity).
    """
    from sklearn.neighbors import NearestNeighbors

    k = min(int(3 * perplexity), len(cells) - 1)
    distance, neighbour = NearestNeighbors(n_neighbors=k).fit(cells).kneighbors()
    perplexity = min(perplexity, k / 3)
    distance -= distance[:, :1]  # weights are relative to the nearest neighbour's
    scale = distance.mean(axis=1, keepdims=True)
    distance = np.divide(distance, scale, out=np.zeros_like(distance), where=scale > 0)
    low, high = np.full((2, len(cells), 1), [[[0.0]], [[1e6]]])
    for _ in range(60):  # entropy falls as beta grows
        beta = (low + high) / 2
        weights = np.exp(-beta * distance)
        total = weights.sum(axis=1, keepdims=True)
        entropy = np.log(total) + beta * (weights * distance).sum(axis=1, keepdims=True) / total
        too_even = entropy > np.log(perplexity)
        low, high = np.where(too_even, beta, low), np.where(too_even, high, beta)
    weights /= total
    synthetic = (weights * side[neighbour]).sum(axis=1)
    return 1 / (synthetic**2 + (1 - synthetic) ** 2)


def _correlations(cells: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlations between the genes of cells (n, D), (D, D); 0 for constant genes."""
    centred = cells - cells.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    scaled = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > 1e-9)
    return scaled.T @ scaled


def kernel_sum(d2: np.ndarray, widest: float, n_kernels: int) -> float:
    """Sum the kernels exp(-d^2 / b), b = widest x {1, 1/2, 1/4, ...}, over all squared distances d2."""
    k = np.exp(d2 / -widest)
    total = k.sum(dtype=np.float64)
    for _ in range(n_kernels - 1):
        k *= k  # squaring a Gaussian kernel halves its b, so one exp is enough for all kernels
        total += k.sum(dtype=np.float64)
    return float(total)


def squared_distances(a: Any, b: Any) -> np.ndarray:
    """Compute squared Euclidean distances (n, m) between the rows of a (n, D) and b (m, D), both dense or both CSR."""
    from scipy.spatial.distance import cdist

    if not sparse.issparse(a):  # in few dimensions, cdist is faster than a matrix product
        return cdist(a, b, "sqeuclidean")
    is_dense = a.nnz > DENSE * np.prod(a.shape)  # then a dense product is faster
    products = a.toarray() @ b.toarray().T if is_dense else (a @ b.T).toarray()
    norms = [np.asarray(side.multiply(side).sum(axis=1)).ravel() for side in (a, b)]
    d2 = np.maximum(norms[0][:, None] + norms[1][None, :] - 2 * products, 0)
    if a is b:
        np.fill_diagonal(d2, 0)
    return d2
