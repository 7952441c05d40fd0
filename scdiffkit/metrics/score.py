"""The score of synthetic cells by one metric, beside the scores of real cells and of baselines (bad models)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scdiffkit._deprecated import renamed_attributes
from scdiffkit.metrics.registry import Direction, Metric, distance_from_best

BASELINES = ("shuffled", "pooled", "copies")
NAMES = {"shuffled": "shuffled cells", "pooled": "the mean cell", "copies": "copies"}
# The first two are relative to the distance of real cells from the best value.
CLEARLY_WORSE = 0.25  # a baseline is clearly worse than real cells if it is further away by more than this
ROUNDING = 1e-6  # smaller differences are rounding errors
FEWEST_RESAMPLES = 3  # needed for a prediction interval
FAR = 10.0  # position beyond which a percentage is not informative
NEAR_REFERENCE = 0.1  # position up to which a score counts as at the real reference, with fewer resamples


@dataclass(frozen=True)
class Score:
    """The values of one metric for synthetic cells, real cells and baselines.

    values and real_references have one value per resample. baselines has the values of each bad model, by name, from
    the first resample only: they are so far off that one is enough.
    """

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
        """Return the mean value of one baseline. Raises KeyError if it does not apply to this metric."""
        return float(np.mean(self.baselines[name]))

    def is_worse(self, name: str) -> bool:
        """Whether a baseline scores worse than real cells."""
        return self._beyond_reference(name) > ROUNDING * self._off(self.real_references)

    @property
    def baseline_name(self) -> str | None:
        """The baseline that the value is compared with, which defines position 1.

        This is "shuffled", which keeps the right genes, if it is clearly worse than real cells; else the worst
        baseline, if that is clearly worse; else None: the metric does not separate good from bad models.
        """
        off = self._off(self.real_references)
        clearly = max(CLEARLY_WORSE * off, self._by_chance())
        for name in dict.fromkeys((*(n for n in BASELINES[:1] if n in self.baselines), self.worst_baseline())):
            if self._beyond_reference(name) > clearly:
                return name
        return None

    def worst_baseline(self) -> str:
        """Return the baseline with the worst score."""
        return max(self.baselines, key=lambda name: self._off(self.baselines[name]))

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The 95% prediction interval of another resample's value; None with fewer than three resamples."""
        return _range(self.values)

    @property
    def real_reference_range(self) -> tuple[float, float] | None:
        return _range(self.real_references)

    @property
    def position(self) -> float:
        """The position of the value: 0 at the real reference or better, 1 at the baseline; it may exceed 1.

        Without a baseline, 1 means twice as far from the best value as real cells.
        """
        return max(0.0, self._off(self.values) - self._off(self.real_references)) / self._width()

    @property
    def real_reference_position(self) -> float:
        """The position up to which real cells score by chance; NEAR_REFERENCE with fewer than three resamples."""
        return self._by_chance() / self._width() if _range(self.real_references) else NEAR_REFERENCE

    def _width(self) -> float:
        """Return the length of the scale of `position`: from real cells to the baseline."""
        if self.baseline_name is not None:
            return self._beyond_reference(self.baseline_name)
        return max(self._by_chance(), self._off(self.real_references), 1e-12)

    def _beyond_reference(self, name: str) -> float:
        """Return how much further a baseline is from the best value than real cells, in the resamples that score it."""
        baselines = self.baselines[name]
        return self._off(baselines) - self._off(self.real_references[: len(baselines)])

    def _by_chance(self) -> float:
        """Return how much worse than their mean real cells may score by chance; 0 with fewer than three resamples."""
        bounds = _range(self._distances(self.real_references))
        return 0.0 if bounds is None else bounds[1] - self._off(self.real_references)

    def _off(self, values: tuple[float, ...]) -> float:
        """Return the mean distance from the best value."""
        return float(np.mean(self._distances(values)))

    @property
    def at_real_reference(self) -> bool:
        """Whether the value lies within the prediction interval of real cells, or is better.

        With fewer than three resamples: whether its position is at most NEAR_REFERENCE.
        """
        bounds = _range(self._distances(self.real_references))
        if bounds is None:
            return self.position <= NEAR_REFERENCE
        return self._off(self.values) <= bounds[1]

    @property
    def place(self) -> str:
        """The position as text for tables: "like real cells", "30% towards shuffled cells", ..."""
        if self.at_real_reference or self.position < 0.01:
            return "like real cells"
        bad = NAMES.get(self.baseline_name or "", "twice the distance of real cells")
        if self.position > FAR:
            return f"far beyond {bad}"
        return f"like {bad}" if 1 <= self.position < 1.1 else f"{self.position:.0%} towards {bad}"

    def _distances(self, values: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(distance_from_best(self.direction, self.best, value) for value in values)

    def to_dict(self) -> dict[str, Any]:
        """Return the score as in metrics.json.

        value, real_reference: means over resamples. shuffled, pooled, copies: scores of the baselines (bad models) in
        the first resample, null for a baseline that does not apply. value_range, real_reference_range: 95% prediction
        intervals of one more resample, null with fewer than three resamples. baseline_name: the baseline that the value
        is compared with, null if none is clearly worse than real cells. position: 0 at the real reference or better, 1
        at that baseline. at_real_reference: whether the value lies within the interval of real cells or is better.
        direction: such as "lower is better". best: the best possible value.
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
    """Return the 95% prediction interval of one more value; None with too few values to estimate their spread."""
    from scipy.stats import t

    n = len(values)
    if n < FEWEST_RESAMPLES:
        return None
    margin = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) * (1 + 1 / n) ** 0.5)
    mean = float(np.mean(values))
    return mean - margin, mean + margin


def score_of(metric: Metric, figures: list[dict[str, float]]) -> Score:
    """Build a Score from one dict per resample: value and real_reference, and in the first one also the baselines."""
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
