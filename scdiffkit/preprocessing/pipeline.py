"""The preprocessing pipeline: filter cells and genes, normalise counts, and select genes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.config import PreprocessConfig, make
from scdiffkit.errors import DataError
from scdiffkit.io import Backed, CellWriter, Rows
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.columns import TOTAL, check_label, color_lists, take_rows
from scdiffkit.preprocessing.counts import LAYER, counts_of, selected
from scdiffkit.preprocessing.filters import passing
from scdiffkit.preprocessing.genes import check_batch_key, highly_variable
from scdiffkit.preprocessing.join import RawCells, raw_cells
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.runtime.memory import trim_memory
from scdiffkit.runtime.signals import deferred_interrupts
from scdiffkit.runtime.versions import version_of

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")


def preprocess(
    adata: AnnData,
    config: PreprocessConfig | None = None,
    *,
    label: str | Sequence[str] | None = None,
    **options: Any,
) -> AnnData:
    """Filter cells and genes, normalise, and select genes. The input is not changed.

    Parameters
    ----------
    adata
        Cells with raw counts in `layers["counts"]`, `raw` or `X`.
    config
        Options as an object; `**options` override its fields.
    label
        obs column(s) that must be usable as labels. They become categorical.
    **options
        Fields of `PreprocessConfig`, named as on the command line: `min_counts`, `max_mito`, `n_top_genes`, ...

    Returns
    -------
    AnnData ready for training: `X` (cells x kept genes, CSR float32) holds log1p of counts per `target_sum`,
    `layers["counts"]` holds raw counts, `obs["total_counts"]` the library size over the kept genes,
    `var["highly_variable"]` marks the selected genes, and `uns["scdiffkit"]["preprocess"]` holds every parameter. Other
    columns of obs and var are kept.

    Raises
    ------
    DataError
        If there are no raw counts, a label cannot be used, gene names repeat, or a filter leaves nothing.
    ConfigError
        If an option is unknown, or is not used by the chosen gene selection.

    Examples
    --------
    >>> prepared = scdiffkit.preprocess(adata, label="cell_type", max_mito=0.1)
    """
    config = make(PreprocessConfig, **{**(config.model_dump() if config else {}), **options})
    return prepare(adata, config, label=label).in_memory()


@dataclass(frozen=True)
class Prepared:
    """Cells ready for training, before normalised values are computed.

    counts: raw counts (cells, kept genes), in memory or in files; totals: their sums (cells,). obs, var, uns: as
    returned by `preprocess`, but without var["highly_variable"] if genes were not selected. rows: indices (cells,) of
    these cells in the input.
    """

    counts: Rows
    totals: np.ndarray
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    config: PreprocessConfig
    rows: np.ndarray

    @classmethod
    def of(cls, cells: AnnData | Backed) -> Prepared:
        """Wrap cells that `preprocess` has prepared, unchanged. Raises DataError for other cells."""
        config = prepared_config(cells)
        counts, _ = counts_of(cells)
        totals = _totals(counts)
        stored = cells.obs.get(TOTAL, pd.Series(np.nan, index=cells.obs.index))
        if not (pd.to_numeric(stored, errors="coerce").to_numpy(np.float64) >= totals * (1 - 1e-6)).all():  # NaN too
            raise DataError(
                f"obs[{TOTAL!r}] no longer holds each cell's total counts. Run `scdiff preprocess` again, and do "
                "not change that column."
            )
        return cls(counts, totals, cells.obs, cells.var, dict(cells.uns), config, np.arange(len(totals)))

    def take(self, rows: np.ndarray) -> Prepared:
        """Select cells by ascending indices."""
        if len(rows) == len(self.obs):
            return self
        counts, obs = selected(self.counts, rows, None), take_rows(self.obs, rows)
        return replace(self, counts=counts, totals=self.totals[rows], obs=obs, rows=self.rows[rows])

    def in_memory(self) -> AnnData:
        from anndata import AnnData

        counts = sparse.csr_matrix(self.counts[0 : self.counts.shape[0]], copy=True)
        counts.sort_indices()
        X = lognormalise(counts, self.config.target_sum, self.obs[TOTAL].to_numpy(np.float64))
        log.info("Normalised to %g counts per cell, log1p", self.config.target_sum)
        return AnnData(X=X, layers={"counts": counts}, obs=self.obs, var=self.var, uns=self.uns)

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the cells of `in_memory` to a file, block by block."""
        with (
            deferred_interrupts() as interrupted,
            CellWriter(path, self.var.index, var=self.var, uns=self.uns, layers=("counts",), force=force) as out,
        ):
            for part, counts in iter_row_blocks(self.counts):
                obs = self.obs.iloc[part]
                X = lognormalise(counts, self.config.target_sum, obs[TOTAL].to_numpy(np.float64))
                out.append(X, {"counts": counts}, obs)
                if interrupted.is_set():
                    raise KeyboardInterrupt
        log.info("Normalised to %g counts per cell, log1p", self.config.target_sum)
        return Path(path)


