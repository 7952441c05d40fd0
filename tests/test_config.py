"""Settings come from preset, file and command line in that order; what nobody reads is refused by name."""

import pytest
import yaml

from scdiffkit.config import (
    CODEC_NAMES,
    PreprocessConfig,
    RunConfig,
    SampleConfig,
    build_run_config,
    load_file,
    make,
    parse_yaml,
    presets,
    sampler_options,
)
from scdiffkit.config.units import parse_bytes
from scdiffkit.errors import ConfigError, wording


@pytest.fixture(autouse=True)
def _as_in_the_shell():
    with wording(str):
        yield


def archs(preset, codec=None):
    for arch in ("dit", "whitebox", "unet"):
        try:
            build_run_config(preset, arch, overrides={"codec.name": codec} if codec else None)
            yield arch
        except ConfigError:
            pass


def codecs(preset):
    return [codec for codec in CODEC_NAMES if list(archs(preset, codec))]


def test_the_presets_there_are():
    assert {"small", "base", "large", "scrdit", "whitebox-dit"} <= set(presets())
    assert set(archs("small")) == {"dit", "whitebox", "unet"}
    assert list(archs("scrdit")) == ["dit", "unet"]
    assert list(archs("whitebox-dit")) == ["dit", "whitebox"]


def test_the_codecs_a_preset_has_values_for():
    for preset in ("small", "base", "large"):
        assert codecs(preset) == ["count", "gene"]
        assert build_run_config(preset).codec.name == "count"
        assert set(archs(preset, "gene")) == set(archs(preset, "count")) == {"dit", "whitebox", "unet"}
    for preset in ("scrdit", "whitebox-dit"):
        assert codecs(preset) == ["gene"]
        assert build_run_config(preset).codec.name == "gene"
    assert build_run_config().codec.name == "count"


def test_a_codec_brings_its_own_values(tmp_path):
    count, gene = (build_run_config(overrides={"codec.name": name}) for name in ("count", "gene"))
    assert (count.diffusion.output, gene.diffusion.output) == ("direct", "spike-slab")
    assert count.model.patch_size < gene.model.patch_size
    file = tmp_path / "mine.yaml"
    file.write_text("codec: {name: gene, zero_negation: 5}\n")
    assert build_run_config(None, None, load_file(file)) == build_run_config(
        overrides={"codec.name": "gene", "codec.zero_negation": 5}
    )


def load_yaml(config):
    """What a file that holds the configuration gives."""
    return parse_yaml(config.to_yaml(), "config.yaml")


@pytest.mark.parametrize("preset", presets())
def test_yaml_both_ways(preset):
    for codec in codecs(preset):
        for arch in archs(preset, codec):
            config = build_run_config(preset, arch, overrides={"codec.name": codec})
            assert RunConfig.from_yaml(config.to_yaml()) == config
            assert build_run_config(file_values=load_yaml(config)) == config


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
    both = build_run_config("small", overrides={"codec.max_steps": 7, "train.max_epochs": 5})
    assert (both.codec.max_steps, both.train.max_epochs, both.train.max_steps) == (7, 5, None)


