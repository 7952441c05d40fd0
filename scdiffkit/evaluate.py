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
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from scdiffkit.metrics import METRICS, Metric, Space, in_space, picture
from scdiffkit.metrics.score import Score, score_of
from scdiffkit.verdict import Verdict, judge

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")

SCHEMA = 2
SCORES, PICTURE = "metrics.json", "cells.png"
RESAMPLES, CELLS_OF_RESAMPLE = 5, 1000
SHARE_OF_RESAMPLE = 0.8  # of the cells there are, where they are fewer
MAX_PICTURE_CELLS = 3000  # a side
MIN_CELLS_OF_TYPE = 10  # on both sides, for a type to be scored on its own
OF_TYPES = ("mean_mae", "zeros_mae", "mmd_pca", "recall")  # what is scored within each type

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

    scores: of every metric. of_types: of each cell type, the scores OF_TYPES within it. inputs: for "real",
    "synthetic" and perhaps "train", where they came from, their size and scale. n_cells: cells on each side of a
    comparison. n_genes: genes compared. types: cells of each type by side, before any were left out (None without a
    label). skipped: metrics that could not be computed, and why. notes: what was done. warnings: what to be wary of.
    """

    scores: list[Score]
    of_types: dict[str, list[Score]]
    inputs: dict[str, dict[str, Any]]
    n_cells: int
    n_genes: int
    resamples: int
    seed: int
    label: str | None
    conditions: tuple[str, ...]
    floor_definition: str
    types: dict[str, dict[str, int]] | None
    skipped: dict[str, str]
    notes: list[str]
    warnings: list[str]
    picture: Path | None = None

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

    def worst_type(self) -> str | None:
        """The type whose synthetic cells are furthest from real ones, by mmd_pca; None when none was scored."""
        of = {
            name: score.position
            for name, scores in self.of_types.items()
            for score in scores
            if score.metric == "mmd_pca"
        }
        return max(of, key=of.__getitem__) if of else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as it stands in metrics.json: plain values, every number finite.

        schema: 2, verdict {word, reasons, findings, text}, scores (list, see Score.to_dict), of_types {type: list},
        worst_type, definitions {floor, shuffled, pooled, copies}, cells_compared, genes_compared, resamples, inputs
        {real, synthetic, train?: {source, cells, genes, scale}}, label, conditions, seed, types {name: {real,
        synthetic}} or null, skipped {metric: reason}, notes, warnings, picture (file name or null), versions
        {package: version}.
        """
        found = verdict(self)
        return {
            "schema": SCHEMA,
            "verdict": found.to_dict(),
            "scores": [score.to_dict() for score in self.scores],
            "of_types": {name: [score.to_dict() for score in scores] for name, scores in self.of_types.items()},
            "worst_type": self.worst_type(),
            "definitions": {"floor": self.floor_definition, **ceilings_of(self.label)},
            "cells_compared": self.n_cells,
            "genes_compared": self.n_genes,
            "resamples": self.resamples,
            "inputs": self.inputs,
            "label": self.label,
            "conditions": list(self.conditions),
            "seed": self.seed,
            "types": self.types,
            "skipped": self.skipped,
            "notes": self.notes,
            "warnings": self.warnings,
            "picture": self.picture.name if self.picture else None,
            "versions": _versions(),
        }


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
    both are taken out of `real`): the floor is then `real` against `train`. label, conditions: obs columns with the
    types, and with what differs between cells of one type (treatment, donor). out: folder for metrics.json (see
    Evaluation.to_dict) and cells.png, replaced only with `force`. resamples: how often everything is scored, with
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
    if out is not None:
        _check_out(Path(out), force)
    given = {"real": real, "synthetic": synthetic} | ({} if train is None else {"train": train})
    sides = load(given, label, conditions)
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

    found: dict[str, list[dict[str, float]]] = {}
    of_types: dict[str, dict[str, list[dict[str, float]]]] = {}
    for r in range(resamples):
        round_ = Round(*parts(sides, n, seed + 1000 * r), trained=train is not None, seed=seed + r)
        metrics, skipped = _computable(round_, label)
        steps = len(metrics) * resamples + (out is not None)
        for i, metric in enumerate(metrics):
            if progress:
                progress(metric.name, r * len(metrics) + i, steps)
            found.setdefault(metric.name, []).append(round_.score(metric))
        for name, scores in round_.score_types().items():
            for metric_name, figures in scores.items():
                of_types.setdefault(name, {}).setdefault(metric_name, []).append(figures)
        if r == 0:
            zeros = [1 - part.X.nnz / np.prod(part.X.shape) for part in (round_.first, round_.third)]
            remarks.notes.append(f"Share of zeros: {zeros[0]:.3f} in real, {zeros[1]:.3f} in synthetic cells.")

    if out is not None and progress:
        progress("picture", steps - 1, steps)
    evaluation = Evaluation(
        scores=[score_of(METRICS[name], figures) for name, figures in found.items()],
        of_types={
            name: [score_of(METRICS[metric], figures) for metric, figures in scores.items()]
            for name, scores in sorted(of_types.items())
        },
        inputs={name: side.describe() for name, side in sides.items()},
        n_cells=n,
        n_genes=len(sides["real"].genes),
        resamples=resamples,
        seed=seed,
        label=label,
        conditions=tuple(conditions),
        floor_definition=HALVES if train is None else HELD_OUT,
        types=types,
        skipped=skipped,
        notes=remarks.notes,
        warnings=remarks.warnings,
        picture=None if out is None else _draw(sides, label, seed, Path(out)),
    )
    if out is not None:
        text = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        atomic_write_text(Path(out) / SCORES, text + "\n")
    return evaluation


