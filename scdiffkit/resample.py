"""One resample of an evaluation: which sets are compared, and every metric's figures for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.compared import Part, Side, candidates, order_of, other_donors
from scdiffkit.gene_sets import GeneSets
from scdiffkit.metrics import METRICS, Metric, Space, as_csr, in_space, principal_components
from scdiffkit.metrics.biology import types_to_compare
from scdiffkit.metrics.privacy import copied_share, repeated_share
from scdiffkit.metrics.score import BAD_MODELS

MOST_KNOWN = 20_000  # cells that a resample looks for copies of
MIN_CELLS_OF_TYPE = 10  # on both sides, for a type to be scored on its own
MIN_CELLS_TO_CLASSIFY = 30  # of the type on all sides, for rf_auc within it: with fewer it is a matter of luck
OF_TYPES = ("mean_mae", "zeros_mae", "mmd_pca", "recall", "rf_auc")  # what is scored within each type
OF_EACH_TYPE = ("marker_overlap", "marker_auprc", "lfc_types", "lfc_slope", "de_recall", "de_precision")
FEWEST_DONORS = 2  # that were trained on, and that were not, for donors to be told apart
OF_DONORS = ("near_duplicates", "membership_auc")  # and, with exact_duplicates, against the cells of each donor
SINGULAR = {"conditions": "condition", "donors": "donor", "batches": "batch"}
WITHOUT = {
    "types": "no --label that both sides have",
    "conditions": "no --condition that both sides have",
    "donors": "no --donor that all sides have",
    "batches": "no --batch that both sides have",
    "library_size": "one side has no raw counts",
    "genes_detected": "no genes",
    "mitochondrial_share": "none of the genes compared is mitochondrial (MT-...)",
}


class Round:
    """One resample: real cells (first), other real or training cells (second) and synthetic ones (third).

    pool: what computes. known: what synthetic cells may be copies of, training cells where those are given (trained),
    else real cells, with `first` among them; second_trained: whether `second` are among them. made: synthetic cells.
    known and made may be more cells than those; without them, copies are not looked for. gene_sets: places of the genes
    that some spaces take. chosen: names of the metrics that are wanted; None: those by default. bad_models: whether
    they are scored, too.
    """

    def __init__(
        self,
        first: Part,
        second: Part,
        third: Part,
        *,
        pool: ThreadPoolExecutor,
        known: Part | None = None,
        made: Part | None = None,
        trained: bool = False,
        second_trained: bool = False,
        gene_sets: GeneSets | None = None,
        chosen: Collection[str] | None = None,
        bad_models: bool = True,
        seed: int,
    ) -> None:
        self.first, self.second, self.third = first, second, third
        self.pool, self.trained, self.seed = pool, trained, seed
        self.second_trained, self.bad_models = second_trained, bad_models
        self.gene_sets = gene_sets or GeneSets()
        self.chosen = {name for name, m in METRICS.items() if m.default} if chosen is None else set(chosen)
        self.against: set[str] = {"real"}
        self._real = {"value": (first, third), "floor": (first, second)}
        if bad_models:
            self._real["shuffled"] = first, second.shuffled(np.random.default_rng([seed, 4]))
            self._real["pooled"] = first, second.pooled()
        if known is not None and made is not None:
            self.against.add("neighbours")
            if second_trained and not other_donors(first, second):
                self.against |= {"candidates", "references"}
            if second_trained and min(map(len, _held_out_and_known(first, second))) >= FEWEST_DONORS:
                self.against.add("donors")
            self._copies = pool.submit(
                _pairs_with_copies, first, second, third, known, made, trained, second_trained, seed
            )
        self._in_space: dict[tuple[str, Space], Future[tuple[Any, Any]]] = {}

    def prepare(self, metrics: Sequence[Metric]) -> None:
        """Begin what the metrics share: to be called before they are scored, so that none waits for what has not
        begun."""
        for space in sorted({metric.space for metric in metrics if metric.against == "real"}):
            for which, (a, b) in self._real.items():
                self._in_space[which, space] = self.pool.submit(in_space, space, a.X, b.X, self.gene_sets.places)

    def pairs(self, against: str) -> dict[str, tuple[Part, Part]]:
        """The pairs of sets that a metric against `against` compares, by "value", "floor" and bad models."""
        pairs = self._real if against == "real" else self._copies.result()[against]
        return {which: pair for which, pair in pairs.items() if self.bad_models or which not in BAD_MODELS}

    def _matrices(self, against: str, which: str, space: Space) -> tuple[Any, Any]:
        """A pair of sets in a space."""
        if against == "real":
            return self._in_space[which, space].result()
        a, b = self.pairs(against)[which]
        return a.X, b.X

    def score(self, metric: Metric, keep: Callable[[str, Part], np.ndarray] | None = None) -> dict[str, float]:
        """Its value, floor and ceilings by name; of the first set of each pair only the cells (mask) that `keep`
        tells."""
        found = {}
        for which, (a, b) in self.pairs(metric.against).items():
            rows = np.ones(len(a.types), dtype=bool) if keep is None else keep(which, a)
            x, y = self._matrices(metric.against, which, metric.space)
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
            for metric in (METRICS[m] for m in OF_TYPES if m in self.chosen):
                if metric.name == "rf_auc" and min(counts) < MIN_CELLS_TO_CLASSIFY:
                    continue
                figures = {}
                for which, (a, b) in self.pairs("real").items():
                    x, y = self._matrices("real", which, metric.space)
                    figures[which] = metric(x[a.types == name], y[b.types == name], seed=self.seed)
                found.setdefault(name, {})[metric.name] = figures
        return found

    def score_donors(self) -> dict[str, dict[str, dict[str, float]]]:
        """Of each donor with enough cells, the metrics OF_DONORS against this donor's cells alone."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name in donors_to_score(self):

            def keep(which: str, part: Part, name: str = name) -> np.ndarray:
                """This donor's known cells, beside all that were held out; all where no cell is known."""
                held_out = part.of_cells["member"] == 0
                neither = which == "floor" and len(part.types) == len(self.first.types)
                return held_out | (part.of_cells["donors"] == name) | neither

            for metric in (METRICS[m] for m in OF_DONORS if m in self.chosen):
                if metric.against in self.against:
                    found.setdefault(name, {})[metric.name] = self.score(metric, keep)
        return found


