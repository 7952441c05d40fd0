"""evaluate: what it says of real, of shuffled and of wrong cells, and what it refuses."""

from __future__ import annotations

import hashlib
import html
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import scdiffkit
from scdiffkit.errors import ConfigError, DataError, FileError, ScdiffWarning
from scdiffkit.evaluation.cell_sets import draw_order, shuffle_within
from scdiffkit.evaluation.facts import COPIED
from scdiffkit.evaluation.report import figures
from scdiffkit.evaluation.report.layouts import tsne_layout, umap_layout
from scdiffkit.evaluation.result import Evaluation
from scdiffkit.metrics import METRICS
from scdiffkit.metrics.profiles import MINIMAL
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.preprocessing.pipeline import preprocess

pytestmark = [
    pytest.mark.filterwarnings("ignore:Only .* (genes are in all|cells per set)"),
    pytest.mark.usefixtures("few_trees"),
]


def evaluate(*args: Any, resamples: int = 1, metrics: Any = MINIMAL, **options: Any) -> Evaluation:
    """Evaluate with few metrics and a single resample, unless a test needs more."""
    return scdiffkit.evaluate(*args, resamples=resamples, metrics=metrics, **options)


def halves(cells: AnnData, seed: int = 0) -> tuple[AnnData, AnnData]:
    order = np.random.default_rng(seed).permutation(cells.n_obs)
    half = cells.n_obs // 2
    return cells[order[:half]].copy(), cells[order[half : 2 * half]].copy()


@pytest.fixture(scope="module")
def tiny(wide: AnnData) -> AnnData:
    """Small cells of enough genes to be compared."""
    return wide


def as_made_here(cells: AnnData, genes: int | None = None) -> AnnData:
    """Cells as `sample` leaves them: the first genes only, but X normalised over all of them."""
    made = cells[:, :genes].copy()
    made.X = lognormalise(cells.X, 1e4)[:, :genes]
    made.layers["counts"] = cells.X[:, :genes].copy()
    made.uns["scdiffkit"] = {"synthetic": True, "target_sum": 1e4}
    return made


def values(evaluation: Evaluation) -> list[float]:
    return [
        x
        for s in evaluation.scores
        for x in (*s.values, *s.real_references, *(v for c in s.baselines.values() for v in c))
    ]


@pytest.fixture(scope="module")
def scored(tiny: AnnData) -> Evaluation:
    """All metrics between two halves of the cells."""
    return evaluate(*halves(tiny), metrics="full")


@pytest.fixture(scope="module")
def report(demo: AnnData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """One half of real cells as "synthetic" cells, with all that can be asked for."""
    real, synthetic = halves(demo)
    out = tmp_path_factory.mktemp("evaluate") / "new" / "report"
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScdiffWarning)  # there is no cause for any
        return evaluate(real, as_made_here(synthetic), label="cell_type", out=out, resamples=3, metrics="full"), out


# scores


def test_every_metric_is_scored_and_real_cells_are_at_the_reference(report: tuple[Evaluation, Path]) -> None:
    evaluation, _ = report
    skipped = {"lfc_conditions", "membership_auc"}  # no conditions, no training cells
    skipped |= {"rf_auc_hvg_seurat", "rf_auc_hvg_seurat_v3", "lfc_slope_conditions"}  # few genes, no conditions
    skipped |= {
        f"{figure}_{need}" for figure in ("silhouette", "variance") for need in ("conditions", "donors", "batches")
    }
    skipped |= {"membership_tpr_1", "membership_tpr_10", "donor_membership_auc", "domias_auc"}
    skipped |= {"donor_membership_tpr_1", "donor_membership_tpr_10"}
    assert set(evaluation.skipped) == skipped
    assert [score.metric for score in evaluation.scores] == [
        m for m in METRICS if m not in skipped and METRICS[m].default
    ]
    assert evaluation.n_cells == 140  # 80% of half the cells
    assert evaluation.n_genes == 765
    for score in evaluation.scores:
        assert len(score.values) == len(score.real_references) == 3
        at_real_reference, at_value = (
            METRICS[score.metric].distance_from_best(x) for x in (score.real_reference, score.value)
        )
        assert at_value < 1.5 * at_real_reference + 0.07, score
    found = evaluation.verdict
    assert found.word == "close"  # 140 cells of each: too few to claim more
    assert not found.copies


def test_shuffled_genes_score_worse_than_the_reference(report: tuple[Evaluation, Path]) -> None:
    evaluation, _ = report
    assert evaluation["rf_auc"].baseline("shuffled") > evaluation["rf_auc"].real_reference + 0.1
    assert evaluation["mmd_pca"].baseline("shuffled") > evaluation["mmd_pca"].real_reference
    same = evaluation["mean_mae"]  # the genes are the same
    assert same.baselines["shuffled"] == pytest.approx(same.real_references[:1])  # bad models are scored once
    assert same.baselines["pooled"] == pytest.approx(same.real_references[:1])
    assert not same.is_worse("shuffled")
    assert evaluation["variance_mae"].baseline("pooled") > 2 * evaluation["variance_mae"].real_reference


def test_shuffled_cells_are_found_out(demo: AnnData) -> None:
    real, other = halves(demo)
    synthetic = as_made_here(other)
    synthetic.X = shuffle_within(synthetic.X, other.obs["cell_type"].to_numpy(), np.random.default_rng(0))
    evaluation = evaluate(real, synthetic, label="cell_type", metrics="minimal")
    auc = evaluation["rf_auc"]
    assert auc.value == pytest.approx(auc.baseline("shuffled"), abs=0.08)
    assert "no better than shuffled" in str(evaluation.verdict)


