"""Metrics of the similarity of two sets of cells: one file per family, one entry of METRICS per metric.

To add a metric, decorate a function with `@metric(...)` in its family's file; the evaluation, metrics.json and the
tables include it without further changes.
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
