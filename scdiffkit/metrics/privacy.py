"""Are synthetic cells copies of the cells that a model was trained on?

Nothing here proves that they are not: a figure at its floor says that this test finds nothing.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scdiffkit.metrics.coverage import radii
from scdiffkit.metrics.registry import metric

ENOUGH = 1000  # cells, to know how far apart neighbours are
BLOCK_OF_CELLS = 1000
NEAR = 0.01  # share of the training cells that have a neighbour as near as what counts as a near duplicate


@metric(
    "nn_ratio",
    family="privacy",
    direction="higher is better",
    best=1.0,
    space="pca",
    against="train",
    definition="Median distance of a synthetic cell to the nearest cell that the model was trained on (the nearest "
    "real cell, where those are not given), over that of those cells to the nearest other one, in 20 principal "
    "components of both sets; at most 5000 known cells. Well below 1: copies.",
    source="distance to closest record, e.g. Zhao et al. 2021 (arXiv 2102.08369)",
)
def nn_ratio(real: np.ndarray, synthetic: np.ndarray) -> float:
    """real (n, D), synthetic (m, D) -> ratio; 1 where all cells are the same."""
    both = np.vstack([real, synthetic])
    least = 1e-6 * float(np.linalg.norm(both - both.mean(axis=0), axis=1).mean())  # of cells in one place
    if least == 0:
        return 1.0
    to_real = float(np.median(_to_nearest(synthetic, real)))
    return max(to_real, least) / max(float(np.median(_between_neighbours(real))), least)


@metric(
    "exact_duplicates",
    family="privacy",
    direction="lower is better",
    best=0.0,
    against="train",
    definition="Share of synthetic cells with the very values of a cell that the model was trained on (of a real cell, "
    "where those are not given), in all genes; all cells are looked at.",
    source="exact matches, as in Platzer & Reutterer 2021 (arXiv 2104.00635)",
)
def exact_duplicates(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    known = set(fingerprints(real))
    return float(np.mean([cell in known for cell in fingerprints(synthetic)]))


@metric(
    "near_duplicates",
    family="privacy",
    direction="lower is better",
    best=0.0,
    space="pca",
    against="train",
    definition=f"Share of synthetic cells nearer to a cell that the model was trained on (to a real cell, where those "
    f"are not given) than all but {NEAR:.0%} of those cells are to one another, in 20 principal components of both "
    f"sets; about {NEAR} for cells that are no copies. At most 5000 known cells.",
    source="distance to closest record, e.g. Zhao et al. 2021 (arXiv 2102.08369)",
)
def near_duplicates(real: np.ndarray, synthetic: np.ndarray) -> float:
    usual = np.quantile(_between_neighbours(real), NEAR)
    return float((_to_nearest(synthetic, real) < usual).mean())


@metric(
    "membership_auc",
    family="privacy",
    direction="closest to 0.5",
    best=0.5,
    space="pca",
    max_cells=4000,
    against="candidates",
    needs=("member",),
    definition="Can someone who holds the synthetic cells tell which real cells the model was trained on? Area under "
    "the ROC curve of the attack that takes a cell for one when it lies near a synthetic cell, for how near its own "
    "kind lies: distance to the nearest synthetic cell over that to the nearest other real cell, in 20 principal "
    "components of all. 0.5: it cannot tell; 1: always. At most 4000 cells a side.",
    source="Hilprecht et al. 2019 (PoPETs 2019:232); distances as in Chen et al. 2020 (arXiv 1909.03935), calibrated",
)
def membership_auc(real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray) -> float:
    """real (n, D), of which `member` (n,) says which were trained on; synthetic (m, D). 0.5 where all or none were."""
    from sklearn.metrics import roc_auc_score

    if len(set(member)) < 2:
        return 0.5
    usual = np.maximum(radii(real, 1), 1e-12)
    return float(roc_auc_score(member, -_to_nearest(real, synthetic) / usual))


def _to_nearest(cells: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Distance of each cell (n, D) to the nearest known one (m, D), (n,)."""
    from scipy.spatial.distance import cdist

    blocks = np.array_split(cells, max(1, len(cells) // BLOCK_OF_CELLS))
    return np.concatenate([cdist(block, known).min(axis=1) for block in blocks])


def _between_neighbours(cells: np.ndarray) -> np.ndarray:
    """Distance to the nearest other cell, of up to ENOUGH of the cells (n, D)."""
    from scipy.spatial.distance import cdist

    return np.partition(cdist(cells[:ENOUGH], cells), min(1, len(cells) - 1), axis=1)[:, min(1, len(cells) - 1)]


def fingerprints(cells: sparse.csr_matrix) -> list[bytes]:
    """Of each cell's values (n, G): which genes, and how much to three digits (normalising twice may differ in the
    last)."""
    cells = cells.sorted_indices()
    of_cell = np.split(np.arange(cells.nnz), cells.indptr[1:-1])
    return [cells.indices[c].tobytes() + np.round(cells.data[c], 3).tobytes() for c in of_cell]
