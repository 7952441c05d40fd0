"""What a metric says of synthetic cells, beside what it says of real cells and of bad models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scdiffkit.metrics.registry import Direction, Metric, distance_from_best

BAD_MODELS = ("shuffled", "pooled", "copies")
FEWEST_RESAMPLES = 3  # that tell a spread
NEAR_FLOOR = 0.1  # of the way to bad models, where there are fewer


@dataclass(frozen=True)
class Score:
    """One metric: its values for the synthetic cells, one a resample, and the same for real cells and bad models."""

    metric: str
    family: str
    values: tuple[float, ...]
    floors: tuple[float, ...]
    ceilings: dict[str, tuple[float, ...]]
    direction: Direction
    best: float
    definition: str
    source: str

    @property
    def value(self) -> float:
        return float(np.mean(self.values))

    @property
    def floor(self) -> float:
        return float(np.mean(self.floors))

    def ceiling(self, name: str) -> float:
        """Of one bad model; KeyError where it says nothing of this metric."""
        return float(np.mean(self.ceilings[name]))

    def is_worse(self, name: str) -> bool:
        """Whether a bad model does worse than real cells here."""
        return float(np.mean(self._distances(self.ceilings[name]))) > float(np.mean(self._distances(self.floors)))

    @property
    def tells(self) -> bool:
        """Whether bad models are clearly worse than real cells here: at least twice as far from best."""
        floor = float(np.mean(self._distances(self.floors)))
        return float(np.mean(self._distances(self.ceilings[self.worst_ceiling()]))) >= 2 * floor

    def worst_ceiling(self) -> str:
        """The bad model that does worst here."""
        return max(self.ceilings, key=lambda name: float(np.mean(self._distances(self.ceilings[name]))))

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Holds another resample's value 19 times in 20; None with fewer than three resamples."""
        return _range(self.values)

    @property
    def floor_range(self) -> tuple[float, float] | None:
        return _range(self.floors)

    @property
    def position(self) -> float:
        """Where the value lies: 0 at the floor or better, 1 as bad as the worst of the bad models (where those are no
        worse than real cells: twice as far from best as these); may be more."""
        above = float(np.mean(self._distances(self.values))) - float(np.mean(self._distances(self.floors)))
        return max(0.0, above) / self._width()

    @property
    def floor_position(self) -> float:
        """How far real cells stray, on the same scale; with fewer than three resamples, what counts as close."""
        bounds = _range(self._distances(self.floors))
        if bounds is None:
            return NEAR_FLOOR
        return (bounds[1] - float(np.mean(self._distances(self.floors)))) / self._width()

    def _width(self) -> float:
        """From real cells to the worst of the bad models; where those are no worse, chance decides, or once more what
        real cells are off."""
        floor = float(np.mean(self._distances(self.floors)))
        worst = float(np.mean(self._distances(self.ceilings[self.worst_ceiling()])))
        bounds = _range(self._distances(self.floors))
        by_chance = 0.0 if bounds is None else bounds[1] - floor
        return max(worst - floor, by_chance, floor, 1e-12)

    @property
    def at_floor(self) -> bool:
        """Whether real cells score as badly now and then; with fewer than three resamples, whether it is close to the
        floor."""
        bounds = _range(self._distances(self.floors))
        if bounds is None:
            return self.position <= NEAR_FLOOR
        return float(np.mean(self._distances(self.values))) <= bounds[1]

    @property
    def place(self) -> str:
        """Where the value lies, in words."""
        if self.at_floor or self.position < 0.01:
            return "as real cells"
        return "as bad models" if self.position >= 1 else f"{self.position:.0%} of the way to bad models"

    def _distances(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(distance_from_best(self.direction, self.best, value) for value in values)

    def to_dict(self) -> dict[str, Any]:
        return {
            "metric": self.metric,
            "family": self.family,
            "value": self.value,
            "value_range": self.value_range,
            "floor": self.floor,
            "floor_range": self.floor_range,
            **{name: self.ceiling(name) if name in self.ceilings else None for name in BAD_MODELS},
            "position": self.position,
            "at_floor": self.at_floor,
            "direction": self.direction,
            "best": self.best,
            "definition": self.definition,
            "source": self.source,
        }


def _range(values: tuple[float, ...]) -> tuple[float, float] | None:
    """Prediction interval of one more value, 95%; two values say next to nothing of their spread."""
    from scipy.stats import t

    n = len(values)
    if n < FEWEST_RESAMPLES:
        return None
    margin = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) * (1 + 1 / n) ** 0.5)
    mean = float(np.mean(values))
    return mean - margin, mean + margin


def score_of(metric: Metric, figures: list[dict[str, float]]) -> Score:
    """From value, floor and ceilings of each resample."""
    by_name = {which: tuple(figure[which] for figure in figures) for which in figures[0]}
    return Score(
        metric=metric.name,
        family=metric.family,
        values=by_name.pop("value"),
        floors=by_name.pop("floor"),
        ceilings=by_name,
        direction=metric.direction,
        best=metric.best,
        definition=metric.definition,
        source=metric.source,
    )
