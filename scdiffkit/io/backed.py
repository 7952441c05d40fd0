"""Cells backed by their files: obs and var are in memory, rows of matrices are read on access.

Supports h5ad and zarr with CSR and dense matrices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scdiffkit.errors import FileError
from scdiffkit.io.formats import damaged, format_of_content, open_hdf5, open_zarr, row_ends
from scdiffkit.io.matrices import OnDisk


@dataclass
class Backed:
    """The parts of an AnnData, with its matrices in the file.

    matrices: the existing matrices by location ("X", "raw", 'layers["counts"]', ...). raw_var: var of "raw".
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
    """Open an h5ad or zarr store; its matrices stay there.

    Raises FileError if the store has another format or is damaged. A matrix stored by genes (CSC) is listed, but
    reading its rows raises FileError.
    """
    from anndata.io import read_elem

    path = Path(path)
    format = format_of_content(path)
    if format not in ("h5ad", "zarr"):
        raise FileError(
            f"{path} is a {format} file, which can only be read into memory as a whole: write it as .h5ad first "
            "(scdiffkit.write) on a machine with more memory, or give a larger --memory."
        )
    if is_old(path):
        raise FileError(
            f"{path} was written by an anndata older than 0.8, so it can only be read into memory as a whole: "
            "write it again with scdiffkit.read and scdiffkit.write on a machine with more memory, or give a "
            "larger --memory."
        )
    opened = open_hdf5 if format == "h5ad" else open_zarr
    try:
        obs = read_elem(opened(path)["obs"])  # opened apart: HDF5 caches millions of names until closed
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
    except Exception as e:  # h5py, zarr and anndata have no common exception class
        raise FileError(damaged(path, e)) from e


def is_old(path: Path) -> bool:
    """Whether the file is an h5ad file in the format from before anndata 0.8."""
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
