"""The result of an evaluation: scores and verdict, as objects, tables and plain values."""

from __future__ import annotations

import platform
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scdiffkit._deprecated import renamed_attributes
from scdiffkit.errors import did_you_mean
from scdiffkit.evaluation.facts import FAIR, Basis
from scdiffkit.evaluation.render import render
from scdiffkit.evaluation.verdict import Verdict, judge
from scdiffkit.metrics import PROTOCOLS
from scdiffkit.metrics.profiles import FULL, HEADLINES
from scdiffkit.metrics.score import FEWEST_RESAMPLES, Score
from scdiffkit.runtime.versions import OF_SCORES, versions

SCHEMA = 3
BY_CHANCE = 0.01  # a type that is missing with at least this probability may be missing by chance
HELD_OUT = (
    "The real cells, which the model has not seen, are compared with cells that it was trained on. A perfect "
    "model, or a perfect copy of the training cells, would have this score."
)
BASELINE_DEFINITIONS = {
    "shuffled": "Real cells with every gene shuffled between the cells of one type ({}): each gene keeps its "
    "distribution, and the relations between genes are lost. A model that does not score better has learned "
    "nothing beyond the types.",
    "pooled": "Cells that all equal the mean of the real cells: they have neither types nor variation.",
    "copies": "Copies of the training cells (of the real cells, if no training cells are given).",
}


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`.

    scores: one per metric. of_types: for each cell type, the scores within it. of_donors: for each donor, the scores
    against this donor's cells. of_protocol: the scores of another paper's protocol, in its genes.
    inputs: for "real", "synthetic" and, if given, "train": source, size, scale and, for files, SHA-256.
    n_cells: cells per set in a resample. n_genes: genes compared. types: number of cells of each type in each set,
    without cells of `real` that were trained on; None without a label. skipped: metrics that could not be computed,
    with the reasons. notes: what was done. warnings: what to be careful about. html: path of the report, None without
    `out`. cells: the cells of its first picture, one row each: side ("real" or "synthetic"), type (text, None without a
    label), x and y in the layout; None without `out`. sampled: (number compared, total number) for each set that stayed
    in its file and was too large to be compared as a whole. basis: whether the model has seen the real cells: "given"
    (the training cells were given), "holdout", "validation" or "none" (found in the records, see `evaluate`), or
    "unknown". alike: whether the real cells are of the types, conditions and donors that were trained on. remarks:
    what the synthetic cells record about their generation. metrics: the requested names of metrics and profiles.
    genes: one row per gene, from the first resample: gene; mean, variance and share of zeros of its log1p-normalised
    values in real, other real (reference; training cells if given) and synthetic cells; and the Kolmogorov-Smirnov
    statistics between real and synthetic (ks) and between real and other real cells (ks_reference).
    """

    scores: list[Score]
    of_types: dict[str, list[Score]]
    of_donors: dict[str, list[Score]]
    inputs: dict[str, dict[str, Any]]
    n_cells: int
    n_genes: int
    resamples: int
    seed: int
    max_cells: int
    label: str | None
    conditions: tuple[str, ...]
    donor: str | None
    batch: str | None
    protocol: str | None
    of_protocol: list[Score]
    reference_definition: str
    types: dict[str, dict[str, int]] | None
    skipped: dict[str, str]
    notes: list[str]
    warnings: list[str]
    html: Path | None = None
    cells: pd.DataFrame | None = None
    sampled: dict[str, tuple[int, int]] = field(default_factory=dict)
    basis: Basis = "unknown"
    alike: bool = True
    remarks: list[str] = field(default_factory=list)
    metrics: tuple[str, ...] = (FULL,)
    genes: pd.DataFrame | None = None

    __getattr__ = renamed_attributes(floor_definition="reference_definition")

    @property
    def verdict(self) -> Verdict:
        """The interpretation of the scores."""
        return judge(
            self.scores,
            n_cells=self.n_cells,
            basis=self.basis,
            alike=self.alike,
            unscored_types=self.unscored_types(),
            remarks=self.remarks,
            reference_text="real cells against training cells"
            if self.reference_definition == HELD_OUT
            else "two halves of the real cells",
            within=f"within {self.label}" if self.label else "between cells",
            worst_type=self.worst_type(),
            worst_auc=self.worst_type_auc(),
            poor_types=self.poor_types(),
            missing_types=self.missing_types(),
            lost_types=self.lost_types(),
        )

    def __getitem__(self, metric: str) -> Score:
        """Return the score of a metric by its name. Raises KeyError if there is none."""
        for score in self.scores:
            if score.metric == metric:
                return score
        raise KeyError(f"There is no metric {metric!r}; {did_you_mean(metric, [s.metric for s in self.scores])}")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric.

        Columns: metric, family, value, value_low, value_high, real_reference, real_reference_low, real_reference_high,
        shuffled, pooled, copies (baselines; NaN if one does not apply), baseline_name (the one that the value is
        compared with), position, at_real_reference, direction, best, definition, source, headline (whether the command
        line prints it).
        """
        return pd.DataFrame([_row(score) for score in self.scores])

    def types_to_frame(self) -> pd.DataFrame:
        """Return one row per cell type and metric: column type and the columns of `to_frame`."""
        return pd.DataFrame([{"type": name, **_row(s)} for name, scores in self.of_types.items() for s in scores])

    def donors_to_frame(self) -> pd.DataFrame:
        """Return one row per donor and metric: column donor and the columns of `to_frame`."""
        return pd.DataFrame([{"donor": name, **_row(s)} for name, scores in self.of_donors.items() for s in scores])

    def missing_types(self) -> list[str]:
        """Return the types of real cells without synthetic cells; an empty list if synthetic cells have no types."""
        counts = self.types or {}
        if not any(count["synthetic"] for count in counts.values()):
            return []
        return [name for name, count in counts.items() if count["real"] and not count["synthetic"]]

    def lost_types(self) -> list[str]:
        """Return the missing types that have too many real cells to be missing by chance."""
        counts = self.types or {}
        n = {side: sum(count[side] for count in counts.values()) for side in ("real", "synthetic")}
        share = n["real"] / max(1, sum(n.values()))  # probability that a random cell of any type is real
        return [name for name in self.missing_types() if share ** counts[name]["real"] < BY_CHANCE]

    def unscored_types(self) -> list[str]:
        """Return the types that both sets have, but with too few cells to be scored."""
        both = [name for name, n in (self.types or {}).items() if n["real"] and n["synthetic"]]
        return [name for name in both if name not in self.of_types]

    def worst_type(self) -> str | None:
        """Return the type whose synthetic cells are furthest from real ones, by the mean position of its scores.

        None if no type was scored, or if all types score as real cells do.
        """
        off = self._positions_of_types()
        worst = max(off, key=off.__getitem__, default=None)
        return worst if worst is not None and off[worst] > 0 else None

    def worst_type_auc(self) -> tuple[str, Score] | None:
        """Return the type whose synthetic cells a random forest best distinguishes from its real cells, and its score.

        The score is rf_auc within the type; types are ordered by its excess over the real reference. None if no type
        has enough cells.
        """
        aucs = [(name, s) for name, scores in self.of_types.items() for s in scores if s.metric == "rf_auc"]
        return max(aucs, key=lambda found: found[1].value - max(found[1].real_reference, found[1].best), default=None)

    def poor_types(self) -> list[str]:
        """Return the types whose synthetic cells score nearer to bad models than to real cells, worst first.

        The list is empty if there are too few resamples to decide.
        """
        if self.resamples < FEWEST_RESAMPLES:
            return []
        off = self._positions_of_types()
        return sorted((name for name in off if off[name] > FAIR), key=lambda name: -off[name])

    def _positions_of_types(self) -> dict[str, float]:
        return {
            name: float(np.mean([0.0 if score.at_real_reference else score.position for score in scores]))
            for name, scores in self.of_types.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything as in metrics.json: plain values, every number finite.

        schema: 3 (schema 2 used the names floor for real_reference, at_floor for at_real_reference and bad_model for
        baseline_name; it had no basis, alike, remarks, unscored_types, worst_type_auc and metrics, and its verdict had
        only word, sentence, reasons, uses, findings, copies and text), verdict (see Verdict), basis, alike, remarks,
        scores (list), of_types {type: list}, of_donors {donor: list}, worst_type, worst_type_auc {type, value,
        real_reference} or null (the type whose cells a random forest distinguishes best from real ones), poor_types,
        missing_types, unscored_types, definitions {real_reference, shuffled, pooled, copies}, cells_compared,
        genes_compared, resamples, max_cells, metrics (the requested names), inputs {real, synthetic, train?: {source,
        cells, genes, scale, sha256}}, sampled {set: [cells compared, total number]}, label, conditions, donor, batch,
        protocol {name, genes, source, flaws, metrics, scores} or null, seed, command, types {name: {real, synthetic}}
        or null, skipped {metric: reason}, notes, warnings, versions {package: version}. Scores are as returned by
        Score.to_dict.
        """
        worst_auc = self.worst_type_auc()
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.to_dict(),
            "scores": [score.to_dict() for score in self.scores],
            "of_types": {name: [score.to_dict() for score in scores] for name, scores in self.of_types.items()},
            "of_donors": {name: [score.to_dict() for score in scores] for name, scores in self.of_donors.items()},
            "worst_type": self.worst_type(),
            "worst_type_auc": worst_auc
            and {"type": worst_auc[0], "value": worst_auc[1].value, "real_reference": worst_auc[1].real_reference},
            "poor_types": self.poor_types(),
            "missing_types": self.missing_types(),
            "unscored_types": self.unscored_types(),
            "basis": self.basis,
            "alike": self.alike,
            "remarks": self.remarks,
            "definitions": {"real_reference": self.reference_definition, **baselines_of(self.label)},
            "cells_compared": self.n_cells,
            "genes_compared": self.n_genes,
            "resamples": self.resamples,
            "max_cells": self.max_cells,
            "metrics": list(self.metrics),
            "inputs": self.inputs,
            "sampled": {name: list(numbers) for name, numbers in self.sampled.items()},
            "label": self.label,
            "conditions": list(self.conditions),
            "donor": self.donor,
            "batch": self.batch,
            "protocol": None
            if self.protocol is None
            else asdict(PROTOCOLS[self.protocol])
            | {"name": self.protocol, "scores": [score.to_dict() for score in self.of_protocol]},
            "seed": self.seed,
            "command": self.command(),
            "types": self.types,
            "skipped": self.skipped,
            "notes": self.notes,
            "warnings": self.warnings,
            "versions": {"python": platform.python_version(), **versions(OF_SCORES)},
        }

    def command(self) -> str:
        """Return the shell command that reproduces these scores.

        Cells that were in memory are named REAL, SYNTHETIC and TRAIN.
        """
        sources = {side: given["source"] for side, given in self.inputs.items()}
        names = {side: side.upper() if source == "memory" else source for side, source in sources.items()}
        words = ["scdiff", "evaluate", names["real"], names["synthetic"]]
        options: dict[str, Any] = {
            "--label": self.label, "--donor": self.donor, "--batch": self.batch, "--protocol": self.protocol,
        }  # fmt: skip
        trained_on = names.get("train", names["real"])  # training cells separated from `real` have its source
        if self.basis == "given" or trained_on != names["real"]:
            options["--train"] = trained_on
        options |= {"--resamples": self.resamples, "--max-cells": self.max_cells, "--seed": self.seed}
        words += [str(word) for name, value in options.items() if value is not None for word in (name, value)]
        words += [word for column in self.conditions for word in ("--condition", column)]
        words += [] if self.metrics == (FULL,) else ["--metrics", ",".join(self.metrics)]
        words += ["--memory", "disk"] if self.sampled else []
        return shlex.join(words)

    def _repr_html_(self) -> str:
        """Render verdict and scores as HTML for a notebook."""
        return render("summary.html.j2", about=self, found=self.verdict)


def baselines_of(label: str | None) -> dict[str, str]:
    """Return the definitions of the baselines by name."""
    return {
        name: text.format(label or "no types given: between all cells") for name, text in BASELINE_DEFINITIONS.items()
    }


def _row(score: Score) -> dict[str, Any]:
    """Flatten a score to one table row, with columns _low and _high for each interval."""
    row: dict[str, Any] = {}
    for key, value in score.to_dict().items():
        if key.endswith("_range"):
            low, high = value or (np.nan, np.nan)
            row |= {key.replace("range", "low"): low, key.replace("range", "high"): high}
        else:
            row[key] = np.nan if value is None else value
    return row | {"headline": score.metric in HEADLINES}
