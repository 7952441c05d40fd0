"""The settings. They are validated and frozen, and have the same names in YAML, Python and on the command line.

This file is long because it holds every setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from scdiffkit.config.base import _Config
from scdiffkit.config.codecs import ORIGINAL_CODEC_SETTINGS, CountCodecConfig, GeneCodecConfig
from scdiffkit.errors import ConfigError, did_you_mean

Arch = Literal["dit", "whitebox", "unet"]
HvgFlavor = Literal["seurat_v3", "seurat", "cell_ranger", "cv", "all", "list"]
PredictionType = Literal["eps", "v", "x0"]
Sampler = Literal["ddim", "dpm++", "ddpm"]
HOLDOUT = 0.2  # default share of the groups to hold out, and of the cells in the test set of `split`
MAX_LIBRARY_SIZE = 2**24  # counts are drawn in float32, which is exact for integers up to this one


class PreprocessConfig(_Config):
    """Settings of preprocessing. A filter that is None is off. Shares are fractions in 0..1."""

    min_counts: int = Field(1, ge=0, description="cells with fewer counts are dropped")
    max_counts: int | None = Field(None, ge=1, description="cells with more counts are dropped")
    min_genes: int = Field(1, ge=0, description="cells with fewer detected genes are dropped")
    max_genes: int | None = Field(None, ge=1, description="cells with more detected genes are dropped")
    max_mito: float | None = Field(
        None, ge=0, le=1, description="cells with a larger fraction of mitochondrial counts are dropped"
    )
    mito_prefix: str = Field("MT-", min_length=1, description="prefix of mitochondrial genes, in upper or lower case")
    min_cells: int = Field(3, ge=0, description="genes detected in fewer cells are dropped")
    hvg_flavor: HvgFlavor = Field("seurat_v3", description="how the highly variable genes are chosen")
    n_top_genes: int = Field(2000, ge=1, description="number of highly variable genes")
    genes: tuple[str, ...] | None = Field(None, description="the genes to use, with hvg_flavor 'list'")
    batch_key: str | None = Field(
        None, description="obs column with batches; genes are ranked within each and the ranks merged"
    )
    target_sum: float = Field(1e4, gt=0, description="counts per cell after normalisation")
    join: Literal["inner", "outer"] = Field(
        "inner", description="genes of several files: 'inner' for the intersection, 'outer' for the union"
    )

    @model_validator(mode="after")
    def _genes_belong_to_list(self) -> PreprocessConfig:
        if (self.hvg_flavor == "list") != (self.genes is not None):
            raise ValueError("a list of genes and hvg_flavor 'list' go together: give both or neither")
        return self


class _TransformerConfig(_Config):
    patch_size: int = Field(10, ge=1, description="coordinates in one token (gene codec: genes)")
    hidden_size: int = Field(768, ge=8, description="width of a token")
    depth: int = Field(3, ge=1, description="number of blocks")
    num_heads: int = Field(8, ge=1, description="heads")
    patch_embedding: Literal["shared", "per-patch"] = Field(
        "shared", description="'shared': one linear map for all patches (the papers); 'per-patch': one for each"
    )

    def layer_size(self, dim: int) -> int:
        """Values in a layer's output for one vector of length `dim`."""
        return self.hidden_size * math.ceil(dim / self.patch_size)

    @model_validator(mode="after")
    def _heads_divide_width(self) -> _TransformerConfig:
        if self.hidden_size % self.num_heads or self.hidden_size % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be even and a multiple of num_heads {self.num_heads}"
            )
        return self


class DiTConfig(_TransformerConfig):
    """Settings of the diffusion transformer with adaLN-Zero blocks (scRDiT)."""

    arch: Literal["dit"] = "dit"
    mlp_ratio: float = Field(4.0, gt=0, description="width of the MLP, relative to hidden_size")


