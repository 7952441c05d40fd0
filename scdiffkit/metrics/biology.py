"""Biology metrics: whether cell types, marker genes, differential expression and responses are those of real cells.

This file is long because it has many short metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.marginals import zeros_per_gene
from scdiffkit.metrics.registry import metric

N_MARKERS = 50
MIN_REAL_PER_TYPE, MIN_SYNTHETIC_PER_TYPE = (
    10,
    5,
)  # minimum real and synthetic cells of a type that is compared
TRAINING_PER_TYPE = 20  # real cells per type for augmentation_gain; with more, augmentation does not help
MIN_DETECTED = 0.05  # minimum share of cells with a gene whose fold change is compared
FDR = 0.05
SLOPE = (
    "Regression slope, through the origin, of synthetic on real differences of mean log1p-normalised values, {}, over "
    f"genes detected in at least {MIN_DETECTED:.0%} of the real cells compared. Below 1: the model weakens "
    "differences; above 1: it exaggerates them. Noise in the real differences lowers the slope slightly; the real "
    f"reference shows by how much. {{}}, 0 for one of fewer than {MIN_SYNTHETIC_PER_TYPE} synthetic cells."
)
DE = (
    f"{{}} Genes detected in at least {MIN_DETECTED:.0%} of the real cells are tested by Welch's t-test, a type "
    f"against all other cells, at {FDR:.0%} false discovery rate (Benjamini-Hochberg); up- and down-regulated genes "
    f"are distinguished. Mean over the types of {MIN_REAL_PER_TYPE} or more real cells, 0 for one of fewer than "
    f"{MIN_SYNTHETIC_PER_TYPE} synthetic cells."
)
DE_SOURCE = "differential expression as in scanpy's rank_genes_groups; Benjamini & Hochberg 1995"


@metric(
    "type_f1",
    direction="higher is better",
    best=1.0,
    space="pca",
    family="biology",
    needs=("types",),
    definition="Macro-F1, over the types of the real cells, of a classifier that learns the types from synthetic cells "
    "and predicts those of real cells: logistic regression on 20 principal components of both sets.",
    source="train on synthetic, test on real: Esteban et al. 2017 (arXiv 1706.02633)",
)
def type_f1(real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray) -> float:
    """Compute the macro-F1 for real (n, D) and synthetic (m, D) cells with types (n,) and (m,), text."""
    return macro_f1(synthetic, synthetic_types, real, real_types)


@metric(
    "type_f1_reverse",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    space="pca",
    definition="The reverse of type_f1: a classifier learns the types from real cells and predicts those of synthetic "
    "cells; macro-F1 over the types of the synthetic cells.",
    source="train on real, test on synthetic: Esteban et al. 2017 (arXiv 1706.02633)",
)
def type_f1_reverse(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    return macro_f1(real, real_types, synthetic, synthetic_types)


@metric(
    "augmentation_gain",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    space="pca",
    definition="Do synthetic cells help to recognise rare types? A classifier (logistic regression on 20 principal "
    f"components of both sets) is trained on half of the real cells, at most {TRAINING_PER_TYPE} per type, with and "
    "without the synthetic cells, and tested on the other half. The score is the gain in mean F1 of the rarer half of "
    "the types. Above 0: they help. The real reference is the gain from equally many other real cells.",
    source="augmentation as in Marouf et al. 2020 (Nature Communications 11:166)",
)
def augmentation_gain(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """Return 0 if fewer than two types have held-out cells."""
    place = np.empty(len(real), dtype=int)
    for name in set(real_types):
        rows = np.flatnonzero(real_types == name)
        place[rows] = np.arange(len(rows))
    held_out = place % 2 == 1
    learnt = ~held_out & (place < 2 * TRAINING_PER_TYPE)
    names, counts = np.unique(real_types[held_out], return_counts=True)
    if len(names) < 2:
        return 0.0
    rare = sorted(names[np.argsort(counts, kind="stable")][: (len(names) + 1) // 2])
    cells, types = real[learnt], real_types[learnt]
    alone = macro_f1(cells, types, real[held_out], real_types[held_out], rare)
    cells, types = np.vstack([cells, synthetic]), np.concatenate([types, synthetic_types])
    with_them = macro_f1(cells, types, real[held_out], real_types[held_out], rare)
    return with_them - alone


@metric(
    "marker_overlap",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition=f"Share of a type's {N_MARKERS} strongest marker genes (by Welch's t, a type against all other cells; "
    f"with fewer than {10 * N_MARKERS} genes, a tenth of them) that are also among the strongest in synthetic cells; "
    f"mean over the types of {MIN_REAL_PER_TYPE} or more real cells, 0 for one of fewer than "
    f"{MIN_SYNTHETIC_PER_TYPE} synthetic cells.",
    source="markers by t-test as in scanpy's rank_genes_groups",
)
def marker_overlap(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """A type with too few synthetic cells counts 0."""
    pairs = _contrasts_by_type(real, synthetic, real_types, synthetic_types)
    return _mean_over([float(np.isin(_strongest(p[0].t), _strongest(p[1].t)).mean()) if p else 0.0 for p in pairs])


@metric(
    "marker_auprc",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition=f"Area under the precision-recall curve when synthetic cells' t statistics are used to find a type's "
    f"{N_MARKERS} strongest marker genes in real cells; mean over the types of {MIN_REAL_PER_TYPE} or more real cells, "
    f"0 for one of fewer than {MIN_SYNTHETIC_PER_TYPE} synthetic cells.",
    source="average precision; markers by t-test as in scanpy's rank_genes_groups",
)
def marker_auprc(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """A type with too few synthetic cells counts 0."""
    from sklearn.metrics import average_precision_score

    values = []
    for pair in _contrasts_by_type(real, synthetic, real_types, synthetic_types):
        if pair is None:
            values.append(0.0)
            continue
        is_marker = np.zeros(len(pair[0].t), dtype=bool)
        is_marker[_strongest(pair[0].t)] = True
        values.append(float(average_precision_score(is_marker, pair[1].t)))
    return _mean_over(values)


@metric(
    "lfc_types",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition="Spearman correlation between real and synthetic differences of mean log1p-normalised values, a type "
    f"against all other cells, over genes detected in at least {MIN_DETECTED:.0%} of the real cells compared; mean "
    f"over the types of {MIN_REAL_PER_TYPE} or more real cells, 0 for one of fewer than {MIN_SYNTHETIC_PER_TYPE} "
    "synthetic cells.",
    source="log-fold changes as in scanpy's rank_genes_groups, compared by rank",
)
def lfc_types(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """A type with too few synthetic cells counts 0."""
    return _mean_over(_compare_differences(_spearman, real, synthetic, real_types, synthetic_types))


@metric(
    "lfc_slope",
    family="biology",
    needs=("types",),
    direction="closest to 1",
    best=1.0,
    definition=SLOPE.format(
        "a type against all other cells", f"Mean over the types of {MIN_REAL_PER_TYPE} or more real cells"
    ),
    source="log-fold changes as in scanpy's rank_genes_groups, least squares",
)
def lfc_slope(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """A type with too few synthetic cells counts 0."""
    return _mean_over(_compare_differences(_slope, real, synthetic, real_types, synthetic_types))


@metric(
    "de_recall",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition=DE.format("Share of a type's differentially expressed genes that are found in synthetic cells too."),
    source=DE_SOURCE,
)
def de_recall(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """A type without differentially expressed genes in real cells counts 1; one with too few synthetic cells, 0."""
    pairs = _de_genes_by_type(real, synthetic, real_types, synthetic_types)
    return _mean_over([0.0 if p is None else _share_recovered(*p) for p in pairs])


@metric(
    "de_precision",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition=DE.format(
        "Share of the genes differentially expressed in synthetic cells of a type that are also differentially "
        "expressed in real cells."
    ),
    source=DE_SOURCE,
)
def de_precision(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """A type without differentially expressed genes in synthetic cells counts 1 if real cells have none either, else 0,
    so that finding nothing is not rewarded. A type with too few synthetic cells counts 0."""
    pairs = _de_genes_by_type(real, synthetic, real_types, synthetic_types)
    return _mean_over(
        [0.0 if p is None or (p[0].any() and not p[1].any()) else _share_recovered(p[1], p[0]) for p in pairs]
    )


@metric(
    "lfc_conditions",
    family="biology",
    needs=("types", "conditions"),
    direction="higher is better",
    best=1.0,
    definition="As lfc_types, but within each type, a condition against all others; mean over types and conditions of "
    f"{MIN_REAL_PER_TYPE} or more real cells, 0 for one of fewer than {MIN_SYNTHETIC_PER_TYPE} synthetic cells.",
    source="log-fold changes as in scanpy's rank_genes_groups, compared by rank",
)
def lfc_conditions(
    real: sparse.csr_matrix,
    synthetic: sparse.csr_matrix,
    real_types: np.ndarray,
    synthetic_types: np.ndarray,
    real_conditions: np.ndarray,
    synthetic_conditions: np.ndarray,
) -> float:
    """A type or condition with too few synthetic cells counts 0."""
    return _mean_over(
        _between_conditions(
            _spearman, real, synthetic, real_types, synthetic_types, real_conditions, synthetic_conditions
        )
    )


@metric(
    "lfc_slope_conditions",
    family="biology",
    needs=("types", "conditions"),
    direction="closest to 1",
    best=1.0,
    definition=SLOPE.format(
        "within each type a condition against all others",
        f"Mean over types and conditions of {MIN_REAL_PER_TYPE} or more real cells",
    ),
    source="log-fold changes as in scanpy's rank_genes_groups, least squares",
)
def lfc_slope_conditions(
    real: sparse.csr_matrix,
    synthetic: sparse.csr_matrix,
    real_types: np.ndarray,
    synthetic_types: np.ndarray,
    real_conditions: np.ndarray,
    synthetic_conditions: np.ndarray,
) -> float:
    """A type or condition with too few synthetic cells counts 0."""
    return _mean_over(
        _between_conditions(_slope, real, synthetic, real_types, synthetic_types, real_conditions, synthetic_conditions)
    )


def _between_conditions(
    figure: Callable[[np.ndarray, np.ndarray], float],
    real: sparse.csr_matrix,
    synthetic: sparse.csr_matrix,
    real_types: np.ndarray,
    synthetic_types: np.ndarray,
    real_conditions: np.ndarray,
    synthetic_conditions: np.ndarray,
) -> list[float]:
    """Compute `figure` of the real and synthetic differences for each condition within each type."""
    values = []
    for name in sorted(set(real_types)):
        rows, other_rows = real_types == name, synthetic_types == name
        values += _compare_differences(
            figure, real[rows], synthetic[other_rows], real_conditions[rows], synthetic_conditions[other_rows]
        )
    return values


def _compare_differences(
    figure: Callable[[np.ndarray, np.ndarray], float],
    real: sparse.csr_matrix,
    synthetic: sparse.csr_matrix,
    real_types: np.ndarray,
    synthetic_types: np.ndarray,
) -> list[float]:
    """Compute `figure` of the real and synthetic differences of detected genes for each type.

    A type with too few synthetic cells gets 0.
    """
    used = 1 - zeros_per_gene(real) >= MIN_DETECTED
    pairs = _contrasts_by_type(real, synthetic, real_types, synthetic_types)
    return [figure(p[0].difference[used], p[1].difference[used]) if p else 0.0 for p in pairs]


def _de_genes_by_type(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """For each type, return the differentially expressed genes in real and in synthetic cells, (G,) each.

    Genes are marked 1 if up, -1 if down, else 0. A type with too few synthetic cells is None.
    """
    used = 1 - zeros_per_gene(real) >= MIN_DETECTED
    pairs = _contrasts_by_type(real, synthetic, real_types, synthetic_types)
    return [None if p is None else (p[0].significant(used), p[1].significant(used)) for p in pairs]


def _share_recovered(wanted: np.ndarray, found: np.ndarray) -> float:
    """Compute the share of the wanted genes (1 or -1) that are found with the same sign; 1 if none is wanted."""
    return float((wanted == found)[wanted != 0].mean()) if wanted.any() else 1.0


@dataclass(frozen=True)
class Contrast:
    """A type compared with all other cells. For each gene, (G,): difference of means, Welch's t, degrees of freedom.

    t is 0 for constant genes.
    """

    difference: np.ndarray
    t: np.ndarray
    df: np.ndarray

    def significant(self, used: np.ndarray) -> np.ndarray:
        """Mark significant genes at FDR among those `used` (G,) bool: 1 if higher, -1 if lower, else 0."""
        from scipy.stats import false_discovery_control, t

        signs = np.zeros(len(self.t), dtype=int)
        if used.any():
            p = 2 * t.sf(np.abs(self.t[used]), self.df[used])
            signs[used] = np.where(false_discovery_control(p) <= FDR, np.sign(self.t[used]), 0)
        return signs


def contrasts(cells: sparse.csr_matrix, types: np.ndarray, names: Sequence[Any]) -> list[Contrast]:
    """Contrast each of the types `names` with all other cells, for cells (n, G) with types (n,).

    Both groups of a contrast must have cells.
    """
    which = np.array([types == name for name in names], dtype=np.float64).reshape(len(names), len(types))
    sums, squares = (sparse.csr_matrix(which) @ x for x in (cells, cells.multiply(cells).tocsr()))
    totals = [np.asarray(x.sum(axis=0)).ravel() for x in (cells, cells.multiply(cells))]
    found = []
    for i, n in enumerate(which.sum(axis=1)):
        of_type = sums[i].toarray().ravel(), squares[i].toarray().ravel()
        others = totals[0] - of_type[0], totals[1] - of_type[1]
        means, errors, df_terms = [], [], []
        for (total, square), m in ((of_type, n), (others, len(types) - n)):
            mean = total / m
            variance = square / m - mean**2
            variance[variance < 1e-12 * square / m] = 0  # rounding errors of constant genes
            means.append(mean)
            errors.append(variance / max(m - 1, 1))  # squared standard error of the mean
            df_terms.append(errors[-1] ** 2 / max(m - 1, 1))
        difference, error = means[0] - means[1], errors[0] + errors[1]
        t = np.divide(difference, np.sqrt(error), out=np.zeros_like(difference), where=error > 0)
        df = np.divide(error**2, df_terms[0] + df_terms[1], out=np.ones_like(error), where=error > 0)
        found.append(Contrast(difference, t, df))
    return found


def _contrasts_by_type(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> list[tuple[Contrast, Contrast] | None]:
    """Contrast each type of `types_to_compare` in real and in synthetic cells.

    A type is None if the synthetic cells have too few cells of it, or too few others.
    """
    names = types_to_compare(real_types)
    counts = [int((synthetic_types == name).sum()) for name in names]
    there = [n for n, c in zip(names, counts) if min(c, len(synthetic_types) - c) >= MIN_SYNTHETIC_PER_TYPE]
    of_real, of_synthetic = (
        dict(zip(there, contrasts(x, types, there))) for x, types in ((real, real_types), (synthetic, synthetic_types))
    )
    return [(of_real[name], of_synthetic[name]) if name in of_real else None for name in names]


def types_to_compare(types: np.ndarray) -> list[str]:
    """Return the types with at least MIN_REAL_PER_TYPE cells and at least MIN_REAL_PER_TYPE other cells."""
    names, counts = np.unique(types, return_counts=True)
    return [str(n) for n, count in zip(names, counts) if min(count, len(types) - count) >= MIN_REAL_PER_TYPE]


def _mean_over(values: list[float]) -> float:
    """Return the mean of the values; 1 if there is nothing to compare."""
    return float(np.mean(values)) if values else 1.0


def _strongest(t: np.ndarray) -> np.ndarray:
    """Return the indices of the genes with the highest t: N_MARKERS of them, or a tenth of the genes if fewer."""
    return np.argsort(-t, kind="stable")[: max(1, min(N_MARKERS, len(t) // 10))]


def welch_t(cells: sparse.csr_matrix, which: np.ndarray) -> np.ndarray:
    """Compute Welch's t of each gene, (G,), for the cells (n, G) marked by `which` (n,) against the others.

    t is 0 for constant genes.
    """
    return contrasts(cells, which, [True])[0].t


def _slope(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Compute the slope, through the origin, of synthetic on real differences (G,).

    If all real differences are 0: 1 if all synthetic ones are 0 too, else 0.
    """
    length = float(real @ real)
    return float(real @ synthetic) / length if length > 0 else float(not synthetic.any())


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Compute Spearman's correlation; 0 if an input is constant."""
    from scipy.stats import spearmanr

    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)


def macro_f1(
    learnt: np.ndarray,
    types: np.ndarray,
    test: np.ndarray,
    test_types: np.ndarray,
    of_types: Sequence[str] | None = None,
) -> float:
    """Compute the macro-F1 of a logistic regression that learns types from `learnt` cells and predicts `test` cells.

    The average is over `of_types`, or else the types of the test cells. Components are standardised, classes balanced
    and weights strongly regularised; otherwise, rare types make the score unstable.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(types)) == 1:
        predicted = np.full(len(test), types[0])
    else:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
        predicted = classifier.fit(learnt, types).predict(test)
    labels = np.unique(test_types) if of_types is None else of_types
    return float(f1_score(test_types, predicted, labels=labels, average="macro", zero_division=0))
