"""Build the configuration of a run from a preset, a YAML file and options; later ones take precedence.

A preset is a YAML file in `presets/` with one partial configuration per codec. Its `model` section has one entry per
architecture, so that a preset covers several architectures.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from scdiffkit.config.schema import ARCHS, CODEC_CONFIGS, CODEC_NAMES, RunConfig, parse_yaml
from scdiffkit.errors import ConfigError, did_you_mean

PRESETS = resources.files("scdiffkit.config") / "presets"
GENE_SELECTION = {f"preprocess.{key}" for key in ("n_top_genes", "hvg_flavor", "genes", "batch_key")}
SECTIONS = ("preprocess", "codec", "diffusion", "model", "train")


def presets() -> list[str]:
    """Return the names of the presets in the package."""
    return sorted(p.name.removesuffix(".yaml") for p in PRESETS.iterdir() if p.name.endswith(".yaml"))


def load_preset(name: str) -> dict[str, Any]:
    """Return the values of a preset as a nested dict. Raises ConfigError, which suggests presets, if it is unknown."""
    if name not in presets():
        raise ConfigError(f"There is no preset {name!r}; {did_you_mean(name, presets())}")
    text = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_yaml(text, f"preset {name}")


def load_file(path: str | Path) -> dict[str, Any]:
    """Return the values of a YAML configuration file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"The configuration file {path} cannot be read: {e}") from e
    values = parse_yaml(text, str(path))
    values.pop("provenance", None)  # part of a run's config.yaml, but not a setting
    return values


def build_run_config(
    preset: str | None = None,
    arch: str | None = None,
    file_values: dict[str, Any] | None = None,
    overrides: dict[str, Any] | None = None,
) -> RunConfig:
    """Merge preset, file and overrides (dotted keys such as "train.lr"). Later ones take precedence.

    Raises ConfigError for an unknown preset, for a codec or an architecture without values in the preset, and for any
    option that the selected architecture or codec does not read.
    """
    file_values = _without_empty_sections(file_values or {})
    overrides = _without_empty_sections(overrides or {})
    preset = preset or file_values.get("preset") or "small"
    per_codec = load_preset(preset)
    file_codec = file_values.get("codec") or {}
    codec = overrides.get("codec.name") or file_codec.get("name") or next(iter(per_codec))
    if codec not in CODEC_NAMES:
        raise ConfigError(f"There is no codec {codec!r}; {did_you_mean(str(codec), CODEC_NAMES)}")
    if codec not in per_codec:
        raise ConfigError(
            f"Preset {preset!r} has no values for --codec {codec}, only for {next(iter(per_codec))!r}; "
            "try --preset small."
        )
    if not CODEC_CONFIGS[codec].highly_variable:
        for key in GENE_SELECTION & overrides.keys():
            option = "--" + key.removeprefix("preprocess.").replace("_", "-")
            raise ConfigError(
                f"{option} ({key}) is read only with --codec gene: the {codec} codec models every gene that passes "
                "the filters. Leave it out, or give --codec gene."
            )
    values = per_codec[codec]
    per_arch: dict[str, Any] = values.pop("model")
    file_model = file_values.get("model") or {}
    arch = arch or overrides.get("model.arch") or file_model.get("arch") or next(iter(per_arch))
    if arch not in ARCHS:
        raise ConfigError(f"There is no architecture {arch!r}; {did_you_mean(str(arch), ARCHS)}")
    if arch not in per_arch:
        fitting = ", ".join(repr(a) for a in per_arch)
        raise ConfigError(f"Preset {preset!r} has no values for --arch {arch}, only for {fitting}; try --preset small.")
    values["model"] = {**per_arch[arch], "arch": arch}
    for layer in (file_values, _nested(overrides)):
        _merge(values, layer)
        length = {"max_steps", "max_epochs"}
        given = {key for key in length if layer.get("train", {}).get(key) is not None}
        if len(given) == 1:  # max_steps replaces max_epochs, and vice versa
            values["train"].update(dict.fromkeys(length - given))
    values["preset"], values["model"]["arch"] = preset, arch
    return RunConfig.from_dict(values)


# Options of `scdiff train` and the settings that they change.
TRAINING_OPTIONS = {
    "codec": "codec.name",
    "n_top_genes": "preprocess.n_top_genes",
    "patch_size": "model.patch_size",
    "hidden_size": "model.hidden_size",
    "depth": "model.depth",
    "num_heads": "model.num_heads",
    "prediction_type": "diffusion.prediction_type",
    "schedule": "diffusion.schedule",
    "max_steps": "train.max_steps",
    "max_epochs": "train.max_epochs",
    "batch_size": "train.batch_size",
    "lr": "train.lr",
    "val_fraction": "train.val_fraction",
    "holdout": "train.holdout",
    "holdout_by": "train.holdout_by",
    "device": "train.device",
    "devices": "train.devices",
    "num_nodes": "train.num_nodes",
    "precision": "train.precision",
    "join": "preprocess.join",
    "seed": "seed",
}


def training_overrides(**options: Any) -> dict[str, Any]:
    """Convert options by their names on the command line to overrides by dotted keys. None values are dropped.

    Raises ConfigError for an unknown option.
    """
    for name in options:
        if name not in TRAINING_OPTIONS:
            raise ConfigError(f"There is no option {name!r}; {did_you_mean(name, TRAINING_OPTIONS)}")
    return {TRAINING_OPTIONS[name]: value for name, value in options.items() if value is not None}


def sampler_options(
    sampler: str | None = None, steps: int | None = None, ddim: int | None = None, ddpm: bool = False
) -> dict[str, Any]:
    """Convert --sampler and --steps, or their short forms --ddim STEPS and --ddpm, to settings of SampleConfig.

    Raises ConfigError if two of them contradict each other.
    """
    if ddpm and ddim is not None:
        raise ConfigError("Give --ddim or --ddpm, not both.")
    if ddim is not None and steps is not None:
        raise ConfigError("Give the number of steps by --ddim or by --steps, not both.")
    short = "ddim" if ddim is not None else "ddpm" if ddpm else None
    if short and sampler not in (None, short):
        raise ConfigError(f"--{short} and --sampler {sampler} contradict each other: give one of them.")
    return {"sampler": sampler or short, "steps": steps if ddim is None else ddim}


def _without_empty_sections(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values without empty sections. Raises ConfigError if a section is not a mapping."""
    for section in SECTIONS:
        if not isinstance(values.get(section), Mapping | None):
            raise ConfigError(
                f"{section}: must be a section of `option: value`, not {values[section]!r} (for one option: "
                f"--set {section}.OPTION=VALUE)."
            )
    return {key: value for key, value in values.items() if not (key in SECTIONS and value is None)}


def _nested(dotted: dict[str, Any]) -> dict[str, Any]:
    """Nest dotted keys: {"train.lr": 1} -> {"train": {"lr": 1}}."""
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        section = nested
        *parents, leaf = key.split(".")
        for part in parents:
            section = section.setdefault(part, {})
        section[leaf] = value
    return nested


def _merge(into: dict[str, Any], other: dict[str, Any]) -> None:
    """Merge the nested dict `other` into `into`, in place."""
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