def verdict(evaluation: Evaluation) -> Verdict:
    """What the scores mean, in words."""
    return judge(
        evaluation.scores,
        few_cells=evaluation.n_cells < FEW_CELLS,
        floor_is="real cells against training cells"
        if "train" in evaluation.inputs
        else "two halves of the real cells",
        within=f"within {evaluation.label}" if evaluation.label else "between cells",
        worst_type=evaluation.worst_type(),
    )


class Round:
    """One resample: real cells (first), other real or training cells (second) and synthetic ones (third)."""

    def __init__(self, first: Part, second: Part, third: Part, *, trained: bool, seed: int) -> None:
        self.first, self.second, self.third, self.seed = first, second, third, seed
        self.pairs: dict[str, dict[str, tuple[Part, Part]]] = {
            "real": {
                "value": (first, third),
                "floor": (first, second),
                "shuffled": (first, second.shuffled(np.random.default_rng([seed, 4]))),
                "pooled": (first, second.pooled()),
            },
            # To what was learnt from, real cells that were held out are the floor.
            "train": {
                "value": (second if trained else first, third),
                "floor": (second, first) if trained else (first, second),
                "copies": (second, second) if trained else (first, first),
            },
        }
        self._in_space: dict[tuple[str, str, str], tuple[Any, Any]] = {}

    def matrices(self, against: str, which: str, space: Space) -> tuple[Any, Any]:
        """A pair of sets in a space, made when first asked for."""
        key = (against, which, space)
        if key not in self._in_space:
            a, b = self.pairs[against][which]
            self._in_space[key] = in_space(space, a.X, b.X)
        return self._in_space[key]

    def score(self, metric: Metric) -> dict[str, float]:
        """Its value, floor and ceilings by name."""
        found = {}
        for which, (a, b) in self.pairs[metric.against].items():
            given = {need: (a.of_cells[need], b.of_cells[need]) for need in metric.needs}
            found[which] = metric(*self.matrices(metric.against, which, metric.space), seed=self.seed, **given)
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


def _computable(round_: Round, label: str | None) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that these cells allow, and why others are left out."""
    metrics, skipped = [], {}
    for metric in METRICS.values():
        missing = [need for need in metric.needs for part in (round_.first, round_.third) if need not in part.of_cells]
        if missing:
            skipped[metric.name] = WITHOUT[missing[0]]
        elif "types" in metric.needs and len(set(round_.first.types)) < 2:
            skipped[metric.name] = f"all real cells are of one {label}"
        else:
            metrics.append(metric)
    return metrics, skipped


WITHOUT = {
    "types": "no --label that both sides have",
    "conditions": "no --condition that both sides have",
    "library_size": "one side has no raw counts",
    "genes_detected": "no genes",
    "mitochondrial_share": "none of the genes compared is mitochondrial (MT-...)",
}


def _versions() -> dict[str, str]:
    """Of the packages that the scores depend on."""
    found = {}
    for name in ("scdiffkit", "numpy", "scipy", "scikit-learn", "umap-learn", "anndata"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree that was not installed
            found[name] = "unknown"
    return found


def _check_out(out: Path, force: bool) -> None:
    """Fail now rather than after the scores are computed."""
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; the report needs a folder. Choose another name.")
    there = [name for name in (SCORES, PICTURE) if (out / name).exists()]
    if there and not force:
        raise FileError(f"{out} holds {' and '.join(there)} already: choose another folder, or use --force.")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass


def _draw(sides: dict[str, Side], label: str | None, seed: int, out: Path) -> Path:
    """As many real as synthetic cells in one layout, as cells.png."""
    real, synthetic = sides["real"], sides["synthetic"]
    n = min(real.X.shape[0], synthetic.X.shape[0], MAX_PICTURE_CELLS)
    parts = [
        side.part(draw_order(side.types, np.random.default_rng([seed, 7, i]))[:n])
        for i, side in enumerate((real, synthetic))
    ]
    positions = picture.layout(parts[0].X, parts[1].X, seed=seed)
    types = [part.types if label and side.has_types else None for part, side in zip(parts, (real, synthetic))]
    with atomic_path(out / PICTURE) as temporary:
        picture.draw(temporary, *positions, *types, label=label, seed=seed)
    return out / PICTURE
