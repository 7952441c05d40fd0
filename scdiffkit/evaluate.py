"""Can these cells be trusted? Scores of synthetic cells beside what real cells score, a verdict, and a report.

Every metric is computed several times over, each time between two sets of as many cells, drawn anew:
value     one half of the real cells against synthetic cells
floor     the same half against the other half: what perfect synthetic cells would score
ceilings  the same half against bad models made from the other half: "shuffled", every gene shuffled between cells of
          one type (right genes, no relations between them), and "pooled", all cells their mean; where the question is
          whether cells were copied, "copies" of the other half
Given the training cells, the real cells are all in the first set, and training cells in the second. Cells that this
tool made know which cells their run was trained on: of such real cells, those it has not seen are the real ones then.
"""

from __future__ import annotations

import importlib
import json
import logging
import platform
import shlex
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from joblib import cpu_count
from threadpoolctl import threadpool_limits

from scdiffkit import report
from scdiffkit.compared import (
    MIN_CELLS,
    Part,
    Remarks,
    Side,
    cells_a_side,
    count_types,
    draw_order,
    draws_donors,
    drop_trained_on,
    gather,
    load,
    match_genes,
    note_scales,
    of_known_kinds,
    order_of,
    parts,
    separate,
)
from scdiffkit.config import SampleConfig
from scdiffkit.errors import ConfigError, FileError, RunError, nearest
from scdiffkit.gene_sets import choose_gene_sets
from scdiffkit.generate import sample
from scdiffkit.holdout import TrainingData, Unseen
from scdiffkit.io import Backed, atomic_path, atomic_write_text, give_back, open_cells
from scdiffkit.io.atomic import writing
from scdiffkit.metrics import GENE_SETS, METRICS, PROTOCOLS, in_space
from scdiffkit.metrics.classifier import rf_auc
from scdiffkit.metrics.layouts import LAYOUTS
from scdiffkit.metrics.marginals import cv_per_gene, ks_per_gene, mean_per_gene, variance_per_gene, zeros_per_gene
from scdiffkit.metrics.profiles import FAST, FULL, ONE_RESAMPLE, asked_for, chosen_metrics
from scdiffkit.metrics.score import FEWEST_RESAMPLES, Score, score_of
from scdiffkit.metrics.spaces import N_VARIABLE
from scdiffkit.preprocess import raw_cells
from scdiffkit.report.figures import Picture
from scdiffkit.resample import (
    MIN_CELLS_OF_TYPE,
    MOST_KNOWN,
    WITHOUT,
    Round,
    computable,
    donors_left_out,
    donors_to_score,
    exact_shares,
    known_cells,
)
from scdiffkit.run import Run
from scdiffkit.verdict import CONFIDENCE, FAIR, FEW_CELLS, MARGIN, Basis, Verdict, auc_error, judge

log = logging.getLogger("scdiffkit")

SCHEMA = 3
SCORES, TABLE, GENES = "metrics.json", "metrics.csv", "genes.csv"
REPORT, PICTURE = "report.html", "cells.png"
IN_WORDS = ["definition", "source"]  # columns that metrics.csv leaves to metrics.json
CELLS = "cells.h5ad"
BY_CHANCE = 0.01  # probability from which on a type may be missing by chance
RESAMPLES, CELLS_OF_RESAMPLE, FAST_CELLS = 5, 1000, 400
# Imported before there are threads: two that import parts of one library at once may find it half made.
IMPORTED_BY_METRICS = ("scipy.stats", "scipy.spatial.distance", "ot", "sklearn.decomposition", "sklearn.ensemble",
                       "sklearn.linear_model", "sklearn.manifold", "sklearn.metrics", "sklearn.model_selection",
                       "sklearn.neighbors", "sklearn.pipeline", "sklearn.preprocessing")  # fmt: skip
