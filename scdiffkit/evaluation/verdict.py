"""The verdict on synthetic cells: whether they can be used, for which analyses, and their main faults.

A verdict is a claim that the data must support. The AUC of a classifier between synthetic and real cells has a
confidence interval that narrows with the number of cells. More cells make a verdict more certain; if there are too few
for any, the verdict is "too few".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scdiffkit.errors import worded
from scdiffkit.evaluation.facts import (
    CLOSE,
    FAIR,
    GOOD,
    MARGIN,
    OBVIOUS,
    SATURATED,
    Basis,
    Facts,
    Grade,
    enough_cells,
)
from scdiffkit.metrics import METRICS
from scdiffkit.metrics.score import Score

Word = Literal["indistinguishable", "close", "usable in part", "poor", "copied", "too few", "undecided"]
MEMBERSHIP = 0.6  # minimum AUC of the membership attack that is reported as a risk
FINDINGS = 3
ATTACKS = ("candidates", "references", "donors")  # Metric.against of metrics that compare training and held-out cells
USE_CELL_TYPES = "cell types, marker genes and responses"
GRADE: dict[Word, Grade | None] = {
    "indistinguishable": "good", "close": "good", "usable in part": "fair", "poor": "poor", "copied": "poor",
    "too few": None, "undecided": None,
}  # fmt: skip
MEANING: dict[Word, str] = {
    "indistinguishable": "The model has not seen the real cells. The 95% confidence interval of the difference "
    "between the classifiers' AUC (rf_auc and, if scored, rf_auc_hvg_seurat) and that of other real cells "
    f"lies below {MARGIN}. No use and no type is graded poor, and no type is missing, except by chance.",
    "close": f"The AUC exceeds that of other real cells by at most {CLOSE}, and by at most half as much as the AUC of "
    "shuffled cells does. No use is graded poor, and no type is missing, except by chance. This is the best possible "
    "verdict if the model was trained on the real cells, or may have been.",
    "usable in part": f"The AUC is below {OBVIOUS} and better than that of shuffled cells, and at least one use is "
    "not graded poor.",
    "poor": "None of the other verdicts applies.",
    "too few": f"The confidence interval reaches from below {MARGIN} to above {CLOSE}, or so few cells cannot "
    "distinguish shuffled cells from real ones. With more cells, any verdict is possible.",
    "undecided": "Shuffled cells cannot be distinguished from real ones, even with many cells, or real cells "
    f"differ from one another as much as shuffled ones (AUC above {SATURATED}).",
    "copied": "There are exact or near duplicates of training cells, or synthetic cells are much closer to "
    "training cells than other real cells are.",
}
GRADES = (
    f"A use is graded good if at least two thirds of its scores lie at real cells or within {GOOD:.0%} of the way "
    f"to bad models, and none beyond {FAIR:.0%}; poor if at least half of them lie beyond {FAIR:.0%}; and fair "
    "otherwise."
)
BASES: dict[Basis, str] = {
    "given": "The synthetic cells are compared with real cells that the model was not trained on.",
    "holdout": "The synthetic cells are compared with cells that were held out from training.",
    "validation": "The synthetic cells are compared with the run's validation cells, which were not used for "
    "training but selected the best step.",
    "none": "The synthetic cells are compared with the cells that the model was trained on, because none were "
    "held out. The scores show how well these cells were learnt, not how good new cells are. Train with "
    "--holdout 0.2.",
    "unknown": "It is not known whether the model has seen these real cells: give the cells that it was trained "
    "on (--train).",
}


@dataclass(frozen=True)
class Verdict:
    """The interpretation of scores.

    word: the verdict. basis: a sentence on the real cells it is based on. sentence: the verdict in one sentence.
    reasons: why. uses: use -> good, fair or poor; empty unless the verdict is indistinguishable, close or usable in
    part. limits: use -> restriction. findings: the worst scores, worst first. copies: whether cells were copied.
    privacy: what the cells reveal about the training cells, None if not tested. margin: maximum excess of the AUC over
    that of real cells for "indistinguishable". interval: 95% interval (low, high) of the excess. enough_cells: cells
    per group needed to decide whether it is within the margin.
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
        """The grade: good, fair or poor; None if the verdict is "too few" or "undecided"."""
        return GRADE[self.word]

    @property
    def text(self) -> str:
        """Basis, sentence and reasons as one text, as printed by the command line."""
        return " ".join([self.basis, self.sentence, *self.reasons])

    def __str__(self) -> str:
        return worded(self.text)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"grade": self.grade, "text": self.text}


