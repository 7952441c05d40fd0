"""The metrics of the scRDiT paper, computed as its published code does.

They allow a comparison with the paper's results. Each has a weakness, which its definition states.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scdiffkit.metrics.joint import kernel_sum, squared_distances
from scdiffkit.metrics.marginals import mean_per_gene
from scdiffkit.metrics.registry import metric

PAPER = "scRDiT (arXiv 2404.06153)"
BLOCK_OF_CELLS = 64
BLOCK_OF_GENES = 20
N_KERNELS = 5


@metric(
    "kl_paper",
    family="papers",
    direction="lower is better",
    best=0.0,
    definition="KL(real || synthetic) in nats between two cells, each turned into a distribution by a softmax "
    "over its log1p-normalised genes. The paper pairs cells arbitrarily; this is the mean over all pairs, which "
    "is what an arbitrary pairing gives on average. Most of it is the spread between cells, so compare it with "
    "the real reference, not with 0.",
    source=f"{PAPER}: KL divergence",
)
def kl_paper(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    """Compute the mean over all i, j of sum_g p_ig (log p_ig - log q_jg), which factorises over i and j."""
    n, m = real.shape[0], synthetic.shape[0]
    mean_p, mean_log_q = np.zeros((2, real.shape[1]))
    negative_entropy = 0.0
    for start in range(0, n, BLOCK_OF_CELLS):
        log_p = _log_softmax(real[start : start + BLOCK_OF_CELLS].toarray())
        p = np.exp(log_p)
        mean_p += p.sum(axis=0) / n
        negative_entropy += float((p * log_p).sum()) / n
    for start in range(0, m, BLOCK_OF_CELLS):
        mean_log_q += _log_softmax(synthetic[start : start + BLOCK_OF_CELLS].toarray()).sum(axis=0) / m
    return negative_entropy - float(mean_p @ mean_log_q)


@metric(
    "wasserstein_paper_means",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    definition="One-dimensional Wasserstein distance between the genes' means in real and in synthetic cells "
    "(log1p-normalised). It does not know which mean belongs to which gene.",
    source=f"{PAPER}: Wasserstein distance over mean-gene vectors",
)
def wasserstein_paper_means(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(mean_per_gene(real), mean_per_gene(synthetic)))


@metric(
    "wasserstein_paper_entries",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    definition="One-dimensional Wasserstein distance between all values of all genes in real and in synthetic "
    "cells, pooled (log1p-normalised). It knows neither genes nor cells.",
    source=f"{PAPER}: Wasserstein distance over pooled entries",
)
def wasserstein_paper_entries(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    from scipy.stats import wasserstein_distance

    (u, u_weights), (v, v_weights) = _values_and_weights(real), _values_and_weights(synthetic)
    return float(wasserstein_distance(u, v, u_weights, v_weights))


@metric(
    "mmd_paper",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    max_cells=500,
    definition="Squared maximum mean discrepancy over all genes (log1p-normalised), sum of 5 Gaussian kernels "
    "exp(-d^2 / b), b = mean d^2 between any two cells / 4 x {1, 2, 4, 8, 16}; a biased estimate that is above 0 "
    "even for equal distributions, and higher with fewer cells; at most 500 cells per set.",
    source=f"{PAPER}: maximum mean discrepancy, all genes",
)
def mmd_paper(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    xx, yy = squared_distances(real, real), squared_distances(synthetic, synthetic)
    return biased_mmd(xx, yy, squared_distances(real, synthetic))


@metric(
    "mmd_paper_blocks",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    max_cells=100,
    definition=f"As mmd_paper, but within blocks of {BLOCK_OF_GENES} genes (in the order of their names), "
    "averaged over blocks; at most 100 cells per set.",
    source=f"{PAPER}: maximum mean discrepancy, blocks of genes",
)
def mmd_paper_blocks(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    real_genes, synthetic_genes = real.tocsc(), synthetic.tocsc()
    values = []
    for start in range(0, real.shape[1], BLOCK_OF_GENES):
        genes = slice(start, start + BLOCK_OF_GENES)
        x, y = (side[:, genes].toarray() for side in (real_genes, synthetic_genes))
        values.append(biased_mmd(squared_distances(x, x), squared_distances(y, y), squared_distances(x, y)))
    return float(np.mean(values))


def biased_mmd(xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> float:
    """Compute the V-statistic from squared distances xx (n, n), yy (m, m) and xy (n, m); 0 if all distances are 0.

    The bandwidth is the mean squared distance over pairs of different cells of both sets together.
    """
    n, m = xy.shape
    total = xx.sum(dtype=np.float64) + yy.sum(dtype=np.float64) + 2 * xy.sum(dtype=np.float64)
    if total == 0:
        return 0.0
    bandwidth = total / ((n + m) * (n + m - 1)) / 4
    means = [kernel_sum(d2, bandwidth * 2 ** (N_KERNELS - 1), N_KERNELS) / d2.size for d2 in (xx, yy, xy)]
    return means[0] + means[1] - 2 * means[2]


def _log_softmax(x: np.ndarray) -> np.ndarray:
    """Compute the log-softmax over the genes of each cell: (n, G) -> (n, G)."""
    shifted = x - x.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def _values_and_weights(cells: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return all values with weights; the many zeros become one value, weighted by their number."""
    n_zeros = cells.shape[0] * cells.shape[1] - np.count_nonzero(cells.data)
    values = np.append(cells.data[cells.data != 0], 0.0)
    weights = np.append(np.ones(len(values) - 1), n_zeros)
    return (values[:-1], weights[:-1]) if n_zeros == 0 else (values, weights)
