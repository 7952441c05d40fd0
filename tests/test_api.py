"""The functions of the package take what the command line takes, by the same names."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import typer

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.config import SampleConfig
from scdiffkit.errors import ConfigError

QUICK = {
    "codec.max_steps": 10,
    "codec.tails_steps": 10,
    "model.hidden_size": 16,
    "model.depth": 1,
    "model.num_heads": 2,
}


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return scdiffkit.train(
        tiny, label="cell_type", condition="donor", arch="dit", max_steps=3, batch_size=32, lr=1e-4, seed=5,
        max_time="10m", out=tmp_path_factory.mktemp("runs") / "run", overrides=QUICK,
    )  # fmt: skip


def test_train_takes_single_options(run):
    config = run.config()
    assert config.conditions == ("cell_type", "donor")
    assert (config.model.arch, config.seed) == ("dit", 5)
    assert (config.train.max_steps, config.train.batch_size, config.train.lr) == (3, 32, 1e-4)
    assert run.steps()[-1] == 3


def test_sample_takes_single_options_or_a_configuration(run):
    single = scdiffkit.sample(run, 6, steps=4, sampler="dpm", seed=3)
    together = scdiffkit.sample(run, 6, config=SampleConfig(steps=4, sampler="dpm", seed=3))
    changed = scdiffkit.sample(run, 6, config=SampleConfig(steps=9, sampler="dpm", seed=3), steps=4)
    for other in (together, changed):
        assert list(other.obs_names) == list(single.obs_names)
        np.testing.assert_array_equal(other.X.toarray(), single.X.toarray())
    with pytest.raises(ConfigError, match="ddpm visits every step"):
        scdiffkit.sample(run, 6, steps=4, sampler="ddpm")


def test_times_that_are_none_are_refused(tiny):
    with pytest.raises(ConfigError, match="'soon' is not a duration"):
        scdiffkit.train(tiny, label="cell_type", max_time="soon")


@pytest.mark.parametrize("name", ["train", "sample", "evaluate", "compare", "split"])
def test_keywords_are_named_as_the_options_are(name):
    # settings of the network are dotted keys in Python, and sampler shortcuts are of the shell
    aside = {
        "train": {
            "set_", "patch_size", "hidden_size", "depth", "num_heads", "prediction_type", "schedule", "num_nodes",
        },
        "sample": {"ddim", "ddpm"}, "evaluate": {"fail_below", "json"}, "compare": {"json"},
    }  # fmt: skip
    options = {p.name for p in typer.main.get_command(app).commands[name].params} - {"help"} - aside.get(name, set())
    keywords = set(inspect.signature(getattr(scdiffkit, name)).parameters)
    assert {"out" if option == "output" else option for option in options} <= keywords
