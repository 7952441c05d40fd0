"""Can these cells be trusted? Scores of synthetic cells beside what real cells score, a verdict, and a report.

Every metric is computed several times over, each time between two sets of as many cells, drawn anew:
value     one half of the real cells against synthetic cells
floor     the same half against the other half: what perfect synthetic cells would score
ceilings  the same half against bad models made from the other half: "shuffled", every gene shuffled between cells of
          one type (right genes, no relations between them), and "pooled", all cells their mean; where the question is
          whether cells were copied, "copies" of the other half
Given the training cells, the real cells are all in the first set, and training cells in the second.
"""

from __future__ import annotations

import json
import logging
import platform
import shlex
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scdiffkit.compared import (
    FEW_CELLS,
    MIN_CELLS,
    Part,
    Remarks,
    Side,
    candidates,
    cells_a_side,
    count_types,
    draw_order,
    drop_trained_on,
    load,
    match_genes,
    note_scales,
    parts,
)
from scdiffkit.errors import ConfigError, FileError, nearest
from scdiffkit.io import atomic_path, atomic_write_text
from scdiffkit.io.atomic import writing
from scdiffkit.metrics import METRICS, PROTOCOLS, Metric, Space, in_space, picture
from scdiffkit.metrics.biology import types_to_compare
from scdiffkit.metrics.marginals import cv_per_gene
from scdiffkit.metrics.privacy import repeated_share
from scdiffkit.metrics.score import Score, score_of
from scdiffkit.metrics.spaces import N_VARIABLE
from scdiffkit.preprocess import preprocess
from scdiffkit.verdict import Verdict, judge

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")

SCHEMA = 2
SCORES, TABLE, REPORT, PICTURE = "metrics.json", "metrics.csv", "report.html", "cells.png"
RESAMPLES, CELLS_OF_RESAMPLE = 5, 1000
SHARE_OF_RESAMPLE = 0.8  # of the cells there are, where they are fewer
MAX_PICTURE_CELLS = 2000  # a side
MOST_KNOWN = 20_000  # cells that a resample looks for copies of
MIN_CELLS_OF_TYPE = 10  # on both sides, for a type to be scored on its own
OF_TYPES = ("mean_mae", "zeros_mae", "mmd_pca", "recall")  # what is scored within each type
OF_EACH_TYPE = ("marker_overlap", "marker_auprc", "lfc_types")
OF_DONORS = ("near_duplicates", "membership_auc")  # and, with exact_duplicates, against the cells of each donor

