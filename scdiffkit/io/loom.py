"""The loom format 3.0.0 (http://linnarssonlab.org/loompy/format): dense chunked HDF5, genes x cells.

Files are written with h5py, because loompy adds the current time to files and takes seconds to import.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import FileError, warn
from scdiffkit.io import columns
from scdiffkit.io.formats import damaged, open_hdf5

if TYPE_CHECKING:
    from anndata import AnnData

OBS_NAMES = ("CellID", "obs_names", "cell_names", "Barcode", "barcode")
VAR_NAMES = ("Gene", "var_names", "gene_names", "GeneName", "Accession")
CHUNK = 256  # number of genes, and of cells, in a compressed chunk


def read(path: Path) -> AnnData:
    """Read a loom file: matrix -> X, attributes -> obs and var (2-d attributes -> obsm and varm)."""
    from anndata import AnnData

    with open_hdf5(path) as f:
        try:
            (obs, obsm), (var, varm), uns = read_frames(f, path)
            return AnnData(
                X=_cells_by_genes(f["matrix"]),
                obs=obs,
                var=var,
                obsm=obsm,
                varm=varm,
                layers={name: _cells_by_genes(layer) for name, layer in f.get("layers", {}).items()},
                uns={"scdiffkit": uns} if uns else {},
            )
        except (OSError, KeyError, ValueError) as e:
            raise FileError(damaged(path, e)) from e


Axis = tuple[pd.DataFrame, dict[str, np.ndarray]]


def read_frames(f: h5py.File, path: Path) -> tuple[Axis, Axis, dict[str, Any] | None]:
    """Read (obs, obsm), (var, varm) and uns["scdiffkit"] (None if missing), but no matrix."""
    kept = json.loads(_text(f["attrs/scdiffkit"][()])) if "attrs/scdiffkit" in f else {}
    obs = _attributes(f["col_attrs"], OBS_NAMES, kept.get("obs", {}), path)
    var = _attributes(f["row_attrs"], VAR_NAMES, kept.get("var", {}), path)
    return obs, var, kept.get("uns")


class LoomFile:
    """A loom file to which batches of cells are appended."""

    def __init__(self, path: Path, var: pd.DataFrame, uns: dict[str, Any], layers: tuple[str, ...]) -> None:
        self._var, self._uns = var, uns
        strip = 4 * CHUNK * (len(var) + CHUNK)  # bytes of a row of chunks: batches end within chunks
        self._file = h5py.File(path, "w", rdcc_nbytes=max(strip, 1 << 20))
        for group in ("attrs", "layers", "row_attrs", "col_attrs", "row_graphs", "col_graphs"):
            self._file.create_group(group)
        self._put("attrs", "LOOM_SPEC_VERSION", "3.0.0")
        self._matrices = {"X": self._matrix("matrix", np.float32)}
        for name in layers:
            self._matrices[name] = self._matrix(f"layers/{name}", np.int32 if name == "counts" else np.float32)

    def append(self, X: sparse.csr_matrix, layers: dict[str, sparse.csr_matrix]) -> None:
        for name, matrix in {"X": X, **layers}.items():
            dataset = self._matrices[name]
            for start in range(0, matrix.shape[0], CHUNK):
                rows = matrix[start : start + CHUNK]
                n = dataset.shape[1]
                dataset.resize(n + rows.shape[0], axis=1)
                dataset[:, n:] = rows.toarray().T

    def finish(self, obs: pd.DataFrame) -> list[str]:
        lost = columns.lost_of_uns(self._uns, kept=("scdiffkit",))
        kept: dict[str, Any] = {"uns": columns.plain(self._uns.get("scdiffkit"))}
        for axis, group, names, frame in (
            ("obs", "col_attrs", "CellID", obs),
            ("var", "row_attrs", "Gene", self._var),
        ):
            values, spec, gone = columns.encode(frame)
            lost += gone
            unusable = [key for key in spec if key == names or "/" in key or key in ("", ".")]
            lost += [f"{axis} column {key!r}" for key in unusable]
            kept[axis] = {key: spec[key] for key in spec if key not in unusable}
            self._put(group, names, _as_objects(frame.index))
            for key in kept[axis]:
                self._put(group, key, values[key])
        self._put("attrs", "scdiffkit", json.dumps(kept))
        return lost

    def close(self) -> None:
        self._file.close()

    def _matrix(self, name: str, dtype: type[np.generic]) -> h5py.Dataset:
        n_genes = len(self._var)
        return self._file.create_dataset(
            name,
            shape=(n_genes, 0),
            maxshape=(n_genes, None),
            dtype=dtype,
            chunks=(max(1, min(CHUNK, n_genes)), CHUNK),
            compression="gzip",
            compression_opts=2,
        )

    def _put(self, group: str, name: str, values: Any) -> None:
        if isinstance(values, str):
            self._file[group].create_dataset(name, data=_escape(values), dtype=h5py.string_dtype())
        elif values.dtype == object:
            escaped = np.array([_escape(v) for v in values], dtype=object)
            self._file[group].create_dataset(name, data=escaped, dtype=h5py.string_dtype())
        else:
            numbers = values.astype(np.uint8) if values.dtype == bool else values
            self._file[group].create_dataset(name, data=numbers)


def _as_objects(names: Iterable[Any]) -> np.ndarray:
    return np.array([str(name) for name in names], dtype=object)


def _escape(text: str) -> str:
    """Encode non-ASCII characters as XML entities: loompy, and so scanpy, decodes these, but silently drops UTF-8."""
    if text.isascii() and html.unescape(text) == text:
        return text
    return text.replace("&", "&amp;").encode("ascii", "xmlcharrefreplace").decode("ascii")


def _text(value: Any) -> str:
    return html.unescape(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value))


def _attributes(group: h5py.Group, candidates: tuple[str, ...], spec: columns.Spec, path: Path) -> Axis:
    """Read one axis: 1-d attributes as a frame, indexed by the first existing of `candidates`, and 2-d attributes."""
    names_key = next((key for key in candidates if key in group), None)
    frame: dict[str, Any] = {}
    wide: dict[str, np.ndarray] = {}
    index: list[str] | None = None
    for key in [*spec, *(k for k in group if k not in spec)]:
        values = group[key][()]
        if values.dtype.kind in "OS":
            values = np.array([_text(v) for v in values.ravel()], dtype=object).reshape(values.shape)
        if key == names_key:
            index = [str(v) for v in values]
        elif values.ndim > 1:
            wide[key] = values
        else:
            frame[key] = columns.decode(values, spec[key]) if key in spec else values
    if index is None:
        axis, position = ("Genes", 0) if candidates is VAR_NAMES else ("Cells", 1)
        index = [str(i) for i in range(group.parent["matrix"].shape[position])]
        warn(f"{path}: {axis} have no {candidates[0]!r} attribute; they are numbered.")
    return pd.DataFrame(frame, index=pd.Index(index, dtype=object)), wide


def _cells_by_genes(dataset: h5py.Dataset) -> sparse.csr_matrix:
    """Read a dense genes x cells dataset as CSR cells x genes, a bounded number of cells at a time."""
    n_genes, n_cells = dataset.shape
    width = dataset.chunks[1] if dataset.chunks else CHUNK
    step = width * max(1, (16 << 20) // max(1, 4 * n_genes * width))
    blocks = [sparse.csr_matrix(dataset[:, a : a + step].T) for a in range(0, n_cells, step)]
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix((0, n_genes), dtype=dataset.dtype)
