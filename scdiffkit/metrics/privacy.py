"""Privacy metrics: whether synthetic cells are copies of training cells, and whether these can be recognised.

No metric proves that there are no copies: a value at the real reference only means that this test finds none.
"""

from __future__ import annotations

import hashlib
from itertools import pairwise

import numpy as np
from scipy import sparse

from scdiffkit.metrics.coverage import radii
from scdiffkit.metrics.registry import metric

ENOUGH = 1000  # number of cells used to estimate the distance between neighbours
BLOCK_OF_CELLS = 200
FEWEST_GENES = 20  # detected genes of a cell; with fewer, cells are equal by chance
TOO_FEW = 0  # fingerprint of cells with too few genes
NEAR = 0.33
DOMIAS_COMPONENTS = 10  # in more dimensions, kernel density estimates are hardly informative
TPR = "true positives at few false ones, as in Carlini et al. 2022 (arXiv 2112.03570)"


@metric(
    "nn_ratio",
    family="privacy",
    direction="higher is better",
    best=1.0,
    space="pca",
    against="neighbours",
    needs=("member",),
    definition="Median distance of a synthetic cell to the nearest training cell (real cell, if no training cells are "
    "given), divided by the median distance of such a cell to its nearest neighbour among them, in 20 principal "
    "components; at most 20,000 such cells. Well below 1: copies, or cells that are too close to the average.",
    source="distance to closest record, e.g. Zhao et al. 2021 (arXiv 2102.08369)",
)
def nn_ratio(real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray) -> float:
    """real (n, D), synthetic (m, D), member (n,), 1 for known cells -> ratio; 1 if all cells are equal."""
    both, known = np.vstack([real, synthetic]), real[member == 1]
    least = 1e-6 * float(np.linalg.norm(both - both.mean(axis=0), axis=1).mean())  # distances below count as 0
    if least == 0 or len(known) < 2:
        return 1.0
    to_known = float(np.median(_to_nearest(synthetic, known)))
    return max(to_known, least) / max(float(np.median(_between_neighbours(known))), least)


