"""One resample of an evaluation: the pairs of sets that are compared, and each metric's values for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.evaluation.cell_sets import CellSet, Subsample, join_members
from scdiffkit.evaluation.draws import draw_order_of
from scdiffkit.evaluation.gene_sets import GeneSets
from scdiffkit.evaluation.matching import other_donors
from scdiffkit.metrics import METRICS, Metric, Space, as_csr, in_space, principal_components
from scdiffkit.metrics.biology import types_to_compare
from scdiffkit.metrics.privacy import copied_share, repeated_share
from scdiffkit.metrics.score import BASELINES

MAX_KNOWN_CELLS = 20_000  # maximum number of known cells among which a resample searches for copies
MIN_REAL_PER_TYPE = 10  # minimum cells of a type in each set for scores within the type
MIN_CELLS_TO_CLASSIFY = 30  # minimum for rf_auc, which is too noisy with fewer cells
METRICS_WITHIN_TYPES = ("mean_mae", "zeros_mae", "mmd_pca", "recall", "rf_auc")  # metrics computed within each type
METRICS_PER_TYPE = ("marker_overlap", "marker_auprc", "lfc_types", "lfc_slope", "de_recall", "de_precision")
MIN_DONORS_TO_ATTACK = 2  # minimum number of training donors, and of held-out donors, for attacks on donors
OF_DONORS = ("near_duplicates", "membership_auc")  # computed, like exact_duplicates, against the cells of each donor
SINGULAR = {"conditions": "condition", "donors": "donor", "batches": "batch"}
WITHOUT = {
    "types": "no --label column in both sets of cells",
    "conditions": "no --condition column in both sets of cells",
    "donors": "no --donor column in all sets of cells",
    "batches": "no --batch column in both sets of cells",
    "library_size": "one of the sets has no raw counts",
    "genes_detected": "no genes",
    "mitochondrial_share": "none of the compared genes is mitochondrial (MT-...)",
}


class Resample:
    """One resample: equally many real, reference (other real cells or training cells) and synthetic cells.

    pool: threads for the computation. training_pool: cells that may have been copied: the training cells if they are
    given (`trained`), else real cells that include `real`. reference_trained: whether `reference` is part of
    training_pool. synthetic_pool: synthetic cells that may be copies. Both pools may be larger than the three sets;
    without them, copies are not searched for. gene_sets: gene indices for the spaces in GENE_SETS. chosen: names of the
    metrics to compute; None: the default metrics. bad_models: whether the baselines are scored, too.
    """

    def __init__(
        self,
        real: Subsample,
        reference: Subsample,
        synthetic: Subsample,
        *,
        pool: ThreadPoolExecutor,
        training_pool: Subsample | None = None,
        synthetic_pool: Subsample | None = None,
        trained: bool = False,
        reference_trained: bool = False,
        gene_sets: GeneSets | None = None,
        chosen: Collection[str] | None = None,
        bad_models: bool = True,
        seed: int,
    ) -> None:
        self.real, self.reference, self.synthetic = real, reference, synthetic
        self.pool, self.trained, self.seed = pool, trained, seed
        self.reference_trained, self.bad_models = reference_trained, bad_models
        self.gene_sets = gene_sets or GeneSets()
        self.chosen = {name for name, m in METRICS.items() if m.default} if chosen is None else set(chosen)
        self.against: set[str] = {"real"}
        self._real = {"value": (real, synthetic), "real_reference": (real, reference)}
        if bad_models:
            self._real["shuffled"] = real, reference.shuffled(np.random.default_rng([seed, 4]))
            self._real["pooled"] = real, reference.pooled()
        if training_pool is not None and synthetic_pool is not None:
            self.against.add("neighbours")
            if reference_trained and not other_donors(real, reference):
                self.against |= {"candidates", "references"}
            if reference_trained and min(map(len, _held_out_and_known(real, reference))) >= MIN_DONORS_TO_ATTACK:
                self.against.add("donors")
            self._copies = pool.submit(
                _pairs_with_copies,
                real,
                reference,
                synthetic,
                training_pool,
                synthetic_pool,
                trained,
                reference_trained,
                seed,
            )
        self._in_space: dict[tuple[str, Space], Future[tuple[Any, Any]]] = {}

    def prepare(self, metrics: Sequence[Metric]) -> None:
        """Start the computation of the spaces that metrics share.

        Call this before metrics are scored, so that no metric in the pool waits for a task that has not started.
        """
        for space in sorted({metric.space for metric in metrics if metric.against == "real"}):
            for which, (a, b) in self._real.items():
                self._in_space[which, space] = self.pool.submit(in_space, space, a.X, b.X, self.gene_sets.places)

    def pairs(self, against: str) -> dict[str, tuple[Subsample, Subsample]]:
        """Return the pairs of sets for metrics with this `against`, by "value", "real_reference" and baseline."""
        pairs = self._real if against == "real" else self._copies.result()[against]
        return {which: pair for which, pair in pairs.items() if self.bad_models or which not in BASELINES}

    def _matrices(self, against: str, which: str, space: Space) -> tuple[Any, Any]:
        """Return the matrices of a pair of sets in a space."""
        if against == "real":
            return self._in_space[which, space].result()
        a, b = self.pairs(against)[which]
        return a.X, b.X

    def score(self, metric: Metric, keep: Callable[[str, Subsample], np.ndarray] | None = None) -> dict[str, float]:
        """Compute a metric's value, real reference and baselines, by name.

        keep: returns a mask of the cells to use of the first set of each pair; None: all.
        """
        found = {}
        for which, (a, b) in self.pairs(metric.against).items():
            rows = np.ones(len(a.types), dtype=bool) if keep is None else keep(which, a)
            x, y = self._matrices(metric.against, which, metric.space)
            given = {
                need: (a.per_cell[need][rows], b.per_cell.get(need, np.zeros(len(b.types)))) for need in metric.needs
            }
            found[which] = metric(x[rows], y, seed=self.seed, **given)
        return found

    def score_types(self) -> dict[str, dict[str, dict[str, float]]]:
        """Compute the METRICS_WITHIN_TYPES for each type with enough cells in all sets."""
        if any("types" not in part.per_cell for part in (self.real, self.synthetic)):
            return {}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name in sorted(set(self.real.types)):
            counts = [(part.types == name).sum() for part in (self.real, self.reference, self.synthetic)]
            if min(counts) < MIN_REAL_PER_TYPE:
                continue
            for metric in (METRICS[m] for m in METRICS_WITHIN_TYPES if m in self.chosen):
                if metric.name == "rf_auc" and min(counts) < MIN_CELLS_TO_CLASSIFY:
                    continue
                figures = {}
                for which, (a, b) in self.pairs("real").items():
                    x, y = self._matrices("real", which, metric.space)
                    figures[which] = metric(x[a.types == name], y[b.types == name], seed=self.seed)
                found.setdefault(name, {})[metric.name] = figures
        return found

    def score_donors(self) -> dict[str, dict[str, dict[str, float]]]:
        """Compute the metrics OF_DONORS against the cells of each donor with enough cells."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name in donors_to_score(self):

            def keep(which: str, part: Subsample, name: str = name) -> np.ndarray:
                """Keep this donor's known cells and all held-out cells; keep all cells if none is known."""
                held_out = part.per_cell["member"] == 0
                neither = which == "real_reference" and len(part.types) == len(self.real.types)
                return held_out | (part.per_cell["donors"] == name) | neither

            for metric in (METRICS[m] for m in OF_DONORS if m in self.chosen):
                if metric.against in self.against:
                    found.setdefault(name, {})[metric.name] = self.score(metric, keep)
        return found


