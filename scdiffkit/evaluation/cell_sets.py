"""The sets of cells that an evaluation compares, and the cells that are drawn from them.

Cells may stay in their files: these are read block by block for what needs all cells, and of very many only some, drawn
at random, are brought into memory to be compared. Knows no metric and no obs column.
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
MIN_CELLS = 5  # of a set, to be compared at all
BLOCK_OF_GENES = 512
POOLED_OF_A_TYPE = 20


@dataclass(frozen=True)
class DiskCells:
    """Cells that stay in their file: log1p-normalised values (cells, genes), read or made when they are asked for.

    logged: these as the file has them, None where they are made from the counts. counts: raw counts, of more genes
    perhaps; None where there are none of some genes. library_size: (cells of the file,) that they are normalised by;
    None: their sums. rows: of the file; columns, of_counts: places of the genes in `logged` and `counts`; None: all.
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
        """The matrix that values come from."""
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
        """Values of some cells, and, if these are made from them, their counts."""
        rows = at if self.rows is None else self.rows[at]
        if self.logged is not None:
            X = sparse.csr_matrix(self.logged[rows], dtype=np.float32)
            return X if self.columns is None else X[:, self.columns], None
        counts = self.stored[rows]
        X = lognormalise(counts, self.target_sum, None if self.library_size is None else self.library_size[rows])
        return (X, counts) if self.of_counts is None else (X[:, self.of_counts], counts[:, self.of_counts])

    def counts_at(self, at: np.ndarray) -> sparse.csr_matrix | None:
        """Counts of some cells."""
        if self.counts is None:
            return None
        counts = self.counts[at if self.rows is None else self.rows[at]]
        return counts if self.of_counts is None else counts[:, self.of_counts]

    def take(self, rows: np.ndarray) -> DiskCells:
        """These cells only."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def keep_genes(self, places: np.ndarray) -> DiskCells:
        """These genes only, in this order."""
        columns, of_counts = (places if old is None else old[places] for old in (self.columns, self.of_counts))
        return replace(self, columns=columns, of_counts=of_counts)


@dataclass(frozen=True)
class SetSummary:
    """What is known of all n cells of a side, also where only some of them are compared.

    types: cells of each. fingerprints: (n,) of the genes compared; donors: (n,) text, or None. mean_sum: of a cell's
    normalised values before the logarithm.
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
    """One of the data sets: X (cells, genes) log1p-normalised CSR, its genes, and what is known of its cells.

    X: InFile where cells stay in their file, until `gather` has brought some of them into memory. counts: raw counts
    (cells, genes), library_size: their sums (cells,), None where there are none or they were not gathered. types,
    conditions, donors, batches: (cells,) text, the latter three None unless asked for. codec_auc: of the run that made
    the cells, remarks: on how it made them, where they say.
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
    everyone: SetSummary | None = None

    def take(self, rows: np.ndarray) -> None:
        """Keep these cells only."""
        self.X = self.X.take(rows) if isinstance(self.X, DiskCells) else self.X[rows]
        self._take_of_obs(rows)
        self.counts = None if self.counts is None else self.counts[rows]

    def _take_of_obs(self, rows: np.ndarray) -> None:
        self.types = self.types[rows]
        self.conditions = None if self.conditions is None else self.conditions[rows]
        self.donors = None if self.donors is None else self.donors[rows]
        self.batches = None if self.batches is None else self.batches[rows]

    def keep_genes(self, genes: pd.Index) -> None:
        """Keep these genes only, in this order."""
        places = self.genes.get_indexer(genes)
        self.X = self.X.keep_genes(places) if isinstance(self.X, DiskCells) else self.X[:, places]
        self.counts, self.genes = None if self.counts is None else self.counts[:, places], genes

    def fingerprints(self, genes: pd.Index, fewest: int) -> np.ndarray:
        """Of all cells (n,), in these genes; see metrics.privacy."""
        places, found = self.genes.get_indexer(genes), np.empty(self.X.shape[0], dtype=np.uint64)
        for part, X in iter_row_blocks(self.X):
            found[part] = fingerprints(X[:, places], fewest)
        return found

    def gather(self, most: int, rng: np.random.Generator, *, counts_too: bool) -> None:
        """Find what is known of everyone, and of cells in a file bring at most so many into memory to be drawn from, at
        random within types.

        counts_too: whether these cells' counts are wanted, not only their sums.
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
        self.everyone = SetSummary(dict(Counter(self.types)), marks, self.donors, total / max(1, n))
        if no_counts:
            log.info("%s: the values of X are compared, without counts. %s", self.name, no_counts[0])
            of_kept, sizes = [], []
        if isinstance(self.X, DiskCells):
            self.X, self.counts = _stacked(kept), _stacked(of_kept)
            self.library_size = np.concatenate(sizes) if sizes else None
            self._take_of_obs(held)
            kept.clear()
            of_kept.clear()
            trim_memory()  # the pieces lay between the blocks that they were taken from
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
    """All cells a block at a time: part, X, which of them are held (places in the block), and of those in a file the
    counts; the next block is read while one is worked on.

    Where the counts beside logarithms turn out to be none, there are none from then on, and no_counts has the reason.
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
    """Cells drawn from a side: X (n, G) log1p-normalised CSR without stored zeros, or their components (n, D); types
    (n,), and what metrics may need besides: by name, an array (n,) each."""

    X: Any
    types: np.ndarray
    of_cells: dict[str, np.ndarray]

    @property
    def has_types(self) -> bool:
        return "types" in self.of_cells

    def take(self, rows: np.ndarray) -> Subsample:
        """These cells of it, in this order."""
        return Subsample(self.X[rows], self.types[rows], {name: values[rows] for name, values in self.of_cells.items()})

    def in_genes(self, genes: np.ndarray) -> Subsample:
        """The same cells, these genes (places) of them."""
        return replace(self, X=self.X[:, genes])

    def shuffled(self, rng: np.random.Generator) -> Subsample:
        """The same cells with each gene shuffled among the cells of a type."""
        X = shuffle_within(self.X, self.types, rng)
        return Subsample(X, self.types, self.of_cells | {"genes_detected": np.diff(X.indptr).astype(float)})

    def pooled(self) -> Subsample:
        """Cells that are all the mean of these; of each type a few, since they are all the same."""
        place = pd.Series(self.types).groupby(self.types).cumcount().to_numpy()
        rows = np.flatnonzero(place < POOLED_OF_A_TYPE)
        X = sparse.vstack([sparse.csr_matrix(self.X.mean(axis=0))] * len(rows), format="csr")
        of_cells = {
            name: np.full(len(rows), values.mean()) if values.dtype.kind == "f" else values[rows]
            for name, values in self.of_cells.items()
        }
        return Subsample(X, self.types[rows], of_cells | {"genes_detected": np.diff(X.indptr).astype(float)})


def candidates(others: Subsample, members: Subsample, reference: Subsample | None = None) -> Subsample:
    """All, of dense X, as one set, of_cells["member"] telling 0.0, 1.0 and, of reference cells, 2.0."""
    parts = [others, members] if reference is None else [others, members, reference]
    of_cells = {"member": np.repeat(np.arange(float(len(parts))), [len(part.types) for part in parts])}
    if all("donors" in part.of_cells for part in parts):
        of_cells["donors"] = np.concatenate([part.of_cells["donors"] for part in parts])
    return Subsample(np.vstack([part.X for part in parts]), np.concatenate([part.types for part in parts]), of_cells)


def summary_of(side: CellSet) -> SetSummary:
    assert side.everyone is not None, "call gather first"
    return side.everyone


def draw_order(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of cells (n,) in which any run of neighbours has the composition of the whole.

    Cells of a type are spread evenly over it, from a random start (systematic sampling).
    """
    position = np.empty(len(types))
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        position[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def shuffle_within(X: sparse.csr_matrix, types: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """X (n, G) with each gene permuted, independently of the others, among the cells of each type (n,)."""
    columns, blocks = X.tocsc(), []
    for start in range(0, X.shape[1], BLOCK_OF_GENES):
        block = columns[:, start : start + BLOCK_OF_GENES].toarray()
        for name in np.unique(types):
            rows = np.flatnonzero(types == name)
            block[rows] = rng.permuted(block[rows], axis=0)
        blocks.append(sparse.csc_matrix(block))
    return sparse.hstack(blocks, format="csr")
