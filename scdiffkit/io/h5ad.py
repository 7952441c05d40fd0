"""The h5ad format of AnnData. Files are read with anndata; streaming appends to the CSR datasets on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError, FileError
from scdiffkit.io.formats import damaged, open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

# Shuffle halves the size; higher levels save only 1% more; lzf is faster, but R's HDF5 libraries cannot read it.
COMPRESSION: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
# Without shuffle, because uns may have scalars: h5py rejects filters for these, and anndata removes only compression.
COMPRESSION_OF_ALL: dict[str, Any] = {"compression": "gzip", "compression_opts": 1}
CHUNK = 1 << 16
WIDENED_AT_ONCE = 1 << 22
LARGEST_INT32 = 2**31 - 1


def read(path: Path) -> AnnData:
    """Read an h5ad file with anndata."""
    import anndata

    with _reading(path, "an h5ad file"):
        return _checked(anndata.read_h5ad(path))


def read_zarr(path: Path) -> AnnData:
    """Read a zarr store with anndata."""
    import anndata

    open_zarr(path)
    with _reading(path, "a zarr store"):
        return _checked(anndata.read_zarr(path))


def _checked(adata: AnnData) -> AnnData:
    """Return the cells. Raises OSError if a sparse matrix has invalid indices, which scipy would not notice."""
    places = {"X": adata.X, "raw": None if adata.raw is None else adata.raw.X}
    places |= {f'layers["{name}"]': layer for name, layer in adata.layers.items()}
    for place, matrix in places.items():
        if sparse.issparse(matrix):
            try:
                matrix.check_format(full_check=True)
            except ValueError as e:
                raise OSError(f"{place}: {e}") from e
            unify_index_types(matrix)
    return adata


def unify_index_types(matrix: Any) -> None:
    """Convert `indices` and `indptr` of a CSR or CSC matrix in place to one dtype: int32 if possible, else int64.

    Files may mix both dtypes, which scipy's routines reject.
    """
    dtype = index_type(matrix.nnz, matrix.shape)
    matrix.indices = matrix.indices.astype(dtype, copy=False)
    matrix.indptr = matrix.indptr.astype(dtype, copy=False)


def index_type(nnz: int, shape: tuple[int, ...]) -> type[np.signedinteger[Any]]:
    """Return the dtype that scipy chooses for both index arrays of a sparse matrix with nnz values."""
    return np.int32 if max(nnz, *shape) <= LARGEST_INT32 else np.int64


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as e:  # anndata, zarr and its codecs have no common exception class
        if isinstance(e, OSError) or kind == "a zarr store":
            raise FileError(damaged(path, e)) from e
        raise FileError(f"{path} is {kind} that anndata cannot read ({e}): try a newer anndata.") from e


def write(adata: AnnData, path: Path) -> None:
    """Write everything in `adata`. Text columns stay text, except that those with missing values become categorical."""
    from anndata.io import write_h5ad

    obs, var = _without_gaps(adata.obs), _without_gaps(adata.var)
    if obs is not adata.obs or var is not adata.var:
        adata = adata.copy()  # do not change the caller's columns
        adata.obs, adata.var = obs, var
    adata = _with_sound_matrices(adata)
    with _saying_which_key():
        write_h5ad(path, adata, convert_strings_to_categoricals=False, dataset_kwargs=COMPRESSION_OF_ALL)


def _with_sound_matrices(adata: AnnData) -> AnnData:
    """Return the cells with sorted indices and one index dtype in every sparse matrix; copy only if needed."""

    def is_sound(matrix: Any) -> bool:
        if not (sparse.issparse(matrix) and matrix.format in ("csr", "csc")):
            return True
        types = {matrix.indices.dtype, matrix.indptr.dtype}
        return types == {np.dtype(index_type(matrix.nnz, matrix.shape))} and bool(matrix.has_sorted_indices)

    def mended(matrix: Any) -> Any:
        if is_sound(matrix):
            return matrix
        matrix = matrix.sorted_indices()
        unify_index_types(matrix)
        return matrix

    keyed = ("layers", "obsm", "varm", "obsp", "varp")
    raw = None if adata.raw is None else adata.raw.X
    if all(map(is_sound, [adata.X, raw, *(m for name in keyed for m in getattr(adata, name).values())])):
        return adata
    adata = adata.copy()
    adata.X = mended(adata.X)
    for name in keyed:
        for key, matrix in getattr(adata, name).items():
            getattr(adata, name)[key] = mended(matrix)
    if not is_sound(raw):
        with_raw = adata.raw.to_adata()
        with_raw.X = mended(with_raw.X)
        adata.raw = with_raw
    return adata


def _without_gaps(frame: pd.DataFrame) -> pd.DataFrame:
    """Convert text columns with missing values to categorical: h5ad has missing categories, but no missing text."""
    gaps = [column for column in frame if frame[column].dtype == object and frame[column].hasnans]
    return frame.astype(dict.fromkeys(gaps, "category")) if gaps else frame


class H5adFile:
    """An h5ad file to which batches of cells are appended."""

    def __init__(self, path: Path, var: pd.DataFrame, uns: dict[str, Any], layers: tuple[str, ...]) -> None:
        self._var, self._uns = var, uns
        self._file = h5py.File(path, "w")
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        self._layers = self._file.create_group("layers")
        self._layers.attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        self._matrices = {"X": GrowingCSR(self._file.create_group("X"), len(var), np.float32)}
        for name in layers:
            dtype = np.int32 if name == "counts" else np.float32
            self._matrices[name] = GrowingCSR(self._layers.create_group(name), len(var), dtype)

    def append(self, X: sparse.csr_matrix, layers: dict[str, sparse.csr_matrix]) -> None:
        for name, matrix in {"X": X, **layers}.items():
            self._matrices[name].append(matrix)

    def finish(self, obs: pd.DataFrame) -> list[str]:
        from anndata.io import write_elem

        for matrix in self._matrices.values():
            matrix.finish()
            matrix.group.attrs.update(
                {
                    "encoding-type": "csr_matrix",
                    "encoding-version": "0.1.0",
                    "shape": np.array([matrix.n_rows, matrix.n_columns]),
                }
            )
        with _saying_which_key():
            write_elem(self._file, "obs", _without_gaps(obs), dataset_kwargs=COMPRESSION)
            write_elem(self._file, "var", _without_gaps(self._var), dataset_kwargs=COMPRESSION)
            write_elem(self._file, "uns", self._uns)
            for empty in ("obsm", "varm", "obsp", "varp"):
                write_elem(self._file, empty, {})
        return []

    def close(self) -> None:
        self._file.close()


class GrowingCSR:
    """A CSR matrix on disk (datasets data, indices, indptr) to which rows are appended.

    `indptr` is written by `finish`, because its dtype, which is that of `indices`, depends on the number of values.
    """

    def __init__(self, group: h5py.Group, n_columns: int, dtype: type[np.generic]) -> None:
        self.group, self.n_columns, self.n_rows = group, n_columns, 0
        self._nnz = 0
        self._row_ends = [np.zeros(1, dtype=np.int64)]
        self._create("data", dtype)
        self._create("indices", np.int32)

    def append(self, rows: sparse.csr_matrix) -> None:
        self._row_ends.append(rows.indptr[1:].astype(np.int64) + self._nnz)
        self._nnz += rows.nnz
        self.n_rows += rows.shape[0]
        if self.group["indices"].dtype != self._index_type:
            self._widen_indices()
        _extend(self.group["data"], rows.data)
        _extend(self.group["indices"], rows.indices)

    def finish(self) -> None:
        """Write `indptr`; no rows can be appended afterwards."""
        _extend(self._create("indptr", self._index_type), np.concatenate(self._row_ends))

    @property
    def _index_type(self) -> type[np.signedinteger[Any]]:
        return index_type(self._nnz, (self.n_rows, self.n_columns))

    def _create(self, name: str, dtype: type[np.generic]) -> h5py.Dataset:
        return self.group.create_dataset(
            name, shape=(0,), maxshape=(None,), dtype=dtype, chunks=(CHUNK,), **COMPRESSION
        )

    def _widen_indices(self) -> None:
        """Rewrite `indices` as int64 once there are more than 2^31 values."""
        self.group.move("indices", "narrow")
        narrow, wide = self.group["narrow"], self._create("indices", np.int64)
        for start in range(0, narrow.shape[0], WIDENED_AT_ONCE):
            _extend(wide, narrow[start : start + WIDENED_AT_ONCE])
        del self.group["narrow"]


def _extend(dataset: h5py.Dataset, values: np.ndarray) -> None:
    start = dataset.shape[0]
    dataset.resize(start + len(values), axis=0)
    dataset[start:] = values


@contextmanager
def _saying_which_key() -> Iterator[None]:
    """Convert anndata's errors for values that it cannot write to a DataError that names the key."""
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as e:  # anndata has no common exception class
        notes = " ".join(getattr(e, "__notes__", []))
        raise DataError(f"The cells cannot be written as h5ad: {e} {notes} Change or drop that entry.") from e
