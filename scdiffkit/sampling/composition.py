"""The cells to draw: their condition codes and library sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdiffkit.config import SampleConfig
from scdiffkit.data.cells import LIBRARY_SIZE
from scdiffkit.data.conditions import Conditions
from scdiffkit.errors import ConfigError, DataError, warn
from scdiffkit.io import Backed, Rows
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.counts import counts_of

DEFAULT_CELLS = 1000
FAR_LARGER = 10  # larger multiples of the largest training library size give a warning


def composition_of(
    conditions: Conditions,
    n: int | None,
    where: Mapping[str, str | Sequence[str]] | None,
    like: AnnData | Backed | None,
    copies_library_size: bool,
) -> np.ndarray:
    """Return the codes (n, K) of the cells to draw. `copies_library_size`: library sizes are also taken from `like`."""
    if n is not None and n < 1:
        raise ConfigError(f"The number of cells must be at least 1, not {n}.")
    if like is not None:
        if where:
            raise ConfigError("Give --where or --like, not both: --like copies the whole composition.")
        if not (conditions.columns or copies_library_size):
            raise DataError("The run has no conditions, so there is no composition to copy; give -n instead of --like.")
        return conditions.composition_of(like.obs, n)
    wanted = {
        column: [str(v) for v in ([values] if isinstance(values, str) or np.ndim(values) == 0 else values)]
        for column, values in (where or {}).items()
    }
    return conditions.compose(n or DEFAULT_CELLS, wanted)


def library_sizes_of(
    codec: Any,
    genes: list[str],
    conditions: Conditions,
    codes: np.ndarray,
    like: AnnData | Backed | None,
    config: SampleConfig,
) -> np.ndarray | None:
    """Return the library size (n,) at which to decode each cell of `codes` (n, K); None if the model draws it."""
    median, largest = codec.library_sizes()
    if config.library_size == "like":
        depths = None if like is None else _depths(like, genes)
        if like is None or depths is None:
            return None
        sizes = _assign_library_sizes(depths, conditions.encode(like.obs), codes, config.seed)
    else:
        sizes = np.full(len(codes), median if config.library_size == "median" else config.library_size, np.float32)
    if sizes.max() > FAR_LARGER * largest:
        warn(
            f"A library size of {sizes.max():.0f} is more than {FAR_LARGER} times the largest of the training "
            f"cells ({largest:.0f}): the model extrapolates."
        )
    return sizes


def _depths(cells: AnnData | Backed, genes: list[str]) -> np.ndarray | None:
    """Return library sizes (m,) of `cells` over the run's genes, or warn and return None without raw counts."""
    if "scdiffkit" in cells.uns and LIBRARY_SIZE in cells.obs:  # sums over all genes, even if genes were filtered
        depths = pd.to_numeric(cells.obs[LIBRARY_SIZE], errors="coerce").to_numpy(dtype=np.float32)
    else:
        try:
            counts, place = counts_of(cells)
            if isinstance(cells, Backed):
                names = cells.var_of(place).index
            else:
                names = cells.raw.var_names if place == "raw" else cells.var_names
            there = names.isin(genes)
            depths = _sums(counts, there)
        except DataError as e:
            warn(f"The library sizes of the cells of --like are not known, so only their composition is copied. {e}")
            return None
        if there.sum() < len(genes):
            warn(
                f"The cells of --like have only {there.sum()} of the run's {len(genes)} genes, so the copied "
                "library sizes are sums over these genes. For library sizes over all genes, give --library-size "
                "median, or leave --like out."
            )
    if not (depths > 0).all():  # NaN included
        raise DataError(
            f"{int((~(depths > 0)).sum())} cells of --like have no counts, so there is no library size to copy: drop "
            "them, or give --library-size median."
        )
    return depths


def _sums(counts: Rows, there: np.ndarray) -> np.ndarray:
    """Return each cell's sum (m,) of counts over the genes with `there` (genes,) True, in blocks of rows."""
    sums = np.empty(counts.shape[0], dtype=np.float32)
    for part, block in iter_row_blocks(counts):
        sums[part] = block @ there.astype(np.float64)
    return sums


def _assign_library_sizes(depths: np.ndarray, of_cells: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Assign the library sizes `depths` (m,) of cells with codes `of_cells` (m, K) to rows (n, K) with equal codes.

    Each combination of codes is permuted at random. Equal numbers of rows and cells use each library size once;
    otherwise all are used equally often, give or take one. Returns (n,).
    """
    rng = np.random.default_rng([seed, 0, 1])
    sizes = np.empty(len(codes), dtype=np.float32)
    for combination in np.unique(codes, axis=0):
        rows = (codes == combination).all(axis=1)
        sizes[rows] = np.resize(rng.permutation(depths[(of_cells == combination).all(axis=1)]), rows.sum())
    return sizes