HALVES = (
    "Half of the real cells against the other half (disjoint, drawn at random within types): what perfect "
    "synthetic cells would score."
)
HELD_OUT = (
    "The real cells, which the model has not seen, against cells it was trained on: what a perfect model, or a "
    "perfect copy of the training cells, would score."
)
CEILINGS = {
    "shuffled": "Real cells with every gene shuffled between the cells of one type ({}): right genes, no relations "
    "between them. A model that does not beat this has learned nothing beyond the types.",
    "pooled": "Cells that are all the mean of the real ones: no types, no spread.",
    "copies": "Copies of the cells that were trained on (of the real cells, where those are not given).",
}


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    scores: of every metric. of_types, of_donors: of each cell type the scores OF_TYPES within it, of each donor the
    scores OF_DONORS against this donor's cells. of_protocol: the scores of another paper's protocol, in its genes.
    inputs: for "real", "synthetic" and perhaps "train", where they came
    from, their size, scale and, for files, SHA-256. n_cells: cells on each side of a comparison. n_genes: genes
    compared. types: cells of each type by side, before any were left out (None without a label). skipped: metrics that
    could not be computed, and why. notes: what was done. warnings: what to be wary of. html: the report as it was
    written, None without `out`.
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
    protocol: str | None
    of_protocol: list[Score]
    floor_definition: str
    types: dict[str, dict[str, int]] | None
    skipped: dict[str, str]
    notes: list[str]
    warnings: list[str]
    html: Path | None = None

    @property
    def verdict(self) -> Verdict:
        """What the scores mean, in words."""
        return judge(
            self.scores,
            few_cells=self.n_cells < FEW_CELLS,
            floor_is="real cells against training cells" if "train" in self.inputs else "two halves of the real cells",
            within=f"within {self.label}" if self.label else "between cells",
            worst_type=self.worst_type(),
            missing_types=self.missing_types(),
        )

    def __getitem__(self, metric: str) -> Score:
        """The score of a metric by its name; KeyError when there is none."""
        for score in self.scores:
            if score.metric == metric:
                return score
        raise KeyError(f"There is no metric {metric!r}; {nearest(metric, [s.metric for s in self.scores])}")

    def to_frame(self) -> pd.DataFrame:
        """One row per metric; columns metric, family, value, value_low, value_high, floor, floor_low, floor_high,
        shuffled, pooled, copies (bad models; NaN where one says nothing), position, at_floor, direction, best,
        definition, source."""
        return pd.DataFrame([_row(score) for score in self.scores])

    def types_to_frame(self) -> pd.DataFrame:
        """One row per cell type and metric; column type and those of `to_frame`."""
        return pd.DataFrame([{"type": name, **_row(s)} for name, scores in self.of_types.items() for s in scores])

    def donors_to_frame(self) -> pd.DataFrame:
        """One row per donor and metric; column donor and those of `to_frame`."""
        return pd.DataFrame([{"donor": name, **_row(s)} for name, scores in self.of_donors.items() for s in scores])

    def missing_types(self) -> list[str]:
        """The types of the real cells that no synthetic cell has; none where those have no types."""
        counts = self.types or {}
        if not any(count["synthetic"] for count in counts.values()):
            return []
        return [name for name, count in counts.items() if count["real"] and not count["synthetic"]]

    def worst_type(self) -> str | None:
        """The type whose synthetic cells are furthest from real ones, by its mean position over OF_TYPES; None when
        none was scored, or all are as real cells are."""
        off = {
            name: float(np.mean([0.0 if score.at_floor else score.position for score in scores]))
            for name, scores in self.of_types.items()
        }
        worst = max(off, key=off.__getitem__, default=None)
        return worst if worst is not None and off[worst] > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as it stands in metrics.json: plain values, every number finite.

        schema: 2, verdict (see Verdict), scores (list, see Score.to_dict), of_types {type: list}, of_donors {donor:
        list}, worst_type, missing_types, definitions {floor, shuffled, pooled, copies}, cells_compared,
        genes_compared, resamples, max_cells, inputs {real, synthetic, train?: {source, cells, genes, scale, sha256}},
        label, conditions, donor, protocol {name, genes, source, flaws, metrics, scores} or null, seed, command,
        types {name: {real, synthetic}} or null, skipped {metric: reason}, notes, warnings, versions {package: version}.
        """
        return {
            "schema": SCHEMA,
            "verdict": self.verdict.to_dict(),
            "scores": [score.to_dict() for score in self.scores],
            "of_types": {name: [score.to_dict() for score in scores] for name, scores in self.of_types.items()},
            "of_donors": {name: [score.to_dict() for score in scores] for name, scores in self.of_donors.items()},
            "worst_type": self.worst_type(),
            "missing_types": self.missing_types(),
            "definitions": {"floor": self.floor_definition, **ceilings_of(self.label)},
            "cells_compared": self.n_cells,
            "genes_compared": self.n_genes,
            "resamples": self.resamples,
            "max_cells": self.max_cells,
            "inputs": self.inputs,
            "label": self.label,
            "conditions": list(self.conditions),
            "donor": self.donor,
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
            "versions": _versions(),
        }

    def command(self) -> str:
        """What repeats these scores in a shell."""
        words = ["scdiff", "evaluate", *(self.inputs[side]["source"] for side in ("real", "synthetic"))]
        options: dict[str, Any] = {"--label": self.label, "--donor": self.donor, "--protocol": self.protocol}
        if "train" in self.inputs:
            options["--train"] = self.inputs["train"]["source"]
        options |= {"--resamples": self.resamples, "--max-cells": self.max_cells, "--seed": self.seed}
        words += [str(word) for name, value in options.items() if value is not None for word in (name, value)]
        words += [word for column in self.conditions for word in ("--condition", column)]
        return shlex.join(words)

    def _repr_html_(self) -> str:
        """Verdict and scores, for a notebook."""
        from scdiffkit.report import summary_html

        return summary_html(self)


def ceilings_of(label: str | None) -> dict[str, str]:
    """What the bad models are, by name."""
    return {name: text.format(label or "no types given: between all cells") for name, text in CEILINGS.items()}


def _row(score: Score) -> dict[str, Any]:
    """A score as a row of plain cells."""
    row: dict[str, Any] = {}
    for key, value in score.to_dict().items():
        if key.endswith("_range"):
            low, high = value or (np.nan, np.nan)
            row |= {key.replace("range", "low"): low, key.replace("range", "high"): high}
        else:
            row[key] = np.nan if value is None else value
    return row


def evaluate(
    real: AnnData | str | Path,
    synthetic: AnnData | str | Path,
    *,
    train: AnnData | str | Path | None = None,
    label: str | None = None,
    conditions: Sequence[str] = (),
    donor: str | None = None,
    protocol: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    max_cells: int = CELLS_OF_RESAMPLE,
    resamples: int = RESAMPLES,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score synthetic cells against real ones, beside a real-vs-real floor and bad models.

    real, synthetic, train: AnnData or a file that `read` takes, with raw counts or log1p-normalised X; genes
    are matched by name. train: the cells the model was trained on, when `real` are others (cells that are in
    both are taken out of `real`): the floor is then `real` against `train`. label, conditions, donor: obs columns
    with the types, with what differs between cells of one type (treatment), and with the donors, each of whose cells
    are then looked for among the synthetic ones. protocol: "scrdit", "cfgen" or "scdiffusion", whose own scores are
    added (see PROTOCOLS). out: folder for report.html, metrics.json (see Evaluation.to_dict),
    metrics.csv and cells.png, replaced only with `force`. resamples: how often everything is scored, with
    other cells; max_cells: at most so many cells a side each time. progress(name, i, n) is called before each of n
    steps.

    The same seed gives the same scores. Raises DataError for cells that cannot be compared (no common genes,
    NaN, negative values, too few cells, no such label), FileError when `out` is in the way, ConfigError for
    max_cells below 5 or resamples below 1. ScdiffWarning where the scores need care.
    """
    if max_cells < MIN_CELLS:
        raise ConfigError(f"--max-cells must be at least {MIN_CELLS}, not {max_cells}.")
    if resamples < 1:
        raise ConfigError(f"--resamples must be at least 1, not {resamples}.")
    if protocol is not None and protocol not in PROTOCOLS:
        raise ConfigError(f"There is no --protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
    if out is not None:
        _check_out(Path(out), force)
    given = {"real": real, "synthetic": synthetic} | ({} if train is None else {"train": train})
    sides = load(given, label, conditions, donor)
    remarks = Remarks()
    note_scales(sides, remarks)
    match_genes(sides, remarks)
    if train is not None:
        drop_trained_on(sides, remarks)
    types = None if label is None else count_types(sides, label, remarks)
    available = cells_a_side(sides)
    n = min(available, max_cells)
    if resamples > 1:
        n = min(max(MIN_CELLS, int(SHARE_OF_RESAMPLE * available)), max_cells)
    halves = "held-out real cells, training cells" if train is not None else "each half of the real cells"
    remarks.notes.append(
        f"Compared: {n} cells of {halves} and synthetic cells, {resamples} times over, drawn with seed {seed}."
    )
    if n < FEW_CELLS:
        remarks.warn(f"Only {n} cells a side are compared: scores and floor are rough, see more cells if you can.")
    if sides["synthetic"].codec_auc:
        remarks.notes.append(
            "The model's codec alone: held-out cells encoded and decoded scored an AUC of {held_out:.2f}, training "
            "cells {training:.2f}, cells as they are {floor:.2f} when the model was trained.".format(
                **sides["synthetic"].codec_auc
            )
        )

    protocol_genes = None if protocol is None else _genes_of(protocol, sides["real"])
    exact, exact_of = exact_shares(sides), dict[str, dict[str, float]]()
    found: dict[str, list[dict[str, float]]] = {}
    of_protocol: dict[str, list[dict[str, float]]] = {}
    of_types: dict[str, dict[str, list[dict[str, float]]]] = {}
    of_donors: dict[str, dict[str, list[dict[str, float]]]] = {}
    for r in range(resamples):
        drawn = parts(sides, n, seed + 1000 * r)
        known, made = known_cells(sides, n, seed + 1000 * r)
        round_ = Round(*drawn, known=known, made=made, trained=train is not None, seed=seed + r)
        metrics, skipped = _computable(round_, label)
        steps = len(metrics) * resamples + (out is not None)
        for i, metric in enumerate(metrics):
            if progress:
                progress(f"{metric.family}: {metric.name}", r * len(metrics) + i, steps)
            figures = exact if metric.name == "exact_duplicates" else round_.score(metric)
            found.setdefault(metric.name, []).append(figures)
        for parts_of, groups in ((of_types, round_.score_types()), (of_donors, round_.score_donors())):
            for name, scores in groups.items():
                for metric_name, of_metric in scores.items():
                    parts_of.setdefault(name, {}).setdefault(metric_name, []).append(of_metric)
        for name in donors_to_score(round_.second if train is not None else round_.first):
            if name not in exact_of:
                exact_of[name] = exact_shares(sides, name)
            of_donors.setdefault(name, {}).setdefault("exact_duplicates", []).append(exact_of[name])
        if protocol is not None and protocol_genes is not None:
            first, second, third = (part.in_genes(protocol_genes) for part in drawn)
            in_genes = Round(first, second, third, known=first, made=third, trained=False, seed=seed + r)
            for metric in (METRICS[name] for name in PROTOCOLS[protocol].metrics):
                if not all(need in part.of_cells for need in metric.needs for part in drawn):
                    skipped[metric.name] = WITHOUT["types"]
                    continue
                if progress:
                    progress(f"{protocol}: {metric.name}", (r + 1) * len(metrics), steps)
                of_protocol.setdefault(metric.name, []).append(in_genes.score(metric))
        if r == 0:
            zeros = [1 - part.X.nnz / np.prod(part.X.shape) for part in (round_.first, round_.third)]
            remarks.notes.append(f"Share of zeros: {zeros[0]:.3f} in real, {zeros[1]:.3f} in synthetic cells.")

    evaluation = Evaluation(
        scores=[score_of(METRICS[name], figures) for name, figures in found.items()],
        of_types=_scores_of(of_types),
        of_donors=_scores_of(of_donors),
        inputs={name: side.describe() for name, side in sides.items()},
        n_cells=n,
        n_genes=len(sides["real"].genes),
        resamples=resamples,
        seed=seed,
        max_cells=max_cells,
        label=label,
        conditions=tuple(conditions),
        donor=donor,
        protocol=protocol,
        of_protocol=[score_of(METRICS[name], figures) for name, figures in of_protocol.items()],
        floor_definition=HALVES if train is None else HELD_OUT,
        types=types,
        skipped=skipped,
        notes=remarks.notes,
        warnings=remarks.warnings,
        html=None if out is None else Path(out) / REPORT,
    )
    if out is not None:
        if progress:
            progress("pictures", steps - 1, steps)
        _write(evaluation, sides, Path(out))
    return evaluation


def _write(evaluation: Evaluation, sides: dict[str, Side], out: Path) -> None:
    """The report, its picture on its own, and its figures as JSON and CSV."""
    from scdiffkit import report

    seed, label = evaluation.seed, evaluation.label
    first, second, third = parts(sides, min(evaluation.n_cells, evaluation.max_cells), seed)
    shown = _cells_to_draw(sides, seed, min(MAX_PICTURE_CELLS, evaluation.max_cells * min(2, evaluation.resamples)))
    types = [part.types if label and part.has_types else None for part in shown]
    positions = picture.layout(shown[0].X, shown[1].X, seed=seed)
    with atomic_path(out / PICTURE) as temporary:
        picture.draw(temporary, *positions, *types, label=label, seed=seed)
    html = report.html(
        evaluation, genes=sides["real"].genes, first=first, second=second, third=third, shown=shown, umap=positions
    )
    text = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
    atomic_write_text(out / SCORES, text + "\n")
    atomic_write_text(out / TABLE, evaluation.to_frame().to_csv(index=False))
    atomic_write_text(out / REPORT, html)


def _cells_to_draw(sides: dict[str, Side], seed: int, most: int) -> tuple[Part, Part]:
    """As many real as synthetic cells."""
    real, synthetic = sides["real"], sides["synthetic"]
    n = min(real.X.shape[0], synthetic.X.shape[0], most)
    orders = (
        draw_order(side.types, np.random.default_rng([seed, 7, i]))[:n] for i, side in enumerate((real, synthetic))
    )
    a, b = (side.part(rows) for side, rows in zip((real, synthetic), orders))
    return a, b


def _scores_of(groups: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, list[Score]]:
    return {
        name: [score_of(METRICS[metric], figures) for metric, figures in scores.items()]
        for name, scores in sorted(groups.items())
    }


class Round:
    """One resample: real cells (first), other real or training cells (second) and synthetic ones (third).

    known: what synthetic cells may be copies of, training cells where those are given (trained), with `second` among
    them, else real cells, with `first` among them. made: synthetic cells. Both may be more cells.
    """

    def __init__(
        self, first: Part, second: Part, third: Part, *, known: Part, made: Part, trained: bool, seed: int
    ) -> None:
        self.first, self.second, self.third = first, second, third
        self.known, self.trained, self.seed = known, trained, seed
        unknown = first if trained else second
        n, rows = len(unknown.types), np.random.default_rng([seed, 8]).permutation(len(unknown.types))
        some, others = unknown.take(np.sort(rows[: n // 2])), unknown.take(np.sort(rows[n // 2 :]))
        neighbours = candidates(unknown, known)
        self.pairs: dict[str, dict[str, tuple[Part, Part]]] = {
            "real": {
                "value": (first, third),
                "floor": (first, second),
                "shuffled": (first, second.shuffled(np.random.default_rng([seed, 4]))),
                "pooled": (first, second.pooled()),
            },
            "train": {"value": (known, third), "floor": (known, unknown), "copies": (known, known)},
            # To what was learnt from, cells that were held out are the floor.
            "neighbours": {
                "value": (neighbours, third),
                "floor": (candidates(some, known), others),
                "copies": (neighbours, known.take(np.arange(min(n, len(known.types))))),
            },
        }
        if trained:
            both = candidates(first, second)
            self.pairs["candidates"] = {
                "value": (both, made),
                "floor": (candidates(some, others), made),  # neither was trained on
                "copies": (both, known),
            }
        self._in_space: dict[tuple[str, str, str], tuple[Any, Any]] = {}

    def matrices(self, against: str, which: str, space: Space) -> tuple[Any, Any]:
        """A pair of sets in a space, made when first asked for."""
        key = (against, which, space)
        if key not in self._in_space:
            a, b = self.pairs[against][which]
            self._in_space[key] = in_space(space, a.X, b.X, most=2 * len(self.first.types))
        return self._in_space[key]

    def score(self, metric: Metric, keep: Callable[[str, Part], np.ndarray] | None = None) -> dict[str, float]:
        """Its value, floor and ceilings by name; of the first set of each pair only the cells (mask) that `keep`
        tells."""
        found = {}
        for which, (a, b) in self.pairs[metric.against].items():
            rows = np.ones(len(a.types), dtype=bool) if keep is None else keep(which, a)
            x, y = self.matrices(metric.against, which, metric.space)
            given = {
                need: (a.of_cells[need][rows], b.of_cells.get(need, np.zeros(len(b.types)))) for need in metric.needs
            }
            found[which] = metric(x[rows], y, seed=self.seed, **given)
        return found

    def score_types(self) -> dict[str, dict[str, dict[str, float]]]:
        """Of each type with enough cells on all sides, the metrics OF_TYPES: value, floor and ceilings by name."""
        if any("types" not in part.of_cells for part in (self.first, self.third)):
            return {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name in sorted(set(self.first.types)):
            counts = [(part.types == name).sum() for part in (self.first, self.second, self.third)]
            if min(counts) < MIN_CELLS_OF_TYPE:
                continue
            for metric in (METRICS[m] for m in OF_TYPES):
                figures = {}
                for which, (a, b) in self.pairs["real"].items():
                    x, y = self.matrices("real", which, metric.space)
                    figures[which] = metric(x[a.types == name], y[b.types == name], seed=self.seed)
                found.setdefault(name, {})[metric.name] = figures
        return found

    def score_donors(self) -> dict[str, dict[str, dict[str, float]]]:
        """Of each donor with enough cells, the metrics OF_DONORS against this donor's cells alone."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name in donors_to_score(self.second if self.trained else self.first):

            def keep(which: str, part: Part, name: str = name) -> np.ndarray:
                """This donor's known cells, beside all that were held out; all where no cell is known."""
                held_out = part.of_cells["member"] == 0
                neither = which == "floor" and len(part.types) == len(self.first.types)
                return held_out | (part.of_cells["donors"] == name) | neither

            for metric in (METRICS[m] for m in OF_DONORS):
                if metric.against in self.pairs:
                    found.setdefault(name, {})[metric.name] = self.score(metric, keep)
        return found


def donors_to_score(part: Part) -> list[str]:
    """Those with enough cells."""
    names, counts = np.unique(part.of_cells.get("donors", np.array([], dtype=str)), return_counts=True)
    return [str(name) for name, count in zip(names, counts) if count >= MIN_CELLS_OF_TYPE]


def known_cells(sides: dict[str, Side], n: int, seed: int) -> tuple[Part, Part]:
    """What synthetic cells may be copies of, training cells or the real cells that no floor is made of, and synthetic
    cells, up to MOST_KNOWN of each; the first n are those that `parts` draws."""

    def order(name: str) -> np.ndarray:
        return draw_order(sides[name].types, np.random.default_rng([seed, sorted(sides).index(name)]))

    most = max(n, MOST_KNOWN)
    made = sides["synthetic"].part(order("synthetic")[:most])
    if "train" in sides:
        return sides["train"].part(order("train")[:most]), made
    rows = order("real")
    return sides["real"].part(np.concatenate([rows[:n], rows[2 * n :]])[:most]), made


def exact_shares(sides: dict[str, Side], donor: str | None = None) -> dict[str, float]:
    """exact_duplicates of all cells, as figures of a round; of one donor's known cells alone."""
    known = sides.get("train", sides["real"])
    X = known.X if donor is None or known.donors is None else known.X[known.donors == donor]
    value = METRICS["exact_duplicates"].function(X, sides["synthetic"].X)
    return {"value": value, "floor": repeated_share(X), "copies": 1.0}


def _computable(round_: Round, label: str | None) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that these cells allow, and why others are left out."""
    metrics, skipped = [], {}
    for metric in (m for m in METRICS.values() if m.default):
        drawn = (round_.first, round_.second, round_.third)
        missing = [n for n in metric.needs if n != "member" and not all(n in part.of_cells for part in drawn)]
        if metric.against not in round_.pairs:
            skipped[metric.name] = "the cells that the model was trained on are not given (--train)"
        elif missing:
            skipped[metric.name] = WITHOUT[missing[0]]
        elif "types" in metric.needs and len(set(round_.first.types)) < 2:
            skipped[metric.name] = f"all real cells are of one {label}"
        elif metric.name in OF_EACH_TYPE and not types_to_compare(round_.first.types):
            skipped[metric.name] = f"no {label} has {MIN_CELLS_OF_TYPE} real cells"
        else:
            metrics.append(metric)
    return metrics, skipped


def _genes_of(protocol: str, real: Side) -> np.ndarray:
    """Places of the genes that a protocol looks at, in the order of the genes."""
    which, n_genes = PROTOCOLS[protocol].genes, real.X.shape[1]
    if which == "all" or n_genes <= N_VARIABLE:
        return np.arange(n_genes)
    if which == "cv":
        return np.sort(np.argsort(-cv_per_gene(real.X), kind="stable")[:N_VARIABLE])
    if real.counts is None:
        raise ConfigError(f"--protocol {protocol} chooses genes by raw counts of the real cells, which they lack.")
    from anndata import AnnData

    counts = AnnData(real.counts, var=pd.DataFrame(index=real.genes))
    chosen = preprocess(counts, hvg_flavor="seurat_v3", n_top_genes=N_VARIABLE, min_cells=0, min_genes=0)
    return np.sort(real.genes.get_indexer(chosen.var_names))


WITHOUT = {
    "types": "no --label that both sides have",
    "conditions": "no --condition that both sides have",
    "library_size": "one side has no raw counts",
    "genes_detected": "no genes",
    "mitochondrial_share": "none of the genes compared is mitochondrial (MT-...)",
}


def _versions() -> dict[str, str]:
    """Of the packages that the scores depend on."""
    found = {"python": platform.python_version()}
    for name in ("scdiffkit", "numpy", "scipy", "scikit-learn", "umap-learn", "pot", "anndata"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree that was not installed
            found[name] = "unknown"
    return found


def _check_out(out: Path, force: bool) -> None:
    """Fail now rather than after the scores are computed."""
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; the report needs a folder. Choose another name.")
    there = [name for name in (SCORES, TABLE, REPORT, PICTURE) if (out / name).exists()]
    if there and not force:
        raise FileError(f"{out} holds {' and '.join(there)} already: choose another folder, or use --force.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
