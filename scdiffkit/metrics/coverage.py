"""Coverage metrics: whether synthetic cells are realistic (precision, density) and diverse (recall, coverage)."""

from __future__ import annotations

import numpy as np

from scdiffkit.metrics.registry import metric

K = 5
RECALL = "Kynkäänniemi et al. 2019 (arXiv 1904.06991)"
COVERAGE = "Naeem et al. 2020 (arXiv 2002.09797)"
BALLS = (
    f" A cell's ball reaches to its {K}th nearest neighbour in its own set, in 20 principal components of both sets; "
    "at most 2000 cells per set."
)


@metric(
    "precision",
    family="coverage",
    direction="higher is better",
    best=1.0,
    space="pca",
    max_cells=2000,
    definition="Share of synthetic cells that lie in the ball of any real cell: are they realistic?" + BALLS,
    source=RECALL,
)
def precision(real: np.ndarray, synthetic: np.ndarray) -> float:
    return precision_recall(real, synthetic)["precision"]


@metric(
    "recall",
    family="coverage",
    direction="higher is better",
    best=1.0,
    space="pca",
    max_cells=2000,
    definition="Share of real cells that lie in the ball of any synthetic cell: is every kind of cell there?" + BALLS,
    source=RECALL,
)
def recall(real: np.ndarray, synthetic: np.ndarray) -> float:
    return precision_recall(real, synthetic)["recall"]


@metric(
    "density",
    family="coverage",
    direction="closest to 1",
    best=1.0,
    space="pca",
    max_cells=2000,
    definition="Number of real cells' balls that a synthetic cell lies in, over the expected number. Above 1: too many "
    "synthetic cells lie where real cells are dense." + BALLS,
    source=COVERAGE,
)
def density(real: np.ndarray, synthetic: np.ndarray) -> float:
    return precision_recall(real, synthetic)["density"]


@metric(
    "coverage",
    family="coverage",
    direction="higher is better",
    best=1.0,
    space="pca",
    max_cells=2000,
    definition="Share of real cells whose ball holds a synthetic cell." + BALLS,
    source=COVERAGE,
)
def coverage(real: np.ndarray, synthetic: np.ndarray) -> float:
    return precision_recall(real, synthetic)["coverage"]


def precision_recall(real: np.ndarray, synthetic: np.ndarray, k: int = K) -> dict[str, float]:
    """Compute precision, recall, density and coverage of synthetic (m, D) against real cells (n, D).

    A cell's ball is open and extends to its k-th nearest neighbour within its own set. Precision is the share of
    synthetic cells in any real cell's ball; recall is the share of real cells in any synthetic cell's ball; density is
    the mean number of real cells' balls around a synthetic cell, divided by k; coverage is the share of real cells
    whose ball contains a synthetic cell. Sources: RECALL, COVERAGE.
    """
    from scipy.spatial.distance import cdist

    between = cdist(real, synthetic)
    in_real_ball = between < radii(real, k)[:, None]
    in_synthetic_ball = between < radii(synthetic, k)[None, :]
    return {
        "precision": float(in_real_ball.any(axis=0).mean()),
        "recall": float(in_synthetic_ball.any(axis=1).mean()),
        "density": float(in_real_ball.sum(axis=0).mean() / k),
        "coverage": float(in_real_ball.any(axis=1).mean()),
    }


def radii(cells: np.ndarray, k: int) -> np.ndarray:
    """Compute the distance of each cell (n, D) to its k-th nearest other cell, (n,)."""
    from scipy.spatial.distance import cdist

    k = min(k, len(cells) - 1)
    return np.partition(cdist(cells, cells), k, axis=1)[:, k]  # position 0 is the cell itself
