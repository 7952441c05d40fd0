"""The sets of cells that an evaluation compares, and the subsamples drawn from them.

Cells may stay in their files. What needs all cells is then computed block by block, and if there are too many cells,
only a random subset is loaded into memory for the comparison. This module knows no metrics and no obs columns.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError
from scdiffkit.io import Rows
from scdiffkit.io.matrices import iter_row_blocks, rows_at_once
from scdiffkit.metrics.privacy import fingerprints
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.runtime.memory import trim_memory
from scdiffkit.runtime.prefetch import prefetch

if TYPE_CHECKING:
    pass

log = logging.getLogger("scdiffkit")
MIN_CELLS = 5  # minimum size of a set that can be compared
BLOCK_OF_GENES = 512
POOLED_OF_A_TYPE = 20


@dataclass(frozen=True)
class DiskCells:
    """Cells that stay in their file: log1p-normalised values (cells, genes), read or computed on access.

    logged: log1p-normalised values in the file; None if values are computed from the counts. counts: raw counts,
    possibly of more genes; None if they do not cover all genes. library_size: (cells of the file,), used to normalise
    counts; None: the sums of the counts. rows: selected rows of the file; columns, of_counts: gene indices in `logged`
    and `counts`; None: all.
    """

    logged: Rows | None
    counts: Rows | None
    target_sum: float
    library_size: np.ndarray | None = None
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    of_counts: np.ndarray | None = None

    @property
    def stored(self) -> Rows:
        """The matrix from which values are read."""
        found = self.counts if self.logged is None else self.logged
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int, int]:
        n, genes = self.stored.shape
        columns = self.of_counts if self.logged is None else self.columns
        return (n if self.rows is None else len(self.rows), genes if columns is None else len(columns))

    @property
    def rows_at_once(self) -> int:
        return rows_at_once(self.stored)

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        return self.read(at)[0]

    def read(self, at: slice | np.ndarray) -> tuple[sparse.csr_matrix, sparse.csr_matrix | None]:
        """Read the values of some cells, and the counts if the values are computed from them, else None."""
        rows = at if self.rows is None else self.rows[at]
        if self.logged is not None:
            X = sparse.csr_matrix(self.logged[rows], dtype=np.float32)
            return X if self.columns is None else X[:, self.columns], None
        counts = self.stored[rows]
        X = lognormalise(counts, self.target_sum, None if self.library_size is None else self.library_size[rows])
        return (X, counts) if self.of_counts is None else (X[:, self.of_counts], counts[:, self.of_counts])

    def counts_at(self, at: np.ndarray) -> sparse.csr_matrix | None:
        """Read the counts of some cells; None if there are none."""
        if self.counts is None:
            return None
        counts = self.counts[at if self.rows is None else self.rows[at]]
        return counts if self.of_counts is None else counts[:, self.of_counts]

    def take(self, rows: np.ndarray) -> DiskCells:
        """Select these cells."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def keep_genes(self, places: np.ndarray) -> DiskCells:
        """Select these genes, in this order."""
        columns, of_counts = (places if old is None else old[places] for old in (self.columns, self.of_counts))
        return replace(self, columns=columns, of_counts=of_counts)


@dataclass(frozen=True)
class SetSummary:
    """Statistics of all n cells of a set, including those that are not loaded for the comparison.

    types: number of cells of each type. fingerprints: (n,), hashes of the compared genes. donors: (n,) text, or None.
    mean_sum: mean over cells of the sum of normalised values before the logarithm.
    """

    types: dict[str, int]
    fingerprints: np.ndarray
    donors: np.ndarray | None
    mean_sum: float

    @property
    def n(self) -> int:
        return len(self.fingerprints)


