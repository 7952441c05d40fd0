"""scdiff train: cells in, a run out."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import (
    Backed,
    Join,
    MaxMemory,
    log,
    parse_bytes,
    parse_duration,
    parse_settings,
    progress,
    result,
    seconds,
    seconds_since_start,
)

MODEL, LENGTH, MACHINE = "Model", "Length and optimisation", "Machine and output"


def train(
    data: Annotated[
        list[Path],
        typer.Argument(
            help="Raw counts or prepared cells: h5ad, zarr, loom, 10x folder or 10x h5; several, or a folder of them.",
            show_default=False,
        ),
    ],
    arch: Annotated[
        str | None, typer.Option(help="dit, whitebox or unet (the preset's first).", rich_help_panel=MODEL)
    ] = None,
    label: Annotated[str | None, typer.Option(help="obs column with the cell types.", rich_help_panel=MODEL)] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(help="Further obs column to condition on; repeatable.", rich_help_panel=MODEL),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="small, base, large, scrdit, whitebox-dit (small).", rich_help_panel=MODEL),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of settings, such as a run's config.yaml.", rich_help_panel=MODEL),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="count (integers of all genes) or gene (the papers) (count).", rich_help_panel=MODEL),
    ] = None,
    n_top_genes: Annotated[
        int | None,
        typer.Option(help="Highly variable genes; the gene codec models no others.", rich_help_panel=MODEL),
    ] = None,
    patch_size: Annotated[int | None, typer.Option(help="Coordinates in one token.", rich_help_panel=MODEL)] = None,
    hidden_size: Annotated[int | None, typer.Option(help="Width of a token.", rich_help_panel=MODEL)] = None,
    depth: Annotated[int | None, typer.Option(help="Number of blocks.", rich_help_panel=MODEL)] = None,
    num_heads: Annotated[int | None, typer.Option(help="Attention heads.", rich_help_panel=MODEL)] = None,
    prediction_type: Annotated[str | None, typer.Option(help="eps, v or x0.", rich_help_panel=MODEL)] = None,
    schedule: Annotated[str | None, typer.Option(help="linear or cosine.", rich_help_panel=MODEL)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any other setting, e.g. model.ista_lambda=0.2; repeatable.", rich_help_panel=MODEL),
    ] = None,
    max_steps: Annotated[int | None, typer.Option(help="Training steps.", rich_help_panel=LENGTH)] = None,
    max_epochs: Annotated[
        int | None, typer.Option(help="Passes over the cells, instead of steps.", rich_help_panel=LENGTH)
    ] = None,
    max_time: Annotated[
        str | None,
        typer.Option(help="Stop and save after this long: seconds, 10m, 2h.", rich_help_panel=LENGTH),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Cells in one step.", rich_help_panel=LENGTH)] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.", rich_help_panel=LENGTH)] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(
            help="Share of cells that training is watched with, to choose its best step.", rich_help_panel=LENGTH
        ),
    ] = None,
    holdout: Annotated[
        float | None,
        typer.Option(help="Share of cells left out of everything, to evaluate with (0).", rich_help_panel=LENGTH),
    ] = None,
    holdout_by: Annotated[
        str | None,
        typer.Option(help="obs column of which whole groups are left out, e.g. donors.", rich_help_panel=LENGTH),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Same seed, same machine: same weights.", rich_help_panel=LENGTH)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --out, default the latest.", rich_help_panel=LENGTH),
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the run (scdiff-runs/NAME).", rich_help_panel=MACHINE)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=MACHINE)] = None,
    devices: Annotated[
        int | None,
        typer.Option(help="Processes that share every batch, one a GPU or core (1).", rich_help_panel=MACHINE),
    ] = None,
    num_nodes: Annotated[
        int | None,
        typer.Option(help="Machines; torchrun or srun starts the command on each (1).", rich_help_panel=MACHINE),
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32 or bf16.", rich_help_panel=MACHINE)] = None,
    backed: Backed = None,
    max_memory: MaxMemory = None,
    join: Join = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the run in --out.", rich_help_panel=MACHINE)] = False,
) -> None:
    """Train a diffusion model on your cells; raw counts are prepared with the defaults first."""
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
    if not resume:  # before torch works for a minute: is the configuration one that can be built?
        build_run_config(preset, arch, file_values, overrides)
    last: TrainStatus | None = None
    stage: str | None = None
    with progress("training") as update:

        def show(status: TrainStatus) -> None:
            nonlocal last, stage
            stage = status.stage
            if status.stage == "diffusion":
                last = status
            held_out = "" if status.val_loss is None else f", held out {status.val_loss:.4f}"
            update(
                status.step,
                f"{status.stage}: loss {status.loss:.4f}{held_out}, {status.cells_per_s:.0f} cells/s",
                status.max_steps,
            )

        try:
            run = fit(
                data, arch=arch, preset=preset, label=label, conditions=condition or (), out=out, resume=resume,
                force=force, max_time=limit, backed=backed, max_memory=parse_bytes(max_memory), config=file_values,
                overrides=overrides, on_status=show,
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
