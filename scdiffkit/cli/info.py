"""scdiff info: describe data files and runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from scdiffkit.cli.console import print_table, result, result_json
from scdiffkit.cli.runs import print_runs


def info(
    path: Annotated[
        Path,
        typer.Argument(
            help="h5ad, zarr, loom, 10x folder, 10x h5, a run, or a folder of files or runs.", show_default=False
        ),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a data file, a run, or a folder of files or runs, without reading whole files into memory."""
    from scdiffkit.overview import info as describe

    described = describe(path)
    if json:
        result_json(described)
        return
    if described["format"] == "folder":
        if described["runs"]:
            print_runs(described["runs"])
        if described["files"]:
            print_files(described["files"])
        return
    for line in _lines(described):
        result(line)


def print_files(files: Sequence[Mapping[str, Any]]) -> None:
    """Print one line per file of cells."""
    columns = ("file", "format", "cells", "genes", "counts", "obs columns")
    print_table(columns, [
        (Path(file["path"]).name, file["error"], None, None, None, None) if "error" in file else (
            Path(file["path"]).name, file["format"], file["n_obs"], file["n_vars"], file["counts"],
            ", ".join(column["name"] for column in file["obs"]),
        )
        for file in files
    ])  # fmt: skip


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """Format nested values as aligned, human-readable lines."""
    lines = []
    width = max((len(str(key)) for key in values), default=0)
    for key, value in values.items():
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            value = {item["name"]: _column(item) for item in value}
        if isinstance(value, Mapping) and value:
            lines += [f"{indent}{key}", *_lines(value, indent + "  ")]
            continue
        if isinstance(value, list | tuple):
            value = ", ".join(map(str, value))
        if isinstance(value, float):
            value = f"{value:.4g}"
        lines.append(f"{indent}{str(key).ljust(width)}  {'-' if value in (None, '', {}) else value}")
    return lines


def _column(item: Mapping[str, Any]) -> str:
    """Format an obs column as one line: dtype, number of categories, missing values, most frequent categories."""
    text = item["dtype"]
    if item.get("n_categories") is not None:
        text += f", {item['n_categories']} categories"
    if item.get("missing"):
        text += f", {item['missing']} missing"
    if item.get("top"):
        text += ": " + ", ".join(f"{name} ({n})" for name, n in item["top"].items())
    return text