@dataclass
class CellSet:
    """A named set of cells: X (cells, genes), log1p-normalised CSR, its genes, and annotations of its cells.

    X: DiskCells if the cells stay in their file, until `gather` loads some of them into memory. counts: raw counts
    (cells, genes), and library_size: their sums (cells,); None if there are none or they were not loaded. types,
    conditions, donors, batches: (cells,) text; the latter three are None unless requested. summary: statistics of all
    cells, set by `gather`. codec_auc, remarks: metadata of the run that generated the cells, if they contain any: its
    codec's AUC, and remarks on the sampling.
    """

    name: str
    source: str
    X: Any
    counts: sparse.csr_matrix | None
    genes: pd.Index
    types: np.ndarray
    has_types: bool
    conditions: np.ndarray | None
    donors: np.ndarray | None
    batches: np.ndarray | None
    scale: str
    n_cells: int
    n_genes: int
    codec_auc: dict[str, float]
    remarks: list[str]
    sha256: str | None
    library_size: np.ndarray | None = None
    summary: SetSummary | None = None

    def take(self, rows: np.ndarray) -> None:
        """Keep only these cells."""
        self.X = self.X.take(rows) if isinstance(self.X, DiskCells) else self.X[rows]
        self._take_of_obs(rows)
        self.counts = None if self.counts is None else self.counts[rows]

    def _take_of_obs(self, rows: np.ndarray) -> None:
        self.types = self.types[rows]
        self.conditions = None if self.conditions is None else self.conditions[rows]
        self.donors = None if self.donors is None else self.donors[rows]
        self.batches = None if self.batches is None else self.batches[rows]

    def keep_genes(self, genes: pd.Index) -> None:
        """Keep only these genes, in this order."""
        places = self.genes.get_indexer(genes)
        self.X = self.X.keep_genes(places) if isinstance(self.X, DiskCells) else self.X[:, places]
        self.counts, self.genes = None if self.counts is None else self.counts[:, places], genes

    def fingerprints(self, genes: pd.Index, fewest: int) -> np.ndarray:
        """Compute the fingerprints (n,) of all cells in these genes, as in metrics.privacy."""
        places, found = self.genes.get_indexer(genes), np.empty(self.X.shape[0], dtype=np.uint64)
        for part, X in iter_row_blocks(self.X):
            found[part] = fingerprints(X[:, places], fewest)
        return found

    def gather(self, most: int, rng: np.random.Generator, *, counts_too: bool) -> None:
        """Summarise all cells and, if they are in a file, load at most `most` of them, drawn at random within types.

        counts_too: also load the counts of these cells, not only their sums.
        """
        n = self.X.shape[0]
        held = np.arange(n)
        if isinstance(self.X, DiskCells) and n > most:
            held = np.sort(draw_order(self.types, rng)[:most])
        marks, total = np.empty(n, dtype=np.uint64), 0.0
        kept, of_kept, sizes = [], [], []
        no_counts: list[str] = []
        for part, X, here, counts in _blocks(self.X, held, no_counts):
            marks[part] = fingerprints(X)
            total += float(np.expm1(X.data).sum(dtype=np.float64))
            if isinstance(self.X, DiskCells):
                kept.append(X if len(here) == X.shape[0] else X[here])
                of_kept += [counts] if counts is not None and counts_too else []
                sizes += [] if counts is None else [_sums(counts)]
        self.summary = SetSummary(dict(Counter(self.types)), marks, self.donors, total / max(1, n))
        if no_counts:
            log.info("%s: the values of X are compared, without counts. %s", self.name, no_counts[0])
            of_kept, sizes = [], []
        if isinstance(self.X, DiskCells):
            self.X, self.counts = _stacked(kept), _stacked(of_kept)
            self.library_size = np.concatenate(sizes) if sizes else None
            self._take_of_obs(held)
            kept.clear()
            of_kept.clear()
            trim_memory()  # the heap is fragmented: kept rows were allocated between the blocks read
        elif self.counts is not None:
            self.library_size = _sums(self.counts)

    def part(self, rows: np.ndarray) -> Subsample:
        X = self.X[rows]
        X.eliminate_zeros()
        of_cells: dict[str, np.ndarray] = {"genes_detected": np.diff(X.indptr).astype(float)}
        if self.has_types:
            of_cells["types"] = self.types[rows]
        if self.conditions is not None:
            of_cells["conditions"] = self.conditions[rows]
        if self.donors is not None:
            of_cells["donors"] = self.donors[rows]
        if self.batches is not None:
            of_cells["batches"] = self.batches[rows]
        if self.library_size is not None:
            of_cells["library_size"] = self.library_size[rows]
        mitochondrial = self.genes.str.upper().str.startswith("MT-")
        if mitochondrial.any():
            shares = X.copy()
            shares.data = np.expm1(shares.data)
            totals = np.maximum(np.asarray(shares.sum(axis=1)).ravel(), 1e-12)
            of_cells["mitochondrial_share"] = np.asarray(shares[:, mitochondrial].sum(axis=1)).ravel() / totals
        return Subsample(X, self.types[rows], of_cells)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "sha256": self.sha256,
            "cells": self.n_cells,
            "genes": self.n_genes,
            "scale": self.scale,
        }


