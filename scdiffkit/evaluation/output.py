"""Output files of evaluations and comparisons: HTML, JSON, CSV and a picture."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scdiffkit.errors import FileError
from scdiffkit.evaluation.ranking import Comparison
from scdiffkit.evaluation.report import page
from scdiffkit.evaluation.report.figures import Picture
from scdiffkit.evaluation.result import Evaluation
from scdiffkit.io import atomic_path, atomic_write_text
from scdiffkit.io.atomic import writing

SCORES = "metrics.json"
TABLE = "metrics.csv"
GENES = "genes.csv"
REPORT = "report.html"
PICTURE = "cells.png"
FILES = (SCORES, TABLE, GENES, REPORT, PICTURE)
COMPARISON_PAGE = "compare.html"
COMPARISON_SCORES = "compare.json"
COMPARISON_TABLE = "compare.csv"
COMPARISON_FILES = (COMPARISON_PAGE, COMPARISON_SCORES, COMPARISON_TABLE)
IN_WORDS = ["definition", "source"]  # text columns that are in metrics.json, but not in metrics.csv


def write_evaluation(evaluation: Evaluation, pictures: dict[str, Picture], out: Path) -> None:
    """Write the report, its first picture as a PNG file, and the scores as JSON and CSV."""
    html = page.html(evaluation, pictures)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / PICTURE) as temporary:
        temporary.write_bytes(next(iter(pictures.values())).light)
    atomic_write_text(out / SCORES, _json(evaluation.to_dict()))
    atomic_write_text(out / TABLE, evaluation.to_frame().drop(columns=IN_WORDS, errors="ignore").to_csv(index=False))
    if evaluation.genes is not None:
        atomic_write_text(out / GENES, evaluation.genes.to_csv(index=False, float_format="%.6g"))
    atomic_write_text(out / REPORT, html)


def write_comparison(comparison: Comparison, out: Path) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / COMPARISON_SCORES, _json(comparison.to_dict()))
    atomic_write_text(out / COMPARISON_TABLE, comparison.to_frame().to_csv(index=False))
    atomic_write_text(out / COMPARISON_PAGE, page.comparison_html(comparison))


def check_folder(out: Path, files: Sequence[str], force: bool) -> None:
    """Check, before anything is scored, that these files can be written. Raises FileError if not."""
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; the report needs a folder. Choose another name.")
    there = [name for name in files if (out / name).exists()]
    if there and not force:
        raise FileError(f"{out} holds {' and '.join(there)} already: choose another folder, or use --force.")
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    with writing(out), tempfile.TemporaryFile(dir=folder):
        pass


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
