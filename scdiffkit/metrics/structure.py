"""Structure metrics: whether distances between cells, and between groups of cells, are those of real data.

Each statistic is computed within each set and then compared: a model may place cells correctly on average and still
generate types that are too narrow, or donors that are too similar.
"""

from __future__ import annotations

import numpy as np

from scdiffkit.metrics.biology import MIN_REAL_PER_TYPE, MIN_SYNTHETIC_PER_TYPE
from scdiffkit.metrics.registry import Need, metric

N_NEIGHBOURS = 10
MAX_VARIANCE_RATIO = 1e3  # ratios of variances are clipped at this
CROWELL = "Crowell et al. 2023 (Genome Biology 24:62)"
GROUPS: tuple[tuple[str, Need, str], ...] = (
    ("types", "types", "cell types"),
    ("conditions", "conditions", "conditions"),
    ("donors", "donors", "donors"),
    ("batches", "batches", "batches"),
)
RATIOS = (
    "For each of 20 principal components of both sets, let r be the within-type variance of synthetic cells over that "
    "of real cells. The score is the sum of (r + 1/r - 2) / 2 over the components with r {} 1; one component with {} "
    "the standard deviation adds 0.5. If types differ in nothing else, and in many components, the best classifier has "
    "an AUC of about Phi(sqrt(J / 2)), where J is the sum of variance_too_narrow and variance_too_wide."
)


def _by_groups(suffix: str, need: Need, groups: str) -> None:
    """Register the silhouette and variance metrics for one kind of group."""

    @metric(
        f"silhouette_{suffix}",
        direction="closest to 0",
        best=0.0,
        space="pca",
        max_cells=1000,
        needs=(need,),
        definition=f"Mean silhouette width of {groups} (how much nearer a cell lies to its own group than to the "
        "next), synthetic minus real, in 20 principal components of both sets: above 0, groups are too far apart. "
        "At most 1000 cells per set.",
        source=f"Rousseeuw 1987; {CROWELL}",
    )
    def silhouettes(real: np.ndarray, synthetic: np.ndarray, of_real: np.ndarray, of_synthetic: np.ndarray) -> float:
        return silhouette(synthetic, of_synthetic) - silhouette(real, of_real)

    @metric(
        f"variance_{suffix}",
        direction="closest to 0",
        best=0.0,
        space="pca",
        needs=(need,),
        definition=f"Share of the variance in 20 principal components of both sets that lies between {groups}, "
        "synthetic minus real: above 0, groups are too far apart or too narrow.",
        source=f"percent variance explained, {CROWELL}",
    )
    def variances(real: np.ndarray, synthetic: np.ndarray, of_real: np.ndarray, of_synthetic: np.ndarray) -> float:
        return variance_explained(synthetic, of_synthetic) - variance_explained(real, of_real)


for _suffix, _need, _groups in GROUPS:
    _by_groups(_suffix, _need, _groups)


