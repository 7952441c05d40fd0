"""Description of the contents of a file of cells, without loading the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import FileError
from scdiffkit.io import columns, h5ad, loom, tenx
from scdiffkit.io.formats import damaged, format_of_content, open_hdf5, open_zarr

if TYPE_CHECKING:
    from anndata import AnnData

TOP = 5  # most frequent categories listed per column
SAMPLES = 16  # positions at which values are sampled
BLOCK = 1 << 22  # number of values per read
COUNTS = 'layers["counts"]'


@dataclass
class Stored:
    """A matrix, cells x genes, in a file or in memory; `values` is 1-d for CSR and CSC, else 2-d."""

    storage: str
    shape: tuple[int, int]
    values: Any
    indices: Any = None
    indptr: Any = None


@dataclass
class Contents:
    """The parts of an AnnData; matrices may be in a file."""

    obs: pd.DataFrame
    var: pd.DataFrame
    matrices: dict[str, Stored]
    obsm: list[str] = field(default_factory=list)
    uns: list[str] = field(default_factory=list)
    scdiffkit: Any = None


def describe(path: AnnData | str | Path) -> dict[str, Any]:
    """Describe cells in a file (path) or in memory as plain values for JSON.

    Keys: path, format, size_bytes, n_obs, n_vars, counts (location of raw counts: 'layers["counts"]', 'raw', 'X' or
    None), matrices (location -> storage, dtype, shape, integers), layers, obs (a list of name, dtype, missing,
    n_categories, top), var (column names), median_counts and median_genes per cell (None without counts), obsm, uns
    (keys), scdiffkit (uns["scdiffkit"] or None). Whether values are integers is judged from a sample.
    Raises FileError if `path` is missing, damaged, or holds no cells.
    """
    if not isinstance(path, str | Path):
        return {"path": None, "format": "memory", "size_bytes": None} | _summary(_in_memory(path))
    path = Path(path)
    format = format_of_content(path)
    start = {"path": str(path), "format": format, "size_bytes": _size(path)}
    if format == "10x":
        return start | _summary(_in_memory(tenx.read_folder(path)))
    if format == "zarr":
        root = open_zarr(path)
        try:
            return start | _summary(_anndata(root))
        except MemoryError:
            raise
        except Exception as e:  # zarr and its codecs have no common exception class
            raise FileError(damaged(path, e)) from e
    with open_hdf5(path) as f:
        try:
            if format == "loom":
                return start | _summary(_loom(f, path))
            if format == "10x-h5":
                return start | _summary(_tenx_h5(f, path))
            if "encoding-type" in f["obs"].attrs:
                return start | _summary(_anndata(f))
        except (OSError, KeyError, ValueError) as e:
            raise FileError(damaged(path, e)) from e
    return start | _summary(_in_memory(h5ad.read(path)))  # an h5ad file from before anndata 0.8


def _anndata(f: Any) -> Contents:
    """Read the contents of an h5ad file or of a zarr group."""
    from anndata.io import read_elem

    places = {"X": f.get("X"), "raw": f.get("raw/X")}
    places |= {f'layers["{name}"]': f["layers"][name] for name in f.get("layers", ())}
    uns = f.get("uns", {})
    return Contents(
        obs=read_elem(f["obs"]),
        var=read_elem(f["var"]),
        matrices={
            place: _stored(element)
            for place, element in places.items()
            if element is not None and element.attrs.get("encoding-type") != "null"
        },
        obsm=list(f.get("obsm", ())),
        uns=list(uns),
        scdiffkit=read_elem(uns["scdiffkit"]) if "scdiffkit" in uns else None,
    )


def _stored(element: Any) -> Stored:
    if hasattr(element, "shape"):
        return Stored("dense", element.shape, element)
    n_cells, n_genes = (int(n) for n in element.attrs["shape"])
    kind = "CSC" if element.attrs["encoding-type"] == "csc_matrix" else "CSR"
    return Stored(kind, (n_cells, n_genes), element["data"], element["indices"], element["indptr"])


def _loom(f: h5py.File, path: Path) -> Contents:
    (obs, obsm), (var, _), scdiffkit = loom.read_frames(f, path)
    places = {"X": f["matrix"]} | {f'layers["{name}"]': layer for name, layer in f.get("layers", {}).items()}
    matrices = {place: Stored("dense, genes x cells", d.shape[::-1], d) for place, d in places.items()}
    return Contents(obs, var, matrices, obsm=list(obsm), uns=["scdiffkit"] if scdiffkit else [], scdiffkit=scdiffkit)


def _tenx_h5(f: h5py.File, path: Path) -> Contents:
    group, var = tenx.h5_group(f, path)
    n_genes, n_cells = (int(n) for n in group["shape"][()])
    stored = Stored("CSR", (n_cells, n_genes), group["data"], group["indices"], group["indptr"])
    return Contents(pd.DataFrame(index=range(n_cells)), var, {"X": stored})


def _in_memory(adata: AnnData) -> Contents:
    places = {"X": adata.X, "raw": None if adata.raw is None else adata.raw.X}
    places |= {f'layers["{name}"]': layer for name, layer in adata.layers.items()}
    matrices = {}
    for place, matrix in places.items():
        if sparse.issparse(matrix):
            csr = matrix.tocsr()
            matrices[place] = Stored("CSR", csr.shape, csr.data, csr.indices, csr.indptr)
        elif matrix is not None:
            matrices[place] = Stored("dense", matrix.shape, matrix)
    return Contents(adata.obs, adata.var, matrices, list(adata.obsm), list(adata.uns), adata.uns.get("scdiffkit"))


def _summary(cells: Contents) -> dict[str, Any]:
    matrices = {}
    for place, m in cells.matrices.items():
        with _reading(place):
            integers = _looks_like_counts(_sample(m))
        matrices[place] = {
            "storage": m.storage, "dtype": str(m.values.dtype), "shape": list(m.shape), "integers": integers,
        }  # fmt: skip
    counts = next((p for p in (COUNTS, "raw", "X") if p in matrices and matrices[p]["integers"]), None)
    totals, genes = np.empty(0), np.empty(0)
    if counts:
        with _reading(counts):
            totals, genes = _per_cell(cells.matrices[counts])
    return {
        "n_obs": len(cells.obs),
        "n_vars": len(cells.var),
        "counts": counts,
        "matrices": matrices,
        "layers": [place[len('layers["') : -2] for place in matrices if place.startswith("layers")],
        "obs": [_column(str(name), column) for name, column in cells.obs.items()],
        "var": [str(name) for name in cells.var.columns],
        "median_counts": float(np.median(totals)) if len(totals) else None,
        "median_genes": float(np.median(genes)) if len(genes) else None,
        "obsm": cells.obsm,
        "uns": cells.uns,
        "scdiffkit": columns.plain(cells.scdiffkit),
    }


@contextmanager
def _reading(place: str) -> Iterator[None]:
    """Convert any error while values are read to an OSError that names the matrix."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as e:  # h5py, zarr and its codecs have no common exception class
        raise OSError(f"{place}: {e}") from e


