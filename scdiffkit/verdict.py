"""From scores to words: may these cells be trusted, for what, and what is wrong with them?

A verdict is a claim, and is made only where the cells bear it out: how well a classifier tells synthetic from real
cells is known to an interval, which narrows with the number of cells. More cells make a verdict more certain; where
they are too few for one, that is the verdict.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scdiffkit.metrics import METRICS
from scdiffkit.metrics.score import Score

Word = Literal["indistinguishable", "close", "usable in part", "poor", "copied", "too few", "undecided"]
Grade = Literal["good", "fair", "poor"]
Basis = Literal["given", "holdout", "validation", "none", "unknown"]

# Where a score lies between real cells (0) and bad models (1).
GOOD, FAIR = 0.15, 0.5
# Classifiers' AUC above what other real cells score: within MARGIN it makes no difference to anyone's analysis.
HEADLINES = ("rf_auc", "rf_auc_hvg_seurat")
MARGIN, CLOSE, OBVIOUS = 0.05, 0.15, 0.95
CONFIDENCE = 1.96  # standard errors on either side
BETTER = 0.5  # of the way from real to shuffled cells, at most, that cells with relations between genes lie
# Of the way from real cells to copies: of cells that are duplicates a few are too many.
COPIED = {"exact_duplicates": 0.03, "near_duplicates": 0.1, "nn_ratio": 0.5}
COPIED_OF_FEW = {"exact_duplicates": 0.03, "nn_ratio": 0.5}  # near duplicates are a matter of luck then
FEW_CELLS = 100
MEMBERSHIP = 0.6  # AUC of the attack, from which on it is said
FINDINGS = 3
ATTACKS = ("candidates", "references", "donors")  # what metrics are against that tell held-out from training cells
SATURATED = 0.75  # AUC of real cells among themselves, from which on it leaves no room to tell models apart

# What cells are used for, and the families of metrics that say whether they serve.
USES: dict[str, tuple[str, ...]] = {
    "statistics of single genes and of cells": ("per gene", "per cell"),
    "clustering, embeddings and benchmarks of methods": ("joint", "coverage", "classifier"),
    "cell types, marker genes and responses": ("biology",),
}
OF_TYPES = "cell types, marker genes and responses"
GRADE: dict[Word, Grade | None] = {
    "indistinguishable": "good", "close": "good", "usable in part": "fair", "poor": "poor", "copied": "poor",
    "too few": None, "undecided": None,
}  # fmt: skip

MEANING: dict[Word, str] = {
    "indistinguishable": "On cells that the model has not seen, the 95% interval of the classifiers' AUC (rf_auc and, "
    f"where scored, rf_auc_hvg_seurat) above that of other real cells ends below {MARGIN}; no use is graded poor, no "
    "type is missing but by chance, and none is poor.",
    "close": f"The AUC is at most {CLOSE} above, less than half as far as that of shuffled cells, and no use is graded "
    "poor. The best verdict on cells that the model was trained on, or may have been.",
    "usable in part": f"AUC below {OBVIOUS}, better than shuffled cells, and at least one use is not graded poor.",
    "poor": "None of these.",
    "too few": f"The interval reaches from below {MARGIN} to above {CLOSE}, or shuffled cells lie in it: with more "
    "cells the verdict could be any.",
    "undecided": "Shuffled cells pass for real ones, however many cells there are, or real cells differ from one "
    f"another as much (AUC above {SATURATED}).",
    "copied": "There are exact or near duplicates of training cells, or synthetic cells lie far nearer to training "
    "cells than other real cells do.",
}
GRADES = (
    f"Good: at least two thirds of its scores lie at real cells or within {GOOD:.0%} of the way to bad models, and "
    f"none beyond {FAIR:.0%}. Poor: half of them lie beyond {FAIR:.0%}. Fair: between."
)
BASES: dict[Basis, str] = {
    "given": "Judged by real cells that the model was not trained on.",
    "holdout": "Judged by the cells that were held out from training.",
    "validation": "Judged by the run's validation cells: it was not trained on them, but they chose its best step.",
    "none": "Judged against the cells it was trained on, for none were held out: this says how well these were learnt, "
    "not how good new cells are. Train with --holdout 0.2.",
    "unknown": "It is not known whether the model has seen these real cells: give those it was trained on (--train).",
}


@dataclass(frozen=True)
class Verdict:
    """What scores mean.

    word: the verdict. basis: what cells it is judged by, in a sentence. sentence: the verdict in one sentence. reasons:
    why. uses: use -> good, fair or poor; none where the cells serve for nothing, or that cannot be told. limits: use ->
    what restricts it. findings: the worst scores, worst first. copies: whether cells were copied. privacy: what the
    cells give away of those trained on, None where that was not tested, or could not be. margin: of AUC above real
    cells, the interval of it (low, high), and enough_cells, of each group, to tell whether it is within the margin.
    """

    word: Word
    basis: str
    sentence: str
    reasons: list[str]
    uses: dict[str, Grade]
    limits: dict[str, str]
    findings: list[str]
    copies: bool
    privacy: str | None
    margin: float
    interval: tuple[float, float]
    enough_cells: int

    @property
    def grade(self) -> Grade | None:
        """good, fair or poor; None where there are too few cells to tell."""
        return GRADE[self.word]

    def __str__(self) -> str:
        return " ".join([self.basis, self.sentence, *self.reasons])

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"grade": self.grade, "text": str(self)}


@dataclass(frozen=True)
class Excess:
    """A classifier's AUC above that of other real cells: as measured, and the interval it lies in."""

    score: Score
    n: int  # cells of each group

    @property
    def value(self) -> float:
        return self.score.value - self.score.floor

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