def test_copies_are_found_out(tiny: AnnData) -> None:
    evaluation = evaluate(tiny, tiny.copy(), label="cell_type")
    assert evaluation["rf_auc"].value < 0.4
    assert evaluation.verdict.word == "copied"
    assert evaluation["exact_duplicates"].value > 0.99
    assert evaluation.verdict.findings[0].split(" is ")[0] in ("exact_duplicates", "near_duplicates", "nn_ratio")


def test_a_few_copies_among_many_cells_are_found(demo: AnnData) -> None:
    held_out, train = halves(demo)
    rng = np.random.default_rng(0)
    fresh = held_out.copy()
    fresh.X = sparse.csr_matrix(rng.poisson(held_out.X.toarray() * 0.9))  # no longer the held-out cells themselves
    mixed = ad.concat([fresh, train[:18]], index_unique="-")
    evaluation = evaluate(held_out, mixed, train=train, max_cells=50)
    assert evaluation["exact_duplicates"].value == pytest.approx(18 / mixed.n_obs)
    assert evaluation.verdict.word == "copied"


def test_cells_of_another_kind_are_found_out(tiny: AnnData) -> None:
    wrong = tiny.copy()
    wrong.X = sparse.csr_matrix(wrong.X.toarray()[:, ::-1])
    evaluation = evaluate(tiny, wrong)
    assert evaluation["rf_auc"].value > 0.95
    assert "recognised" in str(evaluation.verdict)


def test_held_out_cells_are_compared_with_training_cells(tiny: AnnData) -> None:
    held_out, rest = halves(tiny)
    train, synthetic = halves(rest)
    evaluation = evaluate(held_out, synthetic, train=train, label="cell_type")
    assert evaluation.n_cells == 60  # all of the smallest set, not half of it
    assert "trained on" in evaluation.reference_definition
    assert set(evaluation.inputs) == {"real", "synthetic", "train"}
    assert abs(evaluation["rf_auc"].real_reference - 0.5) < 0.2


def test_copies_of_training_cells_are_found_out(tiny: AnnData) -> None:
    held_out, train = halves(tiny)
    evaluation = evaluate(held_out, train.copy(), train=train)
    assert evaluation["nn_ratio"].value < 0.01
    assert evaluation["nn_ratio"].real_reference == pytest.approx(1, abs=0.2)
    assert evaluation["recall"].value > evaluation["recall"].baseline("shuffled")  # which is of held-out cells


def test_types_that_say_nothing_are_found_out(demo: AnnData) -> None:
    real, synthetic = halves(demo)
    synthetic.obs["cell_type"] = np.random.default_rng(0).permutation(synthetic.obs["cell_type"])
    scores = evaluate(real, synthetic, label="cell_type", metrics="type_f1")["type_f1"]
    assert scores.value < scores.real_reference - 0.3
    assert scores.value < 0.3


def test_what_the_codec_alone_can_do_is_noted(tiny: AnnData) -> None:
    real, synthetic = halves(tiny)
    made = as_made_here(synthetic)
    made.uns["scdiffkit"]["codec_auc"] = {"held_out": 0.61, "training": 0.6, "real_reference": 0.5}
    said = [note for note in evaluate(real, made).notes if "codec alone" in note]
    assert len(said) == 1
    assert "0.61" in said[0]


@pytest.mark.slow
def test_training_cells_among_the_real_ones_are_left_out(tiny: AnnData) -> None:
    train, rest = halves(tiny)
    held_out, synthetic = halves(rest)
    with pytest.warns(ScdiffWarning, match="180 of the 240 real cells are also in `train`"):
        mixed = evaluate(tiny, synthetic, train=tiny[:180].copy())
    assert mixed.n_cells == 60
    with pytest.raises(DataError, match="leave `train` out"):
        evaluate(train, held_out, train=train)
    few_genes = synthetic[:, np.argsort(tiny.X.toarray().sum(axis=0))[:100]].copy()  # in which cells are more alike
    with warnings.catch_warnings(record=True) as said:
        assert evaluate(held_out, few_genes, train=train).n_cells == 60
    assert not any("also in `train`" in str(w.message) for w in said)
    train.var_names = [f"other{i}" for i in range(train.n_vars)]
    with pytest.raises(DataError, match="no gene in common"):
        evaluate(held_out, synthetic, train=train)


@pytest.mark.slow
def test_a_type_that_was_left_out_is_named(demo: AnnData) -> None:
    real, other = halves(demo)
    lost = real.obs["cell_type"].value_counts().index[0]
    synthetic = other[other.obs["cell_type"] != lost].copy()
    evaluation = evaluate(real, synthetic, label="cell_type", metrics=MINIMAL)
    assert evaluation.missing_types() == evaluation.lost_types() == [lost]
    assert f"no synthetic cells of {lost}. If only the other types were to be" in str(evaluation.verdict)
    assert evaluation.verdict.word != "indistinguishable"
    assert evaluation["type_f1"].value < evaluation["type_f1"].real_reference - 0.03


def test_a_rare_type_may_be_missing_by_chance(demo: AnnData) -> None:
    real, synthetic = halves(demo)
    name = real.obs["cell_type"].value_counts().index[-1]
    of = np.flatnonzero(real.obs["cell_type"] == name)
    real = real[np.setdiff1d(np.arange(real.n_obs), of[2:])].copy()
    synthetic = synthetic[synthetic.obs["cell_type"] != name].copy()
    evaluation = evaluate(real, synthetic, label="cell_type", metrics="minimal")
    assert evaluation.missing_types() == [name]
    assert evaluation.lost_types() == []
    assert f"no synthetic cells of {name}" in str(evaluation.verdict)
    assert evaluation.verdict.word in ("close", "too few")


