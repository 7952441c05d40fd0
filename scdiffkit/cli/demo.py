"""scdiff demo: train, sample and evaluate on real cells that are bundled with scanpy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import choices, log, result
from scdiffkit.cli.evaluate import evaluate
from scdiffkit.cli.sample import sample
from scdiffkit.cli.train import train
from scdiffkit.config import ARCHS
from scdiffkit.runtime.progress import seconds

HELD_OUT = 0.3  # share of the 700 cells; fewer held-out cells would give uninformative scores


def demo(
    output: Annotated[Path, typer.Option("-o", "--out", "--output", help="Folder for the files of the demo.")] = Path(
        "scdiff-demo"
    ),
    arch: Annotated[str, typer.Option(help="Architecture of the denoiser.", **choices(*ARCHS))] = "whitebox",
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier demo.")] = False,
) -> None:
    """Train, sample and evaluate on 700 real blood cells, in about three minutes on two cores."""
    from scdiffkit.datasets import demo_cells
    from scdiffkit.io import check_output, write

    started = time.monotonic()
    real, cells, run, report = (output / name for name in ("real.h5ad", "cells.h5ad", "run", "report"))
    for path in (real, cells):
        check_output(path, force=force)
    log.info("700 blood cells x 765 genes of 10 types (Zheng et al. 2017), as bundled with scanpy")
    write(demo_cells(), real, force=force)
    log.info("\n$ scdiff train %s --arch %s --label cell_type --holdout %g --out %s", real, arch, HELD_OUT, run)
    train([real], arch=arch, label="cell_type", holdout=HELD_OUT, out=run, force=force)
    log.info("\n$ scdiff sample %s -n 700 --ddim 50 -o %s", run, cells)
    sample(run, n=700, ddim=50, output=cells, force=force)
    log.info("\n$ scdiff evaluate --run %s %s --fast -o %s", run, cells, report)
    evaluate(cells, run=run, fast=True, output=report, force=force)
    log.info(
        "\nThe demo took %s. Continue with your own cells (raw counts as h5ad, loom, 10x folder or 10x h5):",
        seconds(time.monotonic() - started),
    )
    result(f"cells: {cells}")
    result("")
    result("  scdiff train YOUR.h5ad --label CELL_TYPE_COLUMN --holdout 0.2")
    result("  scdiff sample -n 1000 -o cells.h5ad")
    result("  scdiff evaluate YOUR.h5ad cells.h5ad --label CELL_TYPE_COLUMN")
