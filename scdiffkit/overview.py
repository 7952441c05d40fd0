"""Describe files, runs and folders of these without loading them."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scdiffkit.errors import FileError, ScdiffError
from scdiffkit.io import describe
from scdiffkit.io.reading import files_in
from scdiffkit.run import LATEST, RUNS, Run, is_run

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


def info(data: AnnData | str | Path) -> dict[str, Any]:
    """Describe cells, a run, or a folder of either, without loading all of it.

    Parameters
    ----------
    data
        AnnData, an h5ad, zarr, loom or 10x HDF5 file, a 10x folder, the folder of a run, or a folder with several of
        these.

    Returns
    -------
    A dict of plain values. `format` is "run", "folder" (with `runs` and `files`), or the format of a file, for which
    `counts` names the place of the raw counts and `obs` lists the columns.

    Raises
    ------
    FileError
        If the path is missing, damaged, or holds neither cells nor runs.

    Examples
    --------
    >>> scdiffkit.info("data.h5ad")["counts"]
    """
    if not isinstance(data, str | Path):
        return describe(data)
    path = Path(data)
    if is_run(path):
        return Run.open(path).describe()
    if not path.is_dir():
        return describe(path)
    files = [file for file in files_in(path) if file != path]
    rows = rows_of_runs(path)
    if not rows and not files:
        return describe(path)  # a 10x or zarr folder; raises for any other
    return {
        "format": "folder",
        "path": str(path),
        "runs": rows,
        "files": [_described(file) for file in files],
    }


def runs(folder: str | Path = RUNS) -> pd.DataFrame:
    """List the runs in a folder, newest first.

    Parameters
    ----------
    folder
        The folder that holds the runs.

    Returns
    -------
    A table with one row per run. It has the `state` ("complete", "converged", "stopped early", "not trained", or the
    reason why the run cannot be read), the `steps` done and `planned`, the training data, the best held-out loss, the
    AUC of the codec alone, and verdict and random-forest AUC of the latest `evaluate` of the run.

    Raises
    ------
    FileError
        If the folder does not exist.

    Examples
    --------
    >>> scdiffkit.runs()[["run", "state", "verdict"]]
    """
    import pandas as pd

    found = pd.DataFrame(rows_of_runs(Path(folder)), columns=COLUMNS)
    return found.convert_dtypes(convert_string=False, convert_floating=False)


COLUMNS = [
    "run", "state", "steps", "planned", "data", "cells", "genes", "conditions", "holdout", "arch", "codec", "val_loss",
    "codec_auc", "verdict", "rf_auc", "latest", "created",
]  # fmt: skip


def rows_of_runs(folder: Path) -> list[dict[str, Any]]:
    """Return a row of `runs` for each run in a folder. Raises FileError if the folder does not exist."""
    if not folder.is_dir():
        raise FileError(f"There is no folder {folder}, so there are no runs: train one with `scdiff train DATA`.")
    return [_row(path) for path in run_folders(folder)]


def run_folders(folder: Path) -> list[Path]:
    """Return the runs directly in a folder, newest first."""
    found = [
        path for path in folder.iterdir() if path.name != LATEST and not path.name.startswith(".") and is_run(path)
    ]
    return sorted(found, key=lambda path: ((path / "genes.txt").stat().st_mtime, path.name), reverse=True)


def _row(path: Path) -> dict[str, Any]:
    """Return the row of a run. If the run cannot be read, `state` holds the reason."""
    created = datetime.fromtimestamp((path / "genes.txt").stat().st_mtime).isoformat(" ", "minutes")
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {
        "run": path.name, "latest": (path.parent / LATEST).resolve() == path.resolve(), "created": created,
    }  # fmt: skip
    try:
        about = Run(path).describe()
        training = Run(path).training()
    except ScdiffError as e:
        return row | {"state": str(e)}
    except (OSError, ValueError, KeyError) as e:
        return row | {"state": f"damaged ({type(e).__name__}: {e})"}
    data = about["training_data"]
    evaluated = about["evaluation"] or {}
    return row | {
        "state": training["ended"] if training["steps"] else "not trained",
        "steps": training["steps"],
        "planned": training["planned"] or None,
        "data": ", ".join(Path(source).name for source in data["source"].split(", ")),
        "cells": data["cells"],
        "genes": about["genes"],
        "conditions": ", ".join(about["conditions"]),
        "holdout": data.get("split", {}).get("holdout") or None,
        "arch": about["arch"],
        "codec": about["codec"],
        "val_loss": about["val_loss"],
        "codec_auc": (about["codec_auc"] or {}).get("held_out"),
        "verdict": evaluated.get("verdict"),
        "rf_auc": evaluated.get("rf_auc"),
    }


def _described(file: Path) -> dict[str, Any]:
    try:
        return describe(file)
    except FileError as e:
        return {"path": str(file), "error": str(e)}
