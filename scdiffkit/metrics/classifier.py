"""Can a classifier tell synthetic from real cells?"""

from __future__ import annotations

import numpy as np

from scdiffkit.metrics.registry import metric

N_TREES = 300


SOURCE = "classifier two-sample test, Lopez-Paz & Oquab 2017 (arXiv 1610.06545)"
DEFINITION = (
    f"Area under the ROC curve of a random forest ({N_TREES} trees) that tells real from synthetic cells by {{}}; "
    "every cell is scored by the trees that did not see it (out of bag). 0.5: it cannot tell them apart; 1: it always "
    "can. Well below 0.5: both sets hold copies of the same cells. At most {} cells a side."
)


@metric(
    "rf_auc",
    direction="closest to 0.5",
    best=0.5,
    space="pca",
    max_cells=2000,
    definition=DEFINITION.format("20 principal components of both sets", 2000),
    source=SOURCE,
)
def rf_auc(real: np.ndarray, synthetic: np.ndarray) -> float:
    """real (n, D), synthetic (m, D) -> AUC. The forest's seed is fixed.

    Out of bag rather than cross-validated: on pbmc3k the same AUC within 0.005 in a quarter of the time.
    """
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.metrics import roc_auc_score

    cells = np.vstack([real, synthetic])
    is_synthetic = np.repeat([0, 1], [len(real), len(synthetic)])
    forest = RandomForestClassifier(N_TREES, oob_score=True, random_state=0, n_jobs=-1)
    out_of_bag = forest.fit(cells, is_synthetic).oob_decision_function_[:, 1]
    return float(roc_auc_score(is_synthetic, out_of_bag))


@metric(
    "rf_auc_genes",
    direction="closest to 0.5",
    best=0.5,
    space="variable",
    max_cells=1000,
    definition=DEFINITION.format("their log1p-normalised values of the 2000 most variable genes", 1000),
    source=SOURCE,
)
def rf_auc_genes(real: np.ndarray, synthetic: np.ndarray) -> float:
    """real (n, D), synthetic (m, D) -> AUC, as `rf_auc`."""
    return rf_auc(real, synthetic)
