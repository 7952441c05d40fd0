"""Preparation of cell sets for a comparison: the same genes and scale, and no cell in two sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from scdiffkit.errors import DataError, warn
from scdiffkit.evaluation.cell_sets import MIN_CELLS, CellSet, Subsample
from scdiffkit.evaluation.loaded_cells import DiskCells, LoadedCells

log = logging.getLogger("scdiffkit")
FEWEST_GENES = 100
SCALE_RATIO = 1.5  # if sums per cell differ by more than this factor, the normalisation probably differs
UNLIKE = 0.05  # maximum share of held-out cells whose type or condition was not trained on


class Notes:
    """Notes and warnings for the reader of the scores."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def add(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        warn(message)
        self.warnings.append(message)


def note_scales(loaded: dict[str, LoadedCells], notes: Notes) -> None:
    for cells in loaded.values():
        notes.add(f"{cells.name}: {cells.n_cells} cells x {cells.n_genes} genes; {cells.scale}.")


def match_genes(loaded: dict[str, LoadedCells], notes: Notes) -> dict[str, LoadedCells]:
    """Reduce every set to the intersection of the genes, sorted by name."""
    real, others = loaded["real"], [cells for cells in loaded.values() if cells.name != "real"]
    shared = real.genes
    for cells in others:
        both = shared.intersection(cells.genes)
        if both.empty:
            examples = "; ".join(f"{s.name}: {', '.join(map(str, s.genes[:3]))}" for s in (real, cells))
            raise DataError(
                f"The real and the {cells.name} cells have no gene in common ({examples}). Both need the same kind "
                "of names in var_names, symbols or Ensembl ids, of the same species."
            )
        notes.add(
            f"Genes: {len(real.genes.intersection(cells.genes))} in both real and {cells.name} cells; "
            f"{len(real.genes.difference(cells.genes))} only in real, "
            f"{len(cells.genes.difference(real.genes))} only in {cells.name}."
        )
        shared = both
    shared = shared.sort_values()
    if len(shared) < FEWEST_GENES:
        raise DataError(
            f"Only {len(shared)} genes are in all sets of cells ({', '.join(map(str, shared[:3]))} ...); at least "
            f"{FEWEST_GENES} are needed for meaningful scores. Give all sets the same kind of gene names, symbols "
            "or Ensembl ids."
        )
    return {name: cells.keep_genes(shared) for name, cells in loaded.items()}


def gather(
    loaded: dict[str, LoadedCells], max_cells: int, seed: int, notes: Notes, counts_of: Sequence[str] = ()
) -> tuple[dict[str, CellSet], dict[str, tuple[int, int]]]:
    """Summarise all cells and load at most `max_cells` cells of each set that is in a file.

    Warns if the sets were probably normalised differently. Returns the sets, and (number loaded, total number) for each
    set of which only some cells were loaded. counts_of: sets whose counts are loaded, too. The same seed selects the
    same cells.
    """
    cell_sets: dict[str, CellSet] = {}
    for i, (name, cells) in enumerate(sorted(loaded.items())):
        if isinstance(cells.X, DiskCells):
            log.info("%s: reading all %s cells", name, f"{cells.X.shape[0]:,}")
        cell_sets[name] = cells.gather(max_cells, np.random.default_rng([seed, 9, i]), with_counts=name in counts_of)
    cell_sets = {name: cell_sets[name] for name in loaded}
    sampled = {
        name: (found.X.shape[0], found.summary.n)
        for name, found in sorted(cell_sets.items())
        if found.X.shape[0] < found.summary.n
    }
    sums = {cell_set.name: cell_set.summary.mean_sum for cell_set in cell_sets.values()}
    for cell_set in (cell_set for cell_set in cell_sets.values() if cell_set.name != "real"):
        low, high = sorted([sums["real"], sums[cell_set.name]])
        if high > SCALE_RATIO * low:
            notes.warn(
                f"The values of a cell in the common genes sum to {sums['real']:.4g} in real and "
                f"{sums[cell_set.name]:.4g} in {cell_set.name} cells. If the sets were normalised differently (to "
                "another total, or over other genes), no score is meaningful: give both as raw counts of the same "
                "genes, or normalise both in the same way."
            )
    for name, (n, of) in sampled.items():
        within = " within types" if cell_sets[name].has_types else ""
        notes.add(f"{name}: {n:,} of {of:,} cells, drawn at random{within}, are compared.")
    known = "train" if "train" in cell_sets else "real"
    if known in sampled:
        what = "training" if known == "train" else "real"
        notes.add(
            f"nn_ratio, near_duplicates and membership_auc search for the nearest {what} cell among these "
            f"{sampled[known][0]:,} only, so they miss copies of other cells. exact_duplicates covers all cells."
        )
    return cell_sets, sampled


