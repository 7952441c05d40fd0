"""scdiff evaluate: compare synthetic with real cells and print a verdict and a table; write a report."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdiffkit.cli.console import INPUT, Memory, choices, log, progress, result, result_json

if TYPE_CHECKING:
    from scdiffkit.evaluation.result import Evaluation

TABLE_WIDTH = 120  # minimum width, used if the output is no terminal or a narrow one
BELOW = 3  # exit code of --fail-below


class FailBelow(StrEnum):
    """Minimum grades that a pipeline can require."""

    good = "good"
    fair = "fair"


DATA = "Cells and their columns"
SCORES = "Scores"

Real = Annotated[
    Path,
    typer.Argument(help="Real cells: counts or log values, in any format that scdiff reads.", show_default=False),
]
Train = Annotated[
    Path | None,
    typer.Option(
        help="Training cells of the model, if REAL holds other cells. The reference is then REAL against these.",
        rich_help_panel=DATA,
    ),
]
Label = Annotated[str | None, typer.Option(help="obs column with the cell types.", rich_help_panel=DATA)]
Condition = Annotated[
    list[str] | None,
    typer.Option(
        help="obs column in which cells of a type differ, e.g. a treatment; repeatable.", rich_help_panel=DATA
    ),
]
Resamples = Annotated[
    int, typer.Option(help="Number of resamples, from which prediction intervals are computed.", rich_help_panel=SCORES)
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast",
        help="Use one resample of at most 400 cells per set, and no UMAP; takes half a minute.",
        rich_help_panel=SCORES,
    ),
]
Metrics = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="Metrics to compute: their names, or full, fast (as --fast) or minimal (a few seconds).",
        rich_help_panel=SCORES,
    ),
]
MaxCells = Annotated[int, typer.Option(help="Maximum number of cells per set in a resample.", rich_help_panel=SCORES)]
Seed = Annotated[int, typer.Option(help="Random seed; the same seed gives the same scores.", rich_help_panel=SCORES)]
Json = Annotated[bool, typer.Option("--json", help="Print the scores as JSON.", rich_help_panel=INPUT)]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier report.", rich_help_panel=INPUT)]


def evaluate(
    real: Annotated[
        Path | None,
        typer.Argument(
            help="Real cells: counts or log values, in any format that scdiff reads. If the model was trained on them, "
            "the cells that it has not seen are used. With --run: the synthetic cells.",
            show_default=False,
        ),
    ] = None,
    synthetic: Annotated[
        Path | None, typer.Argument(help="Synthetic cells, from scdiff or another tool.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            help="Take real cells, training cells and label from this run. Without synthetic cells, draw some from it.",
            rich_help_panel=DATA,
        ),
    ] = None,
    train: Train = None,
    label: Label = None,
    condition: Condition = None,
    donor: Annotated[
        str | None,
        typer.Option(
            help="obs column with the donors, to detect cells of single donors among SYNTHETIC.", rich_help_panel=DATA
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            help="obs column with the batches, to check whether they differ as much as in real data.",
            rich_help_panel=DATA,
        ),
    ] = None,
    metrics: Metrics = "full",
    protocol: Annotated[
        str | None,
        typer.Option(
            help="Add the scores of another paper, as computed there.",
            rich_help_panel=SCORES,
            **choices("scrdit", "cfgen", "scdiffusion", "scldm", "cell-eval"),
        ),
    ] = None,
    resamples: Resamples = 5,
    max_cells: MaxCells = 1000,
    fast: Fast = False,
    seed: Seed = 0,
    output: Annotated[
        Path, typer.Option("-o", "--out", "--output", help="Folder for the report.", rich_help_panel=INPUT)
    ] = Path("report"),
    memory: Memory = "auto",
    fail_below: Annotated[
        FailBelow | None,
        typer.Option(
            help="For pipelines: exit with code 3 unless the verdict is good (indistinguishable or close), or "
            "fair (usable in part as well). The verdict of too few cells is neither.",
            rich_help_panel=INPUT,
        ),
    ] = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Evaluate synthetic cells: print a verdict and scores beside those of real cells and bad models; save a report."""
    if run is not None and synthetic is not None:
        raise typer.BadParameter("--run takes the real cells from the run: give only the synthetic ones, or none.")
    if run is None and (real is None or synthetic is None):
        raise typer.BadParameter("give REAL and SYNTHETIC, or --run RUN [SYNTHETIC].")
    if run is not None:
        real, synthetic = None, real
    from scdiffkit.evaluation.pipeline import evaluate as score

    with progress("evaluating") as update:
        evaluation = score(
            real, synthetic, run=run, train=train, label=label, condition=condition or (), donor=donor,
            batch=batch, protocol=protocol, metrics=metrics, out=output, seed=seed, max_cells=max_cells,
            resamples=resamples, fast=fast, memory=memory, force=force,
            on_progress=lambda name, i, n: update(i, name, n),
        )  # fmt: skip
    for note in evaluation.notes:
        log.info(note)
    if json:
        result_json(evaluation.to_dict())
    else:
        result(f"{evaluation.verdict.basis}\n")
        print_scores(evaluation)
        print_verdict(evaluation)
        result(f"scores: {output / 'metrics.csv'}")
        result(f"report: {evaluation.html}")
    grade = evaluation.verdict.grade
    if (
        fail_below is not None
        and grade not in {FailBelow.good: ("good",), FailBelow.fair: ("good", "fair")}[fail_below]
    ):
        log.error("the verdict, %s, is below %s", evaluation.verdict.word, fail_below.value)
        raise typer.Exit(BELOW)


def print_scores(evaluation: Evaluation) -> None:
    """Print the main scores beside those of real cells and of a bad model to stdout."""
    from rich.console import Console
    from rich.table import Table

    from scdiffkit.metrics.profiles import HEADLINES

    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("synthetic", "real cells", "bad model"):
        table.add_column(column, justify="right")
    table.add_column("position", no_wrap=True)
    shown = [(score.metric, score) for score in evaluation.scores if score.metric in HEADLINES]
    worst = evaluation.worst_type_auc()
    if worst is not None:
        shown.insert([name for name, _ in shown].index("rf_auc") + 1, (f"rf_auc of {worst[0]}", worst[1]))
    for name, score in shown:
        bad = score.baseline_name or score.worst_baseline()
        table.add_row(
            name, *(f"{x:.3g}" for x in (score.value, score.real_reference, score.baseline(bad))), score.place
        )
    console = Console(soft_wrap=True)
    Console(soft_wrap=True, width=max(console.width, TABLE_WIDTH)).print(table)


def print_verdict(evaluation: Evaluation) -> None:
    found = evaluation.verdict
    result("\n" + " ".join([found.sentence, *found.reasons]))
    for use, grade in found.uses.items():
        limit = f" ({found.limits[use]})" if use in found.limits else ""
        result(f"  {grade:5} for {use}{limit}")
    if found.privacy:
        result(f"Privacy: {found.privacy}")
    for finding in found.findings:
        result(f"- {finding}")
