"""From scores to words: may these cells be trusted, for what, and what is wrong with them?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scdiffkit.metrics.score import Score

Word = Literal["indistinguishable", "close", "usable in part", "poor"]
Grade = Literal["good", "fair", "poor"]

# Where a score lies between real cells (0) and bad models (1).
GOOD, FAIR = 0.15, 0.5
# Of the forest's AUC above the floor. Two halves of one data set come to 0.5 +- 0.03 with a few hundred cells.
AUC_SAME, AUC_CLOSE, AUC_OBVIOUS = 0.05, 0.15, 0.95
COPIED = 0.25  # of the way from real cells to copies
FINDINGS = 3

# What cells are used for, and the families of metrics that say whether they serve.
USES: dict[str, tuple[str, ...]] = {
    "statistics of single genes and of cells": ("per gene", "per cell"),
    "clustering, embeddings and benchmarks of methods": ("joint", "coverage", "classifier"),
    "cell types, marker genes and responses": ("biology",),
}


@dataclass(frozen=True)
class Verdict:
    """word: the verdict. sentence: it in one sentence. reasons: why. uses: use -> good, fair or poor. findings: the
    worst scores, worst first. copies: whether cells may have been copied from the training cells."""

    word: Word
    sentence: str
    reasons: list[str]
    uses: dict[str, Grade]
    findings: list[str]
    copies: bool

    def __str__(self) -> str:
        return " ".join([self.sentence, *self.reasons])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"text": str(self)}


def judge(scores: Iterable[Score], *, few_cells: bool, floor_is: str, within: str, worst_type: str | None) -> Verdict:
    """few_cells: whether the scores are rough; floor_is, within: the floor and the shuffle in words."""
    scores = list(scores)
    by_name = {score.metric: score for score in scores}
    grades = {use: _grade([s for s in scores if s.family in families]) for use, families in USES.items()}
    uses = {use: grade for use, grade in grades.items() if grade}
    auc = by_name["rf_auc"]
    above = auc.value - auc.floor
    shuffled = auc.ceiling("shuffled")
    copies = above < -AUC_SAME or any(s.family == "privacy" and s.position > COPIED and not s.at_floor for s in scores)
    undecided = shuffled - auc.floor <= AUC_SAME

    good = [use for use, grade in uses.items() if grade == "good"]
    bad = [use for use, grade in uses.items() if grade == "poor"]
    no_better = above > AUC_SAME and auc.value >= shuffled - AUC_SAME
    if above <= AUC_SAME and not bad:
        word: Word = "indistinguishable"
        sentence = "Indistinguishable: by these tests the cells are as close to real cells as other real cells are."
    elif above <= AUC_CLOSE and not bad and not no_better:
        word, sentence = "close", "Close: most cells pass for real ones."
    elif auc.value < AUC_OBVIOUS and [use for use in uses if use not in bad] and not no_better:
        word = "usable in part"
        serves = good or [use for use in uses if use not in bad]
        fails = bad or [use for use in uses if use not in serves]
        sentence = f"Usable for {_listed(serves)}" + (f", not for {_listed(fails)}." if fails else ", with care.")
    else:
        word, sentence = "poor", "Poor: do not use these cells in the place of real ones."

    reasons = [
        f"A classifier tells synthetic from real cells with AUC {auc.value:.2f} ({auc.floor:.2f}: {floor_is}; "
        f"{shuffled:.2f}: real cells with genes shuffled {within}; 0.5: pure guessing)."
    ]
    if undecided:
        reasons.append(
            "Shuffled cells pass as well as real ones here: these data are too few or too simple to tell a good model "
            "from a bad one."
        )
    elif auc.value >= AUC_OBVIOUS:
        reasons.append("Nearly every synthetic cell is recognised.")
    elif no_better:
        reasons.append(
            "That is no better than shuffled cells: relations between genes in these cells cannot be relied on."
        )
    if copies:
        reasons.append(
            "Cells may be copies of those that the model was trained on: do not share them in the place of real ones, "
            "and judge them by real cells that the model has not seen."
        )
    if worst_type and word != "indistinguishable":
        reasons.append(f"The type furthest from its real cells is {worst_type}.")
    if few_cells:
        reasons.append("With so few cells these figures are rough.")
    return Verdict(word, sentence, reasons, uses, _findings(scores), copies)


def _grade(scores: list[Score]) -> Grade | None:
    """Of the scores of one use: good when two thirds are, and none is poor; poor when half are."""
    if not scores:
        return None
    grades = ["good" if s.at_floor or s.position <= GOOD else "fair" if s.position <= FAIR else "poor" for s in scores]
    share = {grade: grades.count(grade) / len(grades) for grade in ("good", "poor")}
    if share["poor"] >= 0.5:
        return "poor"
    return "good" if share["poor"] == 0 and share["good"] >= 2 / 3 else "fair"


def _findings(scores: list[Score]) -> list[str]:
    """The scores furthest from the floor, in words."""
    off = [s for s in scores if not s.at_floor and s.position > GOOD and s.family != "papers"]
    off.sort(key=lambda s: -s.position)
    found = []
    for s in off[:FINDINGS]:
        bad = ", ".join(f"{name} {s.ceiling(name):.3g}" for name in s.ceilings)
        what = s.definition.split(". ")[0].rstrip(".")
        found.append(f"{s.metric} is {s.value:.3g}; real cells {s.floor:.3g}, bad models: {bad}. {what}.")
    return found


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
