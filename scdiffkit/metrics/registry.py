"""The Metric class and the registry of all metrics, METRICS."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Space = Literal["genes", "variable", "pca", "hvg_seurat", "hvg_seurat_v3", "rare", "medium", "abundant"]
Direction = Literal["lower is better", "higher is better", "closest to 0", "closest to 0.5", "closest to 1"]
Against = Literal["real", "train", "neighbours", "candidates", "references", "donors"]
Need = Literal[
    "types", "conditions", "donors", "batches", "library_size", "genes_detected", "mitochondrial_share", "member"
]
Family = Literal["per gene", "per cell", "joint", "coverage", "classifier", "biology", "privacy", "papers"]
Function = Callable[..., float]

GENE_SETS: tuple[Space, ...] = ("hvg_seurat", "hvg_seurat_v3", "rare", "medium", "abundant")  # selected on real cells
N_VARIABLE = 2000  # number of genes in "variable", and the maximum of each of GENE_SETS
MEDIUM, ABUNDANT = 0.02, 0.2  # mean counts per cell: genes below MEDIUM are rare, genes from ABUNDANT on abundant


@dataclass(frozen=True)
class Metric:
    """A metric that compares real with synthetic cells.

    function: takes real (n, D) and synthetic (m, D) cells in `space` and returns a finite number for any two sets of
    at least 2 cells each. It is deterministic: any random numbers in it have a fixed seed.
    space: "genes": log1p-normalised values of all genes, CSR. "variable": the most variable genes, dense. "pca": D
    principal components fitted on both sets together, dense. One of GENE_SETS: the genes of a set that was selected on
    the real cells, dense.
    against: which cells take the place of `real`. "real": the real cells. "train": the training cells, if they are
    known, else the real cells. "neighbours" and "candidates": both training cells (`member` 1) and other real cells
    (`member` 0). "references": these and further real cells as a reference (`member` 2). "donors": these, where whole
    donors were either trained on or held out.
    needs: further arguments of function, in this order: a pair of arrays (n,) and (m,) for each.
    default: False if the metric is computed only for a protocol.
    """

    name: str
    direction: Direction
    best: float
    definition: str
    source: str
    space: Space
    max_cells: int | None
    function: Function
    family: Family = "joint"
    against: Against = "real"
    needs: tuple[Need, ...] = ()
    default: bool = True

    def __call__(self, real: Any, synthetic: Any, *, seed: int = 0, **given: tuple[np.ndarray, np.ndarray]) -> float:
        """Compute the metric for real (n, D) and synthetic (m, D) cells, matrices in this metric's space.

        given: pairs of arrays (n,) and (m,) by the names in `needs`; other names are ignored. A set of more than
        `max_cells` cells is subsampled to that number with `seed`.
        """
        rng = np.random.default_rng([seed, 5])
        rows = [_at_most(self.max_cells, side.shape[0], rng) for side in (real, synthetic)]
        missing = [need for need in self.needs if need not in given]
        if missing:
            raise TypeError(f"The metric {self.name} needs the cells' {' and '.join(missing)}.")
        pairs = [(real, synthetic), *(given[need] for need in self.needs)]
        value = float(self.function(*(side[chosen] for pair in pairs for side, chosen in zip(pair, rows))))
        if not math.isfinite(value):
            raise ArithmeticError(f"The metric {self.name} gave {value}: a metric must define its edge cases.")
        return value

    def distance_from_best(self, value: float) -> float:
        """Return how far a value is from the best one, in the metric's unit: 0 is best, whatever the direction."""
        return distance_from_best(self.direction, self.best, value)


def distance_from_best(direction: Direction, best: float, value: float) -> float:
    off = value - best
    return (
        max(0.0, off)
        if direction == "lower is better"
        else max(0.0, -off)
        if direction == "higher is better"
        else abs(off)
    )


METRICS: dict[str, Metric] = {}


def metric(
    name: str,
    *,
    direction: Direction,
    best: float,
    definition: str,
    source: str,
    space: Space = "genes",
    max_cells: int | None = None,
    against: Against = "real",
    family: Family = "joint",
    needs: tuple[Need, ...] = (),
    default: bool = True,
) -> Callable[[Function], Function]:
    """Register the decorated function as a metric. `Metric` describes the fields."""

    def register(function: Function) -> Function:
        if name in METRICS:
            raise ValueError(f"There are two metrics called {name!r}.")
        METRICS[name] = Metric(
            name, direction, best, definition, source, space, max_cells, function, family, against, needs, default
        )
        return function

    return register


def _at_most(n: int | None, n_cells: int, rng: np.random.Generator) -> np.ndarray | slice:
    """Draw at most n of n_cells rows without replacement, in ascending order."""
    if n is None or n_cells <= n:
        return slice(None)
    return np.sort(rng.choice(n_cells, n, replace=False))
