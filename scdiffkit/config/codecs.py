"""Settings of the codecs."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from scdiffkit.config.base import _Config

ORIGINAL_CODEC_SETTINGS = (  # the codec settings that all versions have
    "name", "likelihood", "latent_dim", "hidden_size", "condition_decoder", "kl_weight", "weight_prior", "max_steps",
    "batch_size", "lr", "val_every_steps", "patience", "zero_negation", "zero_threshold", "scale", "gene_order",
)  # fmt: skip


class GeneCodecConfig(_Config):
    """Settings of the gene codec of the papers: log-normalised values of selected genes, zeros at -zero_negation."""

    highly_variable: ClassVar[bool] = True  # whether only the highly variable genes are modelled
    spike_slab: ClassVar[bool] = True  # whether diffusion.output may be spike-slab
    name: Literal["gene"] = "gene"
    zero_negation: float = Field(10.0, ge=0, description="zeros become minus this value; 0 leaves them unchanged")
    zero_threshold: float | None = Field(
        None, description="threshold below which sampled values become exact zeros; None: the middle of the gap"
    )
    scale: bool = Field(True, description="centre and scale all values, each with one global constant")
    gene_order: Literal["data", "correlation"] = Field(
        "data", description="'correlation' puts co-expressed genes into one patch"
    )


class CountCodecConfig(_Config):
    """Settings of the count codec: an autoencoder with a count likelihood and few latent coordinates for all genes."""

    highly_variable: ClassVar[bool] = False
    spike_slab: ClassVar[bool] = False
    name: Literal["count"] = "count"
    likelihood: Literal["nb", "poisson"] = Field("nb", description="negative binomial, or Poisson")
    latent_dim: int | None = Field(
        None,
        ge=1,
        le=256,
        description="number of latent coordinates; None: as many as are reproducible in unseen cells, at most 24",
    )
    hidden_size: int = Field(128, ge=8, description="width of the encoder's and decoder's hidden layers")
    condition_decoder: bool = Field(True, description="conditions shift the genes' log rates in the decoder")
    kl_weight: float = Field(1.0, ge=0, description="weight of the latent coordinates' KL divergence")
    weight_prior: float = Field(3e-3, gt=0, description="prior variance of the decoder's weights; smaller is smoother")
    max_steps: int = Field(600, ge=1)
    batch_size: int = Field(128, ge=2)
    lr: float = Field(2e-3, gt=0)
    val_every_steps: int = Field(50, ge=1)
    patience: int = Field(
        4, ge=1, description="number of validations without a lower held-out loss after which training stops"
    )
    max_val_cells: int = Field(2048, ge=1, description="maximum number of held-out cells used in a validation")
    warmup_steps: int = Field(50, ge=1, description="number of steps over which the learning rate rises")
    final_lr: float = Field(0.05, ge=0, le=1, description="fraction of the learning rate at the last step (cosine)")
    grad_clip: float = Field(50.0, gt=0, description="maximum norm of the gradient of the weights")
    condition_dropout: float = Field(0.1, ge=0, lt=1, description="fraction of the conditions hidden in training")
    max_pca_cells: int = Field(
        20_000,
        ge=3,
        description="maximum number of cells, drawn at random, from which principal components are computed",
    )
    folds: int = Field(5, ge=2, description="folds of the cross-fitted principal components")
    max_latent_dim: int = Field(
        24, ge=1, le=256, description="maximum number of latent coordinates if latent_dim is None"
    )
    min_reproducible: float = Field(
        0.5,
        ge=0,
        le=1,
        description="fraction of its spread that a component must keep in unseen cells, if latent_dim is None",
    )
    informed_counts: float = Field(
        0.4, ge=0, description="mean count at which a gene's weights have half the prior variance of abundant genes"
    )
    condition_prior: float = Field(0.3, gt=0, description="prior variance of a condition's shift of a gene's log rate")
    dispersion_start: float = Field(10.0, gt=0, description="inverse dispersion of every gene at the start")
    dispersion_lr_scale: float = Field(
        20.0, gt=0, description="learning rate of the dispersions, relative to that of the weights"
    )
    dispersion_min_counts: float = Field(0.02, ge=0, description="minimum mean count at which a gene has a dispersion")
    dispersion_slope_prior: float = Field(
        0.1, gt=0, description="prior variance of the exponent that relates dispersion to the expected count"
    )
    tails_min_counts: float = Field(0.2, ge=0, description="minimum mean count at which a gene has tails")
    tails_odds_prior: float = Field(4.0, gt=0, description="prior variance of the tails' log odds")
    tails_level_prior: float = Field(0.5, gt=0, description="prior variance of the tails' log levels")
    tails_steps: int = Field(150, ge=0, description="number of steps in which the tails are learnt; 0: no tails")
    tails_batch_size: int = Field(128, ge=2)
    tails_lr: float = Field(0.05, gt=0)
