"""The facts from which a verdict follows: how much worse scores are than those of real cells, and how certainly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scdiffkit.metrics import METRICS
from scdiffkit.metrics.score import Score

Grade = Literal["good", "fair", "poor"]
Basis = Literal["given", "holdout", "validation", "none", "unknown"]
# Bounds on the position of a score between real cells (0) and bad models (1).
GOOD = 0.15
FAIR = 0.5
# Bounds on the excess of a classifier's AUC over that of other real cells (MARGIN: irrelevant for any analysis), and
# on the AUC itself (OBVIOUS).
DECISIVE = ("rf_auc", "rf_auc_hvg_seurat")
MARGIN = 0.05
CLOSE = 0.15
OBVIOUS = 0.95
CONFIDENCE = 1.96  # half-width of a 95% interval in standard errors
BETTER = 0.5  # maximum excess, relative to that of shuffled cells, of cells that are better than shuffled ones
# Positions between real cells (0) and copies (1) above which cells count as copied: a few duplicates are too many.
COPIED = {"exact_duplicates": 0.03, "near_duplicates": 0.1, "nn_ratio": 0.5}
COPIED_OF_FEW = {"exact_duplicates": 0.03, "nn_ratio": 0.5}  # with few cells, near duplicates occur by chance
FEW_CELLS = 100
SATURATED = 0.75  # AUC between real cells above which models can no longer be distinguished
# Uses of the cells, and the families of metrics that grade them.
USES: dict[str, tuple[str, ...]] = {
    "statistics of single genes and of cells": ("per gene", "per cell"),
    "clustering, embeddings and benchmarks of methods": ("joint", "coverage", "classifier"),
    "cell types, marker genes and responses": ("biology",),
}


@dataclass(frozen=True)
class Excess:
    """The excess of a classifier's AUC over that of other real cells, with its confidence interval."""

    score: Score
    n: int  # cells of each group

    @property
    def value(self) -> float:
        return self.score.value - self.score.real_reference

    @property
    def half_width(self) -> float:
        return CONFIDENCE * math.sqrt(2) * auc_error(self.n)

    @property
    def low(self) -> float:
        return self.value - self.half_width

    @property
    def high(self) -> float:
        """The upper bound. Negative excesses count as 0: cells score better than real ones only by chance."""
        return max(self.value, 0.0) + self.half_width


def auc_error(n: int) -> float:
    """Return the standard error of the AUC between two groups of n cells from the same distribution.

    Source: Mann & Whitney 1947.
    """
    return math.sqrt((2 * n + 1) / (12 * n * n))


def enough_cells(excess: float) -> int:
    """Return the cells per group for which the interval around this excess is within MARGIN, rounded up to tens.

    If the excess is too near to the margin or beyond it, the number for an excess of 0 is returned.
    """
    room = MARGIN - max(excess, 0.0) if excess < 0.8 * MARGIN else MARGIN
    return math.ceil((CONFIDENCE / room) ** 2 / 3 / 10) * 10  # the two squared errors add up to 1 / (3 n)


@dataclass(frozen=True)
class Facts:
    """The facts from which a verdict follows. The fields are the arguments of `judge`."""

    scores: tuple[Score, ...]
    n_cells: int
    basis: Basis
    reference_text: str
    within: str
    worst_type: str | None
    worst_auc: tuple[str, Score] | None
    poor_types: tuple[str, ...]
    missing_types: tuple[str, ...]
    lost_types: tuple[str, ...]
    remarks: tuple[str, ...]

    @cached_property
    def by_name(self) -> dict[str, Score]:
        return {score.metric: score for score in self.scores}

    @cached_property
    def uses(self) -> dict[str, Grade]:
        grades = {use: grade_of([s for s in self.scores if s.family in families]) for use, families in USES.items()}
        return {use: grade for use, grade in grades.items() if grade}

    @property
    def poor_uses(self) -> list[str]:
        return [use for use, grade in self.uses.items() if grade == "poor"]

    @property
    def whole(self) -> bool:
        """Whether no type is lost and no use is poor."""
        return not (self.poor_uses or self.lost_types)

    @cached_property
    def excesses(self) -> list[Excess]:
        there = [self.by_name[name] for name in DECISIVE if name in self.by_name]
        return [Excess(score, _group(score, self.n_cells)) for score in there]

    @property
    def first(self) -> Excess:
        return self.excesses[0]

    @cached_property
    def worst(self) -> Excess:
        return max(self.excesses, key=lambda excess: excess.high)

    @property
    def enough_cells(self) -> int:
        return enough_cells(self.worst.value)

    @property
    def shuffled(self) -> float:
        return self.first.score.baseline("shuffled")

    @property
    def better_than_shuffled(self) -> bool:
        """Whether the AUC is clearly better than that of shuffled cells: nearer to the AUC of real cells."""
        return self.first.value <= BETTER * (self.shuffled - self.first.score.real_reference)

    @property
    def no_better_than_shuffled(self) -> bool:
        return self.first.value > MARGIN and self.first.score.value >= self.shuffled - MARGIN

    @property
    def unclear(self) -> bool:
        """Whether shuffled cells cannot be distinguished from real ones, within the confidence interval."""
        room = self.shuffled - self.first.score.real_reference
        return room <= MARGIN + self.first.half_width and self.first.low <= MARGIN

    @property
    def saturated(self) -> bool:
        """Whether real cells differ so much among themselves that models cannot be distinguished."""
        return self.first.score.real_reference > SATURATED

    @property
    def few_cells(self) -> bool:
        return self.n_cells < FEW_CELLS

    @cached_property
    def copies(self) -> bool:
        bounds = COPIED_OF_FEW if self.few_cells else COPIED
        copied = [s for s in self.scores if s.metric in bounds and s.position > bounds[s.metric]]
        # Exact duplicates are counted among all cells, so chance plays no role.
        return any(s.metric == "exact_duplicates" or not s.at_real_reference for s in copied)

    @property
    def held_out(self) -> bool:
        """Whether the real cells are known to be unseen by the model."""
        return self.basis not in ("none", "unknown")


def _group(score: Score, n_cells: int) -> int:
    """Return the cells of each group that a score uses, over all resamples, each of which draws other cells."""
    most = METRICS[score.metric].max_cells
    return n_cells if most is None else min(n_cells, most * len(score.values))


def grade_of(scores: list[Score]) -> Grade | None:
    """Grade a use by those of its scores that separate good from bad models; None if there are none.

    The grade is good if two thirds of the scores are good and none is poor, poor if half are poor, else fair.
    """
    scores = [s for s in scores if s.baseline_name is not None]
    if not scores:
        return None
    grades = [
        "good" if s.at_real_reference or s.position <= GOOD else "fair" if s.position <= FAIR else "poor"
        for s in scores
    ]
    share = {grade: grades.count(grade) / len(grades) for grade in ("good", "poor")}
    if share["poor"] >= 0.5:
        return "poor"
    return "good" if share["poor"] == 0 and share["good"] >= 2 / 3 else "fair"
