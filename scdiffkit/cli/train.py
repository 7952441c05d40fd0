"""scdiff train: train a model on cells and save it as a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import (
    INPUT,
    MACHINE,
    Device,
    Join,
    Memory,
    Precision,
    choices,
    log,
    parse_settings,
    progress,
    result,
    seconds_since_start,
)
from scdiffkit.config import ARCHS, CODEC_NAMES
from scdiffkit.config.units import parse_duration
from scdiffkit.runtime.progress import seconds

MODEL = "Model"
LENGTH = "Training"


def train(
    data: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Raw counts or prepared cells: h5ad, zarr, loom, 10x folder or 10x h5. Several files, or a folder of "
            "them, are trained on as one data set. With --resume, by default the files of the run.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="obs column with the cell types.", rich_help_panel=MODEL)] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Further obs column to condition on, e.g. a treatment; repeatable.", rich_help_panel=MODEL),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            help="Architecture of the denoiser.",
            show_default="the first of the preset",
            rich_help_panel=MODEL,
            **choices(*ARCHS),
        ),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Set of defaults; scrdit and whitebox-dit are the papers' values.",
            show_default="small",
            rich_help_panel=MODEL,
            **choices("small", "base", "large", "scrdit", "whitebox-dit"),
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with settings, such as config.yaml of a run.", rich_help_panel=MODEL),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(
            help="count: integer counts of all genes; gene: log values of the highly variable genes (the papers).",
            show_default="count",
            rich_help_panel=MODEL,
            **choices(*CODEC_NAMES),
        ),
    ] = None,
    n_top_genes: Annotated[
        int | None,
        typer.Option(
            help="Number of highly variable genes, for --codec gene.", show_default="2000", rich_help_panel=MODEL
        ),
    ] = None,
    patch_size: Annotated[
        int | None, typer.Option(help="Coordinates per token.", show_default="preset", rich_help_panel=MODEL)
    ] = None,
    hidden_size: Annotated[
        int | None, typer.Option(help="Width of a token.", show_default="preset", rich_help_panel=MODEL)
    ] = None,
    depth: Annotated[
        int | None, typer.Option(help="Number of transformer blocks.", show_default="preset", rich_help_panel=MODEL)
    ] = None,
    num_heads: Annotated[
        int | None, typer.Option(help="Number of attention heads.", show_default="preset", rich_help_panel=MODEL)
    ] = None,
    prediction_type: Annotated[
        str | None,
        typer.Option(
            help="What the denoiser predicts.",
            show_default="preset",
            rich_help_panel=MODEL,
            **choices("eps", "v", "x0"),
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            help="Noise schedule.", show_default="preset", rich_help_panel=MODEL, **choices("linear", "cosine")
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other setting, e.g. model.ista_lambda=0.2; repeatable.",
            metavar="KEY=VALUE",
            rich_help_panel=MODEL,
        ),
    ] = None,
    max_steps: Annotated[
        int | None, typer.Option(help="Number of training steps.", show_default="preset", rich_help_panel=LENGTH)
    ] = None,
    max_epochs: Annotated[
        int | None, typer.Option(help="Number of epochs, instead of steps.", rich_help_panel=LENGTH)
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(
            help="Stop and save after this time, counted from the start of the command: 90s, 10m, 2h.",
            metavar="TIME",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Cells per step.", show_default="preset", rich_help_panel=LENGTH)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate.", show_default="preset", rich_help_panel=LENGTH)
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the cells held out from all stages of training, for scdiff evaluate.",
            show_default="0",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    holdout_by: Annotated[
        str | None,
        typer.Option(help="obs column whose groups are left out as a whole, e.g. donors.", rich_help_panel=LENGTH),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Fraction of the cells used for validation, which selects the best step.",
            show_default="0.1",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Random seed; the same seed on the same machine gives the same weights.",
            show_default="0",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Continue the run in --out, by default the latest run.", rich_help_panel=LENGTH),
    ] = False,
    device: Device = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="Processes that share every batch, one per GPU or core.", show_default="1", rich_help_panel=MACHINE
        ),
    ] = None,
    num_nodes: Annotated[
        int | None,
        typer.Option(
            help="Number of machines; start the command on each with torchrun or srun.",
            show_default="1",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    precision: Precision = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Folder of the run.", show_default="scdiff-runs/NAME", rich_help_panel=INPUT),
    ] = None,
    memory: Memory = "auto",
    join: Join = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.", rich_help_panel=INPUT)] = False,
) -> None:
    """Train a diffusion model on your cells. Raw counts are first preprocessed with default settings."""
    if not data and not resume:
        raise typer.BadParameter("give the cells to train on (DATA), or --resume to continue a run.")
    limit = parse_duration(max_time)
    if limit is not None:
        limit = max(1.0, limit - seconds_since_start())
    from scdiffkit.config import build_run_config, load_file, training_overrides
    from scdiffkit.training.distributed import is_main_process
    from scdiffkit.training.pipeline import train as fit
    from scdiffkit.training.status import TrainStatus

    overrides = training_overrides(
        codec=codec, n_top_genes=n_top_genes, patch_size=patch_size, hidden_size=hidden_size, depth=depth,
        num_heads=num_heads, prediction_type=prediction_type, schedule=schedule, max_steps=max_steps,
        max_epochs=max_epochs, batch_size=batch_size, lr=lr, val_fraction=val_fraction, holdout=holdout,
        holdout_by=holdout_by, device=device, devices=devices, num_nodes=num_nodes, precision=precision, seed=seed,
        join=join,
    ) | parse_settings(set_, "--set")  # fmt: skip
    file_values = load_file(config) if config else {}
    if not resume:  # reject an invalid configuration before torch is loaded
        build_run_config(preset, arch, file_values, overrides)
    last: TrainStatus | None = None
    stage: str | None = None
    with progress("training") as update:

        def show(status: TrainStatus) -> None:
            nonlocal last, stage
            stage = status.stage
            if status.stage == "diffusion":
                last = status
            update(*status.progress())

        try:
            run = fit(
                data or None, arch=arch, preset=preset, label=label, condition=condition or (), out=out, resume=resume,
                force=force, max_time=limit, memory=memory, config=file_values,
                overrides=overrides, on_progress=show,
            )  # fmt: skip
        except KeyboardInterrupt:
            if last is None:
                when = "while the codec was being fitted" if stage else "before training began"
                log.warning("interrupted %s: nothing was saved", when)
            raise
    trained = run.config().train
    if not is_main_process(trained.devices, trained.num_nodes):
        return
    if last is not None:
        held_out = "" if last.val_loss is None else f", held-out loss {last.val_loss:.4f}"
        log.info("%d steps in %s, loss %.4f%s", last.step, seconds(last.seconds), last.loss, held_out)
    log.info("next: scdiff sample %s -n 1000 -o cells.h5ad", shlex.quote(str(run.path)))
    result(str(run.path))