@metric(
    "cell_distances",
    direction="lower is better",
    best=0.0,
    space="pca",
    max_cells=1000,
    needs=("types",),
    definition="Kolmogorov-Smirnov statistic between the pairwise distances of real cells of a type and those of "
    f"synthetic cells, in 20 principal components of both sets. Mean over types with at least {MIN_REAL_PER_TYPE} real "
    f"cells; a type with fewer than {MIN_SYNTHETIC_PER_TYPE} synthetic cells counts 1. At most 1000 cells per set.",
    source=f"cell-cell distances, {CROWELL}",
)
def cell_distances(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    """Return 0 if no type has enough real cells."""
    from scipy.spatial.distance import pdist
    from scipy.stats import ks_2samp

    values = []
    for name in sorted(set(real_types)):
        a, b = real[real_types == name], synthetic[synthetic_types == name]
        if len(a) < MIN_REAL_PER_TYPE:
            continue
        values.append(float(ks_2samp(pdist(a), pdist(b)).statistic) if len(b) >= MIN_SYNTHETIC_PER_TYPE else 1.0)
    return float(np.mean(values)) if values else 0.0


@metric(
    "hubness",
    direction="lower is better",
    best=0.0,
    space="pca",
    max_cells=1000,
    definition=f"Wasserstein distance between the distributions of how often a cell is among the {N_NEIGHBOURS} "
    f"nearest neighbours of other cells of its set, over {N_NEIGHBOURS}, in real and in synthetic cells, in 20 "
    "principal components of both sets. High if synthetic cells have more, or fewer, hubs. At most 1000 cells per set.",
    source=f"KNN occurrences, {CROWELL}",
)
def hubness(real: np.ndarray, synthetic: np.ndarray) -> float:
    from scipy.stats import wasserstein_distance

    return float(
        wasserstein_distance(*(occurrences(side) / min(N_NEIGHBOURS, len(side) - 1) for side in (real, synthetic)))
    )


@metric(
    "energy_distance",
    direction="lower is better",
    best=0.0,
    space="pca",
    max_cells=1000,
    definition="2 E|X - Y| - E|X - X'| - E|Y - Y'| of real cells X and synthetic cells Y, unbiased (it may be slightly "
    "negative), in 20 principal components of both sets; at most 1000 cells per set.",
    source="Székely & Rizzo 2013 (Journal of Statistical Planning and Inference 143:1249)",
)
def energy_distance(real: np.ndarray, synthetic: np.ndarray) -> float:
    from scipy.spatial.distance import cdist, pdist

    return float(2 * cdist(real, synthetic).mean() - pdist(real).mean() - pdist(synthetic).mean())


@metric(
    "variance_too_narrow",
    direction="lower is better",
    best=0.0,
    space="pca",
    needs=("types",),
    definition=RATIOS.format("below", "0.62 times"),
    source="the symmetric Kullback-Leibler divergence of normal distributions (Jeffreys 1946)",
)
def variance_too_narrow(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    r = variance_ratios(real, synthetic, real_types, synthetic_types)
    return _divergence(r[r < 1])


@metric(
    "variance_too_wide",
    direction="lower is better",
    best=0.0,
    space="pca",
    needs=("types",),
    definition=RATIOS.format("above", "1.62 times"),
    source="the symmetric Kullback-Leibler divergence of normal distributions (Jeffreys 1946)",
)
def variance_too_wide(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    r = variance_ratios(real, synthetic, real_types, synthetic_types)
    return _divergence(r[r > 1])


def silhouette(cells: np.ndarray, groups: np.ndarray) -> float:
    """Compute the mean silhouette width of cells (n, D) in groups (n,).

    Returns 0 if there is only one group, or if every group has only one cell.
    """
    from sklearn.metrics import silhouette_score

    n_groups = len(set(groups))
    if not 1 < n_groups < len(cells):
        return 0.0
    return float(silhouette_score(cells, groups))


def variance_explained(cells: np.ndarray, groups: np.ndarray) -> float:
    """Compute the share of the variance of cells (n, D) that lies between groups (n,); 0 without any variance."""
    total = float(((cells - cells.mean(axis=0)) ** 2).sum())
    parts = [cells[groups == name] for name in sorted(set(groups))]
    within = sum(float(((part - part.mean(axis=0)) ** 2).sum()) for part in parts)
    return 1 - within / total if total > 1e-12 * float((cells**2).sum()) else 0.0


def variance_ratios(
    real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray
) -> np.ndarray:
    """Compute the within-type variance of synthetic (m, D) divided by that of real cells (n, D), (D,).

    Types are weighted by their number of real cells. Types with few cells in either set are excluded; if none is left,
    all cells are treated as one type.
    """
    names, counts = np.unique(real_types, return_counts=True)
    enough = [
        n >= MIN_SYNTHETIC_PER_TYPE and (synthetic_types == name).sum() >= MIN_SYNTHETIC_PER_TYPE
        for name, n in zip(names, counts)
    ]
    if not any(enough):
        return _ratio(real.var(axis=0), synthetic.var(axis=0))
    within = [
        np.average([side[types == name].var(axis=0, ddof=1) for name in names[enough]], axis=0, weights=counts[enough])
        for side, types in ((real, real_types), (synthetic, synthetic_types))
    ]
    return _ratio(*within)


def occurrences(cells: np.ndarray) -> np.ndarray:
    """Count how often each cell (n, D) is among the N_NEIGHBOURS nearest neighbours of other cells, (n,)."""
    from sklearn.neighbors import NearestNeighbors

    k = min(N_NEIGHBOURS, len(cells) - 1)
    neighbours = NearestNeighbors(n_neighbors=k).fit(cells).kneighbors(return_distance=False)
    return np.bincount(neighbours.ravel(), minlength=len(cells))


def _ratio(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Compute synthetic / real, clipped at MAX_VARIANCE_RATIO; 1 where both are 0 up to rounding."""
    least = 1e-9 * max(float(real.max()), float(synthetic.max()), 1e-300)
    return np.clip((synthetic + least) / (real + least), 1 / MAX_VARIANCE_RATIO, MAX_VARIANCE_RATIO)


def _divergence(r: np.ndarray) -> float:
    return float(((r + 1 / r - 2) / 2).sum())