def judge(
    scores: Iterable[Score],
    *,
    n_cells: int,
    basis: Basis,
    floor_is: str,
    within: str,
    alike: bool = True,
    worst_type: str | None = None,
    worst_auc: tuple[str, Score] | None = None,
    poor_types: Sequence[str] = (),
    missing_types: Sequence[str] = (),
    lost_types: Sequence[str] = (),
    unscored_types: Sequence[str] = (),
    remarks: Sequence[str] = (),
) -> Verdict:
    """The verdict on cells with these scores.

    n_cells: of each group that is compared. basis: what is known of whether the model has seen the real cells.
    floor_is, within: the reference and the shuffle in words. alike: whether the real cells are like those trained on,
    of the same types, conditions and donors: else what tells the two apart is not the model's doing. worst_type: whose
    cells are furthest from real ones; worst_auc: that whose cells a forest tells best, and how well; poor_types: whose
    cells are far from real ones; missing_types: of which there are real cells and no synthetic ones; lost_types: those
    of them that are too common for that to be chance; unscored_types: with too few cells to be scored. remarks: on how
    the cells were made.
    """
    scores = list(scores)
    by_name = {score.metric: score for score in scores}
    grades = {use: _grade([s for s in scores if s.family in families]) for use, families in USES.items()}
    uses = {use: grade for use, grade in grades.items() if grade}
    bad = [use for use, grade in uses.items() if grade == "poor"]

    excesses = [Excess(by_name[name], _group(by_name[name], n_cells)) for name in HEADLINES if name in by_name]
    first, worst = excesses[0], max(excesses, key=lambda e: e.high)
    auc, shuffled = first.score, first.score.ceiling("shuffled")
    to_shuffled = shuffled - auc.floor
    better = first.value <= BETTER * to_shuffled
    no_better = first.value > MARGIN and auc.value >= shuffled - MARGIN
    unclear = to_shuffled <= MARGIN + first.half_width and first.low <= MARGIN
    few_cells = n_cells < FEW_CELLS
    bounds = COPIED_OF_FEW if few_cells else COPIED
    copied = [s for s in scores if s.metric in bounds and s.position > bounds[s.metric]]
    copied = [s for s in copied if s.metric == "exact_duplicates" or not s.at_floor]  # of all cells: no chance in it
    copies = bool(copied)
    whole = not (bad or lost_types)

    def word_and_sentence() -> tuple[Word, str]:
        if copies:
            return "copied", "Copied: there are cells among these that are copies, or nearly so, of real ones."
        if unclear:
            if n_cells >= enough_cells(0.0) or auc.floor > SATURATED:
                return "undecided", "Cannot tell: these data do not tell a good model from a bad one."
            return "too few", TOO_FEW.format(enough_cells(worst.value))
        if worst.high <= MARGIN and whole and not poor_types and better and basis not in ("none", "unknown"):
            return "indistinguishable", (
                "Indistinguishable: by these tests the cells are as close to real cells as other real cells are, "
                f"within a margin of {MARGIN} of the classifiers' AUC."
            )
        if worst.low <= MARGIN and worst.high > CLOSE:
            return "too few", TOO_FEW.format(enough_cells(worst.value))
        if worst.value <= CLOSE and whole and better:
            if basis == "none":
                return "close", "Close to the cells it was trained on: most cells pass for these."
            return "close", "Close: most cells pass for real ones."
        if auc.value < OBVIOUS and len(bad) < len(uses) and not no_better:
            return "usable in part", _usable(uses)
        return "poor", "Poor: do not use these cells in the place of real ones."

    word, sentence = word_and_sentence()
    reasons = [
        f"A classifier tells synthetic from real cells with AUC {auc.value:.2f} ({auc.floor:.2f}: {floor_is}; "
        f"{shuffled:.2f}: real cells with genes shuffled {within}; 0.5: pure guessing)."
    ]
    if worst is not first:
        s = worst.score
        reasons.append(
            f"By the genes that an analysis would choose (scanpy's highly variable ones) it does with AUC "
            f"{s.value:.2f} ({s.floor:.2f}: {floor_is})."
        )
    if worst_auc is not None and worst_auc[1].value - worst_auc[1].floor > CLOSE:
        name, s = worst_auc
        reasons.append(f"Within {name} alone it does with AUC {s.value:.2f} ({s.floor:.2f}: {floor_is}).")
    if word in ("close", "too few") and worst.value <= MARGIN < worst.high and basis not in ("none", "unknown"):
        reasons.append(
            f"With {n_cells:,} cells of each, that AUC is known to +- {worst.half_width:.2f}; about "
            f"{enough_cells(worst.value):,} of each would tell whether it is within {MARGIN} of real cells'."
        )
    if word == "undecided" and auc.floor > SATURATED:
        reasons.append(
            "Real cells are told from one another nearly as well as shuffled ones: those held out are of donors or "
            "batches that differ from those trained on. Hold out cells of all of them (--holdout without --holdout-by) "
            "to judge the model itself."
        )
    elif word == "undecided":
        reasons.append(
            "Shuffled cells pass as well as real ones: the cells are of kinds too simple for their scores to mean much."
        )
    elif word == "poor" and auc.value >= OBVIOUS:
        reasons.append("Nearly every synthetic cell is recognised.")
    elif no_better and word != "too few" and not copies:
        reasons.append(
            "That is no better than shuffled cells: relations between genes in these cells cannot be relied on."
        )
    exact = by_name.get("exact_duplicates")
    if exact is not None and exact.value > exact.floor:
        reasons.append(f"{exact.value:.1%} of the synthetic cells are exact copies of known real cells.")
    if copies:
        reasons.append(
            "Do not share them in the place of real ones, and do not take their other scores for quality: they say how "
            "like real cells copies of real cells are. Judge the model by real cells that it has not seen (--train)."
        )
    if missing_types:
        reasons.append(
            f"There are no synthetic cells of {_listed(missing_types)}: where only the other types were to be "
            "generated, compare them with real cells of those types alone."
        )
    if poor_types and not copies:
        reasons.append(
            f"Do not rely on the cells of {_listed(poor_types)}: within the type they are more like bad models than "
            "like real cells."
        )
    elif worst_type and not copies:
        reasons.append(f"The type furthest from its real cells is {worst_type}.")
    if few_cells:
        reasons.append("With so few cells these figures are rough.")
    reasons += remarks
    limits = {}
    if unscored_types and OF_TYPES in uses:
        limits[OF_TYPES] = f"{_listed(unscored_types)}: too few cells to be scored"
    serves = word in ("indistinguishable", "close", "usable in part")
    return Verdict(
        word=word,
        basis=BASES[basis],
        sentence=sentence,
        reasons=reasons,
        uses=uses if serves else {},
        limits=limits if serves else {},
        findings=_findings(scores, copies, alike),
        copies=copies,
        privacy=_privacy(by_name, alike),
        margin=MARGIN,
        interval=(round(worst.low, 4), round(worst.high, 4)),
        enough_cells=enough_cells(worst.value),
    )