def _pairs_with_copies(
    real: Subsample,
    reference: Subsample,
    synthetic: Subsample,
    training_pool: Subsample,
    synthetic_pool: Subsample,
    trained: bool,
    reference_trained: bool,
    seed: int,
) -> dict[str, dict[str, tuple[Subsample, Subsample]]]:
    """Return the pairs for metrics against "neighbours" and, if reference_trained, "candidates", "references" and
    "donors" (see Metric), with X in principal components fitted to real, reference and synthetic cells together."""
    of_sides = [part.X for part in (real, reference, synthetic)]
    components = principal_components(
        as_csr(sparse.vstack(of_sides)), rest=sparse.vstack([training_pool.X, synthetic_pool.X], format="csr")
    )
    sets = (real, reference, synthetic, training_pool, synthetic_pool)
    ends = np.cumsum([len(part.types) for part in sets])[:-1]
    real, reference, synthetic, training_pool, synthetic_pool = (
        replace(part, X=X) for part, X in zip(sets, np.split(components, ends))
    )
    unknown = real if trained else reference
    n, rows = len(unknown.types), np.random.default_rng([seed, 8]).permutation(len(unknown.types))
    some, others = unknown.take(np.sort(rows[: n // 2])), unknown.take(np.sort(rows[n // 2 :]))
    neighbours = join_members(unknown, training_pool)
    pairs = {
        # The real reference for similarity to training cells is that of held-out cells.
        "neighbours": {
            "value": (neighbours, synthetic),
            "real_reference": (join_members(some, training_pool), others),
            "copies": (neighbours, training_pool.take(np.arange(min(n, len(training_pool.types))))),
        }
    }
    if reference_trained:
        half = np.arange(len(some.types)) % 2 == 0
        references = join_members(some, reference, others)
        pairs["references"] = {
            "value": (references, synthetic_pool),
            "real_reference": (
                join_members(some.take(np.flatnonzero(half)), some.take(np.flatnonzero(~half)), others),
                synthetic_pool,
            ),
            "copies": (references, training_pool),
        }
        both = join_members(real, reference)
        pairs["candidates"] = {
            "value": (both, synthetic_pool),
            "real_reference": (join_members(some, others), synthetic_pool),  # neither part was trained on
            "copies": (both, training_pool),
        }
        if "donors" in both.per_cell:
            held_out = sorted(_held_out_and_known(real, reference)[0])
            halves = [np.isin(real.per_cell["donors"], held_out[i::2]) for i in (1, 0)]
            neither = join_members(*(real.take(np.flatnonzero(half)) for half in halves))
            pairs["donors"] = {**pairs["candidates"], "real_reference": (neither, synthetic_pool)}
    return pairs


def _held_out_and_known(real: Subsample, reference: Subsample) -> tuple[set[str], set[str]]:
    """Return the held-out donors and the training donors; empty sets if cells have no donors."""
    if not all("donors" in part.per_cell for part in (real, reference)):
        return set(), set()
    trained_on = set(reference.per_cell["donors"])
    return set(real.per_cell["donors"]) - trained_on, trained_on


def donors_to_score(resample: Resample) -> list[str]:
    """Return the donors with at least MIN_REAL_PER_TYPE cells among those that may have been copied."""
    return [name for name, count in _donors(_of_donors(resample)).items() if count >= MIN_REAL_PER_TYPE]


def donors_left_out(resample: Resample) -> list[str]:
    """Return the donors with fewer than MIN_REAL_PER_TYPE cells among those that may have been copied."""
    return [name for name, count in _donors(_of_donors(resample)).items() if count < MIN_REAL_PER_TYPE]


def _of_donors(resample: Resample) -> Subsample | None:
    """Return the set whose donors are scored; None if the training cells are not among the compared cells."""
    if resample.reference_trained:
        return resample.reference
    return None if resample.trained else resample.real


def _donors(part: Subsample | None) -> dict[str, int]:
    """Count the cells of each donor."""
    return Counter(map(str, sorted(() if part is None else part.per_cell.get("donors", ()))))


def _of_one(part: Subsample, name: str) -> bool:
    """Whether all cells belong to one group of the annotation `name`."""
    return name in part.per_cell and len(set(part.per_cell[name])) < 2


def known_cells(sets: dict[str, CellSet], n: int, seed: int) -> tuple[Subsample, Subsample]:
    """Draw the cells that may have been copied, and synthetic cells, up to MAX_KNOWN_CELLS of each.

    The former are training cells, or real cells that are not in the reference. The first n cells of each set are those
    of `draw_subsamples`.
    """

    most = max(n, MAX_KNOWN_CELLS)
    synthetic_pool = sets["synthetic"].subsample(draw_order_of(sets, "synthetic", seed, n)[:most])
    if "train" in sets:
        return sets["train"].subsample(draw_order_of(sets, "train", seed, n)[:most]), synthetic_pool
    rows = draw_order_of(sets, "real", seed, n)
    return sets["real"].subsample(np.concatenate([rows[:n], rows[2 * n :]])[:most]), synthetic_pool


def exact_shares(sets: dict[str, CellSet], donor: str | None = None) -> dict[str, float]:
    """Compute exact_duplicates among all cells, or among one donor's known cells, as values of a resample."""
    training_pool, synthetic_pool = sets.get("train", sets["real"]).summary, sets["synthetic"].summary
    assert training_pool is not None, "call gather first"
    assert synthetic_pool is not None, "call gather first"
    marks = training_pool.fingerprints
    if donor is not None and training_pool.donors is not None:
        marks = marks[training_pool.donors == donor]
    return {
        "value": copied_share(marks, synthetic_pool.fingerprints),
        "real_reference": repeated_share(marks),
        "copies": 1.0,
    }


def computable(resample: Resample, label: str | None) -> tuple[list[Metric], dict[str, str]]:
    """Return the chosen metrics that can be computed for these cells, and the reasons for those that cannot."""
    metrics, skipped = [], {}
    for metric in (m for m in METRICS.values() if m.name in resample.chosen):
        drawn = (resample.real, resample.reference, resample.synthetic)
        given = {"member", "donors"} if metric.against == "donors" else {"member"}
        missing = [n for n in metric.needs if n not in given and not all(n in part.per_cell for part in drawn)]
        if metric.against == "donors" and resample.reference_trained and "donors" not in resample.against:
            skipped[metric.name] = (
                f"at least {MIN_DONORS_TO_ATTACK} donors that the model was trained on, and {MIN_DONORS_TO_ATTACK} "
                "others, are needed (--donor)"
            )
        elif metric.against not in {*resample.against, "train"}:
            skipped[metric.name] = (
                "the real cells come from other donors than the training cells, or differ from them in types, "
                "conditions or batches"
                if resample.trained
                else "the training cells are not given (--train)"
            )
        elif missing:
            skipped[metric.name] = WITHOUT[missing[0]]
        elif metric.space in resample.gene_sets.missing:
            skipped[metric.name] = resample.gene_sets.missing[metric.space]
        elif "types" in metric.needs and len(set(resample.real.types)) < 2:
            skipped[metric.name] = f"all real cells have the same {label}"
        elif alone := [n for n in SINGULAR if n in metric.needs and _of_one(resample.real, n)]:
            skipped[metric.name] = f"all real cells have the same {SINGULAR[alone[0]]}"
        elif metric.name in METRICS_PER_TYPE and not types_to_compare(resample.real.types):
            skipped[metric.name] = f"no {label} has at least {MIN_REAL_PER_TYPE} real cells"
        else:
            metrics.append(metric)
    return metrics, skipped