def prepare(
    cells: AnnData | Backed | Mapping[str, AnnData | Backed] | RawCells,
    config: PreprocessConfig,
    *,
    label: str | Sequence[str] | None = None,
    choose_genes: bool = True,
) -> Prepared:
    """Run the steps of `preprocess` up to the computation of normalised values.

    cells: as for `raw_cells`, or its result. choose_genes: whether to select highly variable genes.
    Raises what `preprocess` raises, and DataError if sets cannot be joined.
    """
    labels = [label] if isinstance(label, str) else list(label or ())
    raw = cells if isinstance(cells, RawCells) else raw_cells(cells, config, labels)
    check_batch_key(raw.obs, config)
    for key in labels:
        check_label(raw.obs, key)
    obs, var, counts = raw.obs, raw.var, raw.counts
    rows, columns, totals = passing(counts, var.index, config)
    if len(rows) < len(obs) or len(columns) < len(var):
        counts = selected(counts, rows if len(rows) < len(obs) else None, columns if len(columns) < len(var) else None)
    if totals is None:
        totals = _totals(counts)
    if (totals == 0).any() and (config.min_counts or config.min_genes):  # the minima apply to kept genes
        there = np.flatnonzero(totals)
        log.info("Cells: %d -> %d (no counts in the genes kept)", len(totals), len(there))
        counts = selected(raw.counts, rows[there], columns)
        rows, totals = rows[there], totals[there]
    obs, var = take_rows(obs, rows), var.iloc[columns].copy()
    for key in labels:
        check_label(obs, key)
        obs[key] = obs[key].astype("category").cat.remove_unused_categories()
    if TOTAL in obs:
        log.info("obs['total_counts'] is replaced by the library size over the genes kept")
    obs[TOTAL] = totals.astype(np.float32)
    trim_memory()  # names and columns of millions of cells were read and copied
    if choose_genes:
        var["highly_variable"] = highly_variable(counts, obs, var.index, config)
    parameters = config.model_dump(mode="json", exclude_none=True)  # h5ad cannot store None
    record = {**raw.record, "preprocess": {**parameters, "source": raw.source, "version": version_of("scdiffkit")}}
    kept = {c: [str(x) for x in obs[c].cat.categories] for c in raw.colors if hasattr(obs[c], "cat")}
    return Prepared(
        counts, totals, obs, var, {"scdiffkit": record, "log1p": {}, **color_lists(kept, raw.colors)}, config, rows
    )


def _totals(counts: Rows) -> np.ndarray:
    """Compute the sum of each cell's counts, (cells,)."""
    totals = np.empty(counts.shape[0])
    for part, block in iter_row_blocks(counts):
        totals[part] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    return totals


def is_prepared(adata: AnnData | Backed) -> bool:
    """Whether `adata` is a result of `preprocess`."""
    recorded = adata.uns.get("scdiffkit", {})
    counts = LAYER in adata.matrices if isinstance(adata, Backed) else "counts" in adata.layers
    return "preprocess" in recorded and counts and "highly_variable" in adata.var


def prepared_config(adata: AnnData | Backed) -> PreprocessConfig:
    """Return the parameters with which `adata` was prepared. Raises DataError if this tool did not prepare it."""
    if not is_prepared(adata):
        raise DataError("These cells were not prepared by this tool: run `scdiff preprocess` on their raw counts.")
    recorded = dict(adata.uns["scdiffkit"]["preprocess"])
    for key in ("source", "version"):
        recorded.pop(key, None)
    return make(PreprocessConfig, **{key: _plain(value) for key, value in recorded.items()})


def _plain(value: Any) -> Any:
    """Convert numpy types, as read from h5ad, to Python's own."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