class WhiteBoxConfig(_TransformerConfig):
    """Settings of the white-box diffusion transformer: MSSA replaces attention, and ISTA the MLP (CRATE)."""

    arch: Literal["whitebox"] = "whitebox"
    attention: Literal["mssa", "mhsa"] = Field("mssa", description="'mssa', or 'mhsa' for the attention of DiT")
    feed_forward: Literal["ista", "mlp"] = Field("ista", description="'ista', or 'mlp' for the MLP of DiT")
    ista_residual: Literal["gated", "crate"] | None = Field(
        None, description="'gated': x + gate * ISTA(x), the paper's; 'crate': ISTA(x), CRATE's own"
    )
    ista_step_size: float | None = Field(None, gt=0, description="step of the ISTA iteration (0.1)")
    ista_lambda: float | None = Field(None, ge=0, description="sparsity threshold of ISTA (0.1)")
    mlp_ratio: float | None = Field(None, gt=0, description="only with feed_forward 'mlp' (4)")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_chosen_feed_forward(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        ista = {"ista_residual": "gated", "ista_step_size": 0.1, "ista_lambda": 0.1}
        mlp = {"mlp_ratio": 4.0}
        used, unused = (mlp, ista) if data.get("feed_forward") == "mlp" else (ista, mlp)
        read_by = {"mlp": "ista", "ista": "mlp"}[data.get("feed_forward", "ista")]
        for key in unused:
            if data.get(key) is not None:
                raise ValueError(f"{key} is read only with feed_forward '{read_by}'")
        return {**used, **{k: v for k, v in data.items() if v is not None}}


class UNetConfig(_Config):
    """Settings of the one-dimensional convolutional U-Net over the coordinates (gene codec: genes)."""

    arch: Literal["unet"] = "unet"
    patch_size: int = Field(1, ge=1, description="coordinates in one position of the first convolution")
    channels: int = Field(64, ge=8, description="channels of the first level, a multiple of 8")
    channel_mults: tuple[int, ...] = Field((1, 2, 4), min_length=1, description="channels per level")
    num_res_blocks: int = Field(2, ge=1, description="residual blocks per level")
    kernel_size: int = Field(3, ge=1, description="width of a convolution, an odd number")
    num_heads: int = Field(4, ge=1, description="heads of the attention at the lowest level")

    def layer_size(self, dim: int) -> int:
        """Values in the first level's output for one vector of length `dim`."""
        return self.channels * math.ceil(dim / self.patch_size)

    @model_validator(mode="after")
    def _shapes_fit(self) -> UNetConfig:
        if self.channels % 8 or any(m < 1 for m in self.channel_mults) or self.kernel_size % 2 == 0:
            raise ValueError("channels must be a multiple of 8, channel_mults positive, kernel_size odd")
        if (self.channels * self.channel_mults[-1]) % self.num_heads:
            raise ValueError("channels of the last level must be a multiple of num_heads")
        return self


class DiffusionConfig(_Config):
    """Settings of the forward process and of what the network predicts."""

    schedule: Literal["linear", "cosine"] = "cosine"
    num_train_timesteps: int = Field(1000, ge=2, description="T")
    beta_start: float | None = Field(None, gt=0, lt=1, description="first beta of the linear schedule (1e-4)")
    beta_end: float | None = Field(None, gt=0, lt=1, description="last beta of the linear schedule (0.02)")
    prediction_type: PredictionType = Field("v", description="what the network predicts, and the unit of the loss")
    output: Literal["direct", "spike-slab"] = Field(
        "direct",
        description="'direct': the network's output is the prediction (the papers); 'spike-slab': the output shifts "
        "each gene's odds of being detected and its level where it is detected, and Bayes' rule gives x0 from these",
    )
    min_snr_gamma: float | None = Field(None, gt=0, description="min-SNR loss weighting; None: plain MSE")

    @model_validator(mode="before")
    @classmethod
    def _betas_belong_to_linear(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("schedule", "cosine") == "linear":
            return {
                **data,
                "beta_start": data.get("beta_start") or 1e-4,
                "beta_end": data.get("beta_end") or 0.02,
            }
        for key in ("beta_start", "beta_end"):
            if data.get(key) is not None:
                raise ValueError(f"{key} is read only by the linear schedule")
        return data


class TrainConfig(_Config):
    """Settings of training. Exactly one of max_steps and max_epochs is set."""

    batch_size: int = Field(64, ge=1)
    max_steps: int | None = Field(None, ge=1)
    max_epochs: int | None = Field(None, ge=1)
    lr: float = Field(1e-3, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "cosine"
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = Field(1.0, gt=0, description="maximum gradient norm; None: no clipping")
    ema_decay: float | None = Field(
        0.999, gt=0, lt=1, description="decay of the moving average of the weights; None: no average"
    )
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="probability that a condition is hidden in training")
    val_fraction: float = Field(
        0.1, ge=0, le=0.5, description="fraction of the cells used for validation; 0: no validation"
    )
    holdout: float = Field(
        0.0, ge=0, lt=1, description="fraction of the cells held out from all stages of training, for evaluation"
    )
    holdout_by: str | None = Field(None, description="obs column whose groups are left out as a whole, e.g. donors")
    val_every_steps: int = Field(250, ge=1)
    patience: int | None = Field(
        None,
        ge=1,
        description="number of validations without a lower held-out loss after which training stops; None, or without "
        "validation cells: never",
    )
    checkpoint_every_steps: int | None = Field(
        None, ge=1, description="save an additional checkpoint each time this many steps are done"
    )
    checkpoint_every_minutes: float | None = Field(5.0, gt=0)
    keep_checkpoints: int = Field(
        2, ge=1, description="number of newest checkpoints to keep; older ones are removed, except the best"
    )
    precision: Literal["auto", "32", "bf16"] = "auto"
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    compile: bool | None = Field(
        None,
        description="compile the network (torch.compile): up to a minute of compilation makes steps shorter, which "
        "pays off in long trainings; needs a C++ compiler and, on a GPU, Triton; None: transformers on one GPU are "
        "compiled from 10,000 steps on, if both are installed",
    )
    devices: int = Field(
        1, ge=1, description="number of processes on this machine, one per device, that share every batch"
    )
    num_nodes: int = Field(
        1, ge=1, description="number of machines, each with `devices` devices (start them with torchrun or srun)"
    )

    @model_validator(mode="before")
    @classmethod
    def _default_holdout(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("holdout_by") is not None and not values.get("holdout"):
            return {**values, "holdout": HOLDOUT}
        return values

    @model_validator(mode="after")
    def _steps_or_epochs(self) -> TrainConfig:
        if (self.max_steps is None) == (self.max_epochs is None):
            raise ValueError("exactly one of max_steps and max_epochs must be set")
        return self


def _guidance_scale(value: Any) -> float:
    try:
        scale = float(value)
    except (TypeError, ValueError):
        scale = float("nan")
    if not 0 <= scale < float("inf"):
        raise ValueError(f"a guidance scale must be a finite number of at least 0 (1: no guidance), not {value!r}")
    return scale


class SampleConfig(_Config):
    """Settings of sampling from a run."""

    sampler: Sampler = Field("ddim", description="'dpm++': DPM-Solver++(2M), second order; 'ddpm' visits all T steps")
    steps: int | None = Field(
        None, ge=1, description="number of steps of ddim and dpm++, each with one network call (more with guidance)"
    )
    speedup: int | None = Field(None, ge=1, description="T divided by the number of steps, as in the scRDiT paper")
    eta: float = Field(0.0, ge=0, le=1, description="0: deterministic DDIM, 1: as noisy as DDPM")
    cfg_scale: float | dict[str, float] = Field(
        1.0,
        description="scale of classifier-free guidance (1: no guidance): one number for all conditions together, or "
        "condition column -> scale (1 if not named)",
    )
    library_size: Literal["like", "median"] | int = Field(
        "like",
        description="counts per cell: 'like', as in the training cells or the cells whose composition is copied; "
        "'median', the median of the training cells; or a number",
    )
    seed: int = Field(0, ge=0)
    batch_size: int | None = Field(None, ge=1, description="cells per batch; None: by the model's size")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    devices: int = Field(
        1,
        ge=1,
        description="number of GPUs, or of processes on the CPU, that share the work; the cells do not depend on it",
    )
    precision: Literal["auto", "32", "bf16"] = "auto"

    @field_validator("sampler", mode="before")
    @classmethod
    def _rename_dpm(cls, value: Any) -> Any:
        return "dpm++" if value == "dpm" else value

    @field_validator("cfg_scale", mode="before")
    @classmethod
    def _finite_scales(cls, value: Any) -> float | dict[str, float]:
        if isinstance(value, Mapping):
            return {str(column): _guidance_scale(scale) for column, scale in value.items()}
        return _guidance_scale(value)

    @field_validator("library_size", mode="before")
    @classmethod
    def _like_median_or_counts(cls, value: Any) -> str | int:
        if value in ("like", "median"):
            return value
        try:
            counts = float(value)
        except (TypeError, ValueError, OverflowError):
            counts = 0.0
        if not (counts.is_integer() and 1 <= counts <= MAX_LIBRARY_SIZE):
            raise ValueError(
                f"--library-size must be like, median, or a whole number from 1 to {MAX_LIBRARY_SIZE}, not {value!r}"
            )
        return int(counts)

    @model_validator(mode="after")
    def _steps_or_speedup(self) -> SampleConfig:
        if self.steps and self.speedup:
            raise ValueError("give the number of steps or --speedup, not both")
        if self.sampler == "ddpm":
            for option in ("steps", "speedup"):
                if getattr(self, option):
                    raise ValueError(f"--{option} is read only by the samplers ddim and dpm++: ddpm visits every step")
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"--eta is read only by the sampler ddim, not by {self.sampler}")
        return self


ModelConfig = Annotated[DiTConfig | WhiteBoxConfig | UNetConfig, Field(discriminator="arch")]
CodecConfig = Annotated[CountCodecConfig | GeneCodecConfig, Field(discriminator="name")]


def _by_name(union: Any, key: str) -> dict[str, Any]:
    return {cls.model_fields[key].default: cls for cls in get_args(get_args(union)[0])}


MODEL_CONFIGS, CODEC_CONFIGS = _by_name(ModelConfig, "arch"), _by_name(CodecConfig, "name")
ARCHS, CODEC_NAMES = tuple(MODEL_CONFIGS), tuple(CODEC_CONFIGS)


class RunConfig(_Config):
    """All settings that are needed to repeat a training run, as stored in `config.yaml`."""

    preset: str | None = None
    conditions: tuple[str, ...] = Field((), description="obs columns the model is conditioned on")
    seed: int = Field(0, ge=0)
    preprocess: PreprocessConfig = PreprocessConfig()
    codec: CodecConfig = GeneCodecConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    model: ModelConfig = DiTConfig()
    train: TrainConfig = TrainConfig(max_steps=3000)

    @model_validator(mode="after")
    def _spike_slab_needs_gene_codec(self) -> RunConfig:
        if self.diffusion.output == "spike-slab" and not self.codec.spike_slab:
            raise ValueError("diffusion.output 'spike-slab' is read only with --codec gene")
        return self

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Validate nested plain values. An invalid value raises ConfigError with the name of the option."""
        return _validated(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values for YAML or JSON."""
        return self.model_dump(mode="json")

    @classmethod
    def from_yaml(cls, text: str, source: str = "configuration") -> RunConfig:
        return cls.from_dict(parse_yaml(text, source))

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    def identity(self) -> str:
        """Return a text that identifies this configuration in the id of a run.

        Codec settings added in later versions are left out if they have their defaults, so that ids do not change.
        """
        values = self.to_dict()
        defaults = type(self.codec)().model_dump(mode="json")
        values["codec"] = {
            key: value
            for key, value in values["codec"].items()
            if key in ORIGINAL_CODEC_SETTINGS or value != defaults[key]
        }
        return yaml.safe_dump(values, sort_keys=False)


C = TypeVar("C", bound=_Config)


def make(cls: type[C], **values: Any) -> C:
    """Build a configuration from keyword arguments. None selects the default. Raises ConfigError for invalid values."""
    return _validated(cls, {k: v for k, v in values.items() if v is not None})


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ConfigError(f"{source} is not valid YAML: {e}") from e
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source} must hold `section: values`, not a {type(values).__name__}.")
    return values


def _validated(cls: type[C], values: dict[str, Any]) -> C:
    try:
        return cls.model_validate(values)
    except ValidationError as e:
        lines = [_explain(cls, values, error) for error in e.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None


def _explain(cls: type[_Config], values: dict[str, Any], error: Any) -> str:
    """Convert pydantic's error for one field to a line that tells the user what to change."""
    where = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        key, section = where[-1], where[0]
        owner = f"{section} {where[1]!r}" if section in ("model", "codec") and len(where) > 2 else f"{section!r}"
        chosen: Any = cls
        if len(where) > 1:
            chosen = cls.model_fields[section].annotation
            if section in ("model", "codec"):
                chosen = (MODEL_CONFIGS | CODEC_CONFIGS)[where[1]]
        else:
            owner = "the configuration"
        return f"Option {key!r} is not read by {owner}; {did_you_mean(key, chosen.model_fields)}"
    message = error["msg"].removeprefix("Value error, ")
    given = "" if error["type"] in ("value_error", "missing") else f" (given: {error['input']!r})"
    return f"{'.'.join(where) or cls.__name__}: {message}{given}"
