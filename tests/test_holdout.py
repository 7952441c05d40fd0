"""Cells that a model has not seen: left out of training, found again from the data and the settings, never stored."""

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.data.split import TrainingData, held_out
from scdiffkit.errors import ConfigError, DataError, FileError, ScdiffWarning
from scdiffkit.run import Run

QUICK = {
    "model.patch_size": 4, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2, "codec.max_steps": 20,
    "codec.tails_steps": 10,
    "train.max_steps": 10, "train.batch_size": 32, "train.val_every_steps": 5,
}  # fmt: skip


def scdiff(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done


def train(cells, out, **overrides):
    return scdiffkit.train(cells, label="cell_type", out=out, overrides={**QUICK, **overrides})


def recorded(run):
    return TrainingData.from_dict(run.provenance()["data"]["split"])


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return train(tiny, tmp_path_factory.mktemp("runs") / "run", **{"train.holdout": 0.25})


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.5])
def test_every_type_keeps_its_share(tiny, fraction):
    held = held_out(tiny.obs, fraction, within=["cell_type", "donor"])
    for _, rows in tiny.obs.assign(held=held).groupby(["cell_type", "donor"], observed=True):
        assert abs(rows["held"].sum() - fraction * len(rows)) < 1
    assert (held == held_out(tiny.obs, fraction, within=["cell_type", "donor"])).all()
    for other in ({"seed": 1}, {"of": "other data"}):
        assert (held != held_out(tiny.obs, fraction, within=["cell_type", "donor"], **other)).any()


def test_one_cell_of_each_kind_stays():
    obs = pd.DataFrame({"cell_type": ["rare"] + ["common"] * 19})
    for seed in range(20):
        held = held_out(obs, 0.9, within=["cell_type"], seed=seed)
        assert not held[0]
        assert not held[1:].all()


def test_whole_groups_are_held_out_and_one_stays():
    obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(8)], [5, 10, 15, 20, 25, 30, 35, 40])})
    held = held_out(obs, 0.25, by="donor")
    of_donors = obs.assign(held=held).groupby("donor")["held"]
    assert (of_donors.nunique() == 1).all()
    assert of_donors.first().sum() == 2
    assert held_out(obs, 0.99, by="donor").mean() < 1
    with pytest.raises(DataError, match="one value"):
        held_out(obs.assign(donor="d"), 0.2, by="donor")
    with pytest.raises(DataError, match=r"no obs column 'dnor'.*'donor'"):
        held_out(obs, 0.2, by="dnor")


def test_held_out_cells_decide_nothing(tiny, tmp_path, run):
    """What is held out may be replaced by anything of the same composition, and the run is the same."""
    unseen = recorded(run).find_in(tiny).unseen
    trained = np.setdiff1d(np.arange(tiny.n_obs), unseen)
    alone = train(tiny[trained].copy(), tmp_path / "alone")
    assert run.genes() == alone.genes()
    assert json.dumps(run.conditions()) == json.dumps(alone.conditions())
    for file in ("codec.safetensors", "checkpoints/step-0000010/weights.safetensors"):
        assert (run.path / file).read_bytes() == (alone.path / file).read_bytes()


@pytest.mark.parametrize("place", ["memory", "h5ad", "backed"])
def test_a_run_finds_the_cells_it_has_not_seen(tiny, tmp_path, run, place):
    from scdiffkit.io import open_backed

    scdiffkit.write(tiny, tmp_path / "tiny.h5ad")
    cells = {"memory": lambda: tiny, "h5ad": lambda: ad.read_h5ad(tmp_path / "tiny.h5ad"),
             "backed": lambda: open_backed(tmp_path / "tiny.h5ad")}[place]()  # fmt: skip
    found = recorded(run).find_in(cells)
    assert found.kind == "holdout"
    assert len(found.unseen) == pytest.approx(60, abs=2)
    assert not set(found.unseen) & set(found.trained)
    assert len(found.trained) == 240 - len(found.unseen) - 18  # a tenth of the rest is for validation


