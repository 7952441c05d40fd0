"""verdict: what is said of scores, by made-up ones."""

from __future__ import annotations

from typing import Any

import pytest

from scdiffkit.evaluation.facts import MARGIN, USES, auc_error, enough_cells
from scdiffkit.evaluation.verdict import Verdict, judge
from scdiffkit.metrics.score import Score

MANY = 2000
SAID = {"basis": "given", "reference_text": "two halves", "within": "within cell_type"}


def score(metric: str, family: str, value: float, reference: float = 0.0, bad: float = 1.0, best: float = 0.0) -> Score:
    """Three resamples that differ little."""

    def spread(x: float) -> tuple[float, ...]:
        return (x - 0.001, x, x + 0.001)

    direction = "closest to 0.5" if best else "lower is better"
    return Score(
        metric, family, spread(value), spread(reference), {"shuffled": spread(bad)}, direction, best, "It is.", ""
    )


def said(auc: tuple[float, float, float], n_cells: int = MANY, say: dict[str, Any] | None = None, **positions: float):
    """Of a forest's AUC of synthetic, real and shuffled cells, and scores of other families so far from real cells."""
    scores = [score("rf_auc", "classifier", *auc, best=0.5)]
    for family, position in positions.items():
        scores.append(score("nn_ratio" if family == "privacy" else f"a {family}", family.replace("_", " "), position))
    return judge(scores, n_cells=n_cells, **{**SAID, "worst_type": "NK", **(say or {})})


@pytest.mark.parametrize(
    ("auc", "word", "text"),
    [
        ((0.51, 0.50, 0.70), "indistinguishable", "as close to real cells as other real cells"),
        ((0.60, 0.50, 0.95), "close", "most cells pass"),
        ((0.69, 0.50, 0.70), "poor", "no better than shuffled"),
        ((0.97, 0.50, 0.99), "poor", "Nearly every"),
        ((0.51, 0.50, 0.52), "undecided", "distinguish a good model from a bad one"),
    ],
)
def test_the_classifier_decides(auc: tuple[float, float, float], word: str, text: str) -> None:
    found = said(auc)
    assert found.word == word
    assert text in str(found)
    assert all(f"{x:.2f}" in str(found) for x in auc)
    assert "shuffled within cell_type" in str(found)


def test_indistinguishable_is_claimed_only_where_the_interval_lies_within_the_margin() -> None:
    words = {n: said((0.51, 0.50, 0.95), n).word for n in (30, 100, 300, 600, 1000, 5000)}
    assert words == {
        30: "too few", 100: "close", 300: "close", 600: "close", 1000: "indistinguishable", 5000: "indistinguishable",
    }  # fmt: skip
    found = said((0.51, 0.50, 0.95), 600)
    assert f"about {enough_cells(0.01):,} cells per set are needed" in str(found)
    assert said((0.51, 0.50, 0.95), enough_cells(0.01)).word == "indistinguishable"
    assert said((0.51, 0.50, 0.95), enough_cells(0.01) - 10).word == "close"
    assert 0.01 + 1.96 * 2**0.5 * auc_error(enough_cells(0.01)) == pytest.approx(MARGIN, abs=1e-3)


@pytest.mark.parametrize("excess", [0.0, 0.03, 0.1, 0.2, 0.45])
def test_more_cells_make_a_verdict_certain_but_do_not_turn_it_round(excess: float) -> None:
    """The same AUC with more and more cells: once a verdict is there, no other one of another grade follows."""
    grades = [said((0.5 + excess, 0.5, 0.97), n).grade for n in (10, 30, 60, 100, 175, 350, 700, 2000, 10_000)]
    known = [grade for grade in grades if grade is not None]
    assert len(set(known)) == 1
    assert grades == [None] * (len(grades) - len(known)) + known


def test_too_few_cells_say_how_many_would_do() -> None:
    found = said((0.60, 0.50, 0.65), 50)
    assert (found.word, found.grade) == ("too few", None)
    assert f"About {found.enough_cells:,} cells per set are needed" in str(found)
    assert found.uses == {}


@pytest.mark.parametrize(
    ("basis", "word"), [*((basis, "indistinguishable") for basis in ("holdout", "validation", "given")),
                        ("none", "close"), ("unknown", "close")],
)  # fmt: skip
def test_no_claim_of_equivalence_without_cells_that_the_model_has_not_seen(basis: str, word: str) -> None:
    found = said((0.505, 0.50, 0.95), say={"basis": basis})
    assert found.word == word
    assert found.text.startswith(found.basis)
    if basis == "none":
        assert "with the cells that the model was trained on" in found.basis
        assert found.sentence.startswith("Close to the training cells")


def test_the_worst_headline_decides() -> None:
    scores = [
        score("rf_auc", "classifier", 0.51, 0.5, 0.95, best=0.5),
        score("rf_auc_hvg_seurat", "classifier", 0.89, 0.48, 0.9, best=0.5),
        score("zeros_mae", "per gene", 0.0),
    ]
    found = judge(scores, n_cells=MANY, **SAID)
    assert found.word == "usable in part"
    assert "highly variable" in str(found)
    assert "0.89" in str(found)


def test_what_cells_serve_for_is_named_and_what_not() -> None:
    found = said((0.75, 0.50, 0.95), per_gene=0.01, biology=0.9)
    genes, relations, biology = USES
    assert found.word == "usable in part"
    assert found.uses == {genes: "good", relations: "poor", biology: "poor"}
    assert f"Usable for {genes}, not for {relations} and {biology}." in str(found)
    assert "differs most from its real cells is NK" in str(found)