def test_counts_scaled_by_two_are_caught_by_the_cells(tiny: AnnData) -> None:
    real, other = halves(tiny)
    doubled = other.copy()
    doubled.X = other.X * 2
    size = evaluate(real, doubled, resamples=3, metrics="library_size")["library_size"]
    assert size.value == pytest.approx(np.log10(2), abs=0.1)
    assert not size.at_real_reference
    assert evaluate(real, other, resamples=3, metrics="library_size")["library_size"].at_real_reference


def test_members_are_told_from_others_by_copies_and_not_by_fresh_cells(demo: AnnData) -> None:
    held_out, rest = halves(demo)
    train, fresh = halves(rest)
    privacy = "membership_auc"
    of_copies = evaluate(held_out, train.copy(), train=train, metrics=privacy)
    assert of_copies["membership_auc"].value > 0.85
    assert of_copies.verdict.word == "copied"
    of_fresh = evaluate(held_out, fresh, train=train, resamples=3, metrics=privacy)
    assert of_fresh["membership_auc"].value == pytest.approx(0.5, abs=0.1)
    assert not of_fresh.verdict.copies


def test_the_donor_whose_cells_were_copied_is_found(demo: AnnData) -> None:
    held_out, train = halves(demo)
    for cells in (held_out, train):
        cells.obs["donor"] = np.resize(["anna", "bert"], cells.n_obs)
    anna = train[train.obs["donor"] == "anna"].copy()
    found = evaluate(held_out, anna, train=train, donor="donor", metrics="membership_auc")
    frame = found.donors_to_frame().set_index(["donor", "metric"])
    assert frame.loc[("anna", "exact_duplicates"), "value"] == 1
    assert frame.loc[("bert", "exact_duplicates"), "value"] == 0
    assert frame.loc[("anna", "membership_auc"), "value"] > 0.95
    assert frame.loc[("bert", "membership_auc"), "value"] < 0.7
    with pytest.raises(DataError, match=r"no obs column 'donors' \(`donor`\); did you mean 'donor'"):
        evaluate(held_out, anna, donor="donors")


@pytest.mark.slow
def test_held_out_cells_of_other_donors_tell_no_members(demo: AnnData) -> None:
    held_out, rest = halves(demo)
    train, fresh = halves(rest)
    held_out.obs["donor"] = "carl"
    train.obs["donor"] = np.where(np.arange(train.n_obs) < 5, "bert", "anna")
    evaluation = evaluate(held_out, fresh, train=train, donor="donor")
    assert "other donors" in evaluation.skipped["membership_auc"]
    assert list(evaluation.of_donors) == ["anna"]
    assert any(note.endswith("not scored on their own: bert.") for note in evaluation.notes)


@pytest.mark.slow
def test_donors_are_told_as_a_whole_where_others_were_held_out(demo: AnnData) -> None:
    """Held-out cells of some donors, and of others that were trained on, too."""
    cells = demo.copy()
    cells.obs["donor"] = np.resize([f"d{i}" for i in range(8)], cells.n_obs)
    X = cells.X.toarray()
    rng = np.random.default_rng(0)
    for i in range(8):  # each donor has genes of its own
        of_donor = cells.obs["donor"] == f"d{i}"
        X[np.ix_(of_donor, rng.permutation(cells.n_vars)[:100])] += rng.poisson(2, (of_donor.sum(), 100))
    cells.X = sparse.csr_matrix(X)
    known = cells.obs["donor"].isin(["d0", "d1", "d2", "d3"]).to_numpy()
    train, held_out = cells[known].copy(), cells[~known].copy()
    asked = [name for name, m in METRICS.items() if m.family == "privacy"]
    options: dict[str, Any] = {"train": train, "donor": "donor", "metrics": asked}
    made = train.copy()
    made.X.data *= rng.random(len(made.X.data)) < 0.95  # nearly copies
    del made.obs["donor"]  # which synthetic cells need not name
    found = evaluate(held_out, made, **options)
    assert found["donor_membership_auc"].value > 0.9
    assert found["donor_membership_auc"].baseline("copies") == 1
    assert found["donor_membership_tpr_10"].value > 0.5
    assert "other donors" in found.skipped["membership_auc"]
    one = evaluate(held_out[held_out.obs["donor"] == "d5"].copy(), made, **options)
    assert "2 donors that the model was trained on" in one.skipped["donor_membership_auc"]
    without = evaluate(held_out, made, train=train, metrics=asked)
    assert {"membership_tpr_1", "domias_auc"} <= set(without.skipped)  # the donors' genes alone tell the two apart
    assert not without.alike


def test_a_type_that_is_off_is_told_among_good_ones(demo: AnnData) -> None:
    real, synthetic = halves(demo)
    rare = real.obs["cell_type"].value_counts().index[3]
    other = synthetic.obs["cell_type"].value_counts().index[0]
    of_rare = np.flatnonzero(synthetic.obs["cell_type"] == rare)
    X = synthetic.X.tolil()
    X[of_rare] = X[np.flatnonzero(synthetic.obs["cell_type"] == other)[: len(of_rare)]]
    synthetic.X = X.tocsr()
    evaluation = evaluate(real, synthetic, label="cell_type", resamples=3, metrics=MINIMAL)
    assert evaluation.worst_type() == rare
    assert evaluation.poor_types()[0] == rare
    assert rare in str(evaluation.verdict)
    assert evaluation.verdict.word != "indistinguishable"


