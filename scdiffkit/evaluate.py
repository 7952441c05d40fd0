"""Can these cells be trusted? Scores of synthetic cells beside what real cells score, and a picture.

Every metric is computed three times, always between two sets of the same number of cells:
value     one half of the real cells against synthetic cells
floor     the same half against the other half: what perfect synthetic cells would score
shuffled  the same half against the other half with every gene shuffled between cells of one type: what cells
          score that have the right genes but no relations between them (a bad model)
Given the training cells, the real cells are all in the first set, and training cells in the second.
"""

from __future__ import annotations

import json
import logging
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import ConfigError, DataError, FileError, ScdiffWarning, nearest
from scdiffkit.io import atomic_path, atomic_write_text, read
from scdiffkit.io.atomic import writing
from scdiffkit.metrics import METRICS, Metric, in_space, picture
from scdiffkit.preprocess import find_counts, lognormalise

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")

SCORES, PICTURE = "metrics.json", "cells.png"
TARGET_SUM = 1e4
MAX_LOG_VALUE = 20.0  # log1p of half a billion: larger values are not logarithms of counts
FEW_GENES, FEW_CELLS, MIN_CELLS = 100, 100, 5
SCALE_RATIO = 1.5  # sums per cell that differ by more than this were hardly normalised in the same way
MAX_PICTURE_CELLS = 3000  # a side
BLOCK_OF_GENES = 512
NO_TYPE = "(none)"

# Of the verdict, in AUC. Two halves of one data set come to 0.5 +- 0.03 with a few hundred cells.
AUC_SAME = 0.05  # chance may set two AUCs as far apart
AUC_CLOSE = 0.15  # above the floor by this: most cells pass for real
AUC_OBVIOUS = 0.95  # nearly every cell is recognised

HALVES = (
    "Half of the real cells against the other half (disjoint, drawn at random within types): what perfect "
    "synthetic cells would score."
)
HELD_OUT = (
    "The real cells, which the model has not seen, against cells it was trained on: what a perfect model, or a "
    "perfect copy of the training cells, would score."
)
SHUFFLED = (
    "As the floor, but every gene shuffled between the cells of one type ({}) on the second side: right genes, "
    "no relations between them. A model that does not beat this has learned nothing beyond the types."
)


@dataclass(frozen=True)
class Score:
    """One metric: value for the synthetic cells, and the same figure for real and for shuffled cells."""

    metric: str
    value: float
    floor: float
    shuffled: float
    direction: str
    best: float
    definition: str
    source: str
    space: str


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    inputs: for "real", "synthetic" and perhaps "train", where they came from, their size and scale.
    n_cells: cells on each side of every comparison. n_genes: genes compared. types: cells of each type by side,
    before any were left out (None without a label). notes: what was done. warnings: what to be wary of.
    """

    scores: list[Score]
    inputs: dict[str, dict[str, Any]]
    n_cells: int
    n_genes: int
    seed: int
    label: str | None
    floor_definition: str
    shuffled_definition: str
    types: dict[str, dict[str, int]] | None
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
        """One row per metric; columns metric, value, floor, shuffled, direction, best, definition, source, space."""
        return pd.DataFrame([asdict(score) for score in self.scores])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as it stands in metrics.json: plain values, every number finite.

        schema: 1, verdict, scores (list, see Score), definitions {floor, shuffled}, cells_compared,
        genes_compared, inputs {real, synthetic, train?: {source, cells, genes, scale}}, label, seed,
        types {name: {real, synthetic}} or null, notes, warnings, picture (file name or null),
        versions {package: version}.
        """
        return {
            "schema": 1,
            "verdict": verdict(self),
            "scores": [asdict(score) for score in self.scores],
            "definitions": {"floor": self.floor_definition, "shuffled": self.shuffled_definition},
            "cells_compared": self.n_cells,
            "genes_compared": self.n_genes,
            "inputs": self.inputs,
            "label": self.label,
            "seed": self.seed,
            "types": self.types,
            "notes": self.notes,
            "warnings": self.warnings,
            "picture": self.picture.name if self.picture else None,
            "versions": _versions(),
        }


