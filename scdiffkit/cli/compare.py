"""scdiff compare: rank several sets of synthetic cells in one table and one report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from scdiffkit.cli.console import INPUT, Memory, log, progress, result, result_json
from scdiffkit.cli.evaluate import (
    Condition,
    Fast,
    Force,
    Json,
    Label,
    MaxCells,
    Metrics,
    Real,
    Resamples,
    Seed,
    Train,
)


def compare(
    real: Real,
    synthetic: Annotated[list[Path], typer.Argument(help="Two or more sets of synthetic cells.", show_default=False)],
    train: Train = None,
    label: Label = None,
    condition: Condition = None,
    metrics: Metrics = "full",
    output: Annotated[
        Path, typer.Option("-o", "--out", "--output", help="Folder for the comparison.", rich_help_panel=INPUT)
    ] = Path("comparison"),
    resamples: Resamples = 5,
    fast: Fast = False,
    max_cells: MaxCells = 1000,
    seed: Seed = 0,
    memory: Memory = "auto",
    json: Json = False,
    force: Force = False,
) -> None:
    """Rank several sets of synthetic cells by the same scores."""
    from rich.console import Console
    from rich.table import Table

    from scdiffkit.evaluation.comparison import compare as score
    from scdiffkit.evaluation.output import COMPARISON_PAGE
    from scdiffkit.metrics.profiles import HEADLINES

    with progress("comparing") as update:
        comparison = score(
            real, synthetic, train=train, label=label, condition=condition or (), metrics=metrics, out=output,
            seed=seed, max_cells=max_cells, resamples=resamples, fast=fast, memory=memory, force=force,
            on_progress=lambda name, i, n: update(i, name, n),
        )  # fmt: skip
    for name, evaluation in comparison.evaluations.items():
        for side, (n, of) in evaluation.sampled.items():
            log.info("%s: %s of the %s %s cells, drawn at random, are compared", name, f"{n:,}", f"{of:,}", side)
    if json:
        result_json(comparison.to_dict())
        return
    names = list(comparison.evaluations)
    table = Table("", box=None, pad_edge=False)
    for column in ("real cells", *names):
        table.add_column(column, justify="right")
    for first in comparison.scores_of_first():
        if first.metric in HEADLINES:
            best = comparison.best(first.metric)
            values = [
                f"{s.value:.4g}{' *' if name == best else ''}" for name, s in comparison.of_metric(first.metric).items()
            ]
            table.add_row(first.metric, f"{first.real_reference:.4g}", *values)
    Console(soft_wrap=True).print(table)
    result("* closest to real cells")
    for place, row in enumerate(comparison.ranking().itertuples(), 1):
        result(f"{place}. {row.name}: {row.verdict}, {row.distance:.0%} of the way from real cells to bad models")
    result(f"report: {output / COMPARISON_PAGE}")