def judge(
    scores: Iterable[Score],
    *,
    n_cells: int,
    basis: Basis,
    reference_text: str,
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
    """Derive the verdict from the scores.

    n_cells: cells of each set in a comparison. basis: whether the model is known to have seen the real cells.
    reference_text, within: text on the reference and the shuffling. alike: whether the real cells are of the same
    types, conditions and donors as the training cells; if not, differences between the two are not due to the
    model. worst_type: the type furthest from its real cells. worst_auc: the type that a random forest best
    distinguishes from its real cells, with its score. poor_types: types far from their real cells. missing_types: types
    with real but without synthetic cells. lost_types: missing types that are too frequent to be missing by chance.
    unscored_types: types with too few cells to be scored. remarks: on the generation of the cells.
    """
    facts = Facts(
        scores=tuple(scores), n_cells=n_cells, basis=basis, reference_text=reference_text, within=within,
        worst_type=worst_type, worst_auc=worst_auc, poor_types=tuple(poor_types), missing_types=tuple(missing_types),
        lost_types=tuple(lost_types), remarks=tuple(remarks),
    )  # fmt: skip
    word, sentence = next((word, says(facts)) for word, holds, says in RULES if holds(facts))
    limits = {}
    if unscored_types and USE_CELL_TYPES in facts.uses:
        limits[USE_CELL_TYPES] = f"{_listed(unscored_types)}: too few cells to be scored"
    serves = word in ("indistinguishable", "close", "usable in part")
    return Verdict(
        word=word,
        basis=BASES[basis],
        sentence=sentence,
        reasons=_reasons(facts, word),
        uses=facts.uses if serves else {},
        limits=limits if serves else {},
        findings=_findings(facts.scores, facts.copies, alike),
        copies=facts.copies,
        privacy=_privacy(facts.by_name, alike),
        margin=MARGIN,
        interval=(round(facts.worst.low, 4), round(facts.worst.high, 4)),
        enough_cells=facts.enough_cells,
    )


TOO_FEW = (
    "Too few cells to decide: the synthetic cells may or may not be as close to real cells as other real cells "
    "are. About {:,} cells per set are needed."
)
CLOSE_TO = "Close to the training cells: most synthetic cells pass for training cells."
# Word, condition and sentence: the first rule whose condition holds determines the verdict.
RULES: tuple[tuple[Word, Callable[[Facts], bool], Callable[[Facts], str]], ...] = (
    (
        "copied",
        lambda f: f.copies,
        lambda f: "Copied: some of the synthetic cells are copies of real cells, or nearly so.",
    ),
    (
        "undecided",
        lambda f: f.unclear and (f.n_cells >= enough_cells(0.0) or f.saturated),
        lambda f: "Undecided: these data cannot distinguish a good model from a bad one.",
    ),
    ("too few", lambda f: f.unclear, lambda f: TOO_FEW.format(f.enough_cells)),
    (
        "indistinguishable",
        lambda f: f.worst.high <= MARGIN and f.whole and not f.poor_types and f.better_than_shuffled and f.held_out,
        lambda f: (
            "Indistinguishable: by these tests the cells are as close to real cells as other real cells are, "
            f"within a margin of {MARGIN} of the classifiers' AUC."
        ),
    ),
    ("too few", lambda f: f.worst.low <= MARGIN and f.worst.high > CLOSE, lambda f: TOO_FEW.format(f.enough_cells)),
    (
        "close",
        lambda f: f.worst.value <= CLOSE and f.whole and f.better_than_shuffled,
        lambda f: CLOSE_TO if f.basis == "none" else "Close: most cells pass for real ones.",
    ),
    (
        "usable in part",
        lambda f: f.first.score.value < OBVIOUS and len(f.poor_uses) < len(f.uses) and not f.no_better_than_shuffled,
        lambda f: _usable(f.uses),
    ),
    ("poor", lambda f: True, lambda f: "Poor: do not use these cells in place of real ones."),
)


def _reasons(f: Facts, word: Word) -> list[str]:
    """Return the reasons for the verdict as sentences, the most important first."""
    auc, worst = f.first.score, f.worst.score
    reasons = [
        f"A classifier distinguishes synthetic from real cells with AUC {auc.value:.2f} ({auc.real_reference:.2f}: "
        f"{f.reference_text}; {f.shuffled:.2f}: real cells with genes shuffled {f.within}; 0.5: guessing)."
    ]
    if f.worst is not f.first:
        reasons.append(
            "On the genes that an analysis would select (scanpy's highly variable genes), it does so with AUC "
            f"{worst.value:.2f} ({worst.real_reference:.2f}: {f.reference_text})."
        )
    if f.worst_auc is not None and f.worst_auc[1].value - f.worst_auc[1].real_reference > CLOSE:
        name, of_type = f.worst_auc
        reasons.append(
            f"Within {name} alone, it does so with AUC {of_type.value:.2f} ({of_type.real_reference:.2f}: "
            f"{f.reference_text})."
        )
    if word in ("close", "too few") and f.worst.value <= MARGIN < f.worst.high and f.held_out:
        reasons.append(
            f"With {f.n_cells:,} cells per set, the difference from the AUC of real cells is known to +- "
            f"{f.worst.half_width:.2f}; about {f.enough_cells:,} cells per set are needed to decide whether it is at "
            f"most {MARGIN}."
        )
    if word == "undecided" and f.saturated:
        reasons.append(
            "Real cells can be distinguished from one another nearly as well as shuffled ones, because the "
            "held-out cells come from other donors or batches than the training cells. Hold out cells of every "
            "donor and batch (--holdout without --holdout-by) to judge the model itself."
        )
    elif word == "undecided":
        reasons.append(
            "Shuffled cells pass for real ones as well as real cells do: the structure of these cells is too "
            "simple for meaningful scores."
        )
    elif word == "poor" and auc.value >= OBVIOUS:
        reasons.append("Nearly every synthetic cell is recognised.")
    elif f.no_better_than_shuffled and word != "too few" and not f.copies:
        reasons.append(
            "That is no better than shuffled cells: relations between genes in these cells cannot be relied on."
        )
    return [*reasons, *_reasons_of_copies(f), *_reasons_of_types(f), *f.remarks]


def _reasons_of_copies(f: Facts) -> list[str]:
    reasons = []
    exact = f.by_name.get("exact_duplicates")
    if exact is not None and exact.value > exact.real_reference:
        reasons.append(f"{exact.value:.1%} of the synthetic cells are exact copies of known real cells.")
    if f.copies:
        reasons.append(
            "Do not share them in place of real ones, and do not take their other scores as a measure of quality, "
            "because copies of real cells score like real cells. Evaluate the model on real cells that it has not "
            "seen (--train)."
        )
    return reasons


def _reasons_of_types(f: Facts) -> list[str]:
    reasons = []
    if f.missing_types:
        reasons.append(
            f"There are no synthetic cells of {_listed(f.missing_types)}. If only the other types were to be "
            "generated, compare them with real cells of those types alone."
        )
    if f.poor_types and not f.copies:
        reasons.append(
            f"Do not rely on the cells of {_listed(f.poor_types)}: within their type, they are closer to bad "
            "models than to real cells."
        )
    elif f.worst_type and not f.copies:
        reasons.append(f"The type that differs most from its real cells is {f.worst_type}.")
    if f.few_cells:
        reasons.append("With few cells, these scores are imprecise.")
    return reasons


def _usable(uses: dict[str, Grade]) -> str:
    good = [use for use, grade in uses.items() if grade == "good"]
    bad = [use for use, grade in uses.items() if grade == "poor"]
    serves = good or [use for use in uses if use not in bad]
    fair = [use for use in uses if use not in serves and use not in bad]
    with_care = f", with care for {_listed(fair)}" if fair else ""
    not_for = f", not for {_listed(bad)}" if bad else ""
    return f"Usable for {_listed(serves)}{with_care}{not_for}" + ("." if good else ", with care.")


def _privacy(by_name: dict[str, Score], alike: bool) -> str | None:
    """Describe the result of the membership attack.

    The attack is not valid if held-out cells differ from training cells anyway (not alike).
    """
    attack = by_name.get("membership_auc")
    if not alike:
        return (
            "Whether training cells can be recognised was not tested: the real cells differ from the training "
            "cells (in types, conditions, donors or batches), and this alone would distinguish them."
        )
    if attack is None:
        return None
    if attack.value < MEMBERSHIP or attack.at_real_reference:
        return (
            "The attack tried here does not distinguish training cells from held-out ones (AUC "
            f"{attack.value:.2f}; 0.5: guessing). Other attacks might."
        )
    return (
        "Someone who has these cells can recognise the cells that the model was trained on, with AUC "
        f"{attack.value:.2f} (0.5: guessing; 1: always)."
    )


def _findings(scores: Sequence[Score], copied: bool, alike: bool) -> list[str]:
    """Describe the scores furthest from the real reference; if cells were copied, privacy scores come first.

    Membership attacks are excluded if held-out cells differ from training cells anyway (not alike).
    """
    off = [
        s
        for s in scores
        if s.baseline_name is not None and not s.at_real_reference and s.position > GOOD and s.family != "papers"
    ]
    off = [s for s in off if alike or not _is_attack(s)]
    off.sort(key=lambda s: (s.family != "privacy" if copied else False, -s.position))
    found = []
    for s in off[:FINDINGS]:
        worse = [name for name in s.baselines if s.is_worse(name)]
        bad = f"; bad models: {', '.join(f'{name} {s.baseline(name):.3g}' for name in worse)}" if worse else ""
        what = re.split(r"(?<=[.?]) ", s.definition)[0].rstrip(".")
        found.append(
            f"{s.metric} is {s.value:.3g} (real cells: {s.real_reference:.3g}{bad}). "
            f"{what}{'' if what.endswith('?') else '.'}"
        )
    return found


def _is_attack(score: Score) -> bool:
    metric = METRICS.get(score.metric)
    return metric is not None and metric.against in ATTACKS


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