def evaluate(
    real: AnnData | str | Path,
    synthetic: AnnData | str | Path,
    *,
    train: AnnData | str | Path | None = None,
    label: str | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    max_cells: int = 5000,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score synthetic cells against real ones, beside a real-vs-real floor and a bad model.

    real, synthetic, train: AnnData or a file that `read` takes, with raw counts or log1p-normalised X; genes
    are matched by name. train: the cells the model was trained on, when `real` are others (cells that are in
    both are taken out of `real`): the floor is then `real` against `train`. label: obs column with the types.
    out: folder for metrics.json (see Evaluation.to_dict) and cells.png, replaced only with `force`.
    max_cells: at most so many cells a side are compared. progress(name, i, n) is called before each of n steps.

    The same seed gives the same scores. Raises DataError for cells that cannot be compared (no common genes,
    NaN, negative values, too few cells, no such label), FileError when `out` is in the way, ConfigError for
    max_cells below 5. ScdiffWarning where the scores need care.
    """
    if max_cells < MIN_CELLS:
        raise ConfigError(f"--max-cells must be at least {MIN_CELLS}, not {max_cells}.")
    if out is not None:
        _check_out(Path(out), force)
    sides = _load({"real": real, "synthetic": synthetic} | ({} if train is None else {"train": train}), label)
    report = _Report()
    _note_scales(sides, report)
    _match_genes(sides, report)
    if train is not None:
        _drop_trained_on(sides, report)
    types = None if label is None else _count_types(sides, label, report)

    first, second, third = _equal_parts(sides, max_cells, seed, report)
    shuffled = _shuffled(second, seed)
    typed = label is not None and sides["synthetic"].has_types and len(set(first.types)) > 1
    metrics = [m for m in METRICS.values() if typed or not m.uses_types]
    steps = [*(m.name for m in metrics), *([] if out is None else ["picture"])]
    # What each figure compares: real cells with synthetic, other real and shuffled ones.
    pairs = {"real": [(first, third), (first, second), (first, shuffled)]}
    pairs["train"] = pairs["real"]
    if train is not None:  # to what was learnt from, real cells that were held out are the floor
        pairs["train"] = [(second, third), (second, first), (second, _shuffled(first, seed))]
    scores = []
    spaces: dict[tuple[str, str], list[tuple[Any, Any]]] = {}
    for i, metric in enumerate(metrics):
        if progress:
            progress(metric.name, i, len(steps))
        of_metric, key = pairs[metric.against], (metric.against, metric.space)
        if key not in spaces:
            spaces[key] = [in_space(metric.space, a.X, b.X) for a, b in of_metric]
        scores.append(_score(metric, spaces[key], [(a.types, b.types) for a, b in of_metric], seed))
    if sides["synthetic"].codec_auc:
        report.notes.append(
            "The model's codec alone: held-out cells encoded and decoded scored an AUC of {held_out:.2f}, training "
            "cells {training:.2f}, cells as they are {floor:.2f} when the model was trained.".format(
                **sides["synthetic"].codec_auc
            )
        )
    zeros = [1 - np.count_nonzero(part.X.data) / np.prod(part.X.shape) for part in (first, third)]
    report.notes.append(f"Share of zeros: {zeros[0]:.3f} in real, {zeros[1]:.3f} in synthetic cells.")

    if out is not None and progress:
        progress("picture", len(steps) - 1, len(steps))
    evaluation = Evaluation(
        scores=scores,
        inputs={name: side.describe() for name, side in sides.items()},
        n_cells=first.X.shape[0],
        n_genes=first.X.shape[1],
        seed=seed,
        label=label,
        floor_definition=HALVES if train is None else HELD_OUT,
        shuffled_definition=SHUFFLED.format(label or "no types given: between all cells"),
        types=types,
        notes=report.notes,
        warnings=report.warnings,
        picture=None if out is None else _draw(sides, label, seed, Path(out)),
    )
    if out is not None:
        text = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
        atomic_write_text(Path(out) / SCORES, text + "\n")
    return evaluation


def verdict(evaluation: Evaluation) -> str:
    """What the scores mean, in two or three plain sentences; thresholds are this module's AUC_* constants."""
    auc = evaluation["rf_auc"]
    within = f"within {evaluation.label}" if evaluation.label else "between cells"
    floor_is = "real cells against training cells" if "train" in evaluation.inputs else "two halves of the real cells"
    figures = (
        f"A classifier tells synthetic from real cells with AUC {auc.value:.2f} ({auc.floor:.2f}: {floor_is}; "
        f"{auc.shuffled:.2f}: real cells with genes shuffled {within}; 0.5: pure guessing)."
    )
    above_floor = auc.value - auc.floor
    if above_floor < -AUC_SAME:
        reading = (
            "Synthetic cells are more like the real ones than other real cells are: they may be copies of them. "
            "Judge them by real cells that the model was not trained on."
        )
    elif auc.value >= AUC_OBVIOUS:
        reading = "Nearly every synthetic cell is recognised: they do not yet pass for real cells."
    elif auc.shuffled - auc.floor <= AUC_SAME and above_floor <= AUC_SAME:
        reading = (
            "That is as good as real, but here so are shuffled cells: these data are too few or too simple to tell "
            "a good model from a bad one."
        )
    elif above_floor <= AUC_SAME:
        reading = "By this test they are as close to real cells as other real cells are."
    elif auc.value >= auc.shuffled - AUC_SAME:
        reading = "That is no better than shuffled cells: relations between genes in these cells cannot be relied on."
    elif above_floor <= AUC_CLOSE:
        reading = "They are close to real cells, and keep relations between genes that shuffling destroys."
    else:
        reading = "They keep some relations between genes, but can be told from real cells: use them with care."
    few = " With so few cells these figures are rough." if evaluation.n_cells < FEW_CELLS else ""
    return f"{figures} {reading}{few}"


def shuffle_within(X: sparse.csr_matrix, types: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """X (n, G) with each gene permuted, independently of the others, among the cells of each type (n,)."""
    columns, blocks = X.tocsc(), []
    for start in range(0, X.shape[1], BLOCK_OF_GENES):
        block = columns[:, start : start + BLOCK_OF_GENES].toarray()
        for name in np.unique(types):
            rows = np.flatnonzero(types == name)
            block[rows] = rng.permuted(block[rows], axis=0)
        blocks.append(sparse.csc_matrix(block))
    return sparse.hstack(blocks, format="csr")


@dataclass
class _Side:
    """One of the data sets: X (cells, genes) log1p-normalised CSR, its genes, the types of its cells."""

    name: str
    source: str
    X: sparse.csr_matrix
    genes: pd.Index
    types: np.ndarray  # (cells,) str; equal when there is no label
    has_types: bool
    scale: str
    n_cells: int
    n_genes: int
    codec_auc: dict[str, float]  # of the run that made the cells, where they say

    def rows(self, rows: np.ndarray) -> _Part:
        return _Part(self.X[rows], self.types[rows])

    def describe(self) -> dict[str, Any]:
        return {"source": self.source, "cells": self.n_cells, "genes": self.n_genes, "scale": self.scale}


@dataclass(frozen=True)
class _Part:
    """Cells drawn from a side: X (n, G) log1p-normalised, types (n,)."""

    X: sparse.csr_matrix
    types: np.ndarray


class _Report:
    """Collects what a reader of the scores must know."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        warnings.warn(message, ScdiffWarning, stacklevel=4)
        self.warnings.append(message)


def _load(cells: dict[str, AnnData | str | Path], label: str | None) -> dict[str, _Side]:
    read_in = {name: read(c) if isinstance(c, (str, Path)) else c for name, c in cells.items()}
    target_sum = _target_sum(read_in["synthetic"]) or _target_sum(read_in["real"]) or TARGET_SUM
    sides = {}
    for name, adata in read_in.items():
        source = "memory" if cells[name] is adata else str(cells[name])
        who = f"The {name} cells" if source == "memory" else f"The {name} cells ({source})"
        X, genes, scale = _log_values(adata, who, target_sum, made_here=name == "synthetic" or "scdiffkit" in adata.uns)
        types, has_types = _types_of(adata.obs, label, name, who)
        codec_auc = dict(adata.uns.get("scdiffkit", {}).get("codec_auc", {}))
        n_cells, n_genes = X.shape
        sides[name] = _Side(name, source, X, genes, types, has_types, scale, n_cells, n_genes, codec_auc)
    return sides


def _target_sum(adata: AnnData) -> float | None:
    """Counts per cell that this tool recorded having normalised to."""
    recorded = adata.uns.get("scdiffkit", {})
    value = recorded.get("target_sum") or recorded.get("preprocess", {}).get("target_sum")
    return float(value) if value else None


def _log_values(
    adata: AnnData, who: str, target_sum: float, made_here: bool
) -> tuple[sparse.csr_matrix, pd.Index, str]:
    """log1p-normalised values (cells, genes), their genes, and where they came from, in words.

    X that is log-normalised already is taken as it is: synthetic cells may hold fewer genes than they were
    normalised over. Raw counts are normalised by obs["total_counts"], the library size that this tool leaves
    in the cells it makes (also where a format has lost `uns`), else over all genes that the side has.
    """
    ours = "scdiffkit" in adata.uns
    X = None if adata.X is None else sparse.csr_matrix(_in_memory(adata.X), dtype=np.float32)
    if X is not None:
        _check_finite(X.data, who)
        negative = len(X.data) > 0 and X.data.min() < 0
        whole = np.array_equal(X.data, np.rint(X.data))
        if negative and ours:
            raise DataError(f"{who} have negative values in X (down to {X.data.min():g}): sample them again.")
        if not (negative or whole) and (ours or X.data.max() < MAX_LOG_VALUE):
            return _named(X, adata.var_names, who), adata.var_names, "log1p-normalised X, taken as it is"
    try:
        counts, place = find_counts(adata)
    except DataError as e:
        raise DataError(f"{who} are neither raw counts nor log1p-normalised. {e}") from e
    genes = adata.raw.var_names if place == "raw" else adata.var_names
    if made_here and "total_counts" in adata.obs:
        X = lognormalise(counts, target_sum, adata.obs["total_counts"].to_numpy())
        scale = f"raw counts in {place}, normalised by obs['total_counts'] to {target_sum:g}"
    else:
        X = lognormalise(counts, target_sum)
        scale = f"raw counts in {place}, normalised over {counts.shape[1]} genes to {target_sum:g}"
    return _named(X, genes, who), genes, f"{scale}, log1p"


def _in_memory(X: Any) -> Any:
    return X.to_memory() if hasattr(X, "to_memory") else X


def _check_finite(values: np.ndarray, who: str) -> None:
    unknown = int((~np.isfinite(values)).sum())
    if unknown:
        raise DataError(
            f"{who} have {unknown} values in X that are NaN or infinite: no score would mean anything. Remove these "
            "cells, or make them again."
        )


def _named(X: sparse.csr_matrix, genes: pd.Index, who: str) -> sparse.csr_matrix:
    """X, when it has cells and its genes can be matched by name."""
    if 0 in X.shape:
        raise DataError(f"{who} are empty ({X.shape[0]} cells x {X.shape[1]} genes).")
    repeated = genes[genes.duplicated()].unique()
    if len(repeated):
        raise DataError(
            f"{who} have {len(repeated)} gene names more than once (such as {repeated[0]!r}), so genes cannot be "
            "matched by name: run adata.var_names_make_unique() first."
        )
    return X


def _types_of(obs: pd.DataFrame, label: str | None, name: str, who: str) -> tuple[np.ndarray, bool]:
    """Types of cells (n,) as text; only synthetic cells may lack them."""
    if label is None or (label not in obs and name == "synthetic"):
        return np.full(len(obs), NO_TYPE, dtype=object), False
    if label not in obs:
        raise DataError(f"{who} have no obs column {label!r} (--label); {nearest(label, obs.columns)}")
    types = obs[label].astype(object).where(obs[label].notna(), NO_TYPE).astype(str).to_numpy(dtype=object)
    if len(types) > 2 * MIN_CELLS and len(set(types)) > len(types) / 2:
        raise DataError(
            f"{who} have {len(set(types))} different values of {label!r} (--label) in {len(types)} cells: choose a "
            "column that groups cells, such as the cell type."
        )
    return types, True


def _note_scales(sides: dict[str, _Side], report: _Report) -> None:
    for side in sides.values():
        report.notes.append(f"{side.name}: {side.n_cells} cells x {side.n_genes} genes; {side.scale}.")


def _match_genes(sides: dict[str, _Side], report: _Report) -> None:
    """Leave on every side the genes that all have, in the order of their names."""
    real, others = sides["real"], [side for side in sides.values() if side.name != "real"]
    shared = real.genes
    for side in others:
        both = shared.intersection(side.genes)
        if both.empty:
            examples = "; ".join(f"{s.name}: {', '.join(map(str, s.genes[:3]))}" for s in (real, side))
            raise DataError(
                f"The real and the {side.name} cells have no gene in common ({examples}). Both need the same kind "
                "of names in var_names, symbols or Ensembl ids, of the same species."
            )
        report.notes.append(
            f"Genes: {len(real.genes.intersection(side.genes))} in both real and {side.name} cells; "
            f"{len(real.genes.difference(side.genes))} only in real, "
            f"{len(side.genes.difference(real.genes))} only in {side.name}."
        )
        shared = both
    shared = shared.sort_values()
    if len(shared) < FEW_GENES:
        report.warn(f"Only {len(shared)} genes are in all sets of cells: the scores say nothing about the others.")
    for side in sides.values():
        side.X, side.genes = side.X[:, side.genes.get_indexer(shared)], shared
    sums = {side.name: float(np.expm1(side.X.data).sum()) / side.X.shape[0] for side in sides.values()}
    for side in others:
        low, high = sorted([sums["real"], sums[side.name]])
        if high > SCALE_RATIO * low:
            report.warn(
                f"The common genes of a cell sum to {sums['real']:.4g} in real and {sums[side.name]:.4g} in "
                f"{side.name} cells. If they were normalised differently (to another total, or over other genes), "
                "no score is meaningful: give both as raw counts of the same genes, or normalised alike."
            )


def _drop_trained_on(sides: dict[str, _Side], report: _Report) -> None:
    """Take out of the real cells those that are also training cells: to a model they are not new."""
    real = sides["real"]
    trained_on = set(_fingerprints(sides["train"].X))
    new = np.array([cell not in trained_on for cell in _fingerprints(real.X)])
    if new.all():
        return
    if new.sum() < MIN_CELLS:
        raise DataError(
            f"{(~new).sum()} of the {len(new)} real cells are also in the training cells (--train), so hardly any "
            "were held out. Give cells that the model was not trained on, or leave --train out."
        )
    report.warn(f"{(~new).sum()} of the {len(new)} real cells are also in --train and were left out.")
    rows = np.flatnonzero(new)
    real.X, real.types = real.X[rows], real.types[rows]


def _fingerprints(X: sparse.csr_matrix) -> list[bytes]:
    """Of each cell's values: which genes, and how much to three digits (normalising twice may differ in the last)."""
    X = X.sorted_indices()
    cells = np.split(np.arange(X.nnz), X.indptr[1:-1])
    return [X.indices[c].tobytes() + np.round(X.data[c], 3).tobytes() for c in cells]


def _count_types(sides: dict[str, _Side], label: str, report: _Report) -> dict[str, dict[str, int]]:
    """Cells of each type in real and synthetic cells; notes the types that one of them lacks."""
    real, synthetic = sides["real"], sides["synthetic"]
    if not synthetic.has_types:
        report.warn(f"The synthetic cells have no obs column {label!r}: they are compared as a whole only.")
    names = sorted({*real.types, *(synthetic.types if synthetic.has_types else ())})
    counts = {
        name: {side.name: int((side.types == name).sum()) if side.has_types else 0 for side in (real, synthetic)}
        for name in names
    }
    if synthetic.has_types:
        for side, other in ((synthetic, real), (real, synthetic)):
            missing = [name for name in names if not counts[name][side.name]]
            if missing:
                report.notes.append(
                    f"Types of the {other.name} cells that no {side.name} cell has: {', '.join(missing)}."
                )
    return counts


def _equal_parts(sides: dict[str, _Side], max_cells: int, seed: int, report: _Report) -> tuple[_Part, _Part, _Part]:
    """Real cells, other real cells and synthetic cells, as many of each, drawn at random within types."""
    real, synthetic, train = sides["real"], sides["synthetic"], sides.get("train")
    for side, wanted in ((real, MIN_CELLS if train else 2 * MIN_CELLS), (synthetic, MIN_CELLS)):
        if side.X.shape[0] < wanted:
            raise DataError(
                f"{side.X.shape[0]} {side.name} cells are too few to compare: at least {wanted} are needed."
            )
    orders = {
        name: draw_order(side.types, np.random.default_rng([seed, i]))
        for i, (name, side) in enumerate(sorted(sides.items()))
    }
    available = [real.X.shape[0] if train else real.X.shape[0] // 2, synthetic.X.shape[0], max_cells]
    n = min([*available, train.X.shape[0]] if train else available)
    first = real.rows(orders["real"][:n])
    second = train.rows(orders["train"][:n]) if train else real.rows(orders["real"][n : 2 * n])
    halves = "held-out real cells, training cells" if train else "each half of the real cells"
    report.notes.append(f"Compared: {n} cells of {halves} and synthetic cells, drawn with seed {seed}.")
    if n < FEW_CELLS:
        report.warn(f"Only {n} cells a side are compared: scores and floor are rough, see more cells if you can.")
    return first, second, synthetic.rows(orders["synthetic"][:n])


def draw_order(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of cells (n,) in which any run of neighbours has the composition of the whole.

    Cells of a type are spread evenly over it, from a random start (systematic sampling).
    """
    position = np.empty(len(types))
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        position[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def _shuffled(part: _Part, seed: int) -> _Part:
    return _Part(shuffle_within(part.X, part.types, np.random.default_rng([seed, 4])), part.types)


def _score(
    metric: Metric, pairs: list[tuple[Any, Any]], types: list[tuple[np.ndarray, np.ndarray]], seed: int
) -> Score:
    value, floor, shuffled = (metric(*pair, types=names, seed=seed) for pair, names in zip(pairs, types))
    return Score(
        metric=metric.name,
        value=value,
        floor=floor,
        shuffled=shuffled,
        direction=metric.direction,
        best=metric.best,
        definition=metric.definition,
        source=metric.source,
        space=metric.space,
    )


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


def _draw(sides: dict[str, _Side], label: str | None, seed: int, out: Path) -> Path:
    """As many real as synthetic cells in one layout, as cells.png."""
    real, synthetic = sides["real"], sides["synthetic"]
    n = min(real.X.shape[0], synthetic.X.shape[0], MAX_PICTURE_CELLS)
    parts = [
        side.rows(draw_order(side.types, np.random.default_rng([seed, 7, i]))[:n])
        for i, side in enumerate((real, synthetic))
    ]
    positions = picture.layout(parts[0].X, parts[1].X, seed=seed)
    types = [part.types if label and side.has_types else None for part, side in zip(parts, (real, synthetic))]
    with atomic_path(out / PICTURE) as temporary:
        picture.draw(temporary, *positions, *types, label=label, seed=seed)
    return out / PICTURE
