"""Which cells a resample draws of each set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from scdiffkit.errors import DataError
from scdiffkit.evaluation.cell_sets import MIN_CELLS, CellSet, Subsample, draw_order

if TYPE_CHECKING:
    pass

SHARE_OF_DONORS = 0.8  # that a resample draws
FEWEST_DONORS = 5  # that make drawing some of them worth it


def draw_subsamples(sides: dict[str, CellSet], max_cells: int, seed: int) -> tuple[Subsample, Subsample, Subsample]:
    """Real cells, other real cells (training cells, where they are given) and synthetic cells, as many of each, in the
    order of `order_of`."""
    real, synthetic, train = sides["real"], sides["synthetic"], sides.get("train")
    n = min(cells_a_side(sides), max_cells)
    orders = {name: draw_order_of(sides, name, seed, n) for name in sides}
    first = real.part(orders["real"][:n])
    second = train.part(orders["train"][:n]) if train else real.part(orders["real"][n : 2 * n])
    return first, second, synthetic.part(orders["synthetic"][:n])


def draw_order_of(sides: dict[str, CellSet], name: str, seed: int, n: int) -> np.ndarray:
    """The order in which a resample draws the cells of a side: the first n, and of real cells without training cells
    the next n as their other half; at random within types.

    Where there are donors enough, those of SHARE_OF_DONORS of them first, the same donors on all sides; where these
    have fewer cells than are drawn, all that are drawn have as many of the other donors.
    """
    side = sides[name]
    order = draw_order(side.types, np.random.default_rng([seed, sorted(sides).index(name)]))
    if side.donors is None or not draws_donors(sides):
        return order
    kept = _kept_donors(sides, seed)
    sets = {other: 2 if other == "real" and "train" not in sides else 1 for other in sides}
    n_kept = min([n, *(int(mask.sum()) // sets[other] for other, mask in kept.items())])
    of_kept, of_others = order[kept[name][order]], order[~kept[name][order]]
    drawn = []
    for _ in range(sets[name]):
        one = np.concatenate([of_kept[:n_kept], of_others[: n - n_kept]])
        of_kept, of_others = of_kept[n_kept:], of_others[n - n_kept :]
        missing = n - len(one)  # where a donor's cells do not halve evenly
        drawn += [one, of_kept[:missing]]
        of_kept = of_kept[missing:]
    return np.concatenate([*drawn, of_kept, of_others])


def _kept_donors(sides: dict[str, CellSet], seed: int) -> dict[str, np.ndarray]:
    """Of each side that has donors, which cells (mask) are of those that a resample draws first."""
    donors = {name: side.donors.astype(str) for name, side in sides.items() if side.donors is not None}
    ranked = np.random.default_rng([seed, 10]).permutation(np.unique(np.concatenate(list(donors.values()))))
    kept = {}
    for name, of in donors.items():
        here = ranked[np.isin(ranked, of)]
        kept[name] = np.isin(of, here[: math.ceil(SHARE_OF_DONORS * len(here))])
    return kept


def draws_donors(sides: dict[str, CellSet]) -> bool:
    """Whether resamples draw donors, not cells alone: where the real cells are of enough of them."""
    donors = sides["real"].donors
    return donors is not None and len(set(donors)) >= FEWEST_DONORS


def cells_a_side(sides: dict[str, CellSet]) -> int:
    """How many cells there are to be compared; DataError when they are too few."""
    real, synthetic, train = sides["real"], sides["synthetic"], sides.get("train")
    for side, wanted in ((real, MIN_CELLS if train else 2 * MIN_CELLS), (synthetic, MIN_CELLS)):
        if side.X.shape[0] < wanted:
            raise DataError(
                f"{side.X.shape[0]} {side.name} cells are too few to compare: at least {wanted} are needed."
            )
    available = [real.X.shape[0] if train else real.X.shape[0] // 2, synthetic.X.shape[0]]
    return min([*available, train.X.shape[0]] if train else available)
