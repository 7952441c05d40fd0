"""verdict: what is said of scores, by made-up ones."""

from __future__ import annotations

import pytest

from scdiffkit.metrics.score import Score
from scdiffkit.verdict import USES, Verdict, judge


def score(metric: str, family: str, value: float, floor: float = 0.0, bad: float = 1.0, best: float = 0.0) -> Score:
    """Three resamples that differ little."""

    def spread(x: float) -> tuple[float, ...]:
        return (x - 0.001, x, x + 0.001)

    direction = "closest to 0.5" if best else "lower is better"
    return Score(metric, family, spread(value), spread(floor), {"shuffled": spread(bad)}, direction, best, "It is.", "")


def said(auc: tuple[float, float, float], few_cells: bool = False, **positions: float) -> Verdict:
    """Of a forest's AUC of synthetic, real and shuffled cells, and scores of other families so far from real cells."""
    scores = [score("rf_auc", "classifier", *auc, best=0.5)]
    for family, position in positions.items():
        scores.append(score("nn_ratio" if family == "privacy" else f"a {family}", family.replace("_", " "), position))
    return judge(scores, few_cells=few_cells, floor_is="two halves", within="within cell_type", worst_type="NK")


@pytest.mark.parametrize(
    ("auc", "word", "text"),
    [
        ((0.30, 0.50, 0.70), "copied", "Do not share"),
        ((0.52, 0.50, 0.70), "indistinguishable", "as close to real cells as other real cells"),
        ((0.60, 0.50, 0.95), "close", "most cells pass"),
        ((0.69, 0.50, 0.70), "poor", "no better than shuffled"),
        ((0.97, 0.50, 0.99), "poor", "Nearly every"),
        ((0.51, 0.50, 0.52), "undecided", "tell a good model from a bad one"),
    ],
)
def test_the_classifier_decides(auc: tuple[float, float, float], word: str, text: str) -> None:
    found = said(auc)
    assert found.word == word
    assert text in str(found)
    assert all(f"{x:.2f}" in str(found) for x in auc)
    assert "shuffled within cell_type" in str(found)


def test_what_cells_serve_for_is_named_and_what_not() -> None:
    found = said((0.75, 0.50, 0.95), per_gene=0.01, biology=0.9)
    genes, relations, biology = USES
    assert found.word == "usable in part"
    assert found.uses == {genes: "good", relations: "poor", biology: "poor"}
    assert f"Usable for {genes}, not for {relations} and {biology}." in str(found)
    assert "furthest from its real cells is NK" in str(found)


def test_nothing_good_is_poor() -> None:
    assert said((0.9, 0.5, 0.95), per_gene=0.9, biology=0.9, joint=0.9).word == "poor"


def test_a_poor_family_keeps_cells_from_being_indistinguishable() -> None:
    assert said((0.51, 0.50, 0.9), biology=0.1).word == "indistinguishable"
    found = said((0.51, 0.50, 0.9), biology=0.9)
    assert found.word == "usable in part"
    assert "not for cell types" in str(found)


def test_the_worst_findings_come_first_and_the_papers_figures_are_none() -> None:
    found = said((0.52, 0.50, 0.95), per_gene=0.3, biology=0.4, joint=0.2, per_cell=0.35, papers=5.0)
    assert [finding.split(" is ")[0] for finding in found.findings] == ["a biology", "a per_cell", "a per_gene"]
    assert "real cells 0, bad models: shuffled 1. It is." in found.findings[0]


def test_copies_are_not_to_be_shared() -> None:
    found = said((0.52, 0.50, 0.95), privacy=0.6)
    assert found.copies
    assert found.word == "copied"
    assert not said((0.52, 0.50, 0.95), privacy=0.1).copies


def test_few_cells_are_not_called_copies_by_chance() -> None:
    assert not said((0.30, 0.50, 0.70), few_cells=True, privacy=0.4).copies
    assert said((0.52, 0.50, 0.95), few_cells=True, privacy=0.9).copies


def test_types_that_are_missing_are_named() -> None:
    scores = [score("rf_auc", "classifier", 0.51, 0.5, 0.9, best=0.5)]
    words = {"few_cells": False, "floor_is": "two halves", "within": "within cell_type", "worst_type": None}
    found = judge(scores, missing_types=["B", "NK"], **words)
    assert found.word == "usable in part"
    assert "no synthetic cells of B and NK" in str(found)


def test_a_type_that_is_off_is_named_even_among_good_cells() -> None:
    scores = [score("rf_auc", "classifier", 0.51, 0.5, 0.9, best=0.5)]
    words = {"few_cells": False, "floor_is": "two halves", "within": "within cell_type"}
    assert judge(scores, **words).word == "indistinguishable"
    worst = judge(scores, worst_type="NK", **words)
    assert worst.word == "indistinguishable"
    assert "furthest from its real cells is NK" in str(worst)
    poor = judge(scores, worst_type="NK", poor_types=["NK"], **words)
    assert poor.word == "close"
    assert "Do not rely on the cells of NK" in str(poor)
