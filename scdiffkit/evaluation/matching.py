"""Preparation of cell sets for a comparison: the same genes and scale, and no cell in two sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from scdiffkit.errors import DataError, warn
from scdiffkit.evaluation.cell_sets import MIN_CELLS, CellSet, DiskCells, Subsample, summary_of

if TYPE_CHECKING:
    pass

log = logging.getLogger("scdiffkit")
FEWEST_GENES = 100
SCALE_RATIO = 1.5  # if sums per cell differ by more than this factor, the normalisation probably differs
UNLIKE = 0.05  # maximum share of held-out cells whose type or condition was not trained on


class Notes:
    """Notes and warnings for the reader of the scores."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        warn(message)
        self.warnings.append(message)


def note_scales(cell_sets: dict[str, CellSet], remarks: Notes) -> None:
    for cell_set in cell_sets.values():
        remarks.notes.append(f"{cell_set.name}: {cell_set.n_cells} cells x {cell_set.n_genes} genes; {cell_set.scale}.")


def match_genes(cell_sets: dict[str, CellSet], remarks: Notes) -> None:
    """Reduce every set to the intersection of the genes, sorted by name."""
    real, others = cell_sets["real"], [cell_set for cell_set in cell_sets.values() if cell_set.name != "real"]
    shared = real.genes
    for cell_set in others:
        both = shared.intersection(cell_set.genes)
        if both.empty:
            examples = "; ".join(f"{s.name}: {', '.join(map(str, s.genes[:3]))}" for s in (real, cell_set))
            raise DataError(
                f"The real and the {cell_set.name} cells have no gene in common ({examples}). Both need the same kind "
                "of names in var_names, symbols or Ensembl ids, of the same species."
            )
        remarks.notes.append(
            f"Genes: {len(real.genes.intersection(cell_set.genes))} in both real and {cell_set.name} cells; "
            f"{len(real.genes.difference(cell_set.genes))} only in real, "
            f"{len(cell_set.genes.difference(real.genes))} only in {cell_set.name}."
        )
        shared = both
    shared = shared.sort_values()
    if len(shared) < FEWEST_GENES:
        raise DataError(
            f"Only {len(shared)} genes are in all sets of cells ({', '.join(map(str, shared[:3]))} ...); at least "
            f"{FEWEST_GENES} are needed for meaningful scores. Give all sets the same kind of gene names, symbols "
            "or Ensembl ids."
        )
    for cell_set in cell_sets.values():
        cell_set.keep_genes(shared)


def gather(
    cell_sets: dict[str, CellSet], most: int, seed: int, remarks: Notes, counts_of: Sequence[str] = ()
) -> dict[str, tuple[int, int]]:
    """Summarise all cells and load at most `most` cells of each set that is in a file.

    Warns if the sets were probably normalised differently. Returns (number loaded, total number) for each set of which
    only some cells were loaded. counts_of: sets whose counts are loaded, too. The same seed selects the same cells.
    """
    sampled = {}
    for i, (name, cell_set) in enumerate(sorted(cell_sets.items())):
        if isinstance(cell_set.X, DiskCells):
            log.info("%s: reading all %s cells", name, f"{cell_set.X.shape[0]:,}")
        cell_set.gather(most, np.random.default_rng([seed, 9, i]), counts_too=name in counts_of)
        if cell_set.X.shape[0] < summary_of(cell_set).n:
            sampled[name] = (cell_set.X.shape[0], summary_of(cell_set).n)
    sums = {cell_set.name: summary_of(cell_set).mean_sum for cell_set in cell_sets.values()}
    for cell_set in (cell_set for cell_set in cell_sets.values() if cell_set.name != "real"):
        low, high = sorted([sums["real"], sums[cell_set.name]])
        if high > SCALE_RATIO * low:
            remarks.warn(
                f"The values of a cell in the common genes sum to {sums['real']:.4g} in real and "
                f"{sums[cell_set.name]:.4g} in {cell_set.name} cells. If the sets were normalised differently (to "
                "another total, or over other genes), no score is meaningful: give both as raw counts of the same "
                "genes, or normalise both in the same way."
            )
    for name, (n, of) in sampled.items():
        within = " within types" if cell_sets[name].has_types else ""
        remarks.notes.append(f"{name}: {n:,} of {of:,} cells, drawn at random{within}, are compared.")
    known = "train" if "train" in cell_sets else "real"
    if known in sampled:
        what = "training" if known == "train" else "real"
        remarks.notes.append(
            f"nn_ratio, near_duplicates and membership_auc search for the nearest {what} cell among these "
            f"{sampled[known][0]:,} only, so they miss copies of other cells. exact_duplicates covers all cells."
        )
    return sampled


def separate(cell_sets: dict[str, CellSet], unseen: np.ndarray, trained: np.ndarray, remarks: Notes) -> None:
    """Split the real cells into "real", which the model has not seen, and "train", by their row indices."""
    cell_sets["train"] = replace(cell_sets["real"], name="train")
    for name, rows in (("real", unseen), ("train", trained)):
        cell_sets[name].take(rows)
        cell_sets[name].n_cells = len(rows)
    remarks.notes.append(
        f"The real cells are the data that the model was trained on: {len(unseen):,} cells that it has not seen "
        f"are compared as real cells, and the {len(trained):,} that it was trained on are the training cells."
    )


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
    """Whether the held-out cells share no donor with the training cells, and so differ from them in any case."""
    both = [set(part.of_cells["donors"]) for part in (real, train) if "donors" in part.of_cells]
    return len(both) == 2 and both[0].isdisjoint(both[1])


def drop_trained_on(cell_sets: dict[str, CellSet], remarks: Notes) -> None:
    """Remove real cells that are also training cells, as they are not new to the model.

    Call this before `match_genes`: in fewer genes, cells are more often equal by chance.
    """
    real, train = cell_sets["real"], cell_sets["train"]
    genes = real.genes.intersection(train.genes)
    if genes.empty:
        return  # match_genes raises the error
    for cell_set in (train, real):
        if isinstance(cell_set.X, DiskCells):
            log.info(
                "%s: searching %s cells for those in both real and train", cell_set.name, f"{cell_set.X.shape[0]:,}"
            )
    new = ~np.isin(real.fingerprints(genes, 0), train.fingerprints(genes, 0))
    if new.all():
        return
    if new.sum() < MIN_CELLS:
        raise DataError(
            f"{(~new).sum()} of the {len(new)} real cells are also training cells (--train), so hardly any were "
            "held out. Give cells that the model was not trained on, or leave --train out."
        )
    remarks.warn(f"{(~new).sum()} of the {len(new)} real cells are also in --train and were left out.")
    real.take(np.flatnonzero(new))


def count_types(cell_sets: dict[str, CellSet], label: str, remarks: Notes) -> dict[str, dict[str, int]]:
    """Count the real and the synthetic cells of each type, and note the types that one of the sets lacks."""
    real, synthetic = cell_sets["real"], cell_sets["synthetic"]
    if not synthetic.has_types:
        remarks.warn(f"The synthetic cells have no obs column {label!r}, so they are compared only as a whole.")
    of_types = {
        cell_set.name: summary_of(cell_set).types if cell_set.has_types else {} for cell_set in (real, synthetic)
    }
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
                remarks.notes.append(
                    f"No {cell_set.name} cell has these types of the {other.name} cells: {', '.join(missing)}."
                )
    return counts
