"""What could be imported before modules were sorted into folders still can, with a warning that says where it is."""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import scdiffkit
from scdiffkit._deprecated import MOVED, migrate_codec_auc
from scdiffkit.cli import app
from scdiffkit.errors import ConfigError, DataError, ScdiffWarning


@pytest.mark.parametrize(
    ("old", "name", "new"),
    [
        ("generate", "steps_of", "scdiffkit.sampling.plan"),
        ("evaluate", "Evaluation", "scdiffkit.evaluation.result"),
        ("preprocess", "find_counts", "scdiffkit.preprocessing.counts"),
        ("fit", "TrainStatus", "scdiffkit.training.status"),
        ("data", "Conditions", "scdiffkit.data.conditions"),
        ("data", "Cells", "scdiffkit.data.cells"),
        ("verdict", "judge", "scdiffkit.evaluation.verdict"),
    ],
)
def test_old_modules_give_what_they_gave_and_name_the_new_one(old, name, new):
    module = importlib.import_module(f"scdiffkit.{old}")
    with pytest.warns(DeprecationWarning, match=rf"scdiffkit\.{old}\.{name} is now {new}\.") as caught:
        found = getattr(module, name)
    assert found.__module__ == new
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        _ = module.nothing_of_the_kind


def test_old_modules_are_attributes_of_the_package():
    with pytest.warns(DeprecationWarning, match="TrainingData is now scdiffkit.data.split.TrainingData"):
        assert scdiffkit.holdout.TrainingData.__module__ == "scdiffkit.data.split"
    assert callable(scdiffkit.evaluate)


def test_every_place_that_is_named_exists():
    for places in MOVED.values():
        for place in places:
            importlib.import_module(f"scdiffkit.{place}")


@pytest.mark.process
def test_functions_stay_functions_once_an_old_module_of_their_name_was_imported():
    code = (
        "import scdiffkit, scdiffkit.datasets, scdiffkit.train; from scdiffkit.preprocess import preprocess; "
        "import scdiffkit.preprocess, scdiffkit.evaluate, scdiffkit.compare; "
        "scdiffkit.preprocess(scdiffkit.datasets.demo_cells()); "
        "print([callable(getattr(scdiffkit, n)) for n in scdiffkit.__all__ if n != '__version__']); "
        "import inspect; print('out' in inspect.signature(scdiffkit.evaluate).parameters, "
        "'Examples' in inspect.getdoc(scdiffkit.train))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "False" not in done.stdout
    assert done.stdout.endswith("True True\n")


def test_old_keywords_still_work_and_name_the_new_ones(tiny):
    with (
        pytest.warns(DeprecationWarning, match=r"train\(conditions=\.\.\.\) is now condition=") as caught,
        pytest.raises(DataError, match="no obs column 'batches'"),
    ):
        scdiffkit.train(tiny, label="cell_type", conditions=["batches"])
    assert caught[0].filename == __file__
    with pytest.raises(TypeError, match="both 'condition' and its old name 'conditions'"):
        scdiffkit.evaluate(tiny, tiny, condition="donor", conditions=["donor"])


def test_warnings_point_at_the_users_line(tiny, tmp_path):
    quick = {
        "train.max_steps": 2,
        "codec.max_steps": 10,
        "codec.tails_steps": 10,
        "model.hidden_size": 16,
        "model.depth": 1,
    }
    with pytest.warns(ScdiffWarning, match="few training cells") as caught:
        scdiffkit.train(tiny[:40].copy(), label="cell_type", out=tmp_path / "run", overrides=quick)
    assert {warning.filename for warning in caught if issubclass(warning.category, ScdiffWarning)} == {__file__}


def test_two_keywords_for_memory_are_one_now(tiny, tmp_path):
    with (
        pytest.warns(DeprecationWarning, match=r"split\(backed=\.\.\.\) is now memory='disk'"),
        pytest.raises(ConfigError, match="in memory already"),
    ):
        scdiffkit.split(tiny, backed=True)
    with (
        pytest.warns(DeprecationWarning, match=r"split\(max_memory=\.\.\.\) is now memory=1"),
        pytest.raises(ConfigError, match="too little"),
    ):
        scdiffkit.split(tiny, max_memory=1)


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (["--backed"], "--backed is now --memory disk."),
        (["--in-memory"], "--in-memory is now --memory ram."),
        (["--max-memory", "8G"], "--max-memory is now --memory."),
        (["--max-memory=8G"], "--max-memory is now --memory."),
    ],
)
def test_old_options_still_work_and_name_the_new_ones(before, now, tiny, tmp_path):
    scdiffkit.write(tiny, tmp_path / "cells.h5ad")
    paths = [str(tmp_path / f"{name}.h5ad") for name in ("cells", "train", "test")]
    done = CliRunner().invoke(app, ["split", paths[0], "-o", *paths[1:], *before])
    assert done.exit_code == 0, done.output
    assert now in done.output


def test_scores_know_the_names_they_had(demo):
    found = scdiffkit.evaluate(demo[::2].copy(), demo[1::2].copy(), metrics="minimal", resamples=1, max_cells=50)
    score = found["rf_auc"]
    with pytest.warns(DeprecationWarning, match=r"Score\.floor is now real_reference\."):
        assert score.floor == score.real_reference
    with pytest.warns(DeprecationWarning, match=r"Score\.ceiling is now baseline\."):
        assert score.ceiling("shuffled") == score.baseline("shuffled")
    with pytest.warns(DeprecationWarning, match=r"Evaluation\.floor_definition is now reference_definition"):
        assert found.floor_definition == found.reference_definition
    with pytest.raises(AttributeError, match="'Score' object has no attribute 'nothing'"):
        _ = score.nothing
    assert pickle.loads(pickle.dumps(score)) == score


def test_cells_of_older_versions_tell_what_their_codec_scored():
    assert migrate_codec_auc({"held_out": 0.6, "floor": 0.5}) == {"held_out": 0.6, "real_reference": 0.5}
