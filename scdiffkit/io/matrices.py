"""Row access to matrices (cells x genes) in memory or in files: whole, selected rows and columns, or stacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from scipy import sparse

from scdiffkit.errors import FileError
from scdiffkit.io.formats import damaged
from scdiffkit.runtime.memory import trim_memory
from scdiffkit.runtime.prefetch import prefetch

VALUES_AT_ONCE = 1 << 22  # number of values per block when all rows are read
GAP = 32  # up to this many unrequested rows between requested ones are read: cheaper than a second read


class Rows(Protocol):
    """A matrix (cells x genes) whose rows can be selected: a CSR matrix in memory or a matrix in a file."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def __getitem__(self, at: Any) -> sparse.csr_matrix: ...


@dataclass(frozen=True)
class OnDisk:
    """A matrix (cells, genes) in a file. Indexing reads rows as CSR with the stored dtype.

    Raises FileError if the file is damaged.
    """

    path: Path
    place: str
    element: Any  # an array of h5py or zarr, or a group of arrays
    shape: tuple[int, int]
    size: int  # number of stored values
    kind: Literal["dense", "csr", "csc"]
    indptr: np.ndarray | None = None

    @property
    def rows_at_once(self) -> int:
        """The number of rows in a block of about VALUES_AT_ONCE values."""
        return int(np.clip(VALUES_AT_ONCE * self.shape[0] // max(1, self.size), 1, 8192))

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        """Values and gene indices, cached because opening them takes as long as reading a few cells."""
        return self.element["data"], self.element["indices"]

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        if isinstance(at, slice):
            return self._read(*at.indices(self.shape[0])[:2])
        order = np.argsort(at, kind="stable")
        wanted = np.asarray(at)[order]
        blocks = [self._read(a, b)[wanted[i:j] - a] for a, b, i, j in _runs(wanted, self.rows_at_once)]
        if not blocks:
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        stacked = blocks[0] if len(blocks) == 1 else sparse.vstack(blocks, format="csr")
        return stacked[np.argsort(order, kind="stable")] if (np.diff(order) != 1).any() else stacked

    def _read(self, start: int, stop: int) -> sparse.csr_matrix:
        if self.kind == "csc":
            raise FileError(
                f"{self.path}: {self.place} is stored by genes (CSC), so cells cannot be read one by one: write it "
                "again with scdiffkit.read and scdiffkit.write on a machine with enough memory, or give a larger "
                "--memory."
            )
        try:
            if self.indptr is None:
                values = self.element[start:stop]
                return sparse.csr_matrix(values.astype(np.float32) if values.dtype == np.float16 else values)
            # Not with anndata's sparse dataset, which takes over 10 ms per slice.
            first, last = int(self.indptr[start]), int(self.indptr[stop])
            data, indices = (stored[first:last] for stored in self._arrays)
            shape = (stop - start, self.shape[1])
            rows = sparse.csr_matrix((data, indices, self.indptr[start : stop + 1] - first), shape=shape)
            rows.check_format(full_check=True)  # scipy reads out of bounds if gene indices are invalid
            return rows
        except MemoryError:
            raise
        except Exception as e:  # h5py, zarr and their codecs have no common exception class
            where = f"{self.place}, cells {start} to {stop}: {e}"
            raise FileError(damaged(self.path, where)) from e


def _runs(rows: np.ndarray, longest: int) -> Iterator[tuple[int, int, int, int]]:
    """Group sorted rows into runs to read: yield (start, stop) of each run, and the range (first, last) of its rows."""
    first = 0
    breaks = np.flatnonzero(np.diff(rows) > GAP) + 1
    for end in [*breaks.tolist(), len(rows)]:
        while first < end:
            last = int(np.searchsorted(rows[first:end], rows[first] + longest)) + first
            yield int(rows[first]), int(rows[last - 1]) + 1, first, last
            first = last


@dataclass(frozen=True)
class Selected:
    """Selected rows (n,) and columns (G,) of a matrix; None: all. Column -1 is a missing gene, filled with zeros."""

    matrix: Rows
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int]:
        n, genes = self.matrix.shape
        return (n if self.rows is None else len(self.rows), genes if self.columns is None else len(self.columns))

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        taken = self.matrix[at if self.rows is None else self.rows[at]]
        if self.columns is None:
            return taken
        n, genes = taken.shape
        with_nothing = sparse.csr_matrix((taken.data, taken.indices, taken.indptr), shape=(n, genes + 1))
        chosen = with_nothing[:, np.where(self.columns < 0, genes, self.columns)]
        chosen.sort_indices()
        return chosen


@dataclass(frozen=True)
class Stacked:
    """Several matrices with the same genes, stacked by rows."""

    parts: Sequence[Rows]

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        if isinstance(at, slice):
            at = np.arange(*at.indices(self.shape[0]))
        edges = np.cumsum([0, *(part.shape[0] for part in self.parts)])
        of_part = np.searchsorted(edges, at, side="right") - 1
        blocks, places = [], []
        for i in np.unique(of_part):
            here = np.flatnonzero(of_part == i)
            blocks.append(self.parts[i][at[here] - edges[i]])
            places.append(here)
        if not blocks:
            return sparse.csr_matrix((0, self.shape[1]), dtype=np.float32)
        if len(blocks) == 1:
            return blocks[0]
        return sparse.vstack(blocks, format="csr")[np.argsort(np.concatenate(places), kind="stable")]


def rows_at_once(matrix: Rows) -> int:
    """Return a suitable number of rows per block for reading a matrix."""
    if isinstance(matrix, Selected):
        return rows_at_once(matrix.matrix)
    if isinstance(matrix, Stacked):
        return min(rows_at_once(part) for part in matrix.parts)
    return getattr(matrix, "rows_at_once", 8192)


def on_disk(matrix: Rows) -> bool:
    """Whether rows of the matrix are read from a file on every access."""
    if isinstance(matrix, Selected):
        return on_disk(matrix.matrix)
    if isinstance(matrix, Stacked):
        return any(on_disk(part) for part in matrix.parts)
    return not sparse.issparse(matrix)


def iter_row_blocks(matrix: Rows) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Iterate over all rows in blocks; the next block is read while the caller works on the current one."""
    step, n = rows_at_once(matrix), matrix.shape[0]
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    yield from zip(parts, prefetch(matrix[part] for part in parts), strict=True)
    if on_disk(matrix):
        trim_memory()