def _pairs_with_copies(
    first: Part, second: Part, third: Part, known: Part, made: Part, trained: bool, second_trained: bool, seed: int
) -> dict[str, dict[str, tuple[Part, Part]]]:
    """The pairs for metrics against "neighbours" and, if second_trained, "candidates", "references" and "donors" (see
    Round), X being the components of one fit to first, second and third."""
    of_sides = [part.X for part in (first, second, third)]
    components = principal_components(
        as_csr(sparse.vstack(of_sides)), rest=sparse.vstack([known.X, made.X], format="csr")
    )
    sets = (first, second, third, known, made)
    ends = np.cumsum([len(part.types) for part in sets])[:-1]
    first, second, third, known, made = (replace(part, X=X) for part, X in zip(sets, np.split(components, ends)))
    unknown = first if trained else second
    n, rows = len(unknown.types), np.random.default_rng([seed, 8]).permutation(len(unknown.types))
    some, others = unknown.take(np.sort(rows[: n // 2])), unknown.take(np.sort(rows[n // 2 :]))
    neighbours = candidates(unknown, known)
    pairs = {
        # To what was learnt from, cells that were held out are the floor.
        "neighbours": {
            "value": (neighbours, third),
            "floor": (candidates(some, known), others),
            "copies": (neighbours, known.take(np.arange(min(n, len(known.types))))),
        }
    }
    if second_trained:
        half = np.arange(len(some.types)) % 2 == 0
        references = candidates(some, second, others)
        pairs["references"] = {
            "value": (references, made),
            "floor": (candidates(some.take(np.flatnonzero(half)), some.take(np.flatnonzero(~half)), others), made),
            "copies": (references, known),
        }
        both = candidates(first, second)
        pairs["candidates"] = {
            "value": (both, made),
            "floor": (candidates(some, others), made),  # neither was trained on
            "copies": (both, known),
        }
        if "donors" in both.of_cells:
            held_out = sorted(_held_out_and_known(first, second)[0])
            halves = [np.isin(first.of_cells["donors"], held_out[i::2]) for i in (1, 0)]
            neither = candidates(*(first.take(np.flatnonzero(half)) for half in halves))
            pairs["donors"] = {**pairs["candidates"], "floor": (neither, made)}
    return pairs


def _held_out_and_known(first: Part, second: Part) -> tuple[set[str], set[str]]:
    """Donors that were not trained on, and those that were; none where the cells do not tell."""
    if not all("donors" in part.of_cells for part in (first, second)):
        return set(), set()
    known = set(second.of_cells["donors"])
    return set(first.of_cells["donors"]) - known, known


def donors_to_score(round_: Round) -> list[str]:
    """Those with enough cells among the cells that synthetic ones may be copies of."""
    return [name for name, count in _donors(_of_donors(round_)).items() if count >= MIN_CELLS_OF_TYPE]


def donors_left_out(round_: Round) -> list[str]:
    """Those with too few."""
    return [name for name, count in _donors(_of_donors(round_)).items() if count < MIN_CELLS_OF_TYPE]


def _of_donors(round_: Round) -> Part | None:
    """The cells whose donors are looked for; None where those trained on are not among the cells compared."""
    if round_.second_trained:
        return round_.second
    return None if round_.trained else round_.first


def _donors(part: Part | None) -> dict[str, int]:
    """Cells of each."""
    return Counter(map(str, sorted(() if part is None else part.of_cells.get("donors", ()))))


def _of_one(part: Part, name: str) -> bool:
    """Whether all cells are of one group."""
    return name in part.of_cells and len(set(part.of_cells[name])) < 2


def known_cells(sides: dict[str, Side], n: int, seed: int) -> tuple[Part, Part]:
    """What synthetic cells may be copies of, training cells or the real cells that no floor is made of, and synthetic
    cells, up to MOST_KNOWN of each; the first n are those that `parts` draws."""

    most = max(n, MOST_KNOWN)
    made = sides["synthetic"].part(order_of(sides, "synthetic", seed, n)[:most])
    if "train" in sides:
        return sides["train"].part(order_of(sides, "train", seed, n)[:most]), made
    rows = order_of(sides, "real", seed, n)
    return sides["real"].part(np.concatenate([rows[:n], rows[2 * n :]])[:most]), made


def exact_shares(sides: dict[str, Side], donor: str | None = None) -> dict[str, float]:
    """exact_duplicates of all cells, as figures of a round; of one donor's known cells alone."""
    known, made = sides.get("train", sides["real"]).everyone, sides["synthetic"].everyone
    assert known is not None, "gather comes first"
    assert made is not None, "gather comes first"
    marks = known.fingerprints
    if donor is not None and known.donors is not None:
        marks = marks[known.donors == donor]
    return {"value": copied_share(marks, made.fingerprints), "floor": repeated_share(marks), "copies": 1.0}


def computable(round_: Round, label: str | None) -> tuple[list[Metric], dict[str, str]]:
    """Of the metrics wanted, those that these cells allow, and why others are left out."""
    metrics, skipped = [], {}
    for metric in (m for m in METRICS.values() if m.name in round_.chosen):
        drawn = (round_.first, round_.second, round_.third)
        given = {"member", "donors"} if metric.against == "donors" else {"member"}
        missing = [n for n in metric.needs if n not in given and not all(n in part.of_cells for part in drawn)]
        if metric.against == "donors" and round_.second_trained and "donors" not in round_.against:
            skipped[metric.name] = (
                f"there are no {FEWEST_DONORS} donors that the model was trained on, and {FEWEST_DONORS} others "
                "(--donor)"
            )
        elif metric.against not in {*round_.against, "train"}:
            skipped[metric.name] = (
                "the real cells are of other kinds, or of other donors, than those that the model was trained on"
                if round_.trained
                else "the cells that the model was trained on are not given (--train)"
            )
        elif missing:
            skipped[metric.name] = WITHOUT[missing[0]]
        elif metric.space in round_.gene_sets.missing:
            skipped[metric.name] = round_.gene_sets.missing[metric.space]
        elif "types" in metric.needs and len(set(round_.first.types)) < 2:
            skipped[metric.name] = f"all real cells are of one {label}"
        elif alone := [n for n in SINGULAR if n in metric.needs and _of_one(round_.first, n)]:
            skipped[metric.name] = f"all real cells are of one {SINGULAR[alone[0]]}"
        elif metric.name in OF_EACH_TYPE and not types_to_compare(round_.first.types):
            skipped[metric.name] = f"no {label} has {MIN_CELLS_OF_TYPE} real cells"
        else:
            metrics.append(metric)
    return metrics, skipped