TOO_FEW = (
    "Too few cells to tell: they may be as close to real cells as other real cells are, or not. About {:,} cells of "
    "each would do."
)


def _group(score: Score, n_cells: int) -> int:
    """Cells of each group that a score is of, in all resamples together, of which each draws others."""
    most = METRICS[score.metric].max_cells
    return n_cells if most is None else min(n_cells, most * len(score.values))


def _usable(uses: dict[str, Grade]) -> str:
    good = [use for use, grade in uses.items() if grade == "good"]
    bad = [use for use, grade in uses.items() if grade == "poor"]
    serves = good or [use for use in uses if use not in bad]
    fair = [use for use in uses if use not in serves and use not in bad]
    with_care = f", with care for {_listed(fair)}" if fair else ""
    not_for = f", not for {_listed(bad)}" if bad else ""
    return f"Usable for {_listed(serves)}{with_care}{not_for}" + ("." if good else ", with care.")


def _privacy(by_name: dict[str, Score], alike: bool) -> str | None:
    """What the attack on membership finds; it is none where held-out cells differ from training cells anyway."""
    attack = by_name.get("membership_auc")
    if not alike:
        return (
            "Whether training cells can be recognised was not tested: the real cells differ from those trained on (in "
            "types, conditions, donors or batches), so that alone tells them apart."
        )
    if attack is None:
        return None
    if attack.value < MEMBERSHIP or attack.at_floor:
        return (
            f"The attack tried here does not tell training cells from held-out ones (AUC {attack.value:.2f}; 0.5: not "
            "at all). Others might."
        )
    return (
        f"Someone who holds these cells can tell which cells the model was trained on, with AUC {attack.value:.2f} "
        "(0.5: not at all; 1: always)."
    )