def test_validation_cells_count_where_none_were_held_out(tiny, tmp_path):
    found = recorded(train(tiny, tmp_path / "run")).find_in(tiny)
    assert (found.kind, len(found.unseen), len(found.trained)) == ("validation", 24, 216)
    found = recorded(train(tiny, tmp_path / "all", **{"train.val_fraction": 0})).find_in(tiny)
    assert (found.kind, len(found.unseen), len(found.trained)) == ("none", 0, 240)


def test_filters_are_taken_into_account(tiny, tmp_path):
    cells = tiny.copy()
    counts = cells.X.toarray()
    counts[::10] = 0  # cells that preparing drops
    cells.X = sparse.csr_matrix(counts)
    run = train(cells, tmp_path / "run", **{"train.holdout": 0.2, "preprocess.min_counts": 40})
    found = recorded(run).find_in(cells)
    kept = np.asarray(cells.X.sum(axis=1)).ravel()[found.trained] >= 40
    assert kept.all()
    assert len(found.trained) < 200


def test_other_cells_are_not_taken_for_those_trained_on(tiny, run):
    data = recorded(run)
    changed = tiny.copy()
    changed.X.data[0] += 1
    relabelled = tiny.copy()
    relabelled.obs["cell_type"] = relabelled.obs["cell_type"].to_numpy()[::-1]
    without = tiny.copy()
    del without.obs["cell_type"]
    for other in (changed, relabelled, without, tiny[1:].copy(), tiny[::-1].copy(), scdiffkit.preprocess(tiny)):
        assert data.find_in(other) is None


def test_neither_run_nor_cells_hold_anything_of_single_cells(tiny, run):
    """Names, and per-cell lists of any kind, would be a membership test."""
    text = "".join(p.read_text() for p in run.path.rglob("*") if p.suffix in (".yaml", ".json", ".txt", ".log"))
    assert not any(name in text for name in tiny.obs_names)
    cells = scdiffkit.sample(run, 20)
    assert cells.uns["scdiffkit"]["trained_on"] == recorded(run).to_dict()
    for value in cells.uns["scdiffkit"]["trained_on"].values():
        assert isinstance(value, (str, int, float, bool)) or len(value) < 10


def test_prepared_cells_are_recognised_too(tiny, tmp_path):
    prepared = scdiffkit.preprocess(tiny, label="cell_type")
    found = recorded(train(prepared, tmp_path / "run", **{"train.holdout": 0.2})).find_in(prepared)
    assert (found.kind, len(found.unseen)) == ("holdout", 48)


def test_train_holds_out_whole_donors_on_the_command_line(tiny, tmp_path):
    scdiffkit.write(tiny, tmp_path / "tiny.h5ad")
    sets = [word for key, value in QUICK.items() for word in ("--set", f"{key}={value}")]
    scdiff("train", tmp_path / "tiny.h5ad", "--label", "cell_type", "--holdout-by", "donor", "--out", tmp_path / "run",
           *sets)  # fmt: skip
    run = Run.open(tmp_path / "run")
    assert (run.config().train.holdout_by, run.config().train.holdout) == ("donor", 0.2)
    found = recorded(run).find_in(ad.read_h5ad(tmp_path / "tiny.h5ad"))
    assert tiny.obs["donor"].iloc[found.unseen].nunique() == 1
    assert not set(tiny.obs["donor"].iloc[found.unseen]) & set(tiny.obs["donor"].iloc[found.trained])
    assert sum(c["cells"] for c in run.conditions()["combinations"]) == 240 - len(found.unseen)
    scdiff("train", tmp_path / "tiny.h5ad", "--holdout-by", "dnor", "--out", tmp_path / "no", *sets, code=1)
    assert not (tmp_path / "no").exists()


