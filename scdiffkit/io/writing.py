"""Writing of cells in any supported format."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError, warn
from scdiffkit.io import h5ad, loom, tenx
from scdiffkit.io.atomic import atomic_path, writing
from scdiffkit.io.formats import (
    Format,
    check_output,
    format_of_name,
)
from scdiffkit.runtime.memory import trim_memory

if TYPE_CHECKING:
    from anndata import AnnData

BLOCK = 2048  # cells per batch in `write`
BATCHES_KEPT = 32  # batches after which freed heap memory is returned to the operating system
NUL = "\0"


class CellFile(Protocol):
    """A file to which batches of cells are appended; `finish` returns a list of what the format cannot hold."""

    def append(self, X: sparse.csr_matrix, layers: dict[str, sparse.csr_matrix]) -> None: ...
    def finish(self, obs: pd.DataFrame) -> list[str]: ...
    def close(self) -> None: ...


FILES: dict[Format, Callable[[Path, pd.DataFrame, dict[str, Any], tuple[str, ...]], CellFile]] = {
    "h5ad": h5ad.H5adFile,
    "loom": loom.LoomFile,
    "10x": tenx.TenxFolder,
    "10x-h5": tenx.TenxH5,
}


def write(adata: AnnData, path: str | Path, *, force: bool = False, format: str | None = None) -> Path:
    """Write cells to a file. If writing fails, an existing file remains unchanged.

    Parameters
    ----------
    adata
        The cells. 10x formats hold only `layers["counts"]`, or `X` if there is no such layer.
    path
        `.h5ad`, `.loom`, `.h5` (10x HDF5) or, without a suffix, a 10x matrix folder.
    force
        Replace an existing file or 10x folder at the path.
    format
        "h5ad", "loom", "10x" or "10x-h5"; by default, the suffix decides.

    Returns
    -------
    The path. One ScdiffWarning lists what the format cannot hold.

    Raises
    ------
    FileError
        If the path exists (without `force`) or cannot be written.
    ConfigError
        For an unknown suffix or format.

    Examples
    --------
    >>> scdiffkit.write(cells, "cells.loom")
    """
    path = Path(path)
    chosen = format_of_name(path, format)
    check_output(path, force, format)
    if chosen == "h5ad":
        with writing(path), atomic_path(path) as temporary:
            h5ad.write(adata, temporary)
        return path
    layers = tuple(adata.layers)
    X = adata.layers["counts"] if adata.X is None and "counts" in layers else adata.X
    if X is None:
        raise DataError(f"There is no X to write to {path}; write .h5ad, or set adata.X.")
    uns = dict(adata.uns)
    with CellWriter(path, adata.var_names, var=adata.var, uns=uns, layers=layers, force=force, format=format) as out:
        for name in ("obsm", "varm", "obsp", "varp"):
            out.lost += [f"{name}[{key!r}]" for key in getattr(adata, name)]
        out.lost += ["raw"] if adata.raw is not None else []
        for start in range(0, max(adata.n_obs, 1), BLOCK):
            rows = slice(start, start + BLOCK)
            out.append(X[rows], {name: adata.layers[name][rows] for name in layers}, adata.obs.iloc[rows])
    return path


class CellWriter:
    """Stream cells to a file with bounded memory (only obs is kept until the end).

    with CellWriter("cells.h5ad", genes, uns={...}) as out:
        out.append(X, {"counts": counts}, obs)  # X (b, n_genes) CSR, log1p; counts (b, n_genes) CSR, integers

    The file appears at its path on a clean exit; after an exception, nothing is left behind. `lost` lists what the
    format cannot hold; one ScdiffWarning on exit reports it. The same input gives the same bytes. The constructor
    raises what `check_output` raises; `append` raises DataError if a batch does not match the earlier ones.
    """

    def __init__(
        self,
        path: str | Path,
        var_names: Any,
        *,
        var: pd.DataFrame | None = None,
        uns: dict[str, Any] | None = None,
        layers: tuple[str, ...] = ("counts",),
        force: bool = False,
        format: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.lost: list[str] = []
        self._format = format_of_name(path, format)
        check_output(path, force, format)
        names = pd.Index([str(name) for name in var_names], dtype=object)
        if var is not None and len(var) != len(names):
            raise DataError(f"var has {len(var)} rows for {len(names)} var_names.")
        self._var = pd.DataFrame(index=names) if var is None else var.set_axis(names)
        self._uns, self._layers = dict(uns or {}), tuple(layers)
        self._obs: list[pd.DataFrame] = []
        self._names: list[str] = []  # joined by NUL: a list of a million strings takes five times the memory
        self._index_name: Any = None
        self._batches = 0

    def __enter__(self) -> CellWriter:
        with writing(self.path), ExitStack() as stack:
            temporary = stack.enter_context(atomic_path(self.path))
            make = FILES[self._format]
            self._file = stack.enter_context(closing(make(temporary, self._var, self._uns, self._layers)))
            self._stack = stack.pop_all()
        return self

    def append(self, X: Any, layers: dict[str, Any], obs: pd.DataFrame) -> None:
        """Append b cells. X and layers: (b, n_genes), sparse or dense; layers["counts"]: integers; obs: b rows.

        All batches must have the same layers, obs columns and categories, otherwise DataError is raised.
        """
        if set(layers) != set(self._layers):
            raise DataError(f"A batch has the layers {sorted(layers)}, expected {sorted(self._layers)}.")
        if self._obs and not obs.dtypes.equals(self._obs[0].dtypes):
            raise DataError("A batch has other obs columns, types or categories than the first.")
        matrices = {name: self._as_csr(matrix, name, len(obs)) for name, matrix in {"X": X, **layers}.items()}
        with writing(self.path):
            self._file.append(matrices.pop("X"), matrices)
        self._batches += 1
        if self._batches % BATCHES_KEPT == 0:  # freed memory is scattered over the heaps of several threads
            trim_memory()
        self._index_name = obs.index.name
        self._obs.append(obs.reset_index(drop=True))
        if len(obs):
            self._names.append(NUL.join(map(str, obs.index)))
            if self._names[-1].count(NUL) >= len(obs):
                raise DataError("A cell name contains the character NUL, which no format can store: rename it.")
        # Merge into few large pieces: many small ones between freed matrices would fragment the heap.
        while len(self._obs) > 1 and len(self._obs[-2]) <= len(self._obs[-1]):
            self._obs[-2:] = [pd.concat(self._obs[-2:], ignore_index=True)]
        while len(self._names) > 1 and len(self._names[-2]) <= len(self._names[-1]):
            self._names[-2:] = [NUL.join(self._names[-2:])]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._stack.__exit__(kind, error, trace)
            return
        with writing(self.path), self._stack:
            trim_memory()  # return the batches' memory before all names are held at once
            obs = pd.concat(self._obs, ignore_index=True) if self._obs else pd.DataFrame()
            obs.index = pd.Index(
                NUL.join(self._names).split(NUL) if self._names else [], dtype=object, name=self._index_name
            )
            self._obs, self._names = [], []
            self.lost += self._file.finish(obs)
        if self.lost:
            warn(f"{self.path}: {self._format} cannot store {', '.join(self.lost)}; .h5ad stores everything.")

    def _as_csr(self, matrix: Any, name: str, n: int) -> sparse.csr_matrix:
        rows = sparse.csr_matrix(matrix)
        if rows.shape != (n, len(self._var)):
            raise DataError(f"A batch has {name} of shape {rows.shape}, expected {(n, len(self._var))}.")
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        if name == "counts" and not np.array_equal(rows.data, np.rint(rows.data)):
            raise DataError('layers["counts"] has values that are not integers, but it must hold raw counts.')
        return rows
