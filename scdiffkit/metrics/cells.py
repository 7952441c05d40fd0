"""Per-cell metrics: library size, number of detected genes and fraction of mitochondrial counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from scdiffkit.metrics.registry import metric

SOURCE = "quality-control figures of a cell as in scanpy's calculate_qc_metrics, compared by Wasserstein distance"


@metric(
    "library_size",
    family="per cell",
    direction="lower is better",
    best=0.0,
    definition="Wasserstein distance between the distributions of log10 total counts per cell over the genes compared "
    "(0.3: synthetic cells have twice the counts, or half). Needs raw counts in both sets.",
    source=SOURCE,
    needs=("library_size",),
)
def library_size(real: Any, synthetic: Any, real_size: np.ndarray, synthetic_size: np.ndarray) -> float:
    """real_size (n,) and synthetic_size (m,) are total counts per cell."""
    return _distance(np.log10(real_size + 1), np.log10(synthetic_size + 1))


@metric(
    "genes_detected",
    family="per cell",
    direction="lower is better",
    best=0.0,
    definition="Wasserstein distance between the distributions of log10 genes detected per cell, among the genes "
    "compared.",
    source=SOURCE,
    needs=("genes_detected",),
)
def genes_detected(real: Any, synthetic: Any, real_genes: np.ndarray, synthetic_genes: np.ndarray) -> float:
    """real_genes (n,) and synthetic_genes (m,) are numbers of detected genes per cell."""
    return _distance(np.log10(real_genes + 1), np.log10(synthetic_genes + 1))


@metric(
    "mitochondrial_share",
    family="per cell",
    direction="lower is better",
    best=0.0,
    definition="Wasserstein distance between the distributions of a cell's share of counts in mitochondrial genes "
    "(names that start with MT-), among the genes compared.",
    source=SOURCE,
    needs=("mitochondrial_share",),
)
def mitochondrial_share(real: Any, synthetic: Any, real_share: np.ndarray, synthetic_share: np.ndarray) -> float:
    """real_share (n,) and synthetic_share (m,) are fractions between 0 and 1."""
    return _distance(real_share, synthetic_share)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(a, b))
