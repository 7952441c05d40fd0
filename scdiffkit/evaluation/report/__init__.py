"""The evaluation's report: one HTML file that needs nothing else, and a summary for notebooks."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.evaluation.cell_sets import Part
from scdiffkit.evaluation.report import figures
from scdiffkit.evaluation.report.figures import Picture
from scdiffkit.evaluation.verdict import GRADES, MEANING
from scdiffkit.metrics.biology import welch_t
from scdiffkit.metrics.marginals import ks_of_genes, mean_per_gene, variance_per_gene, zeros_per_gene
from scdiffkit.metrics.score import BAD_MODELS, Score
from scdiffkit.metrics.spaces import N_VARIABLE

if TYPE_CHECKING:
    from jinja2 import Environment

    from scdiffkit.evaluation.pipeline import Evaluation
    from scdiffkit.evaluation.ranking import Comparison

GENES_SHOWN = 4  # most variable, and as many of those that differ most
MARKERS_OF_TYPE, TYPES_SHOWN = 2, 15
CELL_FIGURES = {
    "library_size": "log10 counts per cell",
    "genes_detected": "log10 genes per cell",
    "mitochondrial_share": "mitochondrial share",
}


def draw(
    genes: pd.Index,
    first: Part,
    second: Part,
    third: Part,
    *,
    shown: tuple[Part, Part],
    layouts: dict[str, Future[tuple[np.ndarray, np.ndarray]]],
    label: str | None,
    seed: int,
) -> dict[str, Picture]:
    """The report's pictures by their titles, the layouts first.

    genes (G names). first, second, third: real, other real and synthetic cells. shown: the real and synthetic cells of
    the layouts, which are drawn last; these give positions of them, or of the first of them, (n, 2) and (m, 2).
    """
    names = np.asarray(genes, dtype=str)
    types = [part.types if label and part.has_types else None for part in shown]
    drawn = {
        "Single cells": _cells(first, third),
        "Single genes": _genes(names, first.X, third.X),
        "Mean, variance and zeros of genes": figures.trends(first.X, third.X),
        "Genes that vary together": figures.correlations(
            names, {"real": first.X, "other real cells": second.X, "synthetic": third.X}
        ),
    }
    if first.has_types and third.has_types and len(set(first.types)) > 1:
        drawn["Marker genes"] = _markers(names, first, third, str(label))
    return {name: figures.embedding(name, *xy.result(), types, label, seed) for name, xy in layouts.items()} | drawn


def html(evaluation: Evaluation, pictures: dict[str, Picture]) -> str:
    """The report as a page, with its pictures."""
    return _environment().get_template("report.html.j2").render(
        about=evaluation,
        found=evaluation.verdict,
        data=evaluation.to_dict(),
        pictures=pictures,
        families=families(evaluation.scores),
        bad_models=BAD_MODELS,
        type_rows=_type_rows(evaluation),
        type_metrics=list(dict.fromkeys(s.metric for scores in evaluation.of_types.values() for s in scores)),
        donor_rows=evaluation.of_donors,
        strip=strip,
        number=number,
    )  # fmt: skip


def summary_html(evaluation: Evaluation) -> str:
    """Verdict and scores, without a page around them."""
    template = _environment().get_template("summary.html.j2")
    return template.render(about=evaluation, found=evaluation.verdict, number=number, strip=strip)


def comparison_html(comparison: Comparison) -> str:
    """Several synthetic sets beside one another, as a page."""
    template = _environment().get_template("compare.html.j2")
    return template.render(about=comparison, number=number, families=families(comparison.scores_of_first()))


def families(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Scores by family, in the order they come in."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(score.family, []).append(score)
    return found


def number(value: float | None, spread: tuple[float, float] | None = None) -> str:
    """A figure with three digits, and half the width of its interval behind it."""
    if value is None:
        return ""
    text = f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"
    return text if spread is None else f"{text} ± {(spread[1] - spread[0]) / 2:.1g}"


def strip(score: Score) -> dict[str, Any]:
    """Where a score lies, for a strip from real cells (0) to bad models (1): share of its width, and in words."""
    return {"at": 100 * min(score.position, 1.0), "band": 100 * min(score.floor_position, 1.0), "words": score.place}


def _type_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Of each type: cells on both sides, and its scores or why there are none; the worst first."""
    rows = []
    for name, counts in (evaluation.types or {}).items():
        scores = evaluation.of_types.get(name, [])
        missing = next((side for side in ("synthetic", "real") if not counts[side]), None)
        why = "" if scores else f"missing: no {missing} cells" if missing else "too few cells to be scored"
        worst = float(np.mean([0.0 if score.at_floor else score.position for score in scores])) if scores else -1.0
        by_metric = {score.metric: score for score in scores}
        rows.append({"name": name, **counts, "scores": by_metric, "why": why, "worst": np.inf if missing else worst})
    return sorted(rows, key=lambda row: (-row["worst"], row["name"]))


def _cells(first: Part, third: Part) -> Picture:
    names = [name for name in CELL_FIGURES if all(name in part.of_cells for part in (first, third))]
    pairs = [tuple(part.of_cells[name] for part in (first, third)) for name in names]
    logs = [
        (np.log10(a + 1), np.log10(b + 1)) if name != "mitochondrial_share" else (a, b)
        for name, (a, b) in zip(names, pairs)
    ]
    alt = f"Distributions over cells, real (solid) and synthetic (dashed): {', '.join(CELL_FIGURES[n] for n in names)}."
    return figures.distributions([CELL_FIGURES[name] for name in names], logs, alt)


def _genes(names: np.ndarray, real: sparse.csr_matrix, synthetic: sparse.csr_matrix) -> Picture:
    """The most variable genes, and those whose distributions differ most."""
    variable = np.argsort(-variance_per_gene(real), kind="stable")[:GENES_SHOWN]
    candidates = np.argsort(-variance_per_gene(real), kind="stable")[:N_VARIABLE]
    ks = ks_of_genes(real[:, candidates].toarray(), synthetic[:, candidates].toarray())
    differ = [g for g in candidates[np.argsort(-ks, kind="stable")] if g not in variable][:GENES_SHOWN]
    chosen = [*variable, *differ]
    pairs = [tuple(x[:, g].toarray().ravel() for x in (real, synthetic)) for g in chosen]
    titles = [f"{names[g]} ({'variable' if i < len(variable) else 'differs most'})" for i, g in enumerate(chosen)]
    alt = f"Distributions of log1p-normalised values, real (solid) and synthetic (dashed), of {', '.join(titles)}."
    return figures.distributions(titles, pairs, alt)


def _markers(names: np.ndarray, first: Part, third: Part, label: str) -> Picture:
    """The strongest markers of the most frequent types of the real cells."""
    counts = pd.Series(first.types).value_counts()
    types = sorted(counts.index[:TYPES_SHOWN])
    chosen: list[int] = []
    for name in types:
        strongest = np.argsort(-welch_t(first.X, first.types == name), kind="stable")
        chosen += [g for g in strongest[: 2 * MARKERS_OF_TYPE] if g not in chosen][:MARKERS_OF_TYPE]
    sides = {}
    for side, part in (("real", first), ("synthetic", third)):
        of_types = [part.X[part.types == name][:, chosen] for name in types]
        none = np.zeros(len(chosen))
        share = np.array([1 - zeros_per_gene(x) if x.shape[0] else none for x in of_types])
        sides[side] = (share, np.array([mean_per_gene(x) if x.shape[0] else none for x in of_types]))
    return figures.dots(names[chosen].tolist(), types, sides, label)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("scdiffkit.evaluation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"meaning": MEANING, "grades": GRADES}
    return found