def test_conditions_that_a_hold_out_would_empty_are_named(tiny, tmp_path):
    cells = tiny.copy()
    cells.obs["condition"] = np.where(cells.obs["donor"] == cells.obs["donor"].iloc[0], "ctrl", "stim")
    options = {"overrides": QUICK, "label": "cell_type", "condition": ["condition"]}
    with pytest.raises(DataError, match=r"no training cell has condition (ctrl|stim), so 'condition' cannot be learnt"):
        scdiffkit.train(cells, out=tmp_path / "no", holdout=0.5, holdout_by="condition", **options)
    assert not (tmp_path / "no").exists()
    cells.obs["condition"] = np.resize(["ctrl", "stim", "drug"], cells.n_obs)
    with pytest.warns(ScdiffWarning, match=r"no training cell has condition (ctrl|stim|drug): the model"):
        scdiffkit.train(cells, out=tmp_path / "run", holdout=0.3, holdout_by="condition", **options)


def test_a_run_with_cells_held_out_is_resumed(tiny, tmp_path, run):
    whole = train(tiny, tmp_path / "whole", **{"train.holdout": 0.25, "train.max_steps": 20})
    parts = Run(tmp_path / "parts")
    train(tiny, parts.path, **{"train.holdout": 0.25, "train.lr_schedule": "constant"})
    scdiffkit.train(tiny, out=parts.path, resume=True, overrides={"train.max_steps": 20})
    assert recorded(parts) == recorded(whole)
    assert parts.steps()[-1] == 20


@pytest.mark.parametrize("in_file", [False, True])
def test_split_for_any_tool(tiny, tmp_path, in_file):
    cells = tiny.copy()
    cells.layers["counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    cells.obsm["X_pca"] = np.arange(480.0).reshape(240, 2)
    path, train_file, test_file = (tmp_path / f"{name}.h5ad" for name in ("all", "train", "test"))
    scdiffkit.write(cells, path)
    options = ["--memory", "disk"] if in_file else []
    done = scdiff("split", path, "-o", train_file, test_file, "--label", "cell_type", *options)
    assert done.stdout.split() == [str(train_file), str(test_file)]
    parts = [ad.read_h5ad(file) for file in (train_file, test_file)]
    assert sorted([*parts[0].obs_names, *parts[1].obs_names]) == sorted(cells.obs_names)
    assert parts[1].obs["cell_type"].value_counts().to_dict() == {"B": 24, "Mono": 16, "T": 8}
    for part in parts:
        whole = cells[part.obs_names]
        np.testing.assert_array_equal(part.layers["counts"].toarray(), whole.layers["counts"].toarray())
        np.testing.assert_array_equal(part.X.toarray(), whole.X.toarray())
        if not in_file:
            np.testing.assert_array_equal(part.obsm["X_pca"], whole.obsm["X_pca"])
    in_memory = scdiffkit.split(cells, label="cell_type")
    assert list(in_memory[1].obs_names) == list(parts[1].obs_names)
    scdiff("split", path, "-o", train_file, test_file, code=1)  # they exist


def test_what_cannot_be_split_is_refused(tiny, tmp_path):
    for options, error, message in (
        ({"label": "cell_type", "by": "donor"}, ConfigError, "not both"),
        ({"label": "type"}, DataError, "no obs column 'type'"),
        ({"fraction": 1.5}, ConfigError, "between 0 and 1"),
        ({"fraction": 1e-9}, DataError, "give a larger one"),
        ({"out": (tmp_path / "a.h5ad", tmp_path / "a.h5ad")}, ConfigError, "two files"),
    ):
        with pytest.raises(error, match=message):
            scdiffkit.split(tiny, **options)
    (tmp_path / "there.h5ad").touch()
    with pytest.raises(FileError, match="exists"):
        scdiffkit.split(tiny, out=(tmp_path / "new.h5ad", tmp_path / "there.h5ad"))
    assert [p.name for p in Path(tmp_path).iterdir()] == ["there.h5ad"]


def test_a_split_without_a_test_set_is_refused(tiny):
    with pytest.raises(ConfigError, match="no test cells"):
        scdiffkit.split(tiny, fraction=0)
