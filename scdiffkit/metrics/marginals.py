"""Per-gene metrics: fraction of zeros, mean, variance, coefficient of variation and distribution of each gene."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scdiffkit.metrics.registry import metric

PAPER = "scRDiT (arXiv 2404.06153)"
N_BINS = 20  # bins for a gene's nonzero values
TREND_BINS = 20
COMMON = "common practice, e.g. Crowell et al. 2023 (Genome Biology 24:62)"
CORRELATION = (
    "Pearson correlation over genes between real and synthetic {}. If all genes of a set have the same "
    "value, it is 1 if both sets agree, else 0."
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
    space="variable",
    max_cells=2000,
    definition="One-dimensional Wasserstein distance between a gene's log1p-normalised values in real and in synthetic "
    "cells, mean over the 2000 most variable genes; at most 2000 cells per set.",
    source="scRDiT (arXiv 2404.06153): Wasserstein distance, here within each gene",
)
def wasserstein_genes(real: np.ndarray, synthetic: np.ndarray) -> float:
    values, difference = _cdfs(real, synthetic)
    return float((difference[:, :-1] * np.diff(values, axis=1)).sum(axis=1).mean())


@metric(
    "ks_genes",
    family="per gene",
    direction="lower is better",
    best=0.0,
    space="variable",
    max_cells=2000,
    definition="Kolmogorov-Smirnov statistic of a gene: the largest difference between the cumulative distributions "
    "of its log1p-normalised values in real and in synthetic cells; mean over the 2000 most variable genes; at most "
    "2000 cells per set.",
    source=COMMON,
)
def ks_genes(real: np.ndarray, synthetic: np.ndarray) -> float:
    return float(ks_of_genes(real, synthetic).mean())


def ks_of_genes(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Compute the Kolmogorov-Smirnov statistic of each gene, (G,), between real (n, G) and synthetic (m, G) cells."""
    values, difference = _cdfs(real, synthetic)
    last = np.hstack([np.diff(values, axis=1) > 0, np.ones((len(values), 1), dtype=bool)])  # last of each run of ties
    return np.where(last, difference, 0).max(axis=1)


