"""Settings come from preset, file and command line in that order; what nobody reads is refused by name."""

import pytest

from scdiffkit.config import (
    PreprocessConfig,
    RunConfig,
    SampleConfig,
    build_run_config,
    load_file,
    make,
    presets,
)
from scdiffkit.errors import ConfigError


def archs(preset):
    for arch in ("dit", "whitebox", "unet"):
        try:
            build_run_config(preset, arch)
            yield arch
        except ConfigError:
            pass


def test_the_presets_there_are():
    assert {"small", "base", "large", "scrdit", "whitebox-dit"} <= set(presets())
    assert set(archs("small")) == {"dit", "whitebox", "unet"}
    assert list(archs("scrdit")) == ["dit", "unet"]
    assert list(archs("whitebox-dit")) == ["dit", "whitebox"]


@pytest.mark.parametrize("preset", presets())
def test_yaml_both_ways(preset):
    for arch in archs(preset):
        config = build_run_config(preset, arch)
        assert RunConfig.from_yaml(config.to_yaml()) == config


def test_the_papers_values():
    scrdit, whitebox = build_run_config("scrdit"), build_run_config("whitebox-dit")
    for config in (scrdit, whitebox):
        d, m, t = config.diffusion, config.model, config.train
        assert (d.schedule, d.num_train_timesteps, d.beta_start, d.beta_end) == ("linear", 1000, 1e-4, 0.02)
        assert (d.prediction_type, d.min_snr_gamma) == ("eps", None)
        assert (m.patch_size, m.hidden_size, m.depth, m.num_heads) == (10, 768, 3, 8)
        assert (t.batch_size, t.max_epochs, t.max_steps, t.ema_decay, t.grad_clip) == (
            16,
            1600,
            None,
            None,
            None,
        )
        assert (t.val_fraction, t.lr_schedule, t.warmup_steps) == (0.0, "constant", 0)
        assert (config.preprocess.hvg_flavor, config.preprocess.n_top_genes) == ("cv", 2000)
        assert (config.codec.scale, config.codec.zero_threshold, config.codec.gene_order) == (
            False,
            0.0,
            "data",
        )
    assert (scrdit.train.lr, scrdit.codec.zero_negation, scrdit.model.mlp_ratio) == (3e-4, 10.0, 4.0)
    assert (whitebox.train.lr, whitebox.codec.zero_negation) == (1e-4, 0.0)
    assert (whitebox.model.ista_step_size, whitebox.model.ista_lambda) == (0.1, 0.1)


def test_later_ones_win(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("preset: small\nmodel: {arch: unet, channels: 32}\ntrain: {lr: 0.01, batch_size: 7}\n")
    config = build_run_config(None, None, load_file(file), {"train.lr": 0.5})
    assert config.model.arch == "unet"
    assert config.model.channels == 32
    assert (config.train.lr, config.train.batch_size) == (0.5, 7)


def test_steps_replace_epochs_and_the_reverse():
    assert build_run_config("scrdit", overrides={"train.max_steps": 5}).train.max_epochs is None
    assert build_run_config("small", overrides={"train.max_epochs": 5}).train.max_steps is None


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"preset": "smal"}, "did you mean 'small'"),
        ({"arch": "ditt"}, "did you mean 'dit'"),
        ({"preset": "scrdit", "arch": "whitebox"}, "no values for --arch whitebox"),
        (
            {"arch": "dit", "overrides": {"model.ista_lambda": 0.1}},
            "'ista_lambda' is not read by model 'dit'",
        ),
        (
            {"arch": "unet", "overrides": {"model.hidden_size": 64}},
            "'hidden_size' is not read by model 'unet'",
        ),
        ({"arch": "whitebox", "overrides": {"model.mlp_ratio": 4}}, "read only with feed_forward 'mlp'"),
        (
            {"arch": "whitebox", "overrides": {"model.feed_forward": "mlp", "model.ista_lambda": 0.1}},
            "read only with feed_forward 'ista'",
        ),
        ({"overrides": {"codec.latent_dim": 16}}, "'latent_dim' is not read by 'codec'"),
        ({"overrides": {"train.learning_rate": 1}}, "'learning_rate' is not read by 'train'"),
        ({"overrides": {"trian.lr": 1}}, "did you mean 'train'"),
        ({"overrides": {"diffusion.beta_end": 0.1}}, "read only by the linear schedule"),
        ({"overrides": {"train.lr": -1}}, r"train\.lr: .* greater than 0"),
        ({"overrides": {"train.batch_size": "many"}}, r"train\.batch_size: .*integer"),
        ({"overrides": {"model.num_heads": 3}}, "multiple of num_heads"),
        (
            {"overrides": {"train.max_steps": 1, "train.max_epochs": 1}},
            "exactly one of max_steps and max_epochs",
        ),
    ],
)
def test_a_wrong_option_is_named(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        build_run_config(**kwargs)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sampler": "ddpm", "steps": 20}, "read only by ddim"),
        ({"steps": 20, "speedup": 10}, "not both"),
        ({"eta": 1.5}, "less than or equal to 1"),
        ({"cfg_scale": -1}, "cfg_scale: .*finite number"),
        ({"cfg_scale": "inf"}, "cfg_scale: .*finite number"),
        ({"cfg_scale": {"cell_type": float("nan")}}, "cfg_scale: .*finite number"),
        ({"library_size": 0}, "library_size: .*from 1 up to .*not 0"),
        ({"library_size": "-5"}, "library_size: .*not '-5'"),
        ({"library_size": 2.5}, "library_size: .*whole number"),
        ({"library_size": "mean"}, "like, median, or"),
        ({"library_size": 10**10}, "not 10000000000"),
    ],
)
def test_sampling_options_that_contradict_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make(SampleConfig, **values)


def test_genes_and_flavor_list_go_together():
    with pytest.raises(ConfigError, match="go together"):
        make(PreprocessConfig, genes=("A",))


def test_a_file_that_is_not_yaml_or_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_file(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_file(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="section: values"):
        load_file(tmp_path / "list.yaml")
