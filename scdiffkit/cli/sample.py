"""scdiff sample: a run in, labelled cells out."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import log, parse_cfg_scale, parse_where, progress, result


def sample(
    run: Annotated[Path | None, typer.Argument(help="Folder of the run (the latest one).", show_default=False)] = None,
    n: Annotated[
        int | None, typer.Option("-n", "--n-cells", help="Number of cells (1000; with --like, as many).")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="ddim, dpm (DPM-Solver++, second order), or ddpm: every step of training. (ddim)"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of ddim (50) or dpm (20).")] = None,
    ddim: Annotated[int | None, typer.Option(help="Short for --sampler ddim --steps N.")] = None,
    ddpm: Annotated[bool, typer.Option("--ddpm", help="Short for --sampler ddpm.")] = False,
    speedup: Annotated[
        int | None, typer.Option(help="ddim or dpm with T/speedup steps (the scRDiT paper's rate).")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Noise of ddim: 0 none, 1 as ddpm (0).")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="COLUMN=VALUE, e.g. cell_type=B; repeatable, also for combinations never seen.", show_default=False
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(help="Copy the composition of these cells, and their depths if the codec can (--codec count)."),
    ] = None,
    cfg_scale: Annotated[
        list[str] | None,
        typer.Option(
            help="Classifier-free guidance, 1 is none: one number for all conditions together, or COLUMN=NUMBER, "
            "repeatable.",
            show_default=False,
        ),
    ] = None,
    library_size: Annotated[
        str | None,
        typer.Option(
            help="Counts per cell: like (as the training cells, or the cells of --like), median (of the training "
            "cells), or a number. The last two need a run with --codec count. (like)",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same call gives the same cells; another seed gives others.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="cells.h5ad, cells.loom, or a 10x folder.")] = Path(
        "cells.h5ad"
    ),
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Cells at once (by the model's size). Another number changes single counts in about one cell of a "
            "hundred, by rounding."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = None,
    devices: Annotated[
        int | None, typer.Option(help="GPUs, or processes on the CPU, that share the work; the same cells (1).")
    ] = None,
    precision: Annotated[str | None, typer.Option(help="auto, 32 or bf16.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the output if it exists.")] = False,
) -> None:
    """Draw new cells with exact labels from a trained run."""
    wanted, guidance = parse_where(where), parse_cfg_scale(cfg_scale)

    from scdiffkit.config import SampleConfig, make, sampler_options
    from scdiffkit.generate import sample as draw
    from scdiffkit.run import Run

    config = make(
        SampleConfig,
        **sampler_options(sampler, steps, ddim, ddpm), speedup=speedup, eta=eta, cfg_scale=guidance, seed=seed,
        library_size=library_size, batch_size=batch_size, device=device, devices=devices, precision=precision,
    )  # fmt: skip
    opened = Run.open(run)
    log.info("run %s%s", opened.path, " (the latest)" if run is None else "")
    started = time.monotonic()
    done = 0
    with progress("sampling") as update:

        def show(cells: int, total: int) -> None:
            nonlocal done
            done = cells
            update(cells, f"{cells / (time.monotonic() - started):.0f} cells/s", total)

        path = draw(opened, n, where=wanted, like=like, out=output, config=config, force=force, on_progress=show)
    elapsed = time.monotonic() - started
    log.info("%d cells in %.1f s (%.0f cells/s)", done, elapsed, done / elapsed)
    result(str(path))
