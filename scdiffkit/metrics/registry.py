"""What a metric is, and the one place where all of them are listed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Space = Literal["genes", "pca"]
Direction = Literal["lower is better", "higher is better", "closest to 0", "closest to 0.5"]
Function = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Metric:
    """A figure that compares real with synthetic cells.

    function takes real (n, D) and synthetic (m, D) in `space` and gives a finite number for any two sets of
    at least 2 cells each. "genes": log1p-normalised values, CSR, D = genes. "pca": dense, D components
    fitted on both sides together. It draws no random numbers of its own that are not fixed.
    """

    name: str
    direction: Direction
    best: float
    definition: str
    source: str
    space: Space
    max_cells: int | None
    function: Function

    def __call__(self, real: Any, synthetic: Any, *, seed: int = 0) -> float:
        """The figure for real (n, D) and synthetic (m, D), matrices in this metric's space.

        Where there are more than `max_cells` cells on a side, as many are drawn with `seed`.
        """
        rows = np.random.default_rng([seed, 5])
        value = float(self.function(*(_at_most(self.max_cells, side, rows) for side in (real, synthetic))))
        if not math.isfinite(value):
            raise ArithmeticError(f"The metric {self.name} gave {value}: a metric must define its edge cases.")
        return value

    def distance_from_best(self, value: float) -> float:
        """How bad a value is, 0 at best, in the metric's own unit; the same for every direction."""
        return max(0.0, value - self.best) if self.direction == "lower is better" else abs(value - self.best)


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
) -> Callable[[Function], Function]:
    """Register the decorated function of two matrices as a metric; see `Metric` for the fields."""

    def register(function: Function) -> Function:
        if name in METRICS:
            raise ValueError(f"There are two metrics called {name!r}.")
        METRICS[name] = Metric(name, direction, best, definition, source, space, max_cells, function)
        return function

    return register


def _at_most(n: int | None, cells: Any, rng: np.random.Generator) -> Any:
    if n is None or cells.shape[0] <= n:
        return cells
    return cells[np.sort(rng.choice(cells.shape[0], n, replace=False))]
