"""scdiff evaluate: real and synthetic cells in, scores, a verdict and a picture out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdiffkit.cli.console import log, progress, result, result_json

if TYPE_CHECKING:
    from scdiffkit.evaluate import Evaluation


def evaluate(
    real: Annotated[
        Path,
        typer.Argument(help="Real cells: counts or log values, any format scdiff reads.", show_default=False),
    ],
    synthetic: Annotated[
        Path, typer.Argument(help="Synthetic cells, from scdiff or another tool.", show_default=False)
    ],
    train: Annotated[
        Path | None,
        typer.Option(help="The cells trained on, when REAL are others: the floor is REAL against these."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="obs column with the cell types.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for metrics.json and cells.png.")] = Path(
        "report"
    ),
    max_cells: Annotated[int, typer.Option(help="At most so many cells a side are compared.")] = 5000,
    seed: Annotated[int, typer.Option(help="Same seed, same scores.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report.")] = False,
) -> None:
    """Score synthetic cells beside what two halves of the real cells score."""
    from scdiffkit.evaluate import evaluate as score
    from scdiffkit.evaluate import verdict

    with progress("evaluating") as update:
        evaluation = score(
            real, synthetic, train=train, label=label, out=output, seed=seed, max_cells=max_cells, force=force,
            progress=lambda name, i, n: update(i, name, n),
        )  # fmt: skip
    for note in evaluation.notes:
        log.info(note)
    if json:
        result_json(evaluation.to_dict())
        return
    print_table(evaluation)
    result(verdict(evaluation))
    result(f"scores: {output / 'metrics.json'}")
    result(f"picture: {output / 'cells.png'}")


def print_table(evaluation: Evaluation) -> None:
    """Scores beside the floor and the bad-model line, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", box=None, pad_edge=False)
    for column in ("synthetic", "real vs real", "shuffled"):
        table.add_column(column, justify="right")
    table.add_column("better")
    for score in evaluation.to_frame().to_dict("records"):
        figures = (f"{score[key]:.4g}" for key in ("value", "floor", "shuffled"))
        table.add_row(score["metric"], *figures, score["direction"])
    Console(soft_wrap=True).print(table)
