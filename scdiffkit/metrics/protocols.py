"""Metrics of other papers, computed as in their published code as far as it is known, flaws included.

Most allow a comparison with published values. PROTOCOLS states the flaws of each; none affects the verdict.

This file is long because it has many short metrics.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from scdiffkit.metrics.biology import FDR, Contrast, contrasts
from scdiffkit.metrics.joint import lisi_of_cells, squared_distances
from scdiffkit.metrics.marginals import mean_per_gene
from scdiffkit.metrics.papers import biased_mmd
from scdiffkit.metrics.registry import metric

CFGEN = "CFGen (Palma et al. 2025, arXiv 2407.11734)"
CFGEN_COMPONENTS, CFGEN_SIGMAS = 30, (0.01, 0.1, 1.0, 10.0, 100.0)
CFGEN_SPACE = f"in {CFGEN_COMPONENTS} principal components of the real cells, within each type, mean over types. "
CFGEN_MMD = f"Biased MMD^2, sum of five Gaussian kernels exp(-d^2 / 2 s^2), s = {CFGEN_SIGMAS}, {CFGEN_SPACE}"
CFGEN_W2 = f"2-Wasserstein distance by exact optimal transport {CFGEN_SPACE}"
SCDIFFUSION = "scDiffusion (Luo et al. 2024, Bioinformatics 40:btae518)"
SCDIFFUSION_COMPONENTS = 50
SCDIFFUSION_TREES, SCDIFFUSION_DEPTH = 1000, 5

SCLDM = "scLDM (Palla et al. 2025, arXiv 2511.02986)"
SCLDM_COMPONENTS = 30
SCLDM_SPACE = f"in {SCLDM_COMPONENTS} principal components of both sets; at most 2000 cells per set."
CELL_EVAL = "cell-eval (Arc Institute, github.com/ArcInstitute/cell-eval)"

GeneSelection = Literal["all", "cv", "seurat_v3"]


@dataclass(frozen=True)
class Protocol:
    """The metrics of another paper and the genes they are computed on.

    metrics: names. genes: which of the compared genes are used: "all"; "cv", the 2000 with the highest coefficient of
    variation; or "seurat_v3", scanpy's 2000 highly variable genes, selected on the real cells' counts. flaws: caveats
    for anyone who quotes these scores.
    """

    metrics: tuple[str, ...]
    genes: GeneSelection
    source: str
    flaws: str


PROTOCOLS: dict[str, Protocol] = {
    "scrdit": Protocol(
        metrics=("kl_paper", "wasserstein_paper_means", "wasserstein_paper_entries", "mmd_paper", "mmd_paper_blocks"),
        genes="cv",
        source="scRDiT (arXiv 2404.06153)",
        flaws="Whether values were log-normalised first is not stated; here they are. KL depends on how cells are "
        "paired. The Wasserstein distances do not distinguish genes. MMD^2 is biased: above 0 even for equal "
        "distributions.",
    ),
    "cfgen": Protocol(
        metrics=("cfgen_mmd", "cfgen_w2", "cfgen_mmd_centred", "cfgen_w2_centred"),
        genes="seurat_v3",
        source=CFGEN,
        flaws="The published code centres real cells before it projects them, but not generated ones, so even a "
        "perfect model scores badly; *_centred are the scores without this error. MMD^2 and W2 are above 0 even for "
        "equal distributions, and higher for types with fewer cells. How the code scales generated counts is not "
        "stated; here they are scaled like the real ones.",
    ),
    "scdiffusion": Protocol(
        metrics=(
            "scdiffusion_spearman",
            "scdiffusion_pearson",
            "scdiffusion_mmd",
            "scdiffusion_lisi",
            "scdiffusion_auc",
        ),
        genes="all",
        source=SCDIFFUSION,
        flaws="Correlations of mean expression hardly distinguish a good model from shuffled cells. MMD^2 is biased: "
        "above 0 even for equal distributions. The forest has shallow trees and is tested on one random quarter of the "
        "cells. LISI uses nearest neighbours in 20 components here, and a neighbour graph in the paper's code.",
    ),
    "scldm": Protocol(
        metrics=("scldm_w2", "scldm_mmd", "scldm_fd"),
        genes="all",
        source=SCLDM,
        flaws="Only the names of the three scores are known to be the paper's. Its genes, number of components, kernel "
        "width and number of cells were not verified, so published values may not be reproduced. W2 and MMD^2 are "
        "above 0 even for equal distributions, and higher with fewer cells. The Frechet distance compares only means "
        "and covariances, so it cannot distinguish two separate types from one broad cloud around their mean.",
    ),
    "cell-eval": Protocol(
        metrics=("cell_eval_pearson_delta", "cell_eval_direction_match", "cell_eval_discrimination"),
        genes="all",
        source=CELL_EVAL,
        flaws="Written for predicted perturbations against a control; here every condition is compared with all other "
        "cells, whatever their type, so a type that is more frequent in a condition looks like a response. Genes are "
        "tested by Welch's t-test, not by Wilcoxon's. It was not verified that cell-eval compares directions for all "
        "genes that are significant in real cells. With two conditions, each discrimination score is 1 or 0.5.",
    ),
}


def _mean_over_types(
    distance: Callable[[np.ndarray, np.ndarray], float],
    real: np.ndarray,
    synthetic: np.ndarray,
    real_types: np.ndarray,
    synthetic_types: np.ndarray,
) -> float:
    """Compute the mean of `distance` over the types that both sets have; 0 if there is none."""
    both = sorted(set(real_types) & set(synthetic_types))
    values = [distance(real[real_types == t], synthetic[synthetic_types == t]) for t in both]
    return float(np.mean(values)) if values else 0.0


def _cfgen_mmd(real: np.ndarray, synthetic: np.ndarray) -> float:
    """Compute the biased MMD^2, summed over kernels exp(-d^2 / 2 sigma^2), of equally many cells of both sets.

    The larger set is cut to the size of the smaller one.
    """
    n = min(len(real), len(synthetic))
    real, synthetic = real[:n], synthetic[:n]
    pairs = [(real, real, 1), (synthetic, synthetic, 1), (real, synthetic, -2)]
    return sum(
        sign * float(np.exp(squared_distances(a, b) / (-2 * sigma**2)).mean())
        for a, b, sign in pairs
        for sigma in CFGEN_SIGMAS
    )


def _w2(real: np.ndarray, synthetic: np.ndarray) -> float:
    import ot

    return float(np.sqrt(max(ot.emd2([], [], squared_distances(real, synthetic), numItermax=10_000_000), 0.0)))


def _project(real: sparse.csr_matrix, synthetic: sparse.csr_matrix, centred: bool) -> tuple[np.ndarray, np.ndarray]:
    """Project both sets onto components fitted to the real cells; centre synthetic cells by the real mean if asked."""
    from sklearn.decomposition import PCA

    x, y = real.toarray(), synthetic.toarray()
    with np.errstate(invalid="ignore"):  # explained variance ratios of constant data, which are not used
        pca = PCA(min(CFGEN_COMPONENTS, *x.shape), svd_solver="full").fit(x)
    return pca.transform(x), (y - pca.mean_ if centred else y) @ pca.components_.T


@metric(
    "cfgen_mmd",
    family="papers",
    default=False,
    needs=("types",),
    direction="lower is better",
    best=0.0,
    definition=CFGEN_MMD + "As published, synthetic cells are not centred before the projection.",
    source=CFGEN,
)
def cfgen_mmd(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    return _mean_over_types(_cfgen_mmd, *_project(real, synthetic, centred=False), real_types, synthetic_types)


@metric(
    "cfgen_w2",
    family="papers",
    default=False,
    needs=("types",),
    direction="lower is better",
    best=0.0,
    definition=CFGEN_W2 + "As published, synthetic cells are not centred before the projection.",
    source=CFGEN,
)
def cfgen_w2(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    return _mean_over_types(_w2, *_project(real, synthetic, centred=False), real_types, synthetic_types)


@metric(
    "cfgen_mmd_centred",
    family="papers",
    default=False,
    needs=("types",),
    direction="lower is better",
    best=0.0,
    definition=CFGEN_MMD + "Synthetic cells are centred like the real ones.",
    source=CFGEN,
)
def cfgen_mmd_centred(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    return _mean_over_types(_cfgen_mmd, *_project(real, synthetic, centred=True), real_types, synthetic_types)


@metric(
    "cfgen_w2_centred",
    family="papers",
    default=False,
    needs=("types",),
    direction="lower is better",
    best=0.0,
    definition=CFGEN_W2 + "Synthetic cells are centred like the real ones.",
    source=CFGEN,
)
def cfgen_w2_centred(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_types: np.ndarray, synthetic_types: np.ndarray
) -> float:
    return _mean_over_types(_w2, *_project(real, synthetic, centred=True), real_types, synthetic_types)


def _joint_components(real: sparse.csr_matrix, synthetic: sparse.csr_matrix, n: int) -> tuple[np.ndarray, np.ndarray]:
    from scdiffkit.metrics.spaces import principal_components

    components = principal_components(sparse.vstack([real, synthetic], format="csr"), n)
    return components[: real.shape[0]], components[real.shape[0] :]


@metric(
    "scdiffusion_spearman",
    family="papers",
    default=False,
    direction="higher is better",
    best=1.0,
    definition="Spearman correlation over genes between the mean log1p-normalised values of real and synthetic cells.",
    source=SCDIFFUSION,
)
def scdiffusion_spearman(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    """Return 0 if the means of either set are all equal."""
    from scipy.stats import spearmanr

    means = mean_per_gene(real), mean_per_gene(synthetic)
    return 0.0 if min(np.ptp(mean) for mean in means) == 0 else float(spearmanr(*means).statistic)


@metric(
    "scdiffusion_pearson",
    family="papers",
    default=False,
    direction="higher is better",
    best=1.0,
    definition="Pearson correlation over genes between the mean log1p-normalised values of real and synthetic cells.",
    source=SCDIFFUSION,
)
def scdiffusion_pearson(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    """Return 0 if the means of either set are all equal."""
    means = mean_per_gene(real), mean_per_gene(synthetic)
    return 0.0 if min(np.ptp(mean) for mean in means) == 0 else float(np.corrcoef(*means)[0, 1])


@metric(
    "scdiffusion_mmd",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition=f"Biased MMD^2, sum of 5 Gaussian kernels exp(-d^2 / b), b = mean d^2 between any two cells / 4 x {{1, "
    f"2, 4, 8, 16}}, in {SCDIFFUSION_COMPONENTS} principal components of both sets; at most 2000 cells per set.",
    source=SCDIFFUSION,
)
def scdiffusion_mmd(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    x, y = _joint_components(real, synthetic, SCDIFFUSION_COMPONENTS)
    return biased_mmd(squared_distances(x, x), squared_distances(y, y), squared_distances(x, y))


@metric(
    "scdiffusion_lisi",
    family="papers",
    default=False,
    direction="higher is better",
    best=1.0,
    max_cells=2000,
    definition="Median over cells of the integration LISI minus 1, in 20 principal components of both sets; at most "
    "2000 cells per set.",
    source=SCDIFFUSION,
)
def scdiffusion_lisi(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    cells = np.vstack(_joint_components(real, synthetic, 20))
    return float(np.median(lisi_of_cells(cells, np.repeat([False, True], [real.shape[0], synthetic.shape[0]]))) - 1)


@metric(
    "scdiffusion_auc",
    family="papers",
    default=False,
    direction="closest to 0.5",
    best=0.5,
    max_cells=2000,
    definition=f"AUC of a random forest ({SCDIFFUSION_TREES} trees of depth {SCDIFFUSION_DEPTH}) that is trained on "
    "three quarters of the cells to distinguish real from synthetic and tested on the rest, in "
    f"{SCDIFFUSION_COMPONENTS} principal components of both sets; at most 2000 cells per set.",
    source=SCDIFFUSION,
)
def scdiffusion_auc(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import train_test_split

    cells = np.vstack(_joint_components(real, synthetic, SCDIFFUSION_COMPONENTS))
    is_real = np.repeat([1, 0], [real.shape[0], synthetic.shape[0]])
    learnt, test, learnt_is_real, test_is_real = train_test_split(
        cells, is_real, test_size=0.25, random_state=1, stratify=is_real
    )
    forest = RandomForestClassifier(
        SCDIFFUSION_TREES, max_depth=SCDIFFUSION_DEPTH, class_weight="balanced", random_state=1, n_jobs=-1
    )
    forest.fit(learnt, learnt_is_real)
    return float(roc_auc_score(test_is_real, forest.predict_proba(test)[:, 1]))


@metric(
    "scldm_w2",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition=f"2-Wasserstein distance by exact optimal transport {SCLDM_SPACE}",
    source=SCLDM,
)
def scldm_w2(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    return _w2(*_joint_components(real, synthetic, SCLDM_COMPONENTS))


@metric(
    "scldm_mmd",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition=f"Biased MMD^2, one Gaussian kernel exp(-d^2 / b), b = median d^2 between any two cells, {SCLDM_SPACE}",
    source=SCLDM,
)
def scldm_mmd(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    x, y = _joint_components(real, synthetic, SCLDM_COMPONENTS)
    d2 = squared_distances(np.vstack([x, y]), np.vstack([x, y]))
    width = float(np.median(d2[np.triu_indices(len(d2), 1)])) or float(d2.mean()) or 1.0
    k, n = np.exp(-d2 / width), len(x)
    return float(k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean())


@metric(
    "scldm_fd",
    family="papers",
    default=False,
    direction="lower is better",
    best=0.0,
    max_cells=2000,
    definition="Frechet distance, squared 2-Wasserstein distance between normal distributions with the cells' means "
    f"and covariances, {SCLDM_SPACE}",
    source=f"{SCLDM}; Heusel et al. 2017 (arXiv 1706.08500)",
)
def scldm_fd(real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> float:
    x, y = _joint_components(real, synthetic, SCLDM_COMPONENTS)
    a, b = (np.cov(side, rowvar=False).reshape(side.shape[1], -1) for side in (x, y))
    # tr sqrt(ab) = tr sqrt(sqrt(a) b sqrt(a)), which is symmetric
    values, vectors = np.linalg.eigh(a)
    root = vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b @ root), 0)).sum()
    return max(0.0, float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum() + np.trace(a) + np.trace(b) - 2 * mixed))


def _contrasts_by_condition(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_conditions: np.ndarray, synthetic_conditions: np.ndarray
) -> list[tuple[Contrast, Contrast]]:
    """Return real and synthetic contrasts of the conditions of at least two, but not all, cells of each set."""
    sides = ((real, real_conditions), (synthetic, synthetic_conditions))
    names = [
        name
        for name in sorted(set(real_conditions) & set(synthetic_conditions))
        if all(1 < (conditions == name).sum() < len(conditions) for _, conditions in sides)
    ]
    return list(zip(*(contrasts(cells, conditions, names) for cells, conditions in sides)))


@metric(
    "cell_eval_pearson_delta",
    family="papers",
    default=False,
    needs=("conditions",),
    direction="higher is better",
    best=1.0,
    definition="Pearson correlation over genes between real and synthetic differences of mean log1p-normalised values, "
    "a condition against all other cells; mean over conditions that both sets have.",
    source=f"{CELL_EVAL}: pearson_delta",
)
def cell_eval_pearson_delta(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_conditions: np.ndarray, synthetic_conditions: np.ndarray
) -> float:
    """A condition whose difference is the same for all genes of a set counts 0, and so does a lack of conditions."""
    values = []
    for a, b in _contrasts_by_condition(real, synthetic, real_conditions, synthetic_conditions):
        flat = min(np.ptp(a.difference), np.ptp(b.difference)) == 0
        values.append(0.0 if flat else float(np.corrcoef(a.difference, b.difference)[0, 1]))
    return float(np.mean(values)) if values else 0.0


@metric(
    "cell_eval_direction_match",
    family="papers",
    default=False,
    needs=("conditions",),
    direction="higher is better",
    best=1.0,
    definition=f"Share of the genes that are differentially expressed in real cells ({FDR:.0%} false discovery rate, a "
    "condition against all other cells) whose synthetic difference has the same sign; mean over conditions that both "
    "have.",
    source=f"{CELL_EVAL}: de_direction_match",
)
def cell_eval_direction_match(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_conditions: np.ndarray, synthetic_conditions: np.ndarray
) -> float:
    """A condition without differentially expressed genes counts 1. Returns 0 if no condition is shared."""
    used, values = np.ones(real.shape[1], dtype=bool), []
    for a, b in _contrasts_by_condition(real, synthetic, real_conditions, synthetic_conditions):
        signs = a.significant(used)
        values.append(float((signs == np.sign(b.difference))[signs != 0].mean()) if signs.any() else 1.0)
    return float(np.mean(values)) if values else 0.0


@metric(
    "cell_eval_discrimination",
    family="papers",
    default=False,
    needs=("conditions",),
    direction="higher is better",
    best=1.0,
    definition="Perturbation discrimination score: the n conditions are ranked from 0 by the L1 distance between their "
    "real differences of mean log1p-normalised values (a condition against all other cells) and the synthetic "
    "differences of one condition; the score is 1 - rank / n of that condition. Mean over conditions that both sets "
    "have. By chance: (n + 1) / 2n.",
    source=f"{CELL_EVAL}: discrimination_score_l1",
)
def cell_eval_discrimination(
    real: sparse.csr_matrix, synthetic: sparse.csr_matrix, real_conditions: np.ndarray, synthetic_conditions: np.ndarray
) -> float:
    """Ties rank a condition's own difference last. Returns 0 if no condition is shared."""
    pairs = _contrasts_by_condition(real, synthetic, real_conditions, synthetic_conditions)
    values = []
    for own, (_, made) in enumerate(pairs):
        distances = np.array([np.abs(a.difference - made.difference).sum() for a, _ in pairs])
        nearer = int((distances <= distances[own]).sum()) - 1
        values.append(1 - nearer / len(pairs))
    return float(np.mean(values)) if values else 0.0
