"""Which cells a verdict rests on: those that the run has not seen, and what is said where there are none."""

import json
import shutil

import anndata as ad
import numpy as np
import pytest
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.data.split import TrainingData
from scdiffkit.errors import ConfigError, DataError, RunError, ScdiffWarning

QUICK = {
    "codec.name": "gene", "model.patch_size": 64, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2,
    "train.max_steps": 30, "train.batch_size": 64, "train.val_every_steps": 10,
}  # fmt: skip
SETS = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
MINIMAL = {"metrics": "minimal", "resamples": 3}  # for a verdict
FEW = {"metrics": "minimal", "resamples": 1, "max_cells": 60}  # to see which cells it rests on
OF_FEW = ["--metrics", "minimal", "--fast", "--max-cells", 60]
pytestmark = [
    pytest.mark.filterwarnings("ignore::scdiffkit.errors.ScdiffWarning"),
    pytest.mark.usefixtures("few_trees", "blank_pictures"),
]


def scdiff(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def data(demo, tmp_path_factory):
    return scdiffkit.write(demo, tmp_path_factory.mktemp("data") / "data.h5ad")


def made_by(data, out, **overrides):
    """A run on the cells and 300 cells of it."""
    run = scdiffkit.train(data, label="cell_type", out=out, overrides={**QUICK, **overrides})
    return run, scdiffkit.sample(run, 300, out=out.with_suffix(".h5ad"))


@pytest.fixture(scope="module")
def held(data, tmp_path_factory):
    return made_by(data, tmp_path_factory.mktemp("held") / "run", **{"train.holdout": 0.3})


@pytest.mark.slow
def test_real_cells_are_those_held_out_and_training_cells_the_others(data, held, demo):
    run, cells = held
    found = scdiffkit.evaluate(data, cells, label="cell_type", **FEW)
    assert found.basis == "holdout"
    assert found.verdict.basis == "The synthetic cells are compared with cells that were held out from training."
    n_real, n_train = (found.inputs[side]["cells"] for side in ("real", "train"))
    assert n_real == pytest.approx(210, abs=3)
    assert n_train == pytest.approx(0.9 * (700 - n_real), abs=1)
    in_memory = scdiffkit.evaluate(demo, ad.read_h5ad(cells), label="cell_type", **FEW)
    backed = scdiffkit.evaluate(data, cells, label="cell_type", memory="disk", **FEW)
    for other in (in_memory, backed):
        assert other.basis == "holdout"
        assert other["rf_auc"].values == pytest.approx(found["rf_auc"].values)
    # what anyone would get who had split the cells before
    unseen = TrainingData.from_dict(run.provenance()["data"]["split"]).find_in(demo)
    by_hand = scdiffkit.evaluate(
        demo[unseen.unseen].copy(), cells, train=demo[unseen.trained].copy(), label="cell_type", **FEW
    )
    assert by_hand.basis == "given"
    assert by_hand["rf_auc"].values == pytest.approx(found["rf_auc"].values)


@pytest.mark.slow
def test_the_run_knows_its_cells_and_its_label(data, held, tmp_path):
    run, cells = held
    found = json.loads(scdiff("evaluate", "--run", run.path, cells, *OF_FEW, "--json", "-o",
                              tmp_path / "report").stdout)  # fmt: skip
    assert (found["basis"], found["label"]) == ("holdout", "cell_type")
    expected = scdiffkit.evaluate(data, cells, label="cell_type", **FEW)
    assert found["scores"] == json.loads(json.dumps([score.to_dict() for score in expected.scores]))
    drawn = scdiff("evaluate", "--run", run.path, *OF_FEW, "-o", tmp_path / "drawn")
    assert (
        drawn.stdout.splitlines()[0] == "The synthetic cells are compared with cells that were held out from training."
    )
    assert ad.read_h5ad(tmp_path / "drawn" / "cells.h5ad").n_obs == 1000


def test_validation_cells_stand_in_with_a_word_about_it(data, tmp_path):
    _, cells = made_by(data, tmp_path / "run")
    found = scdiffkit.evaluate(data, cells, label="cell_type", **FEW)
    assert (found.basis, found.inputs["real"]["cells"], found.inputs["train"]["cells"]) == ("validation", 70, 630)
    assert "validation cells" in found.verdict.basis


@pytest.mark.slow
def test_without_cells_held_out_the_first_line_says_so_and_no_verdict_is_better_than_close(data, tmp_path):
    _, cells = made_by(data, tmp_path / "run", **{"train.val_fraction": 0})
    done = scdiff("evaluate", data, cells, "--label", "cell_type", *OF_FEW, "-o", tmp_path / "report")
    assert "compared with the cells that the model was trained on, because none" in done.stdout.splitlines()[0]
    assert "compared with the cells that the model was trained on" in (tmp_path / "report" / "report.html").read_text()
    copies = ad.read_h5ad(data)  # real cells that pretend to be the run's
    copies.uns["scdiffkit"] = dict(ad.read_h5ad(cells).uns["scdiffkit"])
    found = scdiffkit.evaluate(data, copies, label="cell_type", **MINIMAL)
    assert found.basis == "none"
    assert found.verdict.word != "indistinguishable"


@pytest.mark.slow
def test_other_cells_and_other_programs_cells_are_of_unknown_basis(data, held, demo):
    cells = ad.read_h5ad(held[1])
    assert scdiffkit.evaluate(demo[:400].copy(), cells, label="cell_type", **MINIMAL).basis == "unknown"
    del cells.uns["scdiffkit"]
    found = scdiffkit.evaluate(demo, cells, label="cell_type", **MINIMAL)
    assert found.basis == "unknown"
    assert "--train" in found.verdict.basis
    assert found.verdict.word != "indistinguishable"


@pytest.mark.slow
def test_sets_are_compared_by_cells_that_none_of_their_models_has_seen(data, held, demo, tmp_path):
    other = made_by(data, tmp_path / "other", **{"train.holdout": 0.4, "seed": 1})
    found = scdiffkit.compare(data, {"a": held[1], "b": other[1]}, label="cell_type", **FEW)
    sizes = {(e.inputs["real"]["cells"], e.inputs["train"]["cells"]) for e in found.evaluations.values()}
    assert len(sizes) == 1
    ((n_real, _),) = sizes
    assert n_real == pytest.approx(0.3 * 0.4 * 700, rel=0.3)
    assert {e.basis for e in found.evaluations.values()} == {"holdout"}


def test_what_a_run_cannot_tell_is_said(held, demo, data, tmp_path):
    with pytest.raises(ConfigError, match="`run` takes the real cells from the run"):
        scdiffkit.evaluate(demo, held[1], run=held[0])
    with pytest.raises(ConfigError, match="real and synthetic cells, or a run"):
        scdiffkit.evaluate(demo)
    from_memory = scdiffkit.train(demo, label="cell_type", out=tmp_path / "memory", overrides=QUICK)
    with pytest.raises(RunError, match="trained on cells in memory"):
        scdiffkit.evaluate(run=from_memory)
    moved = shutil.copy(data, tmp_path / "moved.h5ad")
    run, _ = made_by(moved, tmp_path / "run")
    (tmp_path / "moved.h5ad").unlink()
    with pytest.raises(RunError, match=r"moved\.h5ad no longer exists"):
        scdiffkit.evaluate(run=run)
    assert scdiff("evaluate", data, code=2).stdout == ""


@pytest.mark.slow
def test_what_a_run_of_several_files_was_not_trained_on(demo, tmp_path):
    for i in range(2):
        scdiffkit.write(demo[i::2].copy(), tmp_path / "parts" / f"part{i}.h5ad")
    run = scdiffkit.train(tmp_path / "parts", label="cell_type", out=tmp_path / "run",
                          overrides={**QUICK, "train.holdout": 0.3})  # fmt: skip
    found = scdiffkit.evaluate(run=run, **FEW)
    assert (found.basis, found.label) == ("holdout", "cell_type")
    assert found.inputs["real"]["cells"] == pytest.approx(210, abs=4)


@pytest.mark.slow
def test_pipelines_end_with_3_below_what_they_ask_for(data, held, tmp_path):
    common = [
        "evaluate",
        data,
        held[1],
        "--label",
        "cell_type",
        *OF_FEW,
        "--force",
        "-o",
        tmp_path / "r",
    ]
    word = json.loads(scdiff(*common, "--json").stdout)["verdict"]
    assert set(word) >= {"word", "grade", "basis", "interval", "margin", "uses", "limits"}
    assert word["grade"] != "good"  # 30 steps
    assert "below good" in scdiff(*common, "--fail-below", "good", code=3).output
    scdiff(*common, "--fail-below", "fair", code=3 if word["grade"] != "fair" else 0)
    scdiff(*common, "--fail-below", "best", code=2)


@pytest.mark.slow
def test_what_happened_is_in_the_report(data, tmp_path):
    run = scdiffkit.train(data, label="cell_type", out=tmp_path / "run", max_time=0.01,
                          overrides={**QUICK, "train.max_steps": 1500})  # fmt: skip
    cells = scdiffkit.sample(run, 100, out=tmp_path / "cells.h5ad")
    with pytest.warns(ScdiffWarning, match="undertrained"):
        found = scdiffkit.evaluate(data, cells, label="cell_type", out=tmp_path / "report", **MINIMAL)
    assert "after 1 of 1,500 planned steps" in str(found.verdict)
    assert "after 1 of 1,500 planned steps" in (tmp_path / "report" / "report.html").read_text()
    for path in (cells, run.path):
        assert "undertrained" in scdiff("info", path).stdout


def test_what_cannot_be_compared_is_refused(demo):
    renamed = demo.copy()
    renamed.obs["cell_type"] = renamed.obs["cell_type"].astype(str).map(lambda name: f"cluster {hash(name) % 97}")
    with pytest.raises(DataError, match="No cell_type occurs in both"):
        scdiffkit.evaluate(demo, renamed, label="cell_type", **MINIMAL)
    for n in (1, 99):
        with pytest.raises(DataError, match=f"Only {n} genes are in all sets"):
            scdiffkit.evaluate(demo, demo[:, :n].copy(), **MINIMAL)
    assert scdiffkit.evaluate(demo, demo[:, :100].copy(), **MINIMAL).n_genes == 100


def test_cells_of_a_kind_that_was_left_out_of_training_are_not_called_copies(demo):
    """The real cells are of a type that was not trained on, and the synthetic ones of it are like those that were: an
    attack would tell all training cells, and no cell is a copy. Training cells are no reference for such cells."""
    rng = np.random.default_rng(0)
    name = demo.obs["cell_type"].value_counts().index[0]
    of_it, others = (np.flatnonzero((demo.obs["cell_type"] == name) == wanted) for wanted in (True, False))
    others = rng.permutation(others)
    train, made = demo[others[::2]].copy(), demo[others[1::2]].copy()
    made.obs["cell_type"] = name
    found = scdiffkit.evaluate(demo[of_it].copy(), made, train=train, label="cell_type", **MINIMAL)
    assert "membership_auc" in found.skipped
    assert found["rf_auc"].real_reference < 0.65 < 0.9 < found["rf_auc"].value
    assert found.verdict.word == "poor"
    assert not found.alike
    assert "was not tested" in found.verdict.privacy


def test_with_a_run_other_programs_cells_are_judged_by_what_the_run_has_not_seen(data, held):
    run, cells = held
    others = ad.read_h5ad(cells)
    del others.uns["scdiffkit"]
    found = scdiffkit.evaluate(synthetic=others, run=run, **FEW)
    assert found.basis == "holdout"
    assert found.inputs["real"]["cells"] == pytest.approx(210, abs=3)


def test_cells_of_another_run_are_not_judged_by_what_this_one_held_out(data, held, tmp_path):
    _, cells = made_by(data, tmp_path / "run")  # nothing held out
    with pytest.raises(RunError, match=r"drawn from .*, but from another run"):
        scdiffkit.evaluate(None, cells, run=held[0], metrics="minimal")


@pytest.mark.slow
def test_training_cells_that_the_cells_contradict_are_not_believed(data, tmp_path):
    _, cells = made_by(data, tmp_path / "run")
    train, test = scdiffkit.split(data, label="cell_type", out=(tmp_path / "train.h5ad", tmp_path / "test.h5ad"))
    with pytest.warns(ScdiffWarning, match="not trained on the cells of `train`"):
        found = scdiffkit.evaluate(test, cells, train=train, label="cell_type", **FEW)
    assert found.basis == "unknown"
    assert f"--train {train}" in found.command()
    _, own = made_by(train, tmp_path / "own")
    assert scdiffkit.evaluate(test, own, train=train, label="cell_type", **FEW).basis == "given"
