"""From scores to words: may these cells be trusted, for what, and what is wrong with them?"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scdiffkit.metrics.score import Score

Word = Literal["indistinguishable", "close", "usable in part", "poor", "copied", "undecided"]
Grade = Literal["good", "fair", "poor"]

# Where a score lies between real cells (0) and bad models (1).
GOOD, FAIR = 0.15, 0.5
# Of the forest's AUC above the floor. Two halves of one data set come to 0.5 +- 0.03 with a few hundred cells.
AUC_SAME, AUC_CLOSE, AUC_OBVIOUS = 0.05, 0.15, 0.95
AUC_COPIED = 0.1  # below the floor
# Of the way from real cells to copies: of cells that are duplicates a few are too many.
COPIED = {"exact_duplicates": 0.02, "near_duplicates": 0.1, "nn_ratio": 0.25, "membership_auc": 0.25}
COPIED_OF_FEW = {"exact_duplicates": 0.02, "nn_ratio": 0.5}  # the others are a matter of luck then
FINDINGS = 3

# What cells are used for, and the families of metrics that say whether they serve.
USES: dict[str, tuple[str, ...]] = {
    "statistics of single genes and of cells": ("per gene", "per cell"),
    "clustering, embeddings and benchmarks of methods": ("joint", "coverage", "classifier"),
    "cell types, marker genes and responses": ("biology",),
}


MEANING: dict[Word, str] = {
    "indistinguishable": f"The forest's AUC (rf_auc) is at most {AUC_SAME} above what real cells score, no use is "
    "graded poor, no type is missing, and none is poor.",
    "close": f"At most {AUC_CLOSE} above, better than shuffled cells, and no use is graded poor.",
    "usable in part": f"AUC below {AUC_OBVIOUS}, better than shuffled cells, and at least one use is not graded poor.",
    "poor": "None of these.",
    "undecided": f"AUC at most {AUC_SAME} above that of real cells, and so is that of shuffled cells.",
    "copied": "Scores of privacy, or an AUC far below that of real cells, tell of copies.",
}
GRADES = (
    f"Good: at least two thirds of its scores lie at real cells or within {GOOD:.0%} of the way to bad models, and "
    f"none beyond {FAIR:.0%}. Poor: half of them lie beyond {FAIR:.0%}. Fair: between."
)


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


def judge(
    scores: Iterable[Score],
    *,
    few_cells: bool,
    floor_is: str,
    within: str,
    worst_type: str | None = None,
    poor_types: Sequence[str] = (),
    missing_types: Sequence[str] = (),
) -> Verdict:
    """few_cells: whether the scores are rough; floor_is, within: the floor and the shuffle in words; worst_type: whose
    cells are furthest from real ones; poor_types: whose cells are far from them; missing_types: of which there are real
    cells and no synthetic ones."""
    scores = list(scores)
    by_name = {score.metric: score for score in scores}
    grades = {use: _grade([s for s in scores if s.family in families]) for use, families in USES.items()}
    uses = {use: grade for use, grade in grades.items() if grade}
    auc = by_name["rf_auc"]
    above = auc.value - max(auc.floor, auc.best)
    shuffled = auc.ceiling("shuffled")
    bounds = COPIED_OF_FEW if few_cells else COPIED
    copied = [s for s in scores if s.metric in bounds and s.position > bounds[s.metric]]
    copied = [s for s in copied if s.metric == "exact_duplicates" or not s.at_floor]  # of all cells: no chance in it
    copies = bool(copied) or (auc.value - auc.floor < -AUC_COPIED and not few_cells)
    undecided = shuffled - max(auc.floor, auc.best) <= AUC_SAME

    good = [use for use, grade in uses.items() if grade == "good"]
    bad = [use for use, grade in uses.items() if grade == "poor"]
    no_better = above > AUC_SAME and auc.value >= shuffled - AUC_SAME
    if copies:
        word: Word = "copied"
        sentence = "Copied: there are cells among these that are copies, or nearly so, of real ones."
    elif undecided and above <= AUC_SAME:
        word, sentence = "undecided", "Cannot tell: these data do not tell a good model from a bad one."
    elif above <= AUC_SAME and not bad and not missing_types and not poor_types:
        word = "indistinguishable"
        sentence = "Indistinguishable: by these tests the cells are as close to real cells as other real cells are."
    elif above <= AUC_CLOSE and not bad and not no_better and not missing_types:
        word, sentence = "close", "Close: most cells pass for real ones."
    elif auc.value < AUC_OBVIOUS and [use for use in uses if use not in bad] and not no_better:
        word = "usable in part"
        serves = good or [use for use in uses if use not in bad]
        fair = [use for use in uses if use not in serves and use not in bad]
        sentence = "".join(
            [
                f"Usable for {_listed(serves)}",
                f", with care for {_listed(fair)}" if fair else "",
                f", not for {_listed(bad)}" if bad else "",
                "." if good else ", with care.",
            ]
        )
    else:
        word, sentence = "poor", "Poor: do not use these cells in the place of real ones."

    reasons = [
        f"A classifier tells synthetic from real cells with AUC {auc.value:.2f} ({auc.floor:.2f}: {floor_is}; "
        f"{shuffled:.2f}: real cells with genes shuffled {within}; 0.5: pure guessing)."
    ]
    if undecided:
        reasons.append(
            "Shuffled cells pass as well as real ones: the cells are too few, or of kinds too simple, for their scores "
            "to mean much."
        )
    elif auc.value >= AUC_OBVIOUS and above > AUC_SAME:
        reasons.append("Nearly every synthetic cell is recognised.")
    elif no_better:
        reasons.append(
            "That is no better than shuffled cells: relations between genes in these cells cannot be relied on."
        )
    if copies:
        reasons.append(
            "Do not share them in the place of real ones, and do not take their other scores for quality: they say how "
            "like real cells copies of real cells are. Judge the model by real cells that it has not seen (--train)."
        )
    if missing_types:
        reasons.append(f"There are no synthetic cells of {_listed(missing_types)}.")
    if poor_types and not copies:
        reasons.append(
            f"Do not rely on the cells of {_listed(poor_types)}: within the type they are more like bad models than "
            "like real cells."
        )
    elif worst_type and not copies:
        reasons.append(f"The type furthest from its real cells is {worst_type}.")
    if few_cells:
        reasons.append("With so few cells these figures are rough.")
    return Verdict(word, sentence, reasons, uses, _findings(scores, copies), copies)


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


def _findings(scores: list[Score], copied: bool) -> list[str]:
    """The scores furthest from the floor, in words; those that tell of copies first."""
    off = [
        s for s in scores if s.bad_model is not None and not s.at_floor and s.position > GOOD and s.family != "papers"
    ]
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


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