SHARE_OF_RESAMPLE = 0.8  # of the cells there are, where they are fewer
MAX_PICTURE_CELLS = 2000  # a side

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
    inputs: for "real", "synthetic" and perhaps "train", where they came from, their size, scale and, for files,
    SHA-256. n_cells: cells on each side of a comparison. n_genes: genes compared. types: cells of each type by side,
    without those of `real` that were trained on (None without a label). skipped: metrics that could not be computed,
    and why. notes: what was done. warnings: what to be wary of. html: the report as it was written, None without `out`.
    cells: those of its first picture, a row each: side ("real" or "synthetic"), type (text, None without a label), x
    and y in the layout; None without `out`. sampled: of the sides that stayed in their files and were too many to be
    all compared, how many of how many cells were. basis: whether the model has seen the real cells: "given" (those it
    was trained on were given), "holdout", "validation" or "none" (found out, see `evaluate`), or "unknown". alike:
    whether the real cells are of the kinds that were trained on. remarks: what the synthetic cells say of how they
    were made.
    metrics: the names of metrics and profiles that were asked for.
    genes: a row each, of the first resample: gene; mean, variance and share of zeros of its log1p-normalised values in
    real, other real (reference; training cells, where those are given) and synthetic cells; and the Kolmogorov-Smirnov
    statistics between real and synthetic (ks) and real and other real cells (ks_reference).
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
    floor_definition: str
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

    @property
    def verdict(self) -> Verdict:
        """What the scores mean, in words."""
        return judge(
            self.scores,
            n_cells=self.n_cells,
            basis=self.basis,
            alike=self.alike,
            unscored_types=self.unscored_types(),
            remarks=self.remarks,
            floor_is="real cells against training cells"
            if self.floor_definition == HELD_OUT
            else "two halves of the real cells",
            within=f"within {self.label}" if self.label else "between cells",
            worst_type=self.worst_type(),
            worst_auc=self.worst_type_auc(),
            poor_types=self.poor_types(),
            missing_types=self.missing_types(),
            lost_types=self.lost_types(),
        )

    def __getitem__(self, metric: str) -> Score:
        """The score of a metric by its name; KeyError when there is none."""
        for score in self.scores:
            if score.metric == metric:
                return score
        raise KeyError(f"There is no metric {metric!r}; {nearest(metric, [s.metric for s in self.scores])}")

    def to_frame(self) -> pd.DataFrame:
        """One row per metric; columns metric, family, value, value_low, value_high, floor, floor_low, floor_high,
        shuffled, pooled, copies (bad models; NaN where one says nothing), bad_model (the one that the metric is set
        against), position, at_floor, direction, best, definition, source."""
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

    def lost_types(self) -> list[str]:
        """Of the missing types those with so many real cells that chance would hardly leave them out."""
        counts = self.types or {}
        n = {side: sum(count[side] for count in counts.values()) for side in ("real", "synthetic")}
        share = n["real"] / max(1, sum(n.values()))  # a cell of the type is a real one with this probability
        return [name for name in self.missing_types() if share ** counts[name]["real"] < BY_CHANCE]

    def unscored_types(self) -> list[str]:
        """The types that both sides have, but too few cells of to be scored."""
        both = [name for name, n in (self.types or {}).items() if n["real"] and n["synthetic"]]
        return [name for name in both if name not in self.of_types]

    def worst_type(self) -> str | None:
        """The type whose synthetic cells are furthest from real ones, by its mean position over OF_TYPES; None when
        none was scored, or all are as real cells are."""
        off = self._positions_of_types()
        worst = max(off, key=off.__getitem__, default=None)
        return worst if worst is not None and off[worst] > 0 else None

    def worst_type_auc(self) -> tuple[str, Score] | None:
        """The type whose synthetic cells a random forest tells best from its real ones, beyond what it tells among
        real cells, and its score (rf_auc within the type); None where no type has enough cells."""
        aucs = [(name, s) for name, scores in self.of_types.items() for s in scores if s.metric == "rf_auc"]
        return max(aucs, key=lambda found: found[1].value - max(found[1].floor, found[1].best), default=None)

    def poor_types(self) -> list[str]:
        """The types whose synthetic cells lie nearer to bad models than to real cells, the worst first; none where
        resamples are too few to tell."""
        if self.resamples < FEWEST_RESAMPLES:
            return []
        off = self._positions_of_types()
        return sorted((name for name in off if off[name] > FAIR), key=lambda name: -off[name])

    def _positions_of_types(self) -> dict[str, float]:
        return {
            name: float(np.mean([0.0 if score.at_floor else score.position for score in scores]))
            for name, scores in self.of_types.items()
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything, as it stands in metrics.json: plain values, every number finite.

        schema: 3 (2 lacked basis, alike, remarks, unscored_types, worst_type_auc, metrics, and of the verdict all but
        word, sentence, reasons, uses, findings, copies and text), verdict (see Verdict), basis, alike, remarks, scores
        (list), of_types {type: list}, of_donors {donor: list}, worst_type, worst_type_auc {type, value, floor} or null
        (the type whose cells a forest tells best), poor_types, missing_types, unscored_types, definitions {floor,
        shuffled, pooled, copies}, cells_compared, genes_compared, resamples, max_cells, metrics (as they were asked
        for), inputs {real, synthetic, train?: {source, cells, genes, scale, sha256}}, sampled {side: [cells compared,
        of how many]}, label, conditions, donor, batch, protocol {name, genes, source, flaws, metrics, scores} or null,
        seed, command, types {name: {real, synthetic}} or null, skipped {metric: reason}, notes, warnings, versions
        {package: version}. Scores are as Score.to_dict gives them.
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
            and {"type": worst_auc[0], "value": worst_auc[1].value, "floor": worst_auc[1].floor},
            "poor_types": self.poor_types(),
            "missing_types": self.missing_types(),
            "unscored_types": self.unscored_types(),
            "basis": self.basis,
            "alike": self.alike,
            "remarks": self.remarks,
            "definitions": {"floor": self.floor_definition, **ceilings_of(self.label)},
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
            "versions": _versions(),
        }

    def command(self) -> str:
        """What repeats these scores in a shell."""
        words = ["scdiff", "evaluate", *(self.inputs[side]["source"] for side in ("real", "synthetic"))]
        options: dict[str, Any] = {
            "--label": self.label, "--donor": self.donor, "--batch": self.batch, "--protocol": self.protocol,
        }  # fmt: skip
        trained_on = self.inputs.get("train", self.inputs["real"])["source"]  # those of `real`, where it was separated
        if self.basis == "given" or trained_on != self.inputs["real"]["source"]:
            options["--train"] = trained_on
        options |= {"--resamples": self.resamples, "--max-cells": self.max_cells, "--seed": self.seed}
        words += [str(word) for name, value in options.items() if value is not None for word in (name, value)]
        words += [word for column in self.conditions for word in ("--condition", column)]
        words += [] if self.metrics == (FULL,) else ["--metrics", ",".join(self.metrics)]
        words += ["--backed"] if self.sampled else []
        return shlex.join(words)

    def _repr_html_(self) -> str:
        """Verdict and scores, for a notebook."""
        return report.summary_html(self)


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
    real: AnnData | Backed | str | Path | None = None,
    synthetic: AnnData | Backed | str | Path | None = None,
    *,
    run: Run | str | Path | None = None,
    train: AnnData | Backed | str | Path | None = None,
    label: str | None = None,
    conditions: Sequence[str] = (),
    donor: str | None = None,
    batch: str | None = None,
    protocol: str | None = None,
    metrics: str | Sequence[str] = FULL,
    out: str | Path | None = None,
    seed: int = 0,
    max_cells: int = CELLS_OF_RESAMPLE,
    resamples: int = RESAMPLES,
    fast: bool = False,
    backed: bool | None = None,
    max_memory: float | None = None,
    force: bool = False,
    unseen: Unseen | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Score synthetic cells against real ones, beside a real-vs-real floor and bad models.

    real, synthetic, train: AnnData or a file that `read` takes, with raw counts or log1p-normalised X; genes are
    matched by name. train: the cells the model was trained on, when `real` are others (cells that are in both are taken
    out of `real`): the floor is then `real` against `train`. label, conditions, donor, batch: obs columns with the
    types, with what differs between cells of one type (treatment), with the donors, each of whose cells are then looked
    for among the synthetic ones, and with the batches. protocol: "scrdit", "cfgen", "scdiffusion", "scldm" or
    "cell-eval", whose own scores are added (see PROTOCOLS). metrics: names of metrics, or a profile: "full", "fast" (as
    `fast`), or "minimal" (some of each family, a few seconds); those that the verdict rests on are always computed.
    out: folder for report.html, metrics.json (see Evaluation.to_dict), metrics.csv, genes.csv and cells.png, replaced
    only with `force`.
    resamples: how often everything is scored, with other cells; max_cells: at most so many cells a side each time;
    fast, and "minimal": once, with at most 400 cells a side, and without UMAP, which compiles for ten seconds.
    progress(name, i, n) is called before each of n steps.
    backed: leave the cells in their files (h5ad, zarr), True or False; None: where memory, or max_memory bytes of it,
    does not hold them. They are then read in blocks, and at most 20,000 a side (more for a larger max_cells), drawn at
    random within types, are compared; exact copies, and cells in both `real` and `train`, are looked for among all.

    Where `real` is what the run was trained on that made the synthetic cells, those of them that it has not seen
    (held out, else its validation cells) take the place of `real`, and those it was trained on that of `train`;
    unseen: which these are, where the caller knows. run: takes `real`, `label` and `conditions` from a run instead;
    without `synthetic` as many cells as were held out, and at least 1000, are drawn from it, into cells.h5ad in `out`.

    The same seed gives the same scores. Raises DataError for cells that cannot be compared (no common genes,
    NaN, negative values, too few cells, no such label), FileError when `out` is in the way, ConfigError for
    max_cells below 5, resamples below 1 or a metric that is not known. ScdiffWarning where the scores need care.
    """
    asked = asked_for(metrics)
    if fast and asked == (FULL,):
        asked = (FAST,)
    fast = fast or any(name in ONE_RESAMPLE for name in asked)
    chosen = chosen_metrics(asked)
    if fast:
        resamples, max_cells = 1, min(max_cells, FAST_CELLS)
    if max_cells < MIN_CELLS:
        raise ConfigError(f"--max-cells must be at least {MIN_CELLS}, not {max_cells}.")
    if resamples < 1:
        raise ConfigError(f"--resamples must be at least 1, not {resamples}.")
    if protocol is not None and protocol not in PROTOCOLS:
        raise ConfigError(f"There is no --protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}.")
    if out is not None:
        _check_out(Path(out), force)
    if run is not None:
        if real is not None or train is not None:
            raise ConfigError("--run takes the real cells from the run: give no REAL and no --train beside it.")
        run = run if isinstance(run, Run) else Run.open(run)
        real, data = training_cells(run)
        label, conditions = label or data.label, conditions or data.columns[1:]
        if synthetic is None:
            synthetic = _drawn_from(run, None if out is None else Path(out) / CELLS, seed, force)
    if real is None or synthetic is None:
        raise ConfigError("evaluate takes real and synthetic cells, or a run.")
    given = {"real": real, "synthetic": synthetic} | ({} if train is None else {"train": train})
    _, opened = open_cells(given, backed=backed, max_memory=max_memory)
    assert isinstance(opened, dict)
    basis: Basis = "unknown" if train is None else "given"
    if train is None:
        if isinstance(run, Run):  # whoever made the synthetic cells
            unseen = data.find_in(opened["real"])
            if unseen is None:
                raise RunError(
                    f"The cells that {run.path} was trained on have changed. Give the old ones: evaluate DATA CELLS."
                )
            _check_made_by(run, opened["synthetic"])
        unseen = unseen or unseen_among(opened["real"], opened["synthetic"])
        if unseen is not None:
            basis = unseen.kind if len(unseen.unseen) >= MIN_CELLS else "none"
    contradicted = train is not None and _trained_on_others(opened["synthetic"], opened["train"])
    if contradicted:
        basis = "unknown"
    sources = {name: "memory" if given[name] is cells else str(given[name]) for name, cells in opened.items()}
    sides = load(opened, sources, label, conditions, donor, batch)
    del opened
    if (
        protocol is not None
        and not conditions
        and all("conditions" in METRICS[name].needs for name in PROTOCOLS[protocol].metrics)
    ):
        raise ConfigError(f"--protocol {protocol} compares conditions: name their obs column (--condition).")
    remarks = Remarks()
    for remark in sides["synthetic"].remarks:
        remarks.warn(remark)
    if contradicted:
        remarks.warn(
            "The synthetic cells record that their model was trained on other cells than those of --train, so it may "
            "have seen the real ones. Give the cells that it was given, as they were, or leave --train out."
        )
    note_scales(sides, remarks)
    if unseen is not None and basis in ("holdout", "validation"):
        separate(sides, unseen.unseen, unseen.trained)
        remarks.notes.append(
            f"real is what the model was trained on: {len(unseen.unseen):,} of its cells, which it has not seen, are "
            f"compared as real cells, and the {len(unseen.trained):,} that it was trained on as training cells."
        )
    with_training_cells = "train" in sides
    if with_training_cells:
        drop_trained_on(sides, remarks)
    match_genes(sides, remarks)
    most = max(MOST_KNOWN, round(2 * max_cells / SHARE_OF_RESAMPLE))  # as many as are ever drawn, or looked through
    wanted = [space for space in GENE_SETS if any(METRICS[name].space == space for name in chosen)]
    by_counts = bool(wanted) or (protocol is not None and PROTOCOLS[protocol].genes not in ("all", "cv"))
    sampled = gather(sides, most, seed, remarks, counts_of=("real",) if by_counts else ())
    types = None if label is None else count_types(sides, label, remarks)
    alike, sets = True, sides  # sets: those that scores between real and synthetic cells are of
    if with_training_cells:
        known_kinds, other_groups = of_known_kinds(sides["real"], sides["train"]), donors_held_out(sides, unseen)
        told = told_apart(sides, max_cells, seed)
        alike = known_kinds and not told and not other_groups
        if not (alike or other_groups) and sides["real"].X.shape[0] >= 2 * MIN_CELLS:
            sets = {name: side for name, side in sides.items() if name != "train"}
            remarks.notes.append(
                "The real cells differ from those trained on, so synthetic cells are set beside two halves of the real "
                "ones; training cells serve to look for copies alone."
            )
    by_halves = "train" not in sets
    available = cells_a_side(sets)
    n = min(available, max_cells)
    if resamples > 1:
        n = min(max(MIN_CELLS, int(SHARE_OF_RESAMPLE * available)), max_cells)
    halves = "held-out real cells, training cells" if not by_halves else "each half of the real cells"
    remarks.notes.append(
        f"Compared: {n} cells of {halves} and synthetic cells, {resamples} times over, drawn with seed {seed}."
    )
    if donor is not None and resamples > 1:
        remarks.notes.append(
            "Each resample draws four fifths of the donors, so that ranges tell how donors differ."
            if draws_donors(sides)
            else "Resamples draw cells, not donors: the real cells are of too few for that."
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

    gene_sets = choose_gene_sets(sides["real"].X, sides["real"].counts, wanted)
    protocol_genes = None if protocol is None else _genes_of(protocol, sides["real"])
    found: dict[str, list[dict[str, float]]] = {}
    of_protocol: dict[str, list[dict[str, float]]] = {}
    of_types: dict[str, dict[str, list[dict[str, float]]]] = {}
    of_donors: dict[str, dict[str, list[dict[str, float]]]] = {}
    pictured: tuple[Part, ...] = ()  # the cells of the first resample
    pictures: dict[str, Picture] = {}
    with _pool() as pool:
        exact, exact_of = pool.submit(exact_shares, sides), dict[str, dict[str, float]]()
        exact.result()  # first, and alone: of all cells, it takes memory that grows with them
        give_back()
        log.info("comparing %d cells a side, %s", n, "once" if resamples == 1 else f"{resamples} times over")
        if out is not None:
            shown = _cells_to_draw(sides, seed, min(MAX_PICTURE_CELLS, max_cells * min(2, resamples)))
            layouts = {
                name: pool.submit(place, *(part.X for part in shown), seed=seed)
                for name, place in LAYOUTS.items()
                if not (fast and name == "UMAP")
            }
        for r in range(resamples):
            drawn = parts(sets, n, seed + 1000 * r)
            known, made = known_cells(sides, n, seed + 1000 * r)
            round_ = Round(
                *drawn,
                pool=pool,
                known=known,
                made=made,
                trained=with_training_cells,
                second_trained=not by_halves,
                gene_sets=gene_sets,
                chosen=chosen,
                bad_models=r == 0,
                seed=seed + r,
            )
            to_score, left_out = computable(round_, label)
            if r == 0:
                skipped = left_out
            to_score = [metric for metric in to_score if r == 0 or metric.name in found]  # beside bad models
            steps = len(to_score) * resamples + (out is not None)
            round_.prepare(to_score)
            scores = {
                metric: exact if metric.name == "exact_duplicates" else pool.submit(round_.score, metric)
                for metric in to_score
            }
            groups = ((of_types, pool.submit(round_.score_types)), (of_donors, pool.submit(round_.score_donors)))
            pictured = pictured or drawn
            if out is not None and r == resamples - 1:  # drawn here while the pool computes
                if progress:
                    progress("pictures", r * len(to_score), steps)
                pictures = report.draw(
                    sides["real"].genes,
                    *pictured,
                    shown=shown,
                    layouts=layouts,
                    label=label,
                    seed=seed,
                )
            for i, (metric, score) in enumerate(scores.items(), bool(pictures)):
                if progress:
                    progress(f"{metric.family}: {metric.name}", r * len(to_score) + i, steps)
                found.setdefault(metric.name, []).append(score.result())
                give_back()
            for parts_of, group in groups:
                for name, of_part in group.result().items():
                    for metric_name, of_metric in of_part.items():
                        if r == 0 or metric_name in parts_of.get(name, ()):
                            parts_of.setdefault(name, {}).setdefault(metric_name, []).append(of_metric)
            for name in donors_to_score(round_):
                if name not in exact_of:
                    exact_of[name] = exact_shares(sides, name)
                of_donors.setdefault(name, {}).setdefault("exact_duplicates", []).append(exact_of[name])
            if protocol is not None and protocol_genes is not None:
                in_genes = Round(
                    *(part.in_genes(protocol_genes) for part in drawn), pool=pool, bad_models=r == 0, seed=seed + r
                )
                metrics_of = [METRICS[name] for name in PROTOCOLS[protocol].metrics]
                lacking = [
                    m for m in metrics_of if not all(need in part.of_cells for need in m.needs for part in drawn)
                ]
                skipped |= {metric.name: WITHOUT[metric.needs[0]] for metric in lacking}
                metrics_of = [metric for metric in metrics_of if metric not in lacking]
                if progress:
                    progress(protocol, (r + 1) * len(to_score), steps)
                in_genes.prepare(metrics_of)
                for metric, figures in zip(metrics_of, pool.map(in_genes.score, metrics_of)):
                    of_protocol.setdefault(metric.name, []).append(figures)
            if r == 0:
                genes = _genes_table(sides["real"].genes, *drawn)
                few = donors_left_out(round_)
                if few:
                    remarks.notes.append(
                        f"Donors with fewer than {MIN_CELLS_OF_TYPE} of the cells compared, not scored on their own: "
                        f"{', '.join(few)}."
                    )
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
        batch=batch,
        protocol=protocol,
        of_protocol=[score_of(METRICS[name], figures) for name, figures in of_protocol.items()],
        floor_definition=HALVES if by_halves else HELD_OUT,
        types=types,
        skipped=skipped,
        notes=remarks.notes,
        warnings=remarks.warnings,
        html=None if out is None else Path(out) / REPORT,
        cells=None if out is None else _placed(shown, next(iter(layouts.values())).result(), label),
        sampled=sampled,
        basis=basis,
        alike=alike,
        remarks=sides["synthetic"].remarks,
        metrics=asked,
        genes=genes,
    )
    if out is not None:
        _write(evaluation, pictures, Path(out))
    return evaluation


def told_apart(sides: dict[str, Side], max_cells: int, seed: int) -> bool:
    """Whether a classifier tells the real cells from those trained on, though both are real: they differ then."""
    n = min(max_cells, *(sides[name].X.shape[0] for name in ("real", "train")))
    real, train = (sides[name].part(order_of(sides, name, seed, n)[:n]) for name in ("real", "train"))
    return rf_auc(*in_space("pca", real.X, train.X)) - 0.5 > MARGIN + CONFIDENCE * auc_error(n)


def donors_held_out(sides: dict[str, Side], unseen: Unseen | None) -> bool:
    """Whether the real cells are of other donors than those trained on, and that on purpose."""
    if unseen is not None and unseen.by is not None:
        return True
    donors = [sides[name].donors for name in ("real", "train")]
    return all(of is not None for of in donors) and set(donors[0]).isdisjoint(donors[1])  # type: ignore[arg-type]


def training_cells(run: Run) -> tuple[AnnData | Path, TrainingData]:
    """All cells that a run was given, where they are still there, and what it recorded of them.

    Raises RunError when they are not, or when the run is of an older version.
    """
    of_run = run.provenance()["data"]
    data = TrainingData.from_dict(of_run.get("split", {}))
    files = [Path(file) for file in of_run.get("files", ())]
    missing = [file for file in files if not file.exists()]
    if data is None or not files or missing:
        why = (
            "it was made by an older version" if data is None
            else f"{missing[0]} is not there any more" if missing
            else "it was trained on cells in memory"
        )  # fmt: skip
        raise RunError(
            f"The cells that {run.path} was trained on cannot be read: {why}. Give them: evaluate DATA CELLS."
        )
    if len(files) == 1:
        return files[0], data
    _, several = open_cells(files)
    raw = raw_cells(several, run.config().preprocess, data.columns)
    return AnnData(raw.counts[0 : raw.counts.shape[0]], obs=raw.obs, var=raw.var), data


def unseen_among(real: AnnData | Backed, synthetic: AnnData | Backed) -> Unseen | None:
    """Which of the real cells the model has not seen that made the synthetic ones; None where that is not known."""
    data = TrainingData.from_dict(synthetic.uns.get("scdiffkit", {}).get("trained_on", {}))
    return None if data is None else data.find_in(real)


def _check_made_by(run: Run, synthetic: AnnData | Backed) -> None:
    """Raises RunError where the synthetic cells say that another run made them."""
    made_by = synthetic.uns.get("scdiffkit", {}).get("run_id")
    if made_by is not None and made_by != run.provenance()["run_id"]:
        raise RunError(
            f"These cells were not drawn from {run.path}, but from another run ({made_by}), which may have seen the "
            "cells that this one held out. Name that run, or leave --run out: evaluate REAL SYNTHETIC."
        )


def _trained_on_others(synthetic: AnnData | Backed, train: AnnData | Backed) -> bool:
    """Whether the synthetic cells record that their model was trained on all of other cells than these."""
    data = TrainingData.from_dict(synthetic.uns.get("scdiffkit", {}).get("trained_on", {}))
    if data is None or data.holdout or any(column not in train.obs for column in data.columns):
        return False  # not known; or these may be the part that was not held out
    return data.find_in(train) is None


def _drawn_from(run: Run, path: Path | None, seed: int, force: bool) -> AnnData | Path:
    """Cells of a run to be judged: as many as were held out, at least 1000."""
    of_run = run.provenance()["data"]
    n = max(CELLS_OF_RESAMPLE, of_run["split"]["cells"] - of_run["cells"])
    log.info("drawing %d cells from %s", n, run.path)
    if path is not None:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    return sample(run, n, out=path, config=SampleConfig(seed=seed), force=force)


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as cores. Ctrl-C waits for the tasks that run, not for those that have not begun."""
    for name in IMPORTED_BY_METRICS:
        importlib.import_module(name)
    pool = ThreadPoolExecutor(cpu_count())
    # One thread of BLAS for each of the pool's: faster, and sums do not depend on how many cores there are.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", module="umap"
        )  # remarks on a fixed seed and given neighbours, which are meant
        try:
            yield pool
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write(evaluation: Evaluation, pictures: dict[str, Picture], out: Path) -> None:
    """The report, its first picture on its own, and its figures as JSON and CSV."""
    html = report.html(evaluation, pictures)
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    with atomic_path(out / PICTURE) as temporary:
        temporary.write_bytes(next(iter(pictures.values())).light)
    text = json.dumps(evaluation.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
    atomic_write_text(out / SCORES, text + "\n")
    atomic_write_text(out / TABLE, evaluation.to_frame().drop(columns=IN_WORDS, errors="ignore").to_csv(index=False))
    if evaluation.genes is not None:
        atomic_write_text(out / GENES, evaluation.genes.to_csv(index=False, float_format="%.6g"))
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


def _genes_table(genes: pd.Index, first: Part, second: Part, third: Part) -> pd.DataFrame:
    """Evaluation.genes, of real, other real and synthetic cells."""
    found: dict[str, Any] = {"gene": np.asarray(genes, dtype=str)}
    sides = {"real": first, "reference": second, "synthetic": third}
    for figure, of_gene in (("mean", mean_per_gene), ("variance", variance_per_gene), ("zeros", zeros_per_gene)):
        found |= {f"{figure}_{name}": of_gene(part.X.astype(np.float64)) for name, part in sides.items()}
    return pd.DataFrame(found | {"ks": ks_per_gene(first.X, third.X), "ks_reference": ks_per_gene(first.X, second.X)})


def _placed(shown: tuple[Part, Part], positions: tuple[np.ndarray, np.ndarray], label: str | None) -> pd.DataFrame:
    """The cells of a layout, or the first of them that it has, as Evaluation.cells."""
    frames = []
    for side, part, xy in zip(("real", "synthetic"), shown, positions):
        types = part.types[: len(xy)] if label and part.has_types else np.full(len(xy), None)
        frames.append(pd.DataFrame({"side": side, "type": types, "x": xy[:, 0], "y": xy[:, 1]}))
    return pd.concat(frames, ignore_index=True)


def _scores_of(groups: dict[str, dict[str, list[dict[str, float]]]]) -> dict[str, list[Score]]:
    return {
        name: [score_of(METRICS[metric], figures) for metric, figures in scores.items()]
        for name, scores in sorted(groups.items())
    }


def _genes_of(protocol: str, real: Side) -> np.ndarray:
    """Places of the genes that a protocol looks at, in the order of the genes."""
    which, n_genes = PROTOCOLS[protocol].genes, real.X.shape[1]
    if which == "all" or n_genes <= N_VARIABLE:
        return np.arange(n_genes)
    if which == "cv":
        return np.sort(np.argsort(-cv_per_gene(real.X), kind="stable")[:N_VARIABLE])
    sets = choose_gene_sets(real.X, real.counts, ["hvg_seurat_v3"], N_VARIABLE)
    if sets.missing:
        raise ConfigError(
            f"--protocol {protocol} chooses genes by raw counts of the real cells: {sets.missing['hvg_seurat_v3']}."
        )
    return sets.places["hvg_seurat_v3"]


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
    there = [name for name in (SCORES, TABLE, GENES, REPORT, PICTURE) if (out / name).exists()]
    if there and not force:
        raise FileError(f"{out} holds {' and '.join(there)} already: choose another folder, or use --force.")
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    with writing(out), tempfile.TemporaryFile(dir=folder):
        pass