@metric(
    "exact_duplicates",
    family="privacy",
    direction="lower is better",
    best=0.0,
    against="train",
    definition="Share of synthetic cells that are identical in all genes to a training cell (to a real cell, if no "
    "training cells are given); cells with fewer than 20 detected genes are not counted.",
    source="exact matches, as in Platzer & Reutterer 2021 (arXiv 2104.00635)",
)
def exact_duplicates(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return copied_share(fingerprints(real), fingerprints(synthetic))


def copied_share(known: np.ndarray, made: np.ndarray) -> float:
    """Compute the share of the fingerprints `made` (m,) that occur among the fingerprints `known` (n,)."""
    return float(((made != TOO_FEW) & np.isin(made, known)).mean())


def repeated_share(of_cells: np.ndarray) -> float:
    """Compute the share of fingerprints (n,) that occur more than once: the real reference of exact_duplicates."""
    marks, counts = np.unique(of_cells, return_counts=True)
    return float(((of_cells != TOO_FEW) & np.isin(of_cells, marks[counts > 1])).mean())


@metric(
    "near_duplicates",
    family="privacy",
    direction="lower is better",
    best=0.0,
    space="pca",
    against="neighbours",
    needs=("member",),
    definition=f"Share of synthetic cells whose distance to the nearest training cell (real cell, if no training cells "
    f"are given) is less than {NEAR} times that to the nearest other real cell, in 20 principal components; at most "
    "20,000 training cells.",
    source="ratio of the nearest neighbours' distances, as in Platzer & Reutterer 2021 (arXiv 2104.00635)",
)
def near_duplicates(real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray) -> float:
    """real (n, D), synthetic (m, D), member (n,), 1 for known cells -> share; 0 if all or none are known."""
    known, others = real[member == 1], real[member == 0]
    if min(len(known), len(others)) == 0:
        return 0.0
    return float((_to_nearest(synthetic, known) < NEAR * _to_nearest(synthetic, others)).mean())


@metric(
    "membership_auc",
    family="privacy",
    direction="lower is better",
    best=0.5,
    space="pca",
    max_cells=4000,
    against="candidates",
    needs=("member",),
    definition="Can someone who holds the synthetic cells find out which real cells the model was trained on? Area "
    "under the ROC curve of an attack that scores a real cell by its distance to the nearest synthetic cell over that "
    "to the nearest other real cell, in 20 principal components of all. 0.5: guessing; 1: always right. Held-out "
    "cells must be from the donors and batches that were trained on; otherwise the attack recognises donors and "
    "batches. At most 4000 cells per set.",
    source="Hilprecht et al. 2019 (PoPETs 2019:232); distances as in Chen et al. 2020 (arXiv 1909.03935), calibrated",
)
def membership_auc(real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray) -> float:
    """real (n, D), synthetic (m, D), member (n,), 1 for training cells -> AUC; 0.5 if all or none are."""
    return _auc(member, nearness(real, synthetic))


def _at_false_positives(percent: int) -> None:
    """Register the true positive rates, over cells and over donors, of membership_auc's attack at `percent` % false
    positives."""
    rate = percent / 100

    @metric(
        f"membership_tpr_{percent}",
        family="privacy",
        direction="lower is better",
        best=rate,
        space="pca",
        max_cells=4000,
        against="candidates",
        needs=("member",),
        definition=f"Share of the training cells that the attack of membership_auc finds at a false positive rate of "
        f"{percent}%: {rate:g} by chance. An attack that succeeds for only a few cells shows here, but not in the AUC. "
        "At most 4000 cells per set.",
        source=TPR,
    )
    def of_cells(real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray) -> float:
        return true_positive_rate(member, nearness(real, synthetic), rate)

    @metric(
        f"donor_membership_tpr_{percent}",
        family="privacy",
        direction="lower is better",
        best=rate,
        space="pca",
        max_cells=4000,
        against="donors",
        needs=("member", "donors"),
        definition="Share of the training donors that the attack of donor_membership_auc finds at a false positive "
        f"rate of at most {percent}%; with fewer than {100 // percent} other donors, no false positive is allowed.",
        source=TPR,
    )
    def of_donors(
        real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray, donors: np.ndarray, __: np.ndarray
    ) -> float:
        return true_positive_rate(*by_donor(nearness(real, synthetic), member, donors), rate)


@metric(
    "donor_membership_auc",
    family="privacy",
    direction="lower is better",
    best=0.5,
    space="pca",
    max_cells=4000,
    against="donors",
    needs=("member", "donors"),
    definition="Can someone who holds the synthetic cells and many cells of a donor find out whether this donor was "
    "trained on? Area under the ROC curve, over donors, of the mean score of a donor's cells in the attack of "
    "membership_auc. Needs at least two donors that were trained on and two that were not. With few donors "
    "it depends on chance. At most 4000 cells per set.",
    source="Hilprecht et al. 2019 (PoPETs 2019:232), set membership",
)
def donor_membership_auc(
    real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray, donors: np.ndarray, __: np.ndarray
) -> float:
    """real (n, D), synthetic (m, D), member (n,), 1 for training cells, donors (n,) -> AUC over donors."""
    return _auc(*by_donor(nearness(real, synthetic), member, donors))


for _percent in (1, 10):
    _at_false_positives(_percent)


@metric(
    "domias_auc",
    family="privacy",
    direction="lower is better",
    best=0.5,
    space="pca",
    max_cells=4000,
    against="references",
    needs=("member",),
    definition="As membership_auc, for an attack that looks for places where the model generates too many cells: "
    "density of synthetic cells over density of other real cells, which were not trained on, at a cell; "
    f"both by Gaussian kernels of Scott's width in {DOMIAS_COMPONENTS} principal components. The reference is half of "
    "the held-out cells; the attack distinguishes the others from the training cells. At most 4000 cells per set.",
    source="DOMIAS, van Breugel et al. 2023 (arXiv 2302.12580), with kernel density estimates",
)
def domias_auc(real: np.ndarray, synthetic: np.ndarray, member: np.ndarray, _: np.ndarray) -> float:
    """real (n, D), synthetic (m, D), member (n,) -> AUC; 0.5 if a group is missing.

    member: 1 for training cells, 0 for held-out cells, 2 for reference cells.
    """
    reference, asked = real[member == 2], member < 2
    if min(len(reference), len(synthetic)) < 2:
        return 0.5
    cells, scale = real[asked][:, :DOMIAS_COMPONENTS], real.std(axis=0)[:DOMIAS_COMPONENTS]
    varying = scale > 1e-9 * max(float(scale.max()), 1e-300)
    of_synthetic, of_reference = (
        log_density(*(x[:, :DOMIAS_COMPONENTS][:, varying] / scale[varying] for x in (side, cells)))
        for side in (synthetic, reference)
    )
    return _auc(member[asked], of_synthetic - of_reference)


def nearness(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Score each real cell (n, D) by its distance to the nearest synthetic cell (m, D), relative to its distance to
    the nearest other real cell, (n,); negated, so that higher is nearer."""
    return -_to_nearest(real, synthetic) / np.maximum(radii(real, 1), 1e-12)


def by_donor(scores: np.ndarray, member: np.ndarray, donors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each donor, return whether any of its cells is a member, and the mean score of its cells; inputs (n,)."""
    names, code = np.unique(donors, return_inverse=True)
    of_each = np.bincount(code)
    members = np.bincount(code, member == 1, minlength=len(names)) > 0
    return members.astype(float), np.bincount(code, scores, minlength=len(names)) / of_each


def true_positive_rate(member: np.ndarray, scores: np.ndarray, rate: float) -> float:
    """Compute the share of members whose score exceeds that of all but `rate` of the others.

    member and scores are (n,). Returns `rate` if all or none are members.
    """
    members, others = scores[member == 1], scores[member == 0]
    if min(len(members), len(others)) == 0:
        return rate
    wrong = int(rate * len(others) + 1e-9)  # number of false positives allowed
    return float((members > np.sort(others)[::-1][wrong]).mean())


def log_density(cells: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Estimate the log density of cells (n, D) at the points `at` (m, D), (m,), up to a constant that depends on D.

    Uses Gaussian kernels of standard deviation n^(-1/(D + 4)) (Scott's rule for coordinates of standard deviation 1).
    """
    from scipy.spatial.distance import cdist
    from scipy.special import logsumexp

    n, d = cells.shape
    width = n ** (-1 / (d + 4))
    blocks = np.array_split(at, max(1, len(at) // BLOCK_OF_CELLS))
    sums = [logsumexp(cdist(block, cells, "sqeuclidean") / (-2 * width**2), axis=1) for block in blocks]
    return np.concatenate(sums) - np.log(n) - d * np.log(width)


def _auc(member: np.ndarray, scores: np.ndarray) -> float:
    """Compute the area under the ROC curve; 0.5 if all or none are members."""
    from sklearn.metrics import roc_auc_score

    return 0.5 if len(set(member)) < 2 else float(roc_auc_score(member, scores))


def _to_nearest(cells: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Compute the distance of each cell (n, D) to the nearest of the known cells (m, D), (n,)."""
    from scipy.spatial.distance import cdist

    blocks = np.array_split(cells, max(1, len(cells) // BLOCK_OF_CELLS))
    return np.concatenate([cdist(block, known).min(axis=1) for block in blocks])


def _between_neighbours(cells: np.ndarray) -> np.ndarray:
    """Compute the distance to the nearest other cell for the first ENOUGH of the cells (n, D)."""
    from scipy.spatial.distance import cdist

    some = cells[:ENOUGH]
    distances = cdist(some, cells)
    distances[np.arange(len(some)), np.arange(len(some))] = np.inf
    return distances.min(axis=1)


def fingerprints(cells: sparse.csr_matrix, min_genes: int = FEWEST_GENES) -> np.ndarray:
    """Hash each cell of (n, G) to a fingerprint, (n,) uint64.

    The hash covers the detected genes and their values, rounded to three decimals because normalising twice may change
    the last digits. Cells with fewer than `min_genes` genes, which may be equal by chance, get TOO_FEW. Between a
    million cells and a million others, the probability of any collision is 1 in 20 million.
    """
    cells = sparse.csr_matrix(cells, copy=True)
    cells.eliminate_zeros()
    cells.sort_indices()
    genes, values = cells.indices.astype(np.int32, copy=False), np.round(cells.data, 3).astype(np.float32, copy=False)
    found = np.full(cells.shape[0], TOO_FEW, dtype=np.uint64)
    for i, (start, stop) in enumerate(pairwise(cells.indptr.tolist())):
        if stop - start >= min_genes:
            digest = hashlib.blake2b(genes[start:stop], digest_size=8)
            digest.update(values[start:stop])
            found[i] = int.from_bytes(digest.digest(), "little") or 1
    return found
