"""How alike two sets of cells are: one file a family of metrics, each metric an entry of METRICS.

A new metric is a function under `@metric(...)` in its family's file; evaluation, JSON and
table pick it up from there.
"""

from scdiffkit.metrics import biology, cells, classifier, coverage, joint, marginals, papers, privacy, structure
from scdiffkit.metrics.protocols import PROTOCOLS
from scdiffkit.metrics.registry import GENE_SETS, METRICS, Direction, Metric, Space, metric
from scdiffkit.metrics.spaces import as_csr, in_space, principal_components

__all__ = [
    "GENE_SETS",
    "METRICS",
    "PROTOCOLS",
    "Direction",
    "Metric",
    "Space",
    "as_csr",
    "biology",
    "cells",
    "classifier",
    "coverage",
    "in_space",
    "joint",
    "marginals",
    "metric",
    "papers",
    "principal_components",
    "privacy",
    "structure",
]
