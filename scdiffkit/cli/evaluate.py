"""scdiff evaluate: real and synthetic cells in, a verdict, a short table and a report out."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from scdiffkit.cli.console import Backed, MaxMemory, log, parse_bytes, progress, result, result_json

if TYPE_CHECKING:
    from scdiffkit.evaluation.result import Evaluation

TABLE_WIDTH = 120  # where the output is no terminal, or a narrow one
BELOW = 3  # exit code of --fail-below


class FailBelow(StrEnum):
    """Verdicts that a pipeline may ask for."""

    good = "good"
    fair = "fair"


# What the terminal shows; the report has the rest.
HEADLINES = (
    "rf_auc", "rf_auc_genes", "rf_auc_hvg_seurat", "mmd_pca", "precision", "recall", "coverage", "zeros_mae",
    "library_size", "correlation_structure", "type_f1", "marker_overlap", "lfc_slope", "lfc_conditions", "nn_ratio",
    "exact_duplicates", "membership_auc",
)  # fmt: skip

Real = Annotated[
    Path, typer.Argument(help="Real cells: counts or log values, any format scdiff reads.", show_default=False)
]
Train = Annotated[
    Path | None, typer.Option(help="The cells trained on, when REAL are others: the floor is REAL against these.")
]
Label = Annotated[str | None, typer.Option(help="obs column with the cell types.")]
Condition = Annotated[
    list[str] | None, typer.Option(help="obs column in which cells of a type differ (treatment); repeat it.")
]
Resamples = Annotated[int, typer.Option(help="How often all is scored, with other cells, to show the spread.")]
Fast = Annotated[bool, typer.Option("--fast", help="One resample of at most 400 cells, no UMAP: half a minute.")]
Metrics = Annotated[
    str,
    typer.Option(
        metavar="NAME,...",
        help="What is computed: names of metrics, full, fast (as --fast) or minimal (a few seconds).",
    ),
]
MaxCells = Annotated[int, typer.Option(help="At most so many cells a side are compared at a time.")]
Seed = Annotated[int, typer.Option(help="Same seed, same scores.")]
Json = Annotated[bool, typer.Option("--json", help="Print the scores as JSON.")]
Force = Annotated[bool, typer.Option("--force", help="Replace an earlier report.")]


def evaluate(
    real: Annotated[
        Path | None,
        typer.Argument(
            help="Real cells: counts or log values, any format scdiff reads. Of data that the cells' run was "
            "trained on, those it has not seen are taken. With --run: the synthetic cells.",
            show_default=False,
        ),
    ] = None,
    synthetic: Annotated[
        Path | None, typer.Argument(help="Synthetic cells, from scdiff or another tool.", show_default=False)
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="Take real cells, training cells and label from this run; without cells, draw some from it."),
    ] = None,
    train: Train = None,
    label: Label = None,
    condition: Condition = None,
    donor: Annotated[
        str | None, typer.Option(help="obs column with the donors: are cells of single ones among SYNTHETIC?")
    ] = None,
    batch: Annotated[
        str | None, typer.Option(help="obs column with the batches: are they as far apart as real ones?")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Add another paper's own scores: scrdit, cfgen, scdiffusion, scldm, cell-eval.")
    ] = None,
    metrics: Metrics = "full",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the report.")] = Path("report"),
    resamples: Resamples = 5,
    fast: Fast = False,
    max_cells: MaxCells = 1000,
    seed: Seed = 0,
    backed: Backed = None,
    max_memory: MaxMemory = None,
    fail_below: Annotated[
        FailBelow | None,
        typer.Option(
            help="For pipelines: end with code 3 unless the verdict is this good. good: indistinguishable or "
            "close; fair: usable in part, too. Where cells are too few to tell, it is neither."
        ),
    ] = None,
    json: Json = False,
    force: Force = False,
) -> None:
    """Can these cells be trusted? Scores beside real cells and bad models, a verdict, a report."""
    if run is not None and synthetic is not None:
        raise typer.BadParameter("--run takes the real cells from the run: give the synthetic ones alone, or none.")
    if run is None and (real is None or synthetic is None):
        raise typer.BadParameter("give REAL and SYNTHETIC, or --run RUN [SYNTHETIC].")
    if run is not None:
        real, synthetic = None, real
    from scdiffkit.evaluation.pipeline import evaluate as score

    with progress("evaluating") as update:
        evaluation = score(
            real, synthetic, run=run, train=train, label=label, conditions=condition or (), donor=donor,
            batch=batch, protocol=protocol, metrics=metrics, out=output, seed=seed, max_cells=max_cells,
            resamples=resamples, fast=fast, backed=backed, max_memory=parse_bytes(max_memory), force=force,
            progress=lambda name, i, n: update(i, name, n),
        )  # fmt: skip
    for note in evaluation.notes:
        log.info(note)
    if json:
        result_json(evaluation.to_dict())
    else:
        result(f"{evaluation.verdict.basis}\n")
        print_table(evaluation)
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


def print_table(evaluation: Evaluation) -> None:
    """The main scores beside those of real cells and of shuffled ones, on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for column in ("synthetic", "real cells", "bad model"):
        table.add_column(column, justify="right")
    table.add_column("where it lies", no_wrap=True)
    shown = [(score.metric, score) for score in evaluation.scores if score.metric in HEADLINES]
    worst = evaluation.worst_type_auc()
    if worst is not None:
        shown.insert([name for name, _ in shown].index("rf_auc") + 1, (f"rf_auc of {worst[0]}", worst[1]))
    for name, score in shown:
        bad = score.bad_model or score.worst_ceiling()
        table.add_row(name, *(f"{x:.3g}" for x in (score.value, score.floor, score.ceiling(bad))), score.place)
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
