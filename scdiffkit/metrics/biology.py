"""Do synthetic cells say what real cells say: which types there are, by which genes, and how they respond?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import sparse

from scdiffkit.metrics.marginals import mean_per_gene, variance_per_gene, zeros_per_gene
from scdiffkit.metrics.registry import metric

N_MARKERS = 50
MIN_CELLS_OF_TYPE, FEWEST_OF_TYPE = 10, 5  # real and synthetic cells, for a type to be compared
FEW_OF_TYPE = 20  # cells: more of a type leave nothing to be gained
MIN_DETECTED = 0.05  # share of cells with a gene, for its fold change to be compared
Contrast = Callable[[sparse.csr_matrix, np.ndarray], np.ndarray]


@metric(
    "type_f1",
    direction="higher is better",
    best=1.0,
    space="pca",
    family="biology",
    needs=("types",),
    definition="Macro-F1, over the types of the real cells, of a classifier that learns the types from synthetic cells "
    "and names those of real ones: logistic regression on 20 principal components of both sets.",
    source="train on synthetic, test on real: Esteban et al. 2017 (arXiv 1706.02633)",
)
def type_f1(real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray) -> float:
    """real (n, D), synthetic (m, D), and their types, text (n,) and (m,)."""
    return macro_f1(synthetic, synthetic_types, real, real_types)


@metric(
    "type_f1_reverse",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    space="pca",
    definition="The other way round: a classifier learns the types from real cells and names those of synthetic ones; "
    "macro-F1 over the types of the synthetic cells.",
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
    definition="Do synthetic cells help to recognise rare types? F1 of the rarer half of the types on a held-out half "
    "of the real cells, of a classifier (logistic regression on 20 principal components of both sets) that learns from "
    f"the other half, at most {FEW_OF_TYPE} cells a type, and from synthetic cells, minus that of one that learns "
    "without them. Above 0: they help; what as many other real cells would gain is the floor.",
    source="augmentation as in Marouf et al. 2020 (Nature Communications 11:166)",
)
def augmentation_gain(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """0 where there are no two types with cells in both halves."""
    place = np.empty(len(real), dtype=int)
    for name in set(real_types):
        rows = np.flatnonzero(real_types == name)
        place[rows] = np.arange(len(rows))
    held_out = place % 2 == 1
    learnt = ~held_out & (place < 2 * FEW_OF_TYPE)
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
    definition=f"Share of a type's {N_MARKERS} strongest marker genes (Welch's t, type against all other cells; a "
    f"tenth of the genes, where they are few) that are among the strongest in synthetic cells too, mean over the types "
    f"of {MIN_CELLS_OF_TYPE} or more real cells, 0 for one that synthetic cells lack.",
    source="markers by t-test as in scanpy's rank_genes_groups",
)
def marker_overlap(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """0 for a type that synthetic cells lack."""
    pairs = _of_types(welch_t, real, synthetic, real_types, synthetic_types)
    return _mean_over([float(np.isin(_strongest(p[0]), _strongest(p[1])).mean()) if p else 0.0 for p in pairs])


@metric(
    "marker_auprc",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition=f"Area under the precision-recall curve when synthetic cells' t statistics are used to find a type's "
    f"{N_MARKERS} strongest marker genes of the real cells, mean over the types of {MIN_CELLS_OF_TYPE} or more real "
    "cells, 0 for one that synthetic cells lack.",
    source="average precision; markers by t-test as in scanpy's rank_genes_groups",
)
def marker_auprc(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """0 for a type that synthetic cells lack."""
    from sklearn.metrics import average_precision_score

    values = []
    for pair in _of_types(welch_t, real, synthetic, real_types, synthetic_types):
        if pair is None:
            values.append(0.0)
            continue
        is_marker = np.zeros(len(pair[0]), dtype=bool)
        is_marker[_strongest(pair[0])] = True
        values.append(float(average_precision_score(is_marker, pair[1])))
    return _mean_over(values)


@metric(
    "lfc_types",
    family="biology",
    needs=("types",),
    direction="higher is better",
    best=1.0,
    definition="Spearman correlation over genes between real and synthetic differences of mean log1p-normalised "
    f"values, a type against all other cells, over genes in {MIN_DETECTED:.0%} of the real cells; mean over the types "
    f"of {MIN_CELLS_OF_TYPE} or more real cells, 0 for one that synthetic cells lack.",
    source="log-fold changes as in scanpy's rank_genes_groups, compared by rank",
)
def lfc_types(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """0 for a type that synthetic cells lack."""
    used = 1 - zeros_per_gene(real) >= MIN_DETECTED
    pairs = _of_types(differences, real, synthetic, real_types, synthetic_types)
    return _mean_over([_spearman(pair[0][used], pair[1][used]) if pair else 0.0 for pair in pairs])


@metric(
    "lfc_conditions",
    family="biology",
    needs=("types", "conditions"),
    direction="higher is better",
    best=1.0,
    definition="As lfc_types, but between conditions: within each type, a condition against all others, mean over "
    f"types and conditions of {MIN_CELLS_OF_TYPE} or more real cells, 0 for what synthetic cells lack.",
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
    """0 for a type or condition that synthetic cells lack."""
    values = []
    for name in sorted(set(real_types)):
        rows, other_rows = real_types == name, synthetic_types == name
        within = real[rows], synthetic[other_rows]
        used = 1 - zeros_per_gene(within[0]) >= MIN_DETECTED
        pairs = _of_types(differences, *within, real_conditions[rows], synthetic_conditions[other_rows])
        values += [_spearman(pair[0][used], pair[1][used]) if pair else 0.0 for pair in pairs]
    return _mean_over(values)


def _of_types(
    contrast: Contrast,
    real: sparse.csr_matrix,
    synthetic: sparse.csr_matrix,
    real_types: np.ndarray,
    synthetic_types: np.ndarray,
) -> list[tuple[np.ndarray, np.ndarray] | None]:
    """contrast(cells, which) of real and of synthetic cells, (G,) each, for each type with enough real cells and enough
    others beside them; None where synthetic cells of the type, or others, are missing."""
    found: list[tuple[np.ndarray, np.ndarray] | None] = []
    for name in types_to_compare(real_types):
        which, other = real_types == name, synthetic_types == name
        enough = min(other.sum(), (~other).sum()) >= FEWEST_OF_TYPE
        found.append((contrast(real, which), contrast(synthetic, other)) if enough else None)
    return found


def types_to_compare(types: np.ndarray) -> list[str]:
    """Those with at least MIN_CELLS_OF_TYPE cells, and as many others."""
    names, counts = np.unique(types, return_counts=True)
    return [str(n) for n, count in zip(names, counts) if min(count, len(types) - count) >= MIN_CELLS_OF_TYPE]


def _mean_over(values: list[float]) -> float:
    """1 where there was nothing to compare."""
    return float(np.mean(values)) if values else 1.0


def _strongest(t: np.ndarray) -> np.ndarray:
    """The genes of the highest t."""
    return np.argsort(-t, kind="stable")[: max(1, min(N_MARKERS, len(t) // 10))]


def welch_t(cells: sparse.csr_matrix, which: np.ndarray) -> np.ndarray:
    """Welch's t of each gene, (G,), in the cells (n, G) that `which` (n,) marks against the others; 0 for a gene that
    does not vary."""
    parts = [cells[which], cells[~which]]
    variances = [variance_per_gene(part) / max(part.shape[0] - 1, 1) for part in parts]  # of the mean
    error = np.sqrt(variances[0] + variances[1])
    difference = mean_per_gene(parts[0]) - mean_per_gene(parts[1])
    return np.divide(difference, error, out=np.zeros_like(difference), where=error > 0)


def differences(cells: sparse.csr_matrix, which: np.ndarray) -> np.ndarray:
    """Of each gene, (G,), the mean in the cells (n, G) that `which` (n,) marks less that in the others."""
    return mean_per_gene(cells[which]) - mean_per_gene(cells[~which])


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """0 where a side is constant."""
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
    """Macro-F1, over the types of the test cells or those given, of a logistic regression on standardised components.

    Types weigh alike, and the weights are held small: without either, rare types make it a matter of luck.
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
