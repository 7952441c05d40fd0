"""The cells given to an evaluation, log1p-normalised, in memory or in their files.

Statistics of all cells are computed block by block. If there are too many cells in a file, only a random subset is
loaded into memory for the comparison.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError
from scdiffkit.evaluation.cell_sets import AnnotatedCells, CellSet, SetSummary, draw_order
from scdiffkit.io import Rows
from scdiffkit.io.matrices import iter_row_blocks, rows_at_once
from scdiffkit.metrics.privacy import fingerprints
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.runtime.memory import trim_memory
from scdiffkit.runtime.prefetch import prefetch

log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class DiskCells:
    """Cells that stay in their file: log1p-normalised values (cells, genes), read or computed on access.

    log_values: log1p-normalised values in the file; None if values are computed from the counts. counts: raw counts,
    possibly of more genes; None if they do not cover all genes. library_size: (cells of the file,), used to normalise
    counts; None: the sums of the counts. rows: selected rows of the file. columns, count_columns: gene
    indices in `log_values` and `counts`; None: all.
    """

    log_values: Rows | None
    counts: Rows | None
    target_sum: float
    library_size: np.ndarray | None = None
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    count_columns: np.ndarray | None = None

    @property
    def stored(self) -> Rows:
        """The matrix from which values are read."""
        found = self.counts if self.log_values is None else self.log_values
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int, int]:
        n, genes = self.stored.shape
        columns = self.count_columns if self.log_values is None else self.columns
        return (n if self.rows is None else len(self.rows), genes if columns is None else len(columns))

    @property
    def rows_at_once(self) -> int:
        return rows_at_once(self.stored)

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        return self.read(at)[0]

    def read(self, at: slice | np.ndarray) -> tuple[sparse.csr_matrix, sparse.csr_matrix | None]:
        """Read the values of some cells, and the counts if the values are computed from them, else None."""
        rows = at if self.rows is None else self.rows[at]
        if self.log_values is not None:
            X = sparse.csr_matrix(self.log_values[rows], dtype=np.float32)
            return X if self.columns is None else X[:, self.columns], None
        counts = self.stored[rows]
        X = lognormalise(counts, self.target_sum, None if self.library_size is None else self.library_size[rows])
        return (X, counts) if self.count_columns is None else (X[:, self.count_columns], counts[:, self.count_columns])

    def counts_at(self, at: np.ndarray) -> sparse.csr_matrix | None:
        """Read the counts of some cells; None if there are none."""
        if self.counts is None:
            return None
        counts = self.counts[at if self.rows is None else self.rows[at]]
        return counts if self.count_columns is None else counts[:, self.count_columns]

    def take(self, rows: np.ndarray) -> DiskCells:
        """Select these cells."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def keep_genes(self, places: np.ndarray) -> DiskCells:
        """Select these genes, in this order."""
        columns, count_columns = (places if old is None else old[places] for old in (self.columns, self.count_columns))
        return replace(self, columns=columns, count_columns=count_columns)


