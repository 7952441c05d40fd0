"""What a metric is, and the one place where all of them are listed."""

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

GENE_SETS: tuple[Space, ...] = ("hvg_seurat", "hvg_seurat_v3", "rare", "medium", "abundant")  # chosen on real cells
N_VARIABLE = 2000  # genes of "variable", and at most of each of these sets
MEDIUM, ABUNDANT = 0.02, 0.2  # mean counts per cell: below the first a gene is rare, from the second on abundant


@dataclass(frozen=True)
class Metric:
    """A figure that compares real with synthetic cells.

    function takes real (n, D) and synthetic (m, D) in `space` and gives a finite number for any two sets of
    at least 2 cells each. "genes": log1p-normalised values, CSR, D = genes. "variable": the most variable of
    them, dense. "pca": dense, D components fitted on both sides together. One of GENE_SETS: dense, the genes of a set
    that was chosen on the real cells. It draws no random numbers of its own that are not fixed. against: "train" where
    the cells that a model was trained on, if they are known, take the place of the real ones; "neighbours" and
    "candidates" where both do, and `member` tells the ones from the others (1 and 0); "references" where other real
    cells are there too (2), "donors" where donors were trained on or not, as a whole.
    needs: what function takes too, a pair of arrays (n,) and (m,) each, in this order.
    default: False where it is computed for a protocol only.
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
        """The figure for real (n, D) and synthetic (m, D), matrices in this metric's space.

        given: by name, (n,) and (m,) of what the metric `needs`; what it does not need is left aside. Where there
        are more than `max_cells` cells on a side, as many are drawn with `seed`.
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
        """How bad a value is, 0 at best, in the metric's own unit; the same for every direction."""
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
    """Register the decorated function as a metric; see `Metric` for the fields."""

    def register(function: Function) -> Function:
        if name in METRICS:
            raise ValueError(f"There are two metrics called {name!r}.")
        METRICS[name] = Metric(
            name, direction, best, definition, source, space, max_cells, function, family, against, needs, default
        )
        return function

    return register


def _at_most(n: int | None, n_cells: int, rng: np.random.Generator) -> np.ndarray | slice:
    """Rows of at most n of n_cells cells, in their order."""
    if n is None or n_cells <= n:
        return slice(None)
    return np.sort(rng.choice(n_cells, n, replace=False))
