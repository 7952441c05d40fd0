"""The cells that a resample draws from each set."""

from __future__ import annotations

import math

import numpy as np

from scdiffkit.errors import DataError
from scdiffkit.evaluation.cell_sets import MIN_CELLS, CellSet, Subsample, draw_order

SHARE_OF_DONORS = 0.8  # share of the donors that a resample draws
MIN_DONORS_TO_DRAW = 5  # minimum number of donors for a resample to draw donors


def draw_subsamples(cell_sets: dict[str, CellSet], max_cells: int, seed: int) -> tuple[Subsample, Subsample, Subsample]:
    """Draw equally many real cells, other real cells (training cells if given) and synthetic cells.

    The cells are in the order of `draw_order_of`.
    """
    real, synthetic, train = cell_sets["real"], cell_sets["synthetic"], cell_sets.get("train")
    n = min(cells_per_set(cell_sets), max_cells)
    orders = {name: draw_order_of(cell_sets, name, seed, n) for name in cell_sets}
    first = real.subsample(orders["real"][:n])
    second = train.subsample(orders["train"][:n]) if train else real.subsample(orders["real"][n : 2 * n])
    return first, second, synthetic.subsample(orders["synthetic"][:n])


def draw_order_of(cell_sets: dict[str, CellSet], name: str, seed: int, n: int) -> np.ndarray:
    """Return the order, random within types, in which a resample draws the cells of the set `name`.

    A resample takes the first n cells; if no training cells are given, the next n real cells are the other half.

    If there are enough donors, cells of SHARE_OF_DONORS of them come first, with the same donors in all sets. If these
    donors have fewer than n cells, all sets are filled up with equally many cells of other donors.
    """
    side = cell_sets[name]
    order = draw_order(side.types, np.random.default_rng([seed, sorted(cell_sets).index(name)]))
    if side.donors is None or not draws_donors(cell_sets):
        return order
    kept = _kept_donors(cell_sets, seed)
    sets = {other: 2 if other == "real" and "train" not in cell_sets else 1 for other in cell_sets}
    n_kept = min([n, *(int(mask.sum()) // sets[other] for other, mask in kept.items())])
    of_kept, of_others = order[kept[name][order]], order[~kept[name][order]]
    drawn = []
    for _ in range(sets[name]):
        one = np.concatenate([of_kept[:n_kept], of_others[: n - n_kept]])
        of_kept, of_others = of_kept[n_kept:], of_others[n - n_kept :]
        missing = n - len(one)  # if the cells of the donors cannot be halved evenly
        drawn += [one, of_kept[:missing]]
        of_kept = of_kept[missing:]
    return np.concatenate([*drawn, of_kept, of_others])


def _kept_donors(cell_sets: dict[str, CellSet], seed: int) -> dict[str, np.ndarray]:
    """For each set with donors, return a mask of the cells whose donors a resample draws first."""
    donors = {name: side.donors.astype(str) for name, side in cell_sets.items() if side.donors is not None}
    ranked = np.random.default_rng([seed, 10]).permutation(np.unique(np.concatenate(list(donors.values()))))
    kept = {}
    for name, of in donors.items():
        here = ranked[np.isin(ranked, of)]
        kept[name] = np.isin(of, here[: math.ceil(SHARE_OF_DONORS * len(here))])
    return kept


def draws_donors(cell_sets: dict[str, CellSet]) -> bool:
    """Whether resamples draw donors, not only cells: the real cells must be from at least MIN_DONORS_TO_DRAW donors."""
    donors = cell_sets["real"].donors
    return donors is not None and len(set(donors)) >= MIN_DONORS_TO_DRAW


def cells_per_set(cell_sets: dict[str, CellSet]) -> int:
    """Return the number of cells per set available for a comparison. Raises DataError if there are too few."""
    real, synthetic, train = cell_sets["real"], cell_sets["synthetic"], cell_sets.get("train")
    for side, wanted in ((real, MIN_CELLS if train else 2 * MIN_CELLS), (synthetic, MIN_CELLS)):
        if side.X.shape[0] < wanted:
            raise DataError(
                f"{side.X.shape[0]} {side.name} cells are too few to compare: at least {wanted} are needed."
            )
    available = [real.X.shape[0] if train else real.X.shape[0] // 2, synthetic.X.shape[0]]
    return min([*available, train.X.shape[0]] if train else available)