def _column(name: str, column: pd.Series) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "dtype": str(column.dtype), "missing": int(column.isna().sum())}
    if pd.api.types.is_numeric_dtype(column.dtype) and column.dtype.kind != "b":
        return found | {"n_categories": None, "top": None}
    if column.dtype == object:
        found["dtype"] = "text"
    frequent = column.astype(str)[column.notna()].value_counts()
    return found | {"n_categories": len(frequent), "top": {str(k): int(v) for k, v in frequent[:TOP].items()}}


def _sample(m: Stored) -> np.ndarray:
    """Return values from positions evenly spread over the matrix."""
    if m.values.ndim == 1:
        width = 4096
        starts = np.unique(np.linspace(0, max(0, m.values.shape[0] - width), SAMPLES).astype(int))
        parts = [m.values[a : a + width] for a in starts]
    else:
        cells = np.linspace(0, m.shape[0] - 1, min(SAMPLES, m.shape[0])).astype(int)
        parts = [m.values[:, i] if _transposed(m) else m.values[i] for i in cells]
    return np.concatenate([np.asarray(p) for p in parts]) if parts else np.empty(0, dtype=m.values.dtype)


def _looks_like_counts(values: np.ndarray) -> bool:
    if values.dtype.kind not in "iufb":
        return False
    return bool(np.isfinite(values).all() and (values >= 0).all() and np.array_equal(values, np.rint(values)))


def _per_cell(m: Stored) -> tuple[np.ndarray, np.ndarray]:
    """Compute the total counts and detected genes of each cell, block by block."""
    totals, genes = np.zeros(m.shape[0]), np.zeros(m.shape[0])
    if m.storage == "CSR":
        indptr = np.asarray(m.indptr[()])
        first = 0
        while first < m.shape[0]:
            last = max(first + 1, int(np.searchsorted(indptr, indptr[first] + BLOCK, side="right")) - 1)
            last = min(last, m.shape[0])
            data = m.values[indptr[first] : indptr[last]]
            ends = indptr[first : last + 1] - indptr[first]
            totals[first:last] = np.diff(np.concatenate([[0], np.cumsum(data, dtype=np.float64)])[ends])
            genes[first:last] = np.diff(np.concatenate([[0], np.cumsum(data != 0)])[ends])
            first = last
    elif m.storage == "CSC":
        for a in range(0, m.values.shape[0], BLOCK):
            data, cells = m.values[a : a + BLOCK], m.indices[a : a + BLOCK]
            totals += np.bincount(cells, weights=data, minlength=m.shape[0])
            genes += np.bincount(cells, weights=data != 0, minlength=m.shape[0])
    else:
        chunk = getattr(m.values, "chunks", None)
        axis = 1 if _transposed(m) else 0
        unit = chunk[axis] if chunk else 1
        step = unit * max(1, BLOCK // max(1, unit * m.shape[1]))
        for a in range(0, m.shape[0], step):
            block = m.values[:, a : a + step].T if axis else m.values[a : a + step]
            totals[a : a + step], genes[a : a + step] = block.sum(1, dtype=np.float64), (block != 0).sum(1)
    return totals, genes


def _transposed(m: Stored) -> bool:
    return m.storage.startswith("dense, genes")


def _size(path: Path) -> int:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else os.path.getsize(path)
