"""What a verdict follows from: how far scores lie beyond those of real cells, and how surely."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from scdiffkit.metrics import METRICS
from scdiffkit.metrics.score import Score

Grade = Literal["good", "fair", "poor"]
Basis = Literal["given", "holdout", "validation", "none", "unknown"]
# Where a score lies between real cells (0) and bad models (1).
GOOD = 0.15
FAIR = 0.5
# Classifiers' AUC above what other real cells score: within MARGIN it makes no difference to anyone's analysis.
DECISIVE = ("rf_auc", "rf_auc_hvg_seurat")
MARGIN = 0.05
CLOSE = 0.15
OBVIOUS = 0.95
CONFIDENCE = 1.96  # standard errors on either side
BETTER = 0.5  # of the way from real to shuffled cells, at most, that cells with relations between genes lie
# Of the way from real cells to copies: of cells that are duplicates a few are too many.
COPIED = {"exact_duplicates": 0.03, "near_duplicates": 0.1, "nn_ratio": 0.5}
COPIED_OF_FEW = {"exact_duplicates": 0.03, "nn_ratio": 0.5}  # near duplicates are a matter of luck then
FEW_CELLS = 100
SATURATED = 0.75  # AUC of real cells among themselves, from which on it leaves no room to tell models apart
# What cells are used for, and the families of metrics that say whether they serve.
USES: dict[str, tuple[str, ...]] = {
    "statistics of single genes and of cells": ("per gene", "per cell"),
    "clustering, embeddings and benchmarks of methods": ("joint", "coverage", "classifier"),
    "cell types, marker genes and responses": ("biology",),
}


@dataclass(frozen=True)
class Excess:
    """A classifier's AUC above that of other real cells: as measured, and the interval it lies in."""

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
        """Never narrower than around 0: cells that score better than real ones do so by chance."""
        return max(self.value, 0.0) + self.half_width


def auc_error(n: int) -> float:
    """Standard error of the AUC between two groups of n cells that are alike (Mann & Whitney 1947)."""
    return math.sqrt((2 * n + 1) / (12 * n * n))


def enough_cells(excess: float) -> int:
    """Cells of each group with which an interval around this excess lies within the margin, rounded up; those for an
    excess of 0, where none would do."""
    room = MARGIN - max(excess, 0.0) if excess < 0.8 * MARGIN else MARGIN
    return math.ceil((CONFIDENCE / room) ** 2 / 3 / 10) * 10  # both errors squared come to 1 / (3 n)


@dataclass(frozen=True)
class Facts:
    """What a verdict follows from; the fields as `judge` takes them."""

    scores: tuple[Score, ...]
    n_cells: int
    basis: Basis
    reference_is: str
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
    def no_use(self) -> list[str]:
        return [use for use, grade in self.uses.items() if grade == "poor"]

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, and nothing poor."""
        return not (self.no_use or self.lost_types)

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
        """Clearly: nearer to real than to shuffled cells."""
        return self.first.value <= BETTER * (self.shuffled - self.first.score.real_reference)

    @property
    def no_better_than_shuffled(self) -> bool:
        return self.first.value > MARGIN and self.first.score.value >= self.shuffled - MARGIN

    @property
    def unclear(self) -> bool:
        """Whether shuffled cells pass for real ones, as far as can be told."""
        room = self.shuffled - self.first.score.real_reference
        return room <= MARGIN + self.first.half_width and self.first.low <= MARGIN

    @property
    def saturated(self) -> bool:
        """Whether real cells differ so much that there is no room to tell models apart."""
        return self.first.score.real_reference > SATURATED

    @property
    def few_cells(self) -> bool:
        return self.n_cells < FEW_CELLS

    @cached_property
    def copies(self) -> bool:
        bounds = COPIED_OF_FEW if self.few_cells else COPIED
        copied = [s for s in self.scores if s.metric in bounds and s.position > bounds[s.metric]]
        # Of all cells are exact copies counted: there is no chance in it.
        return any(s.metric == "exact_duplicates" or not s.at_real_reference for s in copied)

    @property
    def held_out(self) -> bool:
        """Whether the real cells are known to be new to the model."""
        return self.basis not in ("none", "unknown")


def _group(score: Score, n_cells: int) -> int:
    """Cells of each group that a score is of, in all resamples together, of which each draws others."""
    most = METRICS[score.metric].max_cells
    return n_cells if most is None else min(n_cells, most * len(score.values))


def grade_of(scores: list[Score]) -> Grade | None:
    """Of the scores of one use that tell good from bad models: good when two thirds are, and none is poor; poor when
    half are."""
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
