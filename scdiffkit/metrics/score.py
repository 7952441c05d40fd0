"""What a metric says of synthetic cells, beside what it says of real cells and of bad models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scdiffkit._deprecated import renamed_attributes
from scdiffkit.metrics.registry import Direction, Metric, distance_from_best

BASELINES = ("shuffled", "pooled", "copies")
NAMES = {"shuffled": "shuffled cells", "pooled": "the mean cell", "copies": "copies"}
CLEARLY = 0.25  # of what real cells are off: so much more is clearly worse
ROUNDING = 1e-6  # of what real cells are off: less is no difference
FEWEST_RESAMPLES = 3  # that tell a spread
FAR = 10.0  # times the way to bad models: beyond, a percentage says nothing
NEAR_REFERENCE = 0.1  # of the way to bad models, where there are fewer


@dataclass(frozen=True)
class Score:
    """One metric: its values for the synthetic cells, one a resample, the same for real cells, and those of bad models,
    which are so far off that the first resample tells."""

    metric: str
    family: str
    values: tuple[float, ...]
    real_references: tuple[float, ...]
    baselines: dict[str, tuple[float, ...]]
    direction: Direction
    best: float
    definition: str
    source: str

    __getattr__ = renamed_attributes(
        floor="real_reference", floors="real_references", floor_range="real_reference_range", ceiling="baseline",
        floor_position="real_reference_position", at_floor="at_real_reference", ceilings="baselines",
        worst_ceiling="worst_baseline", bad_model="baseline_name",
    )  # fmt: skip

    @property
    def value(self) -> float:
        return float(np.mean(self.values))

    @property
    def real_reference(self) -> float:
        return float(np.mean(self.real_references))

    def baseline(self, name: str) -> float:
        """Of one bad model; KeyError where it says nothing of this metric."""
        return float(np.mean(self.baselines[name]))

    def is_worse(self, name: str) -> bool:
        """Whether a bad model does worse than real cells here."""
        return self._beyond_reference(name) > ROUNDING * self._off(self.real_references)

    @property
    def baseline_name(self) -> str | None:
        """The bad model that a value is set against: shuffled cells, which have the right genes, where those are
        clearly worse than real ones here, else the worst; None where none is: then this metric tells little."""
        off = self._off(self.real_references)
        clearly = max(CLEARLY * off, self._by_chance())
        for name in dict.fromkeys((*(n for n in BASELINES[:1] if n in self.baselines), self.worst_baseline())):
            if self._beyond_reference(name) > clearly:
                return name
        return None

    def worst_baseline(self) -> str:
        """The bad model that does worst here."""
        return max(self.baselines, key=lambda name: self._off(self.baselines[name]))

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Holds another resample's value 19 times in 20; None with fewer than three resamples."""
        return _range(self.values)

    @property
    def real_reference_range(self) -> tuple[float, float] | None:
        return _range(self.real_references)

    @property
    def position(self) -> float:
        """Where the value lies: 0 at the real reference or better, 1 as bad as the bad model it is set against (where
        there is none: twice as far from best as real cells); may be more."""
        return max(0.0, self._off(self.values) - self._off(self.real_references)) / self._width()

    @property
    def real_reference_position(self) -> float:
        """How far real cells stray, on the same scale; with fewer than three resamples, what counts as close."""
        return self._by_chance() / self._width() if _range(self.real_references) else NEAR_REFERENCE

    def _width(self) -> float:
        """Of the scale: from real cells to the bad model."""
        if self.baseline_name is not None:
            return self._beyond_reference(self.baseline_name)
        return max(self._by_chance(), self._off(self.real_references), 1e-12)

    def _beyond_reference(self, name: str) -> float:
        """How much further from best a bad model is than real cells, in the resamples that score it."""
        baselines = self.baselines[name]
        return self._off(baselines) - self._off(self.real_references[: len(baselines)])

    def _by_chance(self) -> float:
        """How much worse than on average real cells may score; 0 with fewer than three resamples."""
        bounds = _range(self._distances(self.real_references))
        return 0.0 if bounds is None else bounds[1] - self._off(self.real_references)

    def _off(self, values: tuple[float, ...]) -> float:
        """Mean distance from best."""
        return float(np.mean(self._distances(values)))

    @property
    def at_real_reference(self) -> bool:
        """Whether real cells score as badly now and then; with fewer than three resamples, whether it is close to the
        reference."""
        bounds = _range(self._distances(self.real_references))
        if bounds is None:
            return self.position <= NEAR_REFERENCE
        return self._off(self.values) <= bounds[1]

    @property
    def place(self) -> str:
        """Where the value lies, in words: how much of the way from real cells to a bad model."""
        if self.at_real_reference or self.position < 0.01:
            return "as real cells"
        bad = NAMES.get(self.baseline_name or "", "twice that of real cells")
        if self.position > FAR:
            return f"far beyond {bad}"
        return f"as {bad}" if 1 <= self.position < 1.1 else f"{self.position:.0%} to {bad}"

    def _distances(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(distance_from_best(self.direction, self.best, value) for value in values)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in metrics.json.

        value, real_reference: means over resamples. shuffled, pooled, copies: bad models in the first of them, null
        where one says nothing. value_range, real_reference_range: what holds one more resample 19 times in 20, null
        with fewer than three. baseline_name: the one that this metric is set against, null where none tells. position:
        0 where real cells are or better, 1 where that bad model is. at_real_reference: whether real cells score as
        badly now and then. direction: "lower is better" and the like; best: the best value there is.
        """
        return {
            "metric": self.metric,
            "family": self.family,
            "value": self.value,
            "value_range": self.value_range,
            "real_reference": self.real_reference,
            "real_reference_range": self.real_reference_range,
            **{name: self.baseline(name) if name in self.baselines else None for name in BASELINES},
            "baseline_name": self.baseline_name,
            "position": self.position,
            "at_real_reference": self.at_real_reference,
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
    """From value and real reference of each resample, and baselines of the first."""
    by_name = {which: tuple(figure[which] for figure in figures if which in figure) for which in figures[0]}
    return Score(
        metric=metric.name,
        family=metric.family,
        values=by_name.pop("value"),
        real_references=by_name.pop("real_reference"),
        baselines=by_name,
        direction=metric.direction,
        best=metric.best,
        definition=metric.definition,
        source=metric.source,
    )