def test_a_section_without_values_says_nothing(tmp_path):
    (tmp_path / "mine.yaml").write_text("codec:\nmodel:\ntrain:\n")
    assert build_run_config(file_values=load_file(tmp_path / "mine.yaml")) == build_run_config()


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
        (
            {"overrides": {"codec.name": "gene", "codec.latent_dim": 16}},
            "'latent_dim' is not read by codec 'gene'",
        ),
        ({"overrides": {"codec.zero_negation": 10}}, "'zero_negation' is not read by codec 'count'"),
        ({"overrides": {"codec.name": "genes"}}, "no codec 'genes'; did you mean 'gene'"),
        ({"overrides": {"codec.name": 3}}, "no codec 3"),
        ({"preset": "scrdit", "overrides": {"codec.name": "count"}}, "no values for --codec count.*try --preset small"),
        ({"overrides": {"diffusion.output": "spike-slab"}}, "read only with --codec gene"),
        ({"overrides": {"codec.latent_dim": 0}}, r"codec\.count\.latent_dim: .*greater than"),
        ({"overrides": {"codec.likelihood": "normal"}}, "likelihood: .*'nb' or 'poisson'"),
        ({"file_values": {"codec": "gene"}}, "codec: .*section"),
        ({"file_values": {"model": "dit"}}, "model: .*section"),
        ({"file_values": {"train": 3}}, "train: .*section"),
        ({"overrides": {"codec": "gene"}}, r"codec: .*--set codec\.OPTION=VALUE"),
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
        ({"sampler": "ddpm", "steps": 20}, r"--steps is read only by the samplers ddim and dpm\+\+"),
        ({"sampler": "ddpm", "speedup": 20}, r"--speedup is read only by the samplers ddim and dpm\+\+"),
        ({"sampler": "ddpm", "eta": 0.5}, "--eta is read only by the sampler ddim, not by ddpm"),
        ({"sampler": "dpm", "eta": 0.5}, r"--eta is read only by the sampler ddim, not by dpm\+\+"),
        ({"sampler": "dpn"}, r"sampler: .*'dpm\+\+'"),
        ({"steps": 20, "speedup": 10}, "steps or --speedup, not both"),
        ({"sampler": "dpm", "steps": 20, "speedup": 10}, "steps or --speedup, not both"),
        ({"eta": 1.5}, "less than or equal to 1"),
        ({"cfg_scale": -1}, "cfg_scale: .*finite number"),
        ({"cfg_scale": "inf"}, "cfg_scale: .*finite number"),
        ({"cfg_scale": {"cell_type": float("nan")}}, "cfg_scale: .*finite number"),
        ({"library_size": 0}, "library_size: .*from 1 to .*not 0"),
        ({"library_size": "-5"}, "library_size: .*not '-5'"),
        ({"library_size": 2.5}, "library_size: .*whole number"),
        ({"library_size": "mean"}, "like, median, or"),
        ({"library_size": 10**10}, "not 10000000000"),
    ],
)
def test_sampling_options_that_contradict_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        make(SampleConfig, **values)


@pytest.mark.parametrize(
    ("given", "sampler", "steps"),
    [
        ({}, None, None),
        ({"ddim": 20}, "ddim", 20),
        ({"ddim": 20, "sampler": "ddim"}, "ddim", 20),
        ({"ddpm": True}, "ddpm", None),
        ({"sampler": "dpm"}, "dpm", None),
        ({"sampler": "dpm", "steps": 10}, "dpm", 10),
        ({"steps": 10}, None, 10),
    ],
)
def test_short_and_long_ways_to_name_a_sampler(given, sampler, steps):
    assert sampler_options(**given) == {"sampler": sampler, "steps": steps}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ddim": 20, "ddpm": True}, "--ddim or --ddpm, not both"),
        ({"ddim": 20, "steps": 20}, "by --ddim or by --steps, not both"),
        ({"ddim": 20, "sampler": "dpm"}, "--ddim and --sampler dpm contradict"),
        ({"ddpm": True, "sampler": "dpm"}, "--ddpm and --sampler dpm contradict"),
    ],
)
def test_ways_to_name_a_sampler_that_contradict_are_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        sampler_options(**given)


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


@pytest.mark.parametrize("key", ["n_top_genes", "hvg_flavor", "genes", "batch_key"])
def test_choosing_genes_is_refused_where_all_are_modelled(key):
    with pytest.raises(ConfigError, match="only with --codec gene"):
        build_run_config(overrides={f"preprocess.{key}": "cv", "codec.name": "count"})


@pytest.mark.parametrize(("text", "value"), [(None, None), (1.5, 1.5), ("8G", 8e9), ("2500M", 2.5e9), ("1e9", 1e9)])
def test_amounts_of_memory(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize("text", ["lots", "-1G", "0", ""])
def test_amounts_that_are_none(text):
    with pytest.raises(ConfigError, match="or an amount of memory"):
        parse_bytes(text)


def test_settings_that_came_later_do_not_change_the_id_of_a_run_until_they_are_set():
    """Ids, and with them names and random numbers of cells, are those of versions that had none of these settings."""
    usual = build_run_config("small", "dit", {}, {})
    for config in (usual, build_run_config("scrdit", "dit", {}, {})):
        assert not {"tails_steps", "folds", "warmup_steps"} & set(yaml.safe_load(config.identity())["codec"])
    longer = build_run_config("small", "dit", {}, {"codec.tails_steps": 20})
    assert yaml.safe_load(longer.identity())["codec"]["tails_steps"] == 20
    assert longer.identity() != usual.identity()
    assert yaml.safe_load(usual.to_yaml())["codec"]["tails_steps"] == 150
