"""scdiff evaluate: real and synthetic cells in, scores, a verdict and a picture out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdiffkit.cli.console import log, progress, result, result_json

FAST_CELLS = 500
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
    condition: Annotated[
        list[str] | None, typer.Option(help="obs column in which cells of a type differ (treatment, donor); repeat it.")
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for metrics.json and cells.png.")] = Path(
        "report"
    ),
    resamples: Annotated[int, typer.Option(help="How often all is scored, with other cells, to show the spread.")] = 5,
    fast: Annotated[bool, typer.Option("--fast", help="One resample of at most 500 cells: half a minute.")] = False,
    max_cells: Annotated[int, typer.Option(help="At most so many cells a side are compared at a time.")] = 1000,
    seed: Annotated[int, typer.Option(help="Same seed, same scores.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier report.")] = False,
) -> None:
    """Score synthetic cells beside what two halves of the real cells score."""
    from scdiffkit.evaluate import evaluate as score
    from scdiffkit.evaluate import verdict

    if fast:
        resamples, max_cells = 1, min(max_cells, FAST_CELLS)
    with progress("evaluating") as update:
        evaluation = score(
            real, synthetic, train=train, label=label, conditions=condition or (), out=output, seed=seed,
            max_cells=max_cells, resamples=resamples, force=force, progress=lambda name, i, n: update(i, name, n),
        )  # fmt: skip
    for note in evaluation.notes:
        log.info(note)
    if json:
        result_json(evaluation.to_dict())
        return
    print_table(evaluation)
    found = verdict(evaluation)
    result(str(found))
    for finding in found.findings:
        result(f"- {finding}")
    result(f"scores: {output / 'metrics.json'}")
    result(f"picture: {output / 'cells.png'}")


def print_table(evaluation: Evaluation) -> None:
    """Scores beside the floor and the bad models, a family at a time, on stdout."""
    from rich.console import Console
    from rich.table import Table

    from scdiffkit.metrics.score import BAD_MODELS

    table = Table("metric", box=None, pad_edge=False)
    for column in ("synthetic", "real vs real", "shuffled", "pooled", "copies"):
        table.add_column(column, justify="right")
    table.add_column("better")
    table.add_column("")
    family = None
    for score in evaluation.scores:
        if score.family != family:
            family = score.family
            table.add_row(f"[bold]{family}")
        bad = (f"{score.ceiling(name):.4g}" if name in score.ceilings else "" for name in BAD_MODELS)
        at = "as real" if score.at_floor else f"{min(score.position, 1):.0%} of the way to bad"
        table.add_row(score.metric, f"{score.value:.4g}", f"{score.floor:.4g}", *bad, score.direction, at)
    Console(soft_wrap=True).print(table)