def separate(
    loaded: dict[str, LoadedCells], unseen: np.ndarray, trained: np.ndarray, notes: Notes
) -> dict[str, LoadedCells]:
    """Split the real cells into "real", which the model has not seen, and "train", by their row indices."""
    notes.add(
        f"The real cells are the data that the model was trained on: {len(unseen):,} cells that it has not seen "
        f"are compared as real cells, and the {len(trained):,} that it was trained on are the training cells."
    )
    parts = {
        name: replace(loaded["real"].take(rows), name=name, n_cells=len(rows))
        for name, rows in (("real", unseen), ("train", trained))
    }
    return loaded | parts


def types_were_trained_on(real: CellSet, train: CellSet) -> bool:
    """Whether nearly all held-out cells have types and conditions that were trained on."""
    columns = [
        (real.types, train.types) if real.has_types and train.has_types else None,
        (real.conditions, train.conditions) if real.conditions is not None else None,
    ]
    pairs = [pair for pair in columns if pair is not None]
    if not pairs:
        return True
    of_real, of_train = (list(zip(*(pair[which] for pair in pairs), strict=True)) for which in (0, 1))
    trained = set(of_train)
    return sum(kind not in trained for kind in of_real) <= UNLIKE * len(of_real)


def other_donors(real: Subsample, train: Subsample) -> bool:
    """Whether the held-out cells share no donor with the training cells, and so differ from them anyway."""
    both = [set(part.per_cell["donors"]) for part in (real, train) if "donors" in part.per_cell]
    return len(both) == 2 and both[0].isdisjoint(both[1])


def drop_trained_on(loaded: dict[str, LoadedCells], notes: Notes) -> dict[str, LoadedCells]:
    """Remove real cells that are also training cells, as they are not new to the model.

    Call this before `match_genes`: in fewer genes, cells are more often equal by chance.
    """
    real, train = loaded["real"], loaded["train"]
    genes = real.genes.intersection(train.genes)
    if genes.empty:
        return loaded  # match_genes raises the error
    for cells in (train, real):
        if isinstance(cells.X, DiskCells):
            log.info("%s: searching %s cells for those in both real and train", cells.name, f"{cells.X.shape[0]:,}")
    new = ~np.isin(real.fingerprints(genes, 0), train.fingerprints(genes, 0))
    if new.all():
        return loaded
    if new.sum() < MIN_CELLS:
        raise DataError(
            f"{(~new).sum()} of the {len(new)} real cells are also training cells (--train), so hardly any were "
            "held out. Give cells that the model was not trained on, or leave --train out."
        )
    notes.warn(f"{(~new).sum()} of the {len(new)} real cells are also in --train and were left out.")
    return loaded | {"real": real.take(np.flatnonzero(new))}


def count_types(cell_sets: dict[str, CellSet], label: str, notes: Notes) -> dict[str, dict[str, int]]:
    """Count the real and the synthetic cells of each type, and note the types that one of the sets lacks."""
    real, synthetic = cell_sets["real"], cell_sets["synthetic"]
    if not synthetic.has_types:
        notes.warn(f"The synthetic cells have no obs column {label!r}, so they are compared only as a whole.")
    of_types = {cell_set.name: cell_set.summary.types if cell_set.has_types else {} for cell_set in (real, synthetic)}
    names = sorted({*of_types["real"], *of_types["synthetic"]})
    if synthetic.has_types and not {*of_types["real"]} & {*of_types["synthetic"]}:
        shown = "; ".join(f"{which}: {', '.join(sorted(of)[:5])}" for which, of in of_types.items())
        raise DataError(
            f"No {label} occurs in both real and synthetic cells ({shown}), so they cannot be compared within "
            "types: give a column with the same names in both (--label), or leave the option out."
        )
    counts = {name: {which: of_types[which].get(name, 0) for which in of_types} for name in names}
    if synthetic.has_types:
        for cell_set, other in ((synthetic, real), (real, synthetic)):
            missing = [name for name in names if not counts[name][cell_set.name]]
            if missing:
                notes.add(f"No {cell_set.name} cell has these types of the {other.name} cells: {', '.join(missing)}.")
    return counts
