"""Cells that stay in their files: obs and var in memory, matrices read by rows when asked for.

h5ad and zarr, CSR and dense. Several files make one set of cells.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import FileError
from scdiffkit.io.formats import damaged, format_of_content, open_hdf5, open_zarr, row_ends

VALUES_AT_ONCE = 1 << 22  # read into memory by one block of a pass
GAP = 32  # rows nobody asked for that are read all the same: cheaper than reading twice
T = TypeVar("T")


class Rows(Protocol):
    """A matrix of cells x genes of which rows can be taken: a CSR matrix, or what lies in a file."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def __getitem__(self, at: Any) -> sparse.csr_matrix: ...


@dataclass(frozen=True)
class OnDisk:
    """A matrix (cells, genes) in a file: rows[at] reads some, as CSR of the type stored.

    Raises FileError where the file is damaged.
    """

    path: Path
    place: str
    element: Any  # an array of h5py or zarr, or a group of them
    shape: tuple[int, int]
    size: int  # values stored
    kind: Literal["dense", "csr", "csc"]
    indptr: np.ndarray | None = None

    @property
    def rows_at_once(self) -> int:
        """Rows that make a block of VALUES_AT_ONCE."""
        return int(np.clip(VALUES_AT_ONCE * self.shape[0] // max(1, self.size), 1, 8192))

    @cached_property
    def _arrays(self) -> tuple[Any, Any]:
        """Values and places of genes; to look them up takes as long as to read a few cells."""
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
                "anew with scdiffkit.read and scdiffkit.write where it fits into memory, or give a larger --max-memory."
            )
        try:
            if self.indptr is None:
                values = self.element[start:stop]
                return sparse.csr_matrix(values.astype(np.float32) if values.dtype == np.float16 else values)
            # By hand: anndata's own sparse dataset takes over 10 ms a slice.
            first, last = int(self.indptr[start]), int(self.indptr[stop])
            data, indices = (stored[first:last] for stored in self._arrays)
            shape = (stop - start, self.shape[1])
            rows = sparse.csr_matrix((data, indices, self.indptr[start : stop + 1] - first), shape=shape)
            rows.check_format(full_check=True)  # scipy reads beyond its arrays where places of genes do not exist
            return rows
        except MemoryError:
            raise
        except Exception as e:  # h5py, zarr and their codecs have no common class
            where = f"{self.place}, cells {start} to {stop}: {e}"
            raise FileError(damaged(self.path, where)) from e


def _runs(rows: np.ndarray, longest: int) -> Iterator[tuple[int, int, int, int]]:
    """Stretches (start, stop) to read that hold the sorted rows, and which of these, (first, last), are in each."""
    first = 0
    breaks = np.flatnonzero(np.diff(rows) > GAP) + 1
    for end in [*breaks.tolist(), len(rows)]:
        while first < end:
            last = int(np.searchsorted(rows[first:end], rows[first] + longest)) + first
            yield int(rows[first]), int(rows[last - 1]) + 1, first, last
            first = last


@dataclass(frozen=True)
class Selected:
    """Some rows (n,) and columns (G,), None: all, of a matrix; a place of -1 among the columns is a gene it lacks."""

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
    """Matrices of the same genes, one below the other."""

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
    """How many rows of a matrix are a good block to read."""
    if isinstance(matrix, Selected):
        return rows_at_once(matrix.matrix)
    if isinstance(matrix, Stacked):
        return min(rows_at_once(part) for part in matrix.parts)
    return getattr(matrix, "rows_at_once", 8192)


def on_disk(matrix: Rows) -> bool:
    """Whether rows are read from a file each time."""
    if isinstance(matrix, Selected):
        return on_disk(matrix.matrix)
    if isinstance(matrix, Stacked):
        return any(on_disk(part) for part in matrix.parts)
    return not sparse.issparse(matrix)


def blocks(matrix: Rows) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """All rows in order, a block at a time; the next is read while one is worked on."""
    step, n = rows_at_once(matrix), matrix.shape[0]
    parts = [slice(start, min(start + step, n)) for start in range(0, n, step)]
    yield from zip(parts, ahead(matrix[part] for part in parts), strict=True)
    if on_disk(matrix):
        give_back()


def give_back() -> None:
    """Memory that a pass over a file has left free between what stays goes back to the system; glibc would keep it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)


def ahead(items: Iterator[T], n: int = 1) -> Generator[T]:
    """The same items, the next n of them made in another thread meanwhile."""
    done = object()
    with ThreadPoolExecutor(1) as worker:
        futures = [worker.submit(next, items, done) for _ in range(n)]
        try:
            while (item := futures.pop(0).result()) is not done:
                futures.append(worker.submit(next, items, done))
                yield item  # type: ignore[misc]
        finally:
            for future in futures:
                future.cancel()


@dataclass
class Backed:
    """What an AnnData is, with its matrices in the file.

    matrices: by place ("X", "raw", 'layers["counts"]' ...), those that are there. raw_var: of "raw".
    """

    path: Path
    obs: pd.DataFrame
    var: pd.DataFrame
    raw_var: pd.DataFrame | None
    uns: dict[str, Any]
    matrices: dict[str, OnDisk]

    @property
    def n_obs(self) -> int:
        return len(self.obs)

    @property
    def n_vars(self) -> int:
        return len(self.var)

    def var_of(self, place: str) -> pd.DataFrame:
        return self.raw_var if place == "raw" and self.raw_var is not None else self.var


def open_backed(path: str | Path) -> Backed:
    """The cells of an h5ad or zarr store, matrices left where they are.

    Raises FileError when the store is of another kind or damaged. A matrix that is stored by genes (CSC) is there, but
    reading it raises one.
    """
    from anndata.io import read_elem

    path = Path(path)
    format = format_of_content(path)
    if format not in ("h5ad", "zarr"):
        raise FileError(
            f"{path} is a {format} file, which can only be read whole: write it as .h5ad first (scdiffkit.write), on a "
            "machine with more memory, or give a larger --max-memory."
        )
    if is_old(path):
        raise FileError(
            f"{path} was written by an anndata before 0.8, so it can only be read whole: write it anew with "
            "scdiffkit.read and scdiffkit.write, on a machine with more memory, or give a larger --max-memory."
        )
    opened = open_hdf5 if format == "h5ad" else open_zarr
    try:
        obs = read_elem(opened(path)["obs"])  # apart: HDF5 keeps what it read of millions of names until it is closed
        root: Any = opened(path)
        places = {'layers["counts"]': "layers/counts", "raw": "raw/X", "X": "X"}
        if "layers" in root:
            places |= {f'layers["{name}"]': f"layers/{name}" for name in root["layers"]}
        matrices = {place: stored for place, key in places.items() if (stored := _stored(path, root, place, key))}
        uns = read_elem(root["uns"]) if "uns" in root else {}
        raw_var = read_elem(root["raw/var"]) if "raw" in matrices else None
        return Backed(path, obs, read_elem(root["var"]), raw_var, dict(uns), matrices)
    except (MemoryError, FileError):
        raise
    except Exception as e:  # h5py, zarr and anndata have no common class
        raise FileError(damaged(path, e)) from e


def is_old(path: Path) -> bool:
    """Whether it is an h5ad file in the format of before anndata 0.8."""
    if format_of_content(path) != "h5ad":
        return False
    with open_hdf5(path) as f:
        try:
            return "encoding-type" not in f["obs"].attrs
        except (KeyError, OSError) as e:
            raise FileError(damaged(path, e)) from e


def _stored(path: Path, root: Any, place: str, key: str) -> OnDisk | None:
    if key not in root or root[key].attrs.get("encoding-type") == "null":
        return None
    element = root[key]
    encoding = element.attrs.get("encoding-type", "array")
    if encoding in ("csr_matrix", "csc_matrix"):
        n_cells, n_genes = map(int, element.attrs["shape"])
        size = int(element["data"].shape[0])
        if encoding == "csc_matrix":
            return OnDisk(path, place, element, (n_cells, n_genes), size, "csc")
        return OnDisk(path, place, element, (n_cells, n_genes), size, "csr", row_ends(element, key))
    if not hasattr(element, "shape"):
        return None
    n_cells, n_genes = map(int, element.shape)
    return OnDisk(path, place, element, (n_cells, n_genes), n_cells * n_genes, "dense")
