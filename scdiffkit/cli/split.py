"""scdiff split: split cells into a training and a test set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import Memory, result


def split(
    data: Annotated[Path, typer.Argument(help="Cells: h5ad, zarr, loom, 10x folder or 10x h5.", show_default=False)],
    output: Annotated[
        tuple[Path, Path],
        typer.Option(
            "-o",
            "--out",
            "--output",
            help="Files for the training and the test cells.",
            metavar="TRAIN TEST",
            show_default=False,
        ),
    ],
    fraction: Annotated[
        float, typer.Option(help="Fraction of the cells, or of the groups of --by, in the test set.")
    ] = 0.2,
    label: Annotated[
        str | None, typer.Option(help="obs column whose values keep their proportions in both sets.")
    ] = None,
    by: Annotated[str | None, typer.Option(help="obs column whose groups are not split, e.g. donors.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same split.")] = 0,
    memory: Memory = "auto",
    force: Annotated[bool, typer.Option("--force", help="Replace the files if they exist.")] = False,
) -> None:
    """Split cells into a training and a test set, for any tool. (scdiff train --holdout holds out cells by itself.)"""
    from scdiffkit.data.split import split as split_cells

    train, test = split_cells(
        data, fraction=fraction, label=label, by=by, seed=seed, out=output, memory=memory, force=force,
    )  # fmt: skip
    result(f"{train} {test}")
