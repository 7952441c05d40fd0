"""How alike two sets of cells are: one file a family of metrics, each metric an entry of METRICS.

A new metric is a function under `@metric(...)` in its family's file; evaluation, JSON and
table pick it up from there.
"""

from scdiffkit.metrics import celltypes, classifier, joint, marginals, neighbours, papers, picture
from scdiffkit.metrics.registry import METRICS, Direction, Metric, Space, metric
from scdiffkit.metrics.spaces import as_csr, in_space, principal_components

__all__ = [
    "METRICS",
    "Direction",
    "Metric",
    "Space",
    "as_csr",
    "celltypes",
    "classifier",
    "in_space",
    "joint",
    "marginals",
    "metric",
    "neighbours",
    "papers",
    "picture",
    "principal_components",
]
