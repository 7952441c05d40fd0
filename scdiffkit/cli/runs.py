"""scdiff runs: list runs with their state, data and scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from scdiffkit.cli.console import print_table, result, result_json


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder that holds the runs.")] = Path("scdiff-runs"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the runs in a folder with state, data and scores of the latest evaluation (scdiff evaluate --run)."""
    from scdiffkit.overview import rows_of_runs

    rows = rows_of_runs(folder)
    if json:
        result_json(rows)
    elif not rows:
        result(f"There are no runs in {folder}.")
    else:
        print_runs(rows)


def print_runs(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per run; the latest run, which `scdiff sample` uses by default, is marked."""
    columns = ("run", "created", "state", "data", "cells", "arch", "codec", "held-out loss", "AUC", "verdict")
    print_table(columns, [
        (
            f"{row['run']}{' (latest)' if row['latest'] else ''}", row["created"], _state(row), row["data"],
            row["cells"], row["arch"], row["codec"], row["val_loss"], row["rf_auc"], row["verdict"],
        )
        for row in rows
    ])  # fmt: skip


def _state(row: Mapping[str, Any]) -> str:
    if row["state"] != "stopped early":
        return row["state"]
    return f"stopped at {row['steps']:g}" + (f" of {row['planned']:g} steps" if row["planned"] else " steps")
