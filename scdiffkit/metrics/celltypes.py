"""Are the types of synthetic cells those of real cells?"""

from __future__ import annotations

import numpy as np

from scdiffkit.metrics.registry import metric


@metric(
    "type_f1",
    direction="higher is better",
    best=1.0,
    space="pca",
    uses_types=True,
    definition="Macro-F1, over the types of the real cells, of a classifier that learns the types from synthetic cells "
    "and names those of real ones: logistic regression on 20 principal components of both sets.",
    source="train on synthetic, test on real: Esteban et al. 2017 (arXiv 1706.02633)",
)
def type_f1(real: np.ndarray, synthetic: np.ndarray, real_types: np.ndarray, synthetic_types: np.ndarray) -> float:
    """real (n, D), synthetic (m, D), and their types, text (n,) and (m,)."""
    return macro_f1(synthetic, synthetic_types, real, real_types)


def macro_f1(learnt: np.ndarray, types: np.ndarray, test: np.ndarray, test_types: np.ndarray) -> float:
    """Macro-F1, over the types of the test cells, of a logistic regression on standardised components.

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
    return float(f1_score(test_types, predicted, labels=np.unique(test_types), average="macro", zero_division=0))