def test_the_type_that_a_forest_tells_best_is_named(demo: AnnData) -> None:
    real, synthetic = halves(demo)
    types = synthetic.obs["cell_type"].to_numpy()
    X = synthetic.X.toarray()
    odd = types == "Dendritic"
    X[odd] = np.random.default_rng(0).permuted(X[odd], axis=0)
    synthetic.X = sparse.csr_matrix(X)
    evaluation = evaluate(real, synthetic, label="cell_type", metrics=["rf_auc", "mean_mae"])
    worst = evaluation.worst_type_auc()
    assert worst is not None
    assert worst[0] == "Dendritic"
    assert worst[1].value > max(worst[1].real_reference, 0.5) + 0.1
    assert evaluation.to_dict()["worst_type_auc"]["type"] == "Dendritic"
    few = [name for name, n in real.obs["cell_type"].value_counts().items() if 25 <= n < 55]
    assert few  # in half of the real cells fewer than a forest needs
    assert [s.metric for s in evaluation.of_types[few[0]]] == ["mean_mae"]
    assert evaluate(real, synthetic, metrics="rf_auc").worst_type_auc() is None


@pytest.mark.parametrize(
    ("asked", "more"), [("rf_auc_genes, cv_mae", {"rf_auc_genes", "cv_mae"}), (["ks_genes"], {"ks_genes"})]
)
def test_only_the_metrics_that_are_asked_for(tiny: AnnData, scored: Evaluation, asked: Any, more: set[str]) -> None:
    evaluation = evaluate(*halves(tiny), metrics=asked)
    assert {s.metric for s in evaluation.scores} == more | {"rf_auc", *COPIED} - {"membership_auc"}
    assert "membership_auc" in evaluation.skipped
    assert evaluation.verdict.word
    assert "--metrics " + ",".join(evaluation.metrics) in evaluation.command()
    assert "--metrics" not in scored.command()
    for name in more:
        assert evaluation[name].values == scored[name].values