@pytest.mark.parametrize("case", ["poor", "copied"])
def test_poor_and_copied_cells_serve_for_nothing(case: str) -> None:
    found = (
        said((0.97, 0.5, 0.99), per_gene=0.0) if case == "poor" else said((0.5, 0.5, 0.9), per_gene=0.0, privacy=0.9)
    )
    assert found.word == case
    assert found.uses == {}
    assert found.grade == "poor"


def test_types_too_rare_to_be_scored_limit_a_use() -> None:
    found = said((0.55, 0.50, 0.95), biology=0.0, say={"unscored_types": ["pDC", "Mega"]})
    *_, biology = USES
    assert found.limits == {biology: "pDC and Mega: too few cells to be scored"}


def test_nothing_good_is_poor() -> None:
    assert said((0.9, 0.5, 0.95), per_gene=0.9, biology=0.9, joint=0.9).word == "poor"


def test_a_poor_family_keeps_cells_from_being_indistinguishable() -> None:
    assert said((0.50, 0.50, 0.9), biology=0.1).word == "indistinguishable"
    found = said((0.50, 0.50, 0.9), biology=0.9)
    assert found.word == "usable in part"
    assert "not for cell types" in str(found)


def test_the_worst_findings_come_first_and_the_papers_figures_are_none() -> None:
    found = said((0.52, 0.50, 0.95), per_gene=0.3, biology=0.4, joint=0.2, per_cell=0.35, papers=5.0)
    assert [finding.split(" is ")[0] for finding in found.findings] == ["a biology", "a per_cell", "a per_gene"]
    assert "(real cells: 0; bad models: shuffled 1). It is." in found.findings[0]


def test_copies_are_not_to_be_shared() -> None:
    found = said((0.52, 0.50, 0.95), privacy=0.6)
    assert found.copies
    assert found.word == "copied"
    assert "Do not share" in str(found)
    assert not said((0.52, 0.50, 0.95), privacy=0.1).copies


def copied_share(share: float) -> Verdict:
    scores = [score("rf_auc", "classifier", 0.5, 0.5, 0.9, best=0.5), score("exact_duplicates", "privacy", share)]
    return judge(scores, n_cells=MANY, **SAID)


def test_a_few_copies_are_named_and_more_are_called_copied() -> None:
    assert copied_share(0.05).word == copied_share(0.2).word == copied_share(1.0).word == "copied"
    assert copied_share(0.01).word == "indistinguishable"
    assert "1.0% of the synthetic cells are exact copies" in str(copied_share(0.01))
    assert "exact copies" not in str(copied_share(0.0))


def test_membership_alone_is_a_matter_of_privacy_and_only_where_real_cells_are_like_those_trained_on() -> None:
    scores = [
        score("rf_auc", "classifier", 0.5, 0.5, 0.9, best=0.5),
        score("membership_auc", "privacy", 1.0, 0.5, 1.0, best=0.5),
    ]
    found = judge(scores, n_cells=MANY, **SAID)
    assert found.word == "indistinguishable"
    assert "recognise the cells that the model was trained on, with AUC 1.00" in (found.privacy or "")
    unlike = judge(scores, n_cells=MANY, alike=False, **SAID)
    assert not unlike.copies
    assert "was not tested" in (unlike.privacy or "")
    assert said((0.5, 0.5, 0.9)).privacy is None


def test_few_cells_are_not_called_copies_by_chance() -> None:
    assert not said((0.50, 0.50, 0.90), 50, privacy=0.4).copies
    assert said((0.52, 0.50, 0.95), 50, privacy=0.9).copies


def test_types_that_are_missing_are_named() -> None:
    lost = {"missing_types": ["B", "NK"], "lost_types": ["B"], "worst_type": None}
    found = said((0.50, 0.5, 0.9), say=lost)
    assert found.word == "usable in part"
    assert "no synthetic cells of B and NK" in str(found)
    by_chance = said((0.50, 0.5, 0.9), say=lost | {"lost_types": []})
    assert by_chance.word == "indistinguishable"
    assert "no synthetic cells of B and NK" in str(by_chance)


def test_a_type_that_is_off_is_named_even_among_good_cells() -> None:
    assert said((0.50, 0.5, 0.9), say={"worst_type": None}).word == "indistinguishable"
    worst = said((0.50, 0.5, 0.9))
    assert worst.word == "indistinguishable"
    assert "differs most from its real cells is NK" in str(worst)
    poor = said((0.50, 0.5, 0.9), say={"poor_types": ["NK"]})
    assert poor.word == "close"
    assert "Do not rely on the cells of NK" in str(poor)


def test_remarks_on_how_cells_were_made_are_repeated() -> None:
    assert "It was stopped early." in str(said((0.5, 0.5, 0.9), say={"remarks": ["It was stopped early."]}))


def test_donors_that_differ_leave_no_room_to_judge_the_model() -> None:
    found = said((0.97, 0.93, 0.99), 400, {"alike": False})
    assert found.word == "undecided"
    assert "from other donors or batches" in str(found)
    assert "per set are needed" not in str(found)


def test_attacks_on_membership_are_no_finding_where_the_cells_differ_anyway() -> None:
    scores = [
        score("rf_auc", "classifier", 0.6, 0.5, 0.95, best=0.5),
        score("membership_auc", "privacy", 0.9, 0.53, 1.0),
    ]
    for alike in (True, False):
        found = judge(scores, n_cells=MANY, **SAID, alike=alike)
        assert any("membership_auc" in finding for finding in found.findings) == alike