def _blocks(
    X: Any, held: np.ndarray, no_counts: list[str]
) -> Iterator[tuple[slice, sparse.csr_matrix, np.ndarray, Any]]:
    """Iterate over all cells in blocks: slice, X, indices in the block of the cells to keep, and their counts.

    Counts are None for cells in memory. The next block is read while the caller works on the current one. If a
    matrix beside log values turns out not to hold counts, the reason is appended to `no_counts`, and counts are None
    from then on.
    """
    if not isinstance(X, DiskCells):
        yield from ((part, block, held[part] - part.start, None) for part, block in iter_row_blocks(X))
        return
    n, step = X.shape[0], X.rows_at_once

    def read(start: int) -> tuple[slice, sparse.csr_matrix, np.ndarray, Any]:
        part = slice(start, min(start + step, n))
        first, last = np.searchsorted(held, [part.start, part.stop])
        here = held[first:last] - part.start
        block, counts = X.read(part)
        if X.logged is not None and not no_counts:
            try:
                counts = X.counts_at(held[first:last])
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


@dataclass(frozen=True)
class Subsample:
    """Cells drawn from a CellSet.

    X: (n, G) log1p-normalised CSR without explicit zeros, or principal components (n, D). types: (n,). of_cells:
    further per-cell arrays (n,) that metrics need, by name.
    """

    X: Any
    types: np.ndarray
    of_cells: dict[str, np.ndarray]

    @property
    def has_types(self) -> bool:
        return "types" in self.of_cells

    def take(self, rows: np.ndarray) -> Subsample:
        """Select these cells, in this order."""
        return Subsample(self.X[rows], self.types[rows], {name: values[rows] for name, values in self.of_cells.items()})

    def in_genes(self, genes: np.ndarray) -> Subsample:
        """Select genes by their indices."""
        return replace(self, X=self.X[:, genes])

    def shuffled(self, rng: np.random.Generator) -> Subsample:
        """Return a copy in which each gene is shuffled among the cells of a type."""
        X = shuffle_within(self.X, self.types, rng)
        return Subsample(X, self.types, self.of_cells | {"genes_detected": np.diff(X.indptr).astype(float)})

    def pooled(self) -> Subsample:
        """Return cells that all equal the mean cell; a few per type are enough, since they are identical."""
        place = pd.Series(self.types).groupby(self.types).cumcount().to_numpy()
        rows = np.flatnonzero(place < POOLED_OF_A_TYPE)
        X = sparse.vstack([sparse.csr_matrix(self.X.mean(axis=0))] * len(rows), format="csr")
        of_cells = {
            name: np.full(len(rows), values.mean()) if values.dtype.kind == "f" else values[rows]
            for name, values in self.of_cells.items()
        }
        return Subsample(X, self.types[rows], of_cells | {"genes_detected": np.diff(X.indptr).astype(float)})


def candidates(others: Subsample, members: Subsample, reference: Subsample | None = None) -> Subsample:
    """Join sets with dense X into one; of_cells["member"] is 0.0 for others, 1.0 for members, 2.0 for reference."""
    parts = [others, members] if reference is None else [others, members, reference]
    of_cells = {"member": np.repeat(np.arange(float(len(parts))), [len(part.types) for part in parts])}
    if all("donors" in part.of_cells for part in parts):
        of_cells["donors"] = np.concatenate([part.of_cells["donors"] for part in parts])
    return Subsample(np.vstack([part.X for part in parts]), np.concatenate([part.types for part in parts]), of_cells)


def summary_of(side: CellSet) -> SetSummary:
    assert side.summary is not None, "call gather first"
    return side.summary


def draw_order(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of cells (n,) in which every contiguous run has about the composition of the whole set.

    Cells of each type are spread evenly over the order, from a random start (systematic sampling).
    """
    position = np.empty(len(types))
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        position[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def shuffle_within(X: sparse.csr_matrix, types: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Permute each gene of X (n, G), independently of the other genes, among the cells of each type (n,)."""
    columns, blocks = X.tocsc(), []
    for start in range(0, X.shape[1], BLOCK_OF_GENES):
        block = columns[:, start : start + BLOCK_OF_GENES].toarray()
        for name in np.unique(types):
            rows = np.flatnonzero(types == name)
            block[rows] = rng.permuted(block[rows], axis=0)
        blocks.append(sparse.csc_matrix(block))
    return sparse.hstack(blocks, format="csr")
