"""Each gene on its own: how often it is zero, its mean, variance and coefficient of variation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from scdiffkit.metrics.registry import metric

PAPER = "scRDiT (arXiv 2404.06153)"
N_BINS = 20  # of a gene's values above zero
COMMON = "common practice, e.g. Crowell et al. 2023 (Genome Biology 24:62)"
CORRELATION = (
    "Pearson correlation over genes between real and synthetic {}. Where all genes have the same value it is "
    "1 if both sides agree, else 0."
)


@metric(
    "zeros_difference",
    family="per gene",
    direction="closest to 0",
    best=0.0,
    definition="Share of zeros among all values of the synthetic cells minus that of the real cells: above 0, "
    "too many zeros.",
    source=f"{PAPER}: proportion of zeros",
)
def zeros_difference(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return float(zeros_per_gene(synthetic).mean() - zeros_per_gene(real).mean())


@metric(
    "zeros_mae",
    family="per gene",
    direction="lower is better",
    best=0.0,
    definition="Share of cells in which a gene is zero, real against synthetic: mean absolute difference over genes.",
    source=f"{PAPER}: proportion of zeros, here per gene",
)
def zeros_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(zeros_per_gene(real), zeros_per_gene(synthetic))


@metric(
    "mean_correlation",
    family="per gene",
    direction="higher is better",
    best=1.0,
    definition=CORRELATION.format("means of log1p-normalised values"),
    source=COMMON,
)
def mean_correlation(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return correlation(mean_per_gene(real), mean_per_gene(synthetic))


@metric(
    "mean_mae",
    family="per gene",
    direction="lower is better",
    best=0.0,
    definition="Mean of a gene's log1p-normalised values, real against synthetic: mean absolute difference over genes.",
    source=COMMON,
)
def mean_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(mean_per_gene(real), mean_per_gene(synthetic))


@metric(
    "variance_correlation",
    family="per gene",
    direction="higher is better",
    best=1.0,
    definition=CORRELATION.format("variances of log1p-normalised values"),
    source=COMMON,
)
def variance_correlation(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return correlation(variance_per_gene(real), variance_per_gene(synthetic))


@metric(
    "variance_mae",
    family="per gene",
    direction="lower is better",
    best=0.0,
    definition="Variance of a gene's log1p-normalised values, real against synthetic: mean absolute difference "
    "over genes.",
    source=COMMON,
)
def variance_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(variance_per_gene(real), variance_per_gene(synthetic))


CV = "coefficient of variation (standard deviation over mean of log1p-normalised values; 0 for a gene never seen)"


@metric(
    "cv_correlation",
    family="per gene",
    direction="higher is better",
    best=1.0,
    definition=CORRELATION.format(f"values of the {CV}"),
    source=f"{PAPER}: coefficient of variation",
)
def cv_correlation(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return correlation(cv_per_gene(real), cv_per_gene(synthetic))


@metric(
    "cv_mae",
    family="per gene",
    direction="lower is better",
    best=0.0,
    definition=f"Mean absolute difference over genes between real and synthetic {CV}.",
    source=f"{PAPER}: coefficient of variation",
)
def cv_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(cv_per_gene(real), cv_per_gene(synthetic))


@metric(
    "wasserstein_genes",
    family="per gene",
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition="One-dimensional Wasserstein distance between a gene's log1p-normalised values in real and in synthetic "
    "cells, mean over genes; at most 2000 cells a side.",
    source="scRDiT (arXiv 2404.06153): Wasserstein distance, here within each gene",
)
def wasserstein_genes(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return float(np.mean([wasserstein for wasserstein, _ in _distances_of_cdfs(real, synthetic)]))


@metric(
    "ks_genes",
    family="per gene",
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition="Kolmogorov-Smirnov statistic of a gene: the largest difference between the shares of real and of "
    "synthetic cells up to any log1p-normalised value, mean over genes; at most 2000 cells a side.",
    source=COMMON,
)
def ks_genes(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return float(np.mean([ks for _, ks in _distances_of_cdfs(real, synthetic)]))


@metric(
    "kl_genes",
    family="per gene",
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition=f"KL(real || synthetic) in nats of a gene's log1p-normalised values, in bins: one of zeros and {N_BINS} "
    "that hold as many of both sides' other values each, half a cell added to every bin; mean over genes. At most 2000 "
    "cells a side.",
    source="Kullback & Leibler 1951, on histograms",
)
def kl_genes(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    values = []
    for x, y in _seen_values(real, synthetic):
        both = np.sort(np.concatenate([x, y]))
        edges = both[np.arange(1, N_BINS) * len(both) // N_BINS] if len(both) else both
        edges = np.unique(edges[edges < both[-1:]])  # else the last bin, beyond the largest value, is empty
        p, q = (_binned(side, n, edges) for side, n in ((x, real.shape[0]), (y, synthetic.shape[0])))
        values.append(float((p * np.log(p / q)).sum()))
    return float(np.mean(values))


def _seen_values(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each gene, the values that are not zero in real and in synthetic cells."""
    sides = [side.tocsc() for side in (real, synthetic)]
    for g in range(real.shape[1]):
        x, y = (side.data[side.indptr[g] : side.indptr[g + 1]] for side in sides)
        yield x[x != 0], y[y != 0]


def _distances_of_cdfs(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> Iterator[tuple[float, float]]:
    """Of each gene, the area between its distributions in real and synthetic cells, and the largest difference."""
    n, m = real.shape[0], synthetic.shape[0]
    for x, y in _seen_values(real, synthetic):
        places = np.sort(np.concatenate([[0.0], x, y]))
        # All values are positive: what was not seen is zero, below every other value.
        below_x, below_y = (np.searchsorted(np.sort(side), places, side="right") for side in (x, y))
        difference = np.abs((n - len(x) + below_x) / n - (m - len(y) + below_y) / m)
        yield float((difference[:-1] * np.diff(places)).sum()), float(difference.max())


def _binned(seen: np.ndarray, n: int, edges: np.ndarray) -> np.ndarray:
    """Shares of n cells in the bins of `kl_genes`; seen: their values that are not zero."""
    counts = np.bincount(np.searchsorted(edges, seen), minlength=len(edges) + 1)
    shares = np.append(n - len(seen), counts) + 0.5
    return shares / shares.sum()


def zeros_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    """Share of cells (n, G) in which each gene is zero, (G,)."""
    return 1 - np.bincount(cells.indices[cells.data != 0], minlength=cells.shape[1]) / cells.shape[0]


def mean_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(cells.mean(axis=0)).ravel()


def variance_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    """Population variance (divided by n) of each gene, (G,)."""
    mean_of_squares = np.asarray(cells.multiply(cells).mean(axis=0)).ravel()
    return np.maximum(mean_of_squares - mean_per_gene(cells) ** 2, 0)


def cv_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    """Standard deviation over mean of each gene, 0 for one never seen, (G,)."""
    mean, sd = mean_per_gene(cells), np.sqrt(variance_per_gene(cells))
    return np.divide(sd, mean, out=np.zeros_like(mean), where=mean > 0)


def mean_absolute_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, defined where a side is constant: 1 if both are equal, else 0."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.allclose(a, b))
    return float(np.corrcoef(a, b)[0, 1])