@pytest.mark.slow
def test_profiles_of_metrics(tiny: AnnData) -> None:
    minimal = evaluate(*halves(tiny), label="cell_type", metrics="minimal", resamples=5)
    assert {"rf_auc", "exact_duplicates", "zeros_mae", "type_f1"} <= {s.metric for s in minimal.scores}
    assert len(minimal.scores) < 15
    assert minimal.resamples == 1
    assert list(minimal.to_dict()["metrics"]) == ["minimal"]
    more = evaluate(*halves(tiny), label="cell_type", metrics="minimal,cv_mae")
    assert {s.metric for s in more.scores} == {s.metric for s in minimal.scores} | {"cv_mae"}
    fast, as_option = evaluate(*halves(tiny), metrics="fast"), evaluate(*halves(tiny), metrics="full", fast=True)
    assert values(fast) == values(as_option)
    assert fast.max_cells == 400


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("rf_acu", "no metric 'rf_acu'.*did you mean 'rf_auc'"),
        ("quick", "no metric 'quick'"),
        ("", "names no metric.*full, fast, minimal"),
        ("cfgen_mmd", "`protocol`"),
    ],
)
def test_metrics_that_are_not_known_are_refused(tiny: AnnData, asked: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(*halves(tiny), metrics=asked)


def with_two_groups(cells: AnnData, column: str) -> tuple[AnnData, AnnData, AnnData]:
    """Real and synthetic cells of two groups, of which one has more of 200 genes, and the latter with groups mixed."""
    rng = np.random.default_rng(0)
    cells = cells.copy()
    cells.obs[column] = rng.choice(["1", "2"], cells.n_obs)
    X = cells.X.toarray()
    first, genes = cells.obs[column].to_numpy() == "1", rng.permutation(cells.n_vars)[:200]
    X[np.ix_(first, genes)] += rng.poisson(3, (first.sum(), 200))
    cells.X = sparse.csr_matrix(X)
    real, synthetic = halves(cells)
    mixed = synthetic.copy()
    mixed.obs[column] = rng.permutation(mixed.obs[column])
    return real, synthetic, mixed


@pytest.mark.slow
def test_responses_to_a_treatment_are_compared(demo: AnnData) -> None:
    real, synthetic, lost = with_two_groups(demo, "state")
    kept, without = (
        evaluate(real, c, label="cell_type", condition=["state"], metrics="lfc_conditions") for c in (synthetic, lost)
    )
    assert kept["lfc_conditions"].value > 0.6
    assert without["lfc_conditions"].value < 0.3


def test_batches_that_lie_too_close_together_are_told(demo: AnnData) -> None:
    real, synthetic, mixed = with_two_groups(demo, "lane")
    asked = {"batch": "lane", "metrics": ["variance_batches", "silhouette_batches"], "resamples": 1}
    kept, lost = (evaluate(real, c, **asked) for c in (synthetic, mixed))
    for name in ("variance_batches", "silhouette_batches"):
        assert abs(kept[name].value) < 0.05
        assert lost[name].value < -0.1
    assert "--batch lane" in kept.command()


@pytest.mark.slow
def test_a_protocol_that_chooses_genes_looks_at_these_only(demo: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdiffkit.evaluation.scoring.N_VARIABLE", 100)
    real, synthetic = (as_made_here(cells) for cells in halves(demo))
    counts = AnnData(real.layers["counts"], var=real.var)
    table = sc.pp.highly_variable_genes(counts, flavor="seurat_v3", n_top_genes=100, inplace=False)
    chosen = table["highly_variable"].to_numpy()
    options: dict[str, Any] = {"label": "cell_type", "protocol": "cfgen", "metrics": "minimal"}
    found = evaluate(real, synthetic, **options)
    of_these = evaluate(real[:, chosen].copy(), synthetic[:, chosen].copy(), **options)
    assert len(found.of_protocol) == 4
    for score, expected in zip(found.of_protocol, of_these.of_protocol):
        assert score.value == pytest.approx(expected.value), score.metric
    del real.layers["counts"]
    with pytest.raises(ConfigError, match="`protocol` cell-eval compares conditions: name their obs column"):
        evaluate(*halves(demo), label="cell_type", protocol="cell-eval")
    with pytest.raises(ConfigError, match="`protocol` cfgen selects genes by the raw counts"):
        evaluate(real, synthetic, **options)


# the border: scales, genes, labels


def test_synthetic_cells_with_fewer_genes_keep_their_normalisation(tiny: AnnData) -> None:
    real, other = halves(tiny)
    evaluation = evaluate(real, as_made_here(other, genes=105))
    assert evaluation.n_genes == 105
    assert abs(evaluation["mean_mae"].value - evaluation["mean_mae"].real_reference) < 0.15
    notes = " ".join(evaluation.notes)
    assert "used as it is" in notes
    assert "normalised over 120 genes" in notes
    assert "105 in both real and synthetic cells; 15 only in real, 0 only in synthetic" in notes


def test_library_size_stands_in_for_the_missing_genes(tiny: AnnData) -> None:
    real, other = halves(tiny)
    made = as_made_here(other, genes=105)
    counts = AnnData(X=made.layers["counts"], obs=made.obs, var=made.var)
    counts.obs["total_counts"] = np.asarray(other.X.sum(axis=1)).ravel()
    assert values(evaluate(real, counts)) == pytest.approx(values(evaluate(real, made)), abs=2e-3)


def test_prepared_and_raw_cells_score_the_same(tiny: AnnData, scored: Evaluation) -> None:
    real, synthetic = halves(tiny)
    prepared = [preprocess(cells, min_cells=0, n_top_genes=120) for cells in (real, synthetic)]
    assert values(evaluate(*prepared, metrics="full")) == pytest.approx(values(scored))


def test_dense_cells_score_the_same(tiny: AnnData, scored: Evaluation) -> None:
    real, synthetic = halves(tiny)
    dense = [AnnData(X=c.X.toarray(), obs=c.obs, var=c.var) for c in (real, synthetic)]
    assert values(evaluate(*dense, metrics="full")) == values(scored)


@pytest.mark.slow
def test_order_of_genes_does_not_matter(tiny: AnnData, scored: Evaluation) -> None:
    real, synthetic = halves(tiny)
    rng = np.random.default_rng(3)
    mixed = [cells[:, rng.permutation(120)].copy() for cells in (real, synthetic)]
    assert values(evaluate(*mixed, metrics="full")) == pytest.approx(values(scored))


def test_files_and_memory_score_the_same_and_the_seed_decides(tiny: AnnData, tmp_path: Path) -> None:
    real, synthetic = halves(tiny)
    for name, cells in (("real", real), ("synthetic", synthetic)):
        cells.write_h5ad(tmp_path / f"{name}.h5ad")
    some = {"label": "cell_type", "metrics": ["minimal", "mean_mae"]}
    first = evaluate(real, synthetic, seed=3, **some)
    again = evaluate(tmp_path / "real.h5ad", str(tmp_path / "synthetic.h5ad"), seed=3, **some)
    other = evaluate(real, synthetic, seed=4, **some)
    assert values(first) == values(again)
    assert first["mean_mae"].value != other["mean_mae"].value
    assert first["mean_mae"].real_reference != other["mean_mae"].real_reference
    assert again.inputs["real"]["source"] == str(tmp_path / "real.h5ad")
    assert again.inputs["real"]["sha256"] == hashlib.sha256((tmp_path / "real.h5ad").read_bytes()).hexdigest()
    assert first.inputs["real"]["source"] == "memory"


def test_inputs_are_left_alone(tiny: AnnData) -> None:
    real, synthetic = halves(tiny)
    before = real.copy()
    evaluate(real, synthetic, label="cell_type")
    assert abs(real.X - before.X).max() == 0
    assert list(real.obs.columns) == list(before.obs.columns)


def test_cells_normalised_to_different_totals_are_warned_of(tiny: AnnData) -> None:
    real, other = halves(tiny)
    synthetic = as_made_here(other)
    synthetic.X = lognormalise(other.X, 1e3)
    with pytest.warns(ScdiffWarning, match="normalised differently") as caught:
        evaluation = evaluate(real, synthetic)
    assert str(next(w.message for w in caught if "normalised diff" in str(w.message))) in evaluation.warnings


def test_raw_real_cells_are_normalised_to_the_total_of_the_synthetic_ones(tiny: AnnData) -> None:
    real, other = halves(tiny)
    synthetic = as_made_here(other)
    synthetic.X = lognormalise(other.X, 1e3)
    synthetic.uns["scdiffkit"]["target_sum"] = 1e3
    evaluation = evaluate(real, synthetic)
    assert "to 1000, log1p" in evaluation.inputs["real"]["scale"]
    assert not [warning for warning in evaluation.warnings if "normalised differently" in warning]


def test_few_cells_are_warned_of(tiny: AnnData) -> None:
    with pytest.warns(ScdiffWarning) as caught:
        evaluation = evaluate(tiny[:20].copy(), tiny[20:40].copy(), label="cell_type")
    said = " ".join(str(w.message) for w in caught)
    assert "Only 10 cells per set" in said
    assert all(math.isfinite(x) for x in values(evaluation))
    assert "imprecise" in str(evaluation.verdict)


def test_training_cells_without_counts_leave_out_what_needs_them(tiny: AnnData) -> None:
    held_out, rest = halves(tiny)
    train, synthetic = halves(rest)
    train.X = lognormalise(train.X, 1e4)
    evaluation = evaluate(held_out, synthetic, train=train)
    assert "raw counts" in evaluation.skipped["library_size"]


def test_more_cells_a_side_than_are_looked_through_for_copies(tiny: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdiffkit.evaluation.resample.MAX_KNOWN_CELLS", 20)
    assert evaluate(*halves(tiny), max_cells=60).n_cells == 60


def test_shallow_cells_that_are_equal_by_chance_are_no_copies(tiny: AnnData) -> None:
    rng = np.random.default_rng(0)
    cells = AnnData(sparse.csr_matrix(rng.poisson(0.015, (300, 120)).astype(np.float32)), var=tiny.var)
    evaluation = evaluate(cells[:200].copy(), cells[200:].copy())
    assert evaluation["exact_duplicates"].value == 0
    assert evaluation.verdict.word != "copied"


def test_stored_zeros_hide_no_copies(tiny: AnnData) -> None:
    copies = tiny.copy()
    copies.X = copies.X.copy()
    copies.X.data[::50] = 0  # explicit; in the real cells too, as they are the same cells
    real = tiny.copy()
    real.X = copies.X.copy()
    real.X.eliminate_zeros()
    share = (np.diff(real.X.indptr) >= 20).mean()
    assert evaluate(real, copies)["exact_duplicates"].value == pytest.approx(share)


def test_types_missing_on_a_side_are_named(tiny: AnnData) -> None:
    real = tiny[tiny.obs["cell_type"] != "T"].copy()
    synthetic = tiny[tiny.obs["cell_type"] != "B"].copy()
    evaluation = evaluate(real, synthetic, label="cell_type")
    assert evaluation.types == {
        "B": {"real": 120, "synthetic": 0},
        "Mono": {"real": 80, "synthetic": 80},
        "T": {"real": 0, "synthetic": 40},
    }
    assert "No synthetic cell has these types of the real cells: B." in evaluation.notes
    assert "No real cell has these types of the synthetic cells: T." in evaluation.notes


def test_synthetic_cells_may_lack_the_label_and_real_ones_some_values(tiny: AnnData) -> None:
    real, synthetic = halves(tiny)
    real.obs.loc[real.obs_names[:3], "cell_type"] = np.nan
    del synthetic.obs["cell_type"]
    with pytest.warns(ScdiffWarning, match="have no obs column 'cell_type'"):
        evaluation = evaluate(real, synthetic, label="cell_type")
    assert evaluation.types is not None
    assert evaluation.types["(none)"] == {"real": 3, "synthetic": 0}


def test_max_cells_bounds_both_sides(tiny: AnnData) -> None:
    assert evaluate(*halves(tiny), max_cells=20).n_cells == 20


def test_progress_names_each_metric_before_it_runs(tiny: AnnData) -> None:
    calls: list[tuple[str, int, int]] = []
    found = evaluate(*halves(tiny), metrics="full", on_progress=lambda *call: calls.append(call))
    asked = [f"{m.family}: {m.name}" for m in METRICS.values() if m.default and m.name not in found.skipped]
    assert len(asked) > 30
    assert calls == [(name, i, len(asked)) for i, name in enumerate(asked)]


# refusals, each with its remedy


def broken(cells: AnnData, value: float) -> AnnData:
    X = cells.X.toarray()
    X[3, 4] = value
    return AnnData(X=X, obs=cells.obs, var=cells.var)


def test_bad_cells_are_refused(tiny: AnnData) -> None:
    real, synthetic = halves(tiny)
    renamed = synthetic.copy()
    renamed.var_names = [f"ENSG{i:05d}" for i in range(120)]
    twice = synthetic.copy()
    twice.var_names = ["gene00", *twice.var_names[:-1]]
    refusals = [
        ((real, renamed), r"no gene in common \(real: gene00.*synthetic: ENSG00000.*symbols or Ensembl"),
        ((real, broken(synthetic, np.nan)), "The synthetic cells have 1 values .* NaN.*Remove"),
        ((broken(real, np.inf), synthetic), "The real cells have 1 values .* infinite"),
        ((real, broken(synthetic, -2)), r"The synthetic cells are neither.*negative.*layers\['counts'\]"),
        ((broken(real, 99.5), synthetic), r"The real cells are neither.*normalised.*layers\['counts'\]"),
        ((real, twice), "var_names_make_unique"),
        ((real, synthetic[:0].copy()), "The synthetic cells"),
        ((real[:9].copy(), synthetic), "9 real cells are too few.*at least 10"),
        ((real, synthetic[:4].copy()), "4 synthetic cells are too few.*at least 5"),
    ]
    for cells, message in refusals:
        with pytest.raises(DataError, match=message):
            evaluate(*cells)


def test_scaled_cells_made_here_are_refused(tiny: AnnData) -> None:
    real, synthetic = halves(tiny)
    made = as_made_here(synthetic)
    made.X = made.X - 0.5 * (made.X > 0).astype(np.float32) * 20
    with pytest.raises(DataError, match=r"negative values .* sample them again"):
        evaluate(real, made)


def test_bad_labels_are_refused(tiny: AnnData) -> None:
    real, synthetic = halves(tiny)
    with pytest.raises(DataError, match=r"no obs column 'celltype' \(`label`\); did you mean 'cell_type'"):
        evaluate(real, synthetic, label="celltype")
    real.obs["barcode"] = real.obs_names
    with pytest.raises(DataError, match=r"120 different values of 'barcode'.*such as the cell type"):
        evaluate(real, synthetic, label="barcode")


def test_max_cells_too_small_is_refused(tiny: AnnData) -> None:
    with pytest.raises(ConfigError, match="`max_cells`"):
        evaluate(tiny, tiny, max_cells=2)


def test_an_earlier_report_is_kept_without_force(tiny: AnnData, tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text("old")
    with pytest.raises(FileError, match=r"metrics\.json already.*`force=True`"):
        evaluate(*halves(tiny), out=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").read_text() == "old"
    with pytest.raises(FileError, match="is a file"):
        evaluate(*halves(tiny), out=tmp_path / "metrics.json", force=True)


@pytest.mark.usefixtures("blank_pictures")
def test_an_interrupted_report_leaves_the_old_one(
    tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "metrics.json").write_text("old")
    (tmp_path / "cells.png").write_text("old")

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(figures, "embedding", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(*halves(tiny), out=tmp_path, force=True, metrics="minimal")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"metrics.json": "old", "cells.png": "old"}


# what is written


def test_json_holds_everything_in_plain_finite_values(report: tuple[Evaluation, Path]) -> None:
    evaluation, out = report

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in metrics.json")

    read = json.loads((out / "metrics.json").read_text(), parse_constant=refuse)
    assert read == json.loads(json.dumps(evaluation.to_dict()))
    assert {"schema", "verdict", "scores", "definitions", "inputs", "seed", "types", "command", "versions"} <= set(read)
    assert read["scores"][0].keys() >= {
        "metric",
        "value",
        "real_reference",
        "shuffled",
        "direction",
        "best",
        "definition",
    }
    assert read["inputs"]["synthetic"] == {
        "source": "memory", "sha256": None, "cells": 350, "genes": 765, "scale": "log1p-normalised X, used as it is",
    }  # fmt: skip


def test_frame_has_a_row_per_metric(report: tuple[Evaluation, Path]) -> None:
    frame = report[0].to_frame()
    assert list(frame["metric"]) == [score.metric for score in report[0].scores]
    assert list(frame.columns[:4]) == ["metric", "family", "value", "value_low"]
    assert ((frame["value_low"] <= frame["value"]) & (frame["value"] <= frame["value_high"])).all()
    written = pd.read_csv(report[1] / "metrics.csv")
    in_words = ["definition", "source"]
    pd.testing.assert_frame_equal(written, frame.drop(columns=in_words), check_dtype=False)
    assert frame[in_words].map(len).to_numpy().min() > 5


def test_genes_have_a_table_of_their_own(report: tuple[Evaluation, Path], demo: AnnData) -> None:
    evaluation, out = report
    written = pd.read_csv(out / "genes.csv")
    assert sorted(written["gene"]) == sorted(demo.var_names)
    pd.testing.assert_frame_equal(written, evaluation.genes, check_dtype=False, rtol=1e-4)
    figures_of = ("mean", "variance", "zeros")
    sides = ("real", "reference", "synthetic")
    assert list(written)[1:] == [f"{f}_{s}" for f in figures_of for s in sides] + ["ks", "ks_reference"]
    first = [evaluation[name].values[0] for name in ("mean_mae", "variance_mae", "zeros_mae")]
    assert [(written[f"{f}_real"] - written[f"{f}_synthetic"]).abs().mean() for f in figures_of] == pytest.approx(
        first, rel=1e-3
    )
    assert written[["ks", "ks_reference"]].to_numpy().min() >= 0
    assert written["ks"].mean() == pytest.approx(written["ks_reference"].mean(), rel=0.3)  # they are real cells


def test_an_unknown_metric_is_named(report: tuple[Evaluation, Path]) -> None:
    with pytest.raises(KeyError, match="rf_auc"):
        report[0]["rf_acu"]


def test_picture_is_a_small_png(report: tuple[Evaluation, Path]) -> None:
    from matplotlib.image import imread

    _, out = report
    assert sorted(p.name for p in out.iterdir()) == [
        "cells.png", "genes.csv", "metrics.csv", "metrics.json", "report.html",
    ]  # fmt: skip
    pixels = imread(out / "cells.png")
    assert pixels.shape[1] > 2.5 * pixels.shape[0] > 1000
    assert (out / "cells.png").stat().st_size < 400_000
    blue, orange = np.array([0, 0x72, 0xB2]) / 255, np.array([0xE6, 0x9F, 0]) / 255
    for colour in (blue, orange):
        assert (np.abs(pixels[..., :3] - colour).max(axis=-1) < 0.02).sum() > 50


@pytest.mark.parametrize("layout", [umap_layout, tsne_layout])
def test_layout_repeats_and_puts_like_cells_together(tiny: AnnData, layout: Callable) -> None:
    from scipy.spatial.distance import cdist

    X, types = lognormalise(tiny.X, 1e4), tiny.obs["cell_type"].to_numpy()
    real, synthetic = layout(X[:120], X[120:])
    again, _ = layout(X[:120], X[120:])
    np.testing.assert_array_equal(real, again)
    nearest = types[:120][cdist(synthetic, real).argmin(axis=1)]
    assert (nearest == types[120:]).mean() > 0.9


@pytest.mark.parametrize("genes", [1, 2, 3])
def test_picture_of_almost_nothing(tiny: AnnData, genes: int) -> None:
    X = lognormalise(tiny.X[:12, :genes], 1e4)
    for layout in (umap_layout, tsne_layout):
        positions = layout(X[:6], X[6:])
        assert np.isfinite(np.vstack(positions)).all()
        assert len(figures.embedding("layout", *positions, [None, None], None, 0).light) > 1000


def test_rare_types_share_a_grey() -> None:
    from io import BytesIO

    from matplotlib.image import imread

    rng = np.random.default_rng(0)
    types = np.array([f"type {min(i // 4, 14)}" for i in range(100)], dtype=object)
    drawn = figures.embedding("layout", *rng.normal(size=(2, 100, 2)), [types, None], "cell_type", 0)
    for png, page, other in ((drawn.light, "#ffffff", "#888888"), (drawn.dark, "#16181b", "#888888")):
        pixels = (imread(BytesIO(png))[..., :3] * 255).round().astype(int).reshape(-1, 3)
        colours, counts = np.unique(pixels, axis=0, return_counts=True)
        of_page, of_others = ([int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in (page, other))
        assert colours[counts.argmax()].tolist() == of_page
        assert (np.abs(pixels - of_others).max(axis=1) < 3).sum() > 20  # the legend's dot of 5 more types


def test_the_report_is_one_small_page_that_says_it_all(report: tuple[Evaluation, Path]) -> None:
    evaluation, out = report
    page = (out / "report.html").read_text()
    assert len(page) < 5_000_000
    assert page.index(html.escape(evaluation.verdict.sentence)) < page.index("<picture>")
    for score in evaluation.scores:
        assert f">{score.metric}</a>" in page
        assert html.escape(score.definition) in page.replace("&#34;", "&quot;").replace("&#39;", "&#x27;")
    assert html.escape(evaluation.command()) in page
    for name in evaluation.types or {}:
        assert f'<th scope="row">{html.escape(name)}</th>' in page
    assert page.count("<img ") == page.count('alt="') == 7
    assert not re.findall(r"""(?:src|href|srcset)=["'](?!data:|#)|url\(|@import""", page)


@pytest.mark.usefixtures("blank_pictures")
def test_names_of_files_and_types_cannot_break_the_report(tiny: AnnData, tmp_path: Path) -> None:
    cells = tiny.copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].astype(str).replace("B", "<script>alert(1)</script>")
    real, synthetic = halves(cells)
    evaluate(real, synthetic, label="cell_type", out=tmp_path, metrics="minimal")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_notebooks_show_a_summary(report: tuple[Evaluation, Path]) -> None:
    shown = report[0]._repr_html_()
    assert shown.count("<tr>") == len(report[0].scores) + 1
    assert html.escape(report[0].verdict.sentence) in shown


# parts


def test_draw_order_keeps_the_composition_in_every_run() -> None:
    types = np.repeat(["a", "b", "c"], [100, 40, 10])
    order = draw_order(types, np.random.default_rng(0))
    assert sorted(order) == list(range(150))
    for start in (0, 37, 75):
        run = types[order[start : start + 75]]
        assert [abs((run == name).sum() - n) <= 1 for name, n in (("a", 50), ("b", 20), ("c", 5))] == [True] * 3


def test_shuffle_keeps_each_gene_within_its_type_and_nothing_else(tiny: AnnData) -> None:
    X, types = lognormalise(tiny.X[:, :60], 1e4), tiny.obs["cell_type"].astype(str).to_numpy()
    X = sparse.hstack([X] * 10, format="csr")  # more genes than a block
    shuffled = shuffle_within(X, types, np.random.default_rng(0))
    for name in np.unique(types):
        before, after = X[types == name].toarray(), shuffled[types == name].toarray()
        np.testing.assert_array_equal(np.sort(before, axis=0), np.sort(after, axis=0))
    cells = shuffled[types == "B"].toarray()
    with_copy = [np.corrcoef(cells[:, [i, i + 60]].T)[0, 1] for i in range(540)]
    assert abs(np.nanmean(with_copy)) < 0.02  # of 1.0 before
    assert np.nanstd(with_copy) == pytest.approx(1 / np.sqrt(120), rel=0.1)


@pytest.mark.slow
def test_with_donors_the_ranges_tell_how_donors_differ() -> None:
    """Cells of ten donors with genes of their own each: which donors are drawn matters more than which cells."""
    rng = np.random.default_rng(0)
    donors = np.repeat([f"d{i}" for i in range(10)], 60)
    rates = rng.gamma(1.0, 2.0, 120) * rng.lognormal(0, 0.8, (10, 120)).repeat(60, axis=0)
    cells = AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=pd.DataFrame({"donor": donors}))
    cells.var_names = [f"g{i}" for i in range(120)]
    cells.obs_names = [f"c{i}" for i in range(600)]
    real, synthetic = cells[::2].copy(), cells[1::2].copy()
    del synthetic.obs["donor"]  # as a model leaves them that knows no donors
    asked = {"metrics": ["mean_mae"], "resamples": 8, "max_cells": 60}
    alone, with_donors = (evaluate(real, synthetic, donor=donor, **asked) for donor in (None, "donor"))
    spread = [float(np.std(found["mean_mae"].values)) for found in (alone, with_donors)]
    assert spread[1] > 1.5 * spread[0]
    assert any("draws four fifths of the donors" in note for note in with_donors.notes)
    few = evaluate(real[:120].copy(), synthetic, donor="donor", **asked)  # of four donors
    assert any("Resamples draw cells, not donors" in note for note in few.notes)


@pytest.mark.parametrize("largest", range(5))  # one of them is left out of the first resample
def test_halves_have_as_many_cells_of_each_donor(largest: int) -> None:
    """One donor has half of the cells, and donors differ: halves of other donors would be told apart."""
    rng = np.random.default_rng(0)
    donors = np.repeat(np.arange(5), np.where(np.arange(5) == largest, 160, 40))
    means = rng.gamma(1.0, 2.0, (5, 120))[donors]
    obs = pd.DataFrame({"donor": [f"d{i}" for i in donors]}, index=[f"c{i}" for i in range(len(donors))])
    cells, other = (AnnData(rng.poisson(means).astype(np.float32), obs=obs.copy()) for _ in range(2))
    found = scdiffkit.evaluate(cells, other, donor="donor", metrics=["rf_auc"], resamples=1)
    assert found["rf_auc"].real_reference < 0.65
    assert found["rf_auc"].value < 0.65
