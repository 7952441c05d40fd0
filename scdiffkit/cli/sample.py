"""scdiff sample: generate labelled cells from a trained run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import (
    INPUT,
    MACHINE,
    Device,
    Precision,
    choices,
    log,
    parse_cfg_scale,
    parse_where,
    progress,
    result,
)

CELLS = "Cells"
SAMPLER = "Sampler"


def sample(
    run: Annotated[Path | None, typer.Argument(help="Folder of the run.", show_default="the latest run")] = None,
    n: Annotated[
        int | None,
        typer.Option(
            "-n", "--n-cells", help="Number of cells.", show_default="1000, or as in --like", rich_help_panel=CELLS
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            help="Draw only cells with this value, e.g. cell_type=B; repeatable. Combinations that no training cell "
            "had are extrapolated.",
            metavar="COLUMN=VALUE",
            rich_help_panel=CELLS,
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Copy the composition of these cells and, with --codec count, their library sizes.",
            rich_help_panel=CELLS,
        ),
    ] = None,
    library_size: Annotated[
        str | None,
        typer.Option(
            help="Counts per cell: like the training cells (or those of --like), their median, or a number. The last "
            "two need a run with --codec count.",
            metavar="[like|median|N]",
            show_default="like",
            rich_help_panel=CELLS,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Random seed; the same call gives the same cells.", rich_help_panel=CELLS)
    ] = 0,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ddim, dpm++ (DPM-Solver++, second order) or ddpm (all steps of training).",
            show_default="ddim",
            rich_help_panel=SAMPLER,
            **choices("ddim", "dpm++", "ddpm"),
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Number of sampling steps.", show_default="50 for ddim, 20 for dpm++", rich_help_panel=SAMPLER
        ),
    ] = None,
    ddim: Annotated[
        int | None, typer.Option(help="Short for --sampler ddim --steps N.", metavar="N", rich_help_panel=SAMPLER)
    ] = None,
    ddpm: Annotated[bool, typer.Option("--ddpm", help="Short for --sampler ddpm.", rich_help_panel=SAMPLER)] = False,
    speedup: Annotated[
        int | None,
        typer.Option(help="Use T/K steps, the acceleration of the scRDiT paper.", metavar="K", rich_help_panel=SAMPLER),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="Noise of ddim: 0 for none, 1 for that of ddpm.", show_default="0", rich_help_panel=SAMPLER),
    ] = None,
    cfg_scale: Annotated[
        list[str] | None,
        typer.Option(
            help="Scale of classifier-free guidance; COLUMN=S, repeatable, guides each condition on its own.",
            metavar="S",
            show_default="1, no guidance",
            rich_help_panel=SAMPLER,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            help="Cells per batch. Another number changes single counts in about 1% of the cells, by rounding.",
            show_default="by the model's size",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    device: Device = None,
    devices: Annotated[
        int | None,
        typer.Option(
            help="GPUs, or processes on the CPU, that share the work; the cells do not depend on it.",
            show_default="1",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    precision: Precision = None,
    output: Annotated[
        Path,
        typer.Option("-o", "--out", "--output", help="cells.h5ad, cells.loom, or a 10x folder.", rich_help_panel=INPUT),
    ] = Path("cells.h5ad"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace the output if it exists.", rich_help_panel=INPUT)
    ] = False,
) -> None:
    """Generate new cells with the requested labels from a trained run."""
    wanted, guidance = parse_where(where), parse_cfg_scale(cfg_scale)

    from scdiffkit.config import SampleConfig, make, sampler_options
    from scdiffkit.run import Run
    from scdiffkit.sampling.pipeline import sample as draw

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