@dataclass(frozen=True, kw_only=True)
class LoadedCells(AnnotatedCells):
    """A set of cells before the comparison. `take` and `keep_genes` return new sets.

    X: (cells, genes), log1p-normalised CSR, or DiskCells if the cells are in a file. counts: raw counts (cells,
    genes); None if there are none or the cells are in a file.
    """

    X: sparse.csr_matrix | DiskCells
    counts: sparse.csr_matrix | None

    def take(self, rows: np.ndarray) -> LoadedCells:
        """Select these cells."""
        X = self.X.take(rows) if isinstance(self.X, DiskCells) else self.X[rows]
        counts = None if self.counts is None else self.counts[rows]
        return replace(self, X=X, counts=counts, **self.annotations_at(rows))

    def keep_genes(self, genes: pd.Index) -> LoadedCells:
        """Select these genes, in this order."""
        places = self.genes.get_indexer(genes)
        X = self.X.keep_genes(places) if isinstance(self.X, DiskCells) else self.X[:, places]
        return replace(self, X=X, counts=None if self.counts is None else self.counts[:, places], genes=genes)

    def fingerprints(self, genes: pd.Index, min_genes: int) -> np.ndarray:
        """Compute the fingerprints (n,) of all cells in these genes, see metrics.privacy.fingerprints."""
        places, found = self.genes.get_indexer(genes), np.empty(self.X.shape[0], dtype=np.uint64)
        for part, X in iter_row_blocks(self.X):
            found[part] = fingerprints(X[:, places], min_genes)
        return found

    def gather(self, max_cells: int, rng: np.random.Generator, *, with_counts: bool) -> CellSet:
        """Summarise all cells. If they are in a file, load at most `max_cells` of them, drawn at random within types.

        with_counts: also load the counts of these cells, not only their sums.
        """
        n = self.X.shape[0]
        loaded_rows = np.arange(n)
        if isinstance(self.X, DiskCells) and n > max_cells:
            loaded_rows = np.sort(draw_order(self.types, rng)[:max_cells])
        hashes, total = np.empty(n, dtype=np.uint64), 0.0
        kept, kept_counts, sizes = [], [], []
        no_counts: list[str] = []
        for part, X, here, counts in _blocks(self.X, loaded_rows, no_counts):
            hashes[part] = fingerprints(X)
            total += float(np.expm1(X.data).sum(dtype=np.float64))
            if isinstance(self.X, DiskCells):
                kept.append(X if len(here) == X.shape[0] else X[here])
                kept_counts += [counts] if counts is not None and with_counts else []
                sizes += [] if counts is None else [_sums(counts)]
        summary = SetSummary(dict(Counter(self.types)), hashes, self.donors, total / max(1, n))
        common = {field.name: getattr(self, field.name) for field in fields(AnnotatedCells)}
        if not isinstance(self.X, DiskCells):
            size = None if self.counts is None else _sums(self.counts)
            return CellSet(**common, X=self.X, counts=self.counts, library_size=size, summary=summary)
        if no_counts:
            log.info("%s: the values of X are compared, without counts. %s", self.name, no_counts[0])
            kept_counts, sizes = [], []
        found = CellSet(
            **common | self.annotations_at(loaded_rows), X=_stacked(kept), counts=_stacked(kept_counts),
            library_size=np.concatenate(sizes) if sizes else None, summary=summary,
        )  # fmt: skip
        kept.clear()
        kept_counts.clear()
        trim_memory()  # the heap is fragmented: kept rows were allocated between the blocks read
        return found


def _blocks(
    X: Any, loaded_rows: np.ndarray, no_counts: list[str]
) -> Iterator[tuple[slice, sparse.csr_matrix, np.ndarray, Any]]:
    """Iterate over all cells in blocks: slice, X, indices in the block of the cells to keep, and their counts.

    Counts are None for cells in memory. The next block is read while the caller works on the current one. If the
    matrix that should hold the counts of log values turns out not to hold counts, the reason is appended to
    `no_counts`, and counts are None from then on.
    """
    if not isinstance(X, DiskCells):
        yield from ((part, block, loaded_rows[part] - part.start, None) for part, block in iter_row_blocks(X))
        return
    n, step = X.shape[0], X.rows_at_once

    def read(start: int) -> tuple[slice, sparse.csr_matrix, np.ndarray, Any]:
        part = slice(start, min(start + step, n))
        first, last = np.searchsorted(loaded_rows, [part.start, part.stop])
        here = loaded_rows[first:last] - part.start
        block, counts = X.read(part)
        if X.log_values is not None and not no_counts:
            try:
                counts = X.counts_at(loaded_rows[first:last])
            except DataError as e:
                no_counts.append(e.text)
        elif counts is not None and len(here) < block.shape[0]:
            counts = counts[here]
        return part, block, here, counts

    yield from prefetch(read(start) for start in range(0, n, step))


def _sums(counts: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1), dtype=float).ravel()


def _stacked(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix | None:
    return sparse.vstack(parts, format="csr") if parts else None
