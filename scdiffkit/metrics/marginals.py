"""Each gene on its own: how often it is zero, its mean, variance and coefficient of variation."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scdiffkit.metrics.registry import metric

PAPER = "scRDiT (arXiv 2404.06153)"
COMMON = "common practice, e.g. Crowell et al. 2023 (Genome Biology 24:62)"
CORRELATION = (
    "Pearson correlation over genes between real and synthetic {}. Where all genes have the same value it is "
    "1 if both sides agree, else 0."
)


@metric(
    "zeros_difference",
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
    direction="lower is better",
    best=0.0,
    definition="Share of cells in which a gene is zero, real against synthetic: mean absolute difference over genes.",
    source=f"{PAPER}: proportion of zeros, here per gene",
)
def zeros_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(zeros_per_gene(real), zeros_per_gene(synthetic))


@metric(
    "mean_correlation",
    direction="higher is better",
    best=1.0,
    definition=CORRELATION.format("means of log1p-normalised values"),
    source=COMMON,
)
def mean_correlation(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return correlation(mean_per_gene(real), mean_per_gene(synthetic))


@metric(
    "mean_mae",
    direction="lower is better",
    best=0.0,
    definition="Mean of a gene's log1p-normalised values, real against synthetic: mean absolute difference over genes.",
    source=COMMON,
)
def mean_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(mean_per_gene(real), mean_per_gene(synthetic))


@metric(
    "variance_correlation",
    direction="higher is better",
    best=1.0,
    definition=CORRELATION.format("variances of log1p-normalised values"),
    source=COMMON,
)
def variance_correlation(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return correlation(variance_per_gene(real), variance_per_gene(synthetic))


@metric(
    "variance_mae",
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
    direction="higher is better",
    best=1.0,
    definition=CORRELATION.format(f"values of the {CV}"),
    source=f"{PAPER}: coefficient of variation",
)
def cv_correlation(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return correlation(cv_per_gene(real), cv_per_gene(synthetic))


@metric(
    "cv_mae",
    direction="lower is better",
    best=0.0,
    definition=f"Mean absolute difference over genes between real and synthetic {CV}.",
    source=f"{PAPER}: coefficient of variation",
)
def cv_mae(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return mean_absolute_error(cv_per_gene(real), cv_per_gene(synthetic))


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