def _grade(scores: list[Score]) -> Grade | None:
    """Of the scores of one use that tell good from bad models: good when two thirds are, and none is poor; poor when
    half are."""
    scores = [s for s in scores if s.bad_model is not None]
    if not scores:
        return None
    grades = ["good" if s.at_floor or s.position <= GOOD else "fair" if s.position <= FAIR else "poor" for s in scores]
    share = {grade: grades.count(grade) / len(grades) for grade in ("good", "poor")}
    if share["poor"] >= 0.5:
        return "poor"
    return "good" if share["poor"] == 0 and share["good"] >= 2 / 3 else "fair"


def _findings(scores: list[Score], copied: bool, alike: bool) -> list[str]:
    """The scores furthest from the floor, in words; those that tell of copies first.

    Not attacks on membership, where held-out cells are unlike training cells anyway (alike).
    """
    off = [
        s for s in scores if s.bad_model is not None and not s.at_floor and s.position > GOOD and s.family != "papers"
    ]
    off = [s for s in off if alike or not _is_attack(s)]
    off.sort(key=lambda s: (s.family != "privacy" if copied else False, -s.position))
    found = []
    for s in off[:FINDINGS]:
        worse = [name for name in s.ceilings if s.is_worse(name)]
        bad = f", bad models: {', '.join(f'{name} {s.ceiling(name):.3g}' for name in worse)}" if worse else ""
        what = re.split(r"(?<=[.?]) ", s.definition)[0].rstrip(".")
        found.append(
            f"{s.metric} is {s.value:.3g}; real cells {s.floor:.3g}{bad}. {what}{'' if what.endswith('?') else '.'}"
        )
    return found


def _is_attack(score: Score) -> bool:
    metric = METRICS.get(score.metric)
    return metric is not None and metric.against in ATTACKS


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
