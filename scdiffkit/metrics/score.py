"""What a metric says of synthetic cells, beside what it says of real cells and of bad models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scdiffkit.metrics.registry import Direction, Metric, distance_from_best

BAD_MODELS = ("shuffled", "pooled", "copies")
NAMES = {"shuffled": "shuffled cells", "pooled": "the mean cell", "copies": "copies"}
CLEARLY = 0.25  # of what real cells are off: so much more is clearly worse
ROUNDING = 1e-6  # of what real cells are off: less is no difference
FEWEST_RESAMPLES = 3  # that tell a spread
FAR = 10.0  # times the way to bad models: beyond, a percentage says nothing
NEAR_FLOOR = 0.1  # of the way to bad models, where there are fewer


@dataclass(frozen=True)
class Score:
    """One metric: its values for the synthetic cells, one a resample, the same for real cells, and those of bad models,
    which are so far off that the first resample tells."""

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
        return self._beyond_floor(name) > ROUNDING * self._off(self.floors)

    @property
    def bad_model(self) -> str | None:
        """The bad model that a value is set against: shuffled cells, which have the right genes, where those are
        clearly worse than real ones here, else the worst; None where none is: then this metric tells little."""
        floor = self._off(self.floors)
        clearly = max(CLEARLY * floor, self._by_chance())
        for name in dict.fromkeys((*(n for n in BAD_MODELS[:1] if n in self.ceilings), self.worst_ceiling())):
            if self._beyond_floor(name) > clearly:
                return name
        return None

    def worst_ceiling(self) -> str:
        """The bad model that does worst here."""
        return max(self.ceilings, key=lambda name: self._off(self.ceilings[name]))

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Holds another resample's value 19 times in 20; None with fewer than three resamples."""
        return _range(self.values)

    @property
    def floor_range(self) -> tuple[float, float] | None:
        return _range(self.floors)

    @property
    def position(self) -> float:
        """Where the value lies: 0 at the floor or better, 1 as bad as the bad model it is set against (where there is
        none: twice as far from best as real cells); may be more."""
        return max(0.0, self._off(self.values) - self._off(self.floors)) / self._width()

    @property
    def floor_position(self) -> float:
        """How far real cells stray, on the same scale; with fewer than three resamples, what counts as close."""
        return self._by_chance() / self._width() if _range(self.floors) else NEAR_FLOOR

    def _width(self) -> float:
        """Of the scale: from real cells to the bad model."""
        if self.bad_model is not None:
            return self._beyond_floor(self.bad_model)
        return max(self._by_chance(), self._off(self.floors), 1e-12)

    def _beyond_floor(self, name: str) -> float:
        """How much further from best a bad model is than real cells, in the resamples that score it."""
        ceilings = self.ceilings[name]
        return self._off(ceilings) - self._off(self.floors[: len(ceilings)])

    def _by_chance(self) -> float:
        """How much worse than on average real cells may score; 0 with fewer than three resamples."""
        bounds = _range(self._distances(self.floors))
        return 0.0 if bounds is None else bounds[1] - self._off(self.floors)

    def _off(self, values: tuple[float, ...]) -> float:
        """Mean distance from best."""
        return float(np.mean(self._distances(values)))

    @property
    def at_floor(self) -> bool:
        """Whether real cells score as badly now and then; with fewer than three resamples, whether it is close to the
        floor."""
        bounds = _range(self._distances(self.floors))
        if bounds is None:
            return self.position <= NEAR_FLOOR
        return self._off(self.values) <= bounds[1]

    @property
    def place(self) -> str:
        """Where the value lies, in words: how much of the way from real cells to a bad model."""
        if self.at_floor or self.position < 0.01:
            return "as real cells"
        bad = NAMES.get(self.bad_model or "", "twice that of real cells")
        if self.position > FAR:
            return f"far beyond {bad}"
        return f"as {bad}" if 1 <= self.position < 1.1 else f"{self.position:.0%} to {bad}"

    def _distances(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(distance_from_best(self.direction, self.best, value) for value in values)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in metrics.json.

        value, floor: means over resamples. shuffled, pooled, copies: bad models in the first of them, null where one
        says nothing. value_range, floor_range: what holds one more resample 19 times in 20, null with fewer than
        three. bad_model: the one that this metric is set against, null where
        none tells. position: 0 where real cells are or better, 1 where that bad model is.
        at_floor: whether real cells score as badly now and then. direction: "lower is better" and the like; best: the
        best value there is.
        """
        return {
            "metric": self.metric,
            "family": self.family,
            "value": self.value,
            "value_range": self.value_range,
            "floor": self.floor,
            "floor_range": self.floor_range,
            **{name: self.ceiling(name) if name in self.ceilings else None for name in BAD_MODELS},
            "bad_model": self.bad_model,
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
    """From value and floor of each resample, and ceilings of the first."""
    by_name = {which: tuple(figure[which] for figure in figures if which in figure) for which in figures[0]}
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
