"""scdiff info: what a run or a data file is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from scdiffkit.cli.console import result, result_json


def info(
    path: Annotated[
        Path,
        typer.Argument(help="h5ad, zarr, loom, 10x folder, 10x h5, or the folder of a run.", show_default=False),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Describe a data file or a run, without loading it whole."""
    if (path / "config.yaml").is_file():
        from scdiffkit.run import Run

        described = Run.open(path).describe()
    else:
        from scdiffkit.io import describe

        described = describe(path)
    if json:
        result_json(described)
        return
    for line in _lines(described):
        result(line)


def _lines(values: Mapping[str, Any], indent: str = "") -> list[str]:
    """Nested values as aligned lines a person can read."""
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
    """An obs column in one line: type, number of categories, the commonest."""
    text = item["dtype"]
    if item.get("n_categories") is not None:
        text += f", {item['n_categories']} categories"
    if item.get("missing"):
        text += f", {item['missing']} missing"
    if item.get("top"):
        text += ": " + ", ".join(f"{name} ({n})" for name, n in item["top"].items())
    return text