def ks_per_gene(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> np.ndarray:
    """Compute `ks_of_genes`, (G,), for sparse nonnegative values; only nonzero values are sorted, which is faster."""
    sides = [sparse.csr_matrix(side).tocoo() for side in (real, synthetic)]
    genes, values = (np.concatenate([getattr(side, name) for side in sides]) for name in ("col", "data"))
    # each value of a set raises that set's distribution function by 1 / number of cells
    steps = np.repeat([1 / real.shape[0], -1 / synthetic.shape[0]], [len(side.data) for side in sides])
    seen = values > 0
    order = np.lexsort((values[seen], genes[seen]))
    genes, values, steps = genes[seen][order], values[seen][order], steps[seen][order]
    found = zeros_per_gene(sparse.csr_matrix(real)) - zeros_per_gene(sparse.csr_matrix(synthetic))  # at zero
    totals = np.cumsum(steps)
    starts = np.flatnonzero(np.diff(genes, prepend=-1))
    before = np.repeat(totals[starts] - steps[starts], np.diff(np.append(starts, len(genes))))
    difference = np.abs(found[genes] + totals - before)
    last = (np.diff(genes, append=-1) != 0) | (np.diff(values, append=np.inf) > 0)  # last of each run of ties
    found = np.abs(found)
    np.maximum.at(found, genes[last], difference[last])
    return found


@metric(
    "kl_genes",
    family="per gene",
    direction="lower is better",
    best=0.0,
    space="variable",
    max_cells=2000,
    definition=f"KL(real || synthetic) in nats between histograms of a gene's log1p-normalised values, with one bin "
    f"for zeros and {N_BINS} bins with equally many of the nonzero values of both sets (half a cell is added to every "
    "bin); mean over the 2000 most variable genes. At most 2000 cells per set.",
    source="Kullback & Leibler 1951, on histograms",
)
def kl_genes(real: np.ndarray, synthetic: np.ndarray) -> float:
    values = []
    for x, y in zip(real.T, synthetic.T):
        x_seen, y_seen = x[x != 0], y[y != 0]
        both = np.sort(np.concatenate([x_seen, y_seen]))
        edges = both[np.arange(1, N_BINS) * len(both) // N_BINS] if len(both) else both
        edges = np.unique(edges[edges < both[-1:]])  # otherwise the last bin would be empty
        p, q = (_binned(seen, n, edges) for seen, n in ((x_seen, len(x)), (y_seen, len(y))))
        values.append(float((p * np.log(p / q)).sum()))
    return float(np.mean(values))


@metric(
    "mean_variance_trend",
    family="per gene",
    direction="lower is better",
    best=0.0,
    definition="Do genes with similar means vary as much as in real cells? Median log10 variance of the genes as a "
    f"function of their mean, in {TREND_BINS} bins of equally many genes; mean absolute difference between the real "
    "and the synthetic curve over the real means (0.3: twice the variance, or half).",
    source=COMMON,
)
def mean_variance_trend(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return _between_trends(*(trend(mean_per_gene(x), _log10(variance_per_gene(x))) for x in (real, synthetic)))


@metric(
    "mean_zeros_trend",
    family="per gene",
    direction="lower is better",
    best=0.0,
    definition="Are genes with similar means zero as often as in real cells? Median share of zeros of the genes as a "
    f"function of their mean, in {TREND_BINS} bins of equally many genes; mean absolute difference between the real "
    "and the synthetic curve over the real means.",
    source=COMMON,
)
def mean_zeros_trend(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return _between_trends(*(trend(mean_per_gene(x), zeros_per_gene(x)) for x in (real, synthetic)))


def trend(means: np.ndarray, figure: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compute the medians of log10 mean and of `figure` in bins of genes with similar means.

    Both inputs are (G,); there are up to TREND_BINS bins of equally many genes. Genes with mean 0 are excluded.
    """
    seen = np.flatnonzero(means > 0)
    seen = seen[np.argsort(means[seen], kind="stable")]
    bins = [part for part in np.array_split(seen, TREND_BINS) if len(part)]
    return tuple(np.array([np.median(x[part]) for part in bins]) for x in (_log10(means), figure))  # type: ignore[return-value]


def _between_trends(real: tuple[np.ndarray, np.ndarray], synthetic: tuple[np.ndarray, np.ndarray]) -> float:
    """Compute the mean absolute difference of two trends at the real means; 0 if one of the sets has no counts."""
    if not (len(real[0]) and len(synthetic[0])):
        return 0.0
    return float(np.abs(real[1] - np.interp(real[0], *synthetic)).mean())


def _log10(values: np.ndarray) -> np.ndarray:
    """Compute log10 of values >= 0, clipped below at 1e-9, far less than the mean of a gene seen in a single cell."""
    return np.log10(np.maximum(values, 1e-9))


def _cdfs(real: np.ndarray, synthetic: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each gene, return the sorted values of real (n, G) and synthetic (m, G) cells together, and the absolute
    difference of the two empirical distribution functions at each value; both (G, n + m).

    Among tied values, only the difference at the last one is valid.
    """
    both = np.hstack([real.T, synthetic.T])
    order = np.argsort(both, axis=1, kind="stable")
    is_real = order < len(real)
    difference = np.abs(np.cumsum(is_real, axis=1) / len(real) - np.cumsum(~is_real, axis=1) / len(synthetic))
    return np.take_along_axis(both, order, axis=1), difference


def _binned(seen: np.ndarray, n: int, edges: np.ndarray) -> np.ndarray:
    """Return the share of n cells in each bin of `kl_genes`; seen: the nonzero values of these cells."""
    counts = np.bincount(np.searchsorted(edges, seen), minlength=len(edges) + 1)
    shares = np.append(n - len(seen), counts) + 0.5
    return shares / shares.sum()


def zeros_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    """Compute the share of cells (n, G) in which each gene is zero, (G,)."""
    return 1 - np.bincount(cells.indices[cells.data != 0], minlength=cells.shape[1]) / cells.shape[0]


def mean_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(cells.mean(axis=0)).ravel()


def variance_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    """Compute the population variance (divided by n) of each gene, (G,)."""
    mean_of_squares = np.asarray(cells.multiply(cells).mean(axis=0)).ravel()
    return np.maximum(mean_of_squares - mean_per_gene(cells) ** 2, 0)


def cv_per_gene(cells: sparse.csr_matrix) -> np.ndarray:
    """Compute the coefficient of variation (standard deviation / mean) of each gene, (G,); 0 for undetected genes."""
    mean, sd = mean_per_gene(cells), np.sqrt(variance_per_gene(cells))
    return np.divide(sd, mean, out=np.zeros_like(mean), where=mean > 0)


def mean_absolute_error(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).mean())


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Pearson's correlation; if an input is constant, return 1 if both are equal, else 0."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float(np.allclose(a, b))
    return float(np.corrcoef(a, b)[0, 1])
