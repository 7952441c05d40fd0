"""Concatenation of several sets of cells."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals

from scdiffkit.config import PreprocessConfig
from scdiffkit.errors import DataError, warn
from scdiffkit.io import Backed, Rows, Selected, Stacked
from scdiffkit.preprocessing.columns import FILE, check_columns, colors_of, take_rows
from scdiffkit.preprocessing.counts import counts_of, selected

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")
FEW_SHARED = 0.5  # share of the smallest file's genes below which a small intersection is reported


def raw_cells(
    cells: AnnData | Backed | Mapping[str, AnnData | Backed], config: PreprocessConfig, labels: Sequence[str] = ()
) -> RawCells:
    """Return the raw counts of one set of cells, or of several sets concatenated.

    cells: one set, or several sets by name. Several sets get the intersection ("inner") or union ("outer") of their
    genes, as set by config.join; genes that a set lacks are zero there. obs columns that all sets have are kept, and
    obs["file"] holds the names of the sets. labels: obs columns that all sets must have.
    """
    if not isinstance(cells, Mapping):
        return _raw(cells)
    for name, part in cells.items():
        check_columns(part.obs, [*labels, *([config.batch_key] if config.batch_key else [])], name)
    return _join({name: _raw(part) for name, part in cells.items()}, config.join)


class RawCells(NamedTuple):
    """Raw counts (cells, genes) with obs and var; source: their location; record: the input's uns["scdiffkit"]."""

    counts: Rows
    obs: pd.DataFrame
    var: pd.DataFrame
    source: str
    record: dict[str, Any]
    colors: dict[str, dict[str, str]]  # obs column -> category -> colour

    def take(self, rows: np.ndarray) -> RawCells:
        """Select cells by ascending indices."""
        if len(rows) == len(self.obs):
            return self
        return self._replace(counts=selected(self.counts, rows, None), obs=take_rows(self.obs, rows))


def _raw(cells: AnnData | Backed) -> RawCells:
    """Return the raw counts of one set of cells; of its other parts, only obs, var, record and colours are kept."""
    from anndata.utils import make_index_unique

    counts, source = counts_of(cells)
    if isinstance(cells, Backed):
        var = cells.var_of(source)
    else:
        var = cells.raw.var if source == "raw" else cells.var
    if source == "raw" and counts.shape[1] != cells.n_vars:
        log.info("raw has %d genes and X has %d: the genes of raw are used", counts.shape[1], cells.n_vars)
    for axis, n in (("cells", counts.shape[0]), ("genes", counts.shape[1])):
        if n == 0:
            raise DataError(f"The data has no {axis} ({counts.shape[0]} cells x {counts.shape[1]} genes).")
    repeated = var.index[var.index.duplicated()].unique()
    if len(repeated):
        examples = ", ".join(repr(str(gene)) for gene in repeated[:3])
        raise DataError(
            f"{len(repeated)} gene names occur more than once ({examples}): run adata.var_names_make_unique() first."
        )
    obs = cells.obs.copy(deep=not isinstance(cells, Backed))  # obs read from a file needs no copy
    if not pd.Index(obs.index.to_numpy(), dtype=obs.index.dtype).is_unique:  # a new Index: its hash table is freed
        n = int(obs.index.duplicated().sum())
        obs.index = make_index_unique(obs.index)
        warn(f"{n} cell names repeat an earlier one; -1, -2, ... was appended to make them unique.")
    return RawCells(
        counts, obs, var.copy(), source, dict(cells.uns.get("scdiffkit", {})), colors_of(cells.obs, cells.uns)
    )


def _join(named: Mapping[str, RawCells], join: Literal["inner", "outer"]) -> RawCells:
    """Concatenate several sets of cells."""
    parts = list(named.values())
    shared = parts[0].var.index
    everything = shared
    for part in parts[1:]:
        shared = shared[shared.isin(part.var.index)]
        everything = everything.append(part.var.index[~part.var.index.isin(everything)])
    if shared.empty:
        some = list(named.items())[:3]
        examples = "; ".join(f"{name}: {', '.join(map(str, part.var.index[:3]))}" for name, part in some)
        raise DataError(
            f"The files have no gene in common ({examples}). All need the same kind of names in var_names, symbols or "
            "Ensembl ids, of the same species."
        )
    chosen = shared if join == "inner" else everything
    fewest = min(len(part.var) for part in parts)
    if join == "inner" and len(shared) < FEW_SHARED * fewest:
        warn(
            f"Only {len(shared)} genes are in all {len(parts)} files (the smallest file has {fewest}); the others "
            "are left out. --join outer keeps them, with zeros for files that lack them."
        )
    log.info(
        "Genes of %d files: %d in the intersection, %d in the union; join %s",
        len(parts),
        len(shared),
        len(everything),
        join,
    )
    places = [part.var.index.get_indexer(chosen) for part in parts]
    counts = Stacked(
        [
            part.counts if part.var.index.equals(chosen) else Selected(part.counts, None, place)
            for part, place in zip(parts, places, strict=True)
        ]
    )
    columns = [c for c in parts[0].obs if all(c in part.obs for part in parts)]
    obs = pd.DataFrame(index=_unique_names(parts))
    for column in columns:
        values = [part.obs[column] for part in parts]
        if any(isinstance(v.dtype, pd.CategoricalDtype) for v in values):
            obs[column] = union_categoricals([_named_categories(v) for v in values], sort_categories=False)
        else:
            together = pd.concat(values)
            obs[column] = (together.map(str, na_action="ignore") if together.dtype == object else together).array
    if FILE in obs:
        log.info("obs['file'] is replaced by the name of each cell's file")
    of_file = np.repeat(np.arange(len(parts)), [len(part.obs) for part in parts])
    obs[FILE] = pd.Categorical.from_codes(of_file, pd.Index(list(named), dtype=object))
    var = parts[0].var
    for part in parts[1:] if join == "outer" else ():
        var = pd.concat([var, part.var.loc[~part.var.index.isin(var.index), part.var.columns.isin(var.columns)]])
    colors: dict[str, dict[str, str]] = {}
    for part in reversed(parts):
        for column, of in part.colors.items():
            colors[column] = colors.get(column, {}) | of
    source = " and ".join(sorted({part.source for part in parts}))
    return RawCells(counts, obs, var.loc[chosen].copy(), source, {}, colors)


def _named_categories(values: pd.Series) -> pd.Categorical:
    """Convert a column to an unordered categorical with text categories, so that several files can be combined."""
    column = pd.Categorical(values)
    return pd.Categorical.from_codes(column.codes, pd.Index([str(c) for c in column.categories], dtype=object))


def _unique_names(parts: Sequence[RawCells]) -> pd.Index:
    """Return the cell names of all parts; if they are not unique, append each file's number."""
    names = parts[0].obs.index.append([part.obs.index for part in parts[1:]])
    if names.is_unique:
        return names
    log.info(
        "Some cell names occur in several files, so the number of the file (-0, -1, ...) was appended to all names"
    )
    return pd.Index([f"{name}-{i}" for i, part in enumerate(parts) for name in part.obs.index])
