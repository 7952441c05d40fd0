"""Cells in and out of files, whatever the format."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import ConfigError, DataError, FileError, ScdiffWarning
from scdiffkit.io import h5ad, loom, tenx
from scdiffkit.io.atomic import atomic_path, writing
from scdiffkit.io.backed import Backed, give_back, is_old, open_backed
from scdiffkit.io.formats import (
    SUFFIXES,
    TENX_FILES,
    Format,
    check_output,
    damaged,
    format_of_content,
    format_of_name,
    open_hdf5,
)

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")

BLOCK = 2048  # cells written at once
BATCHES_KEPT = 32  # after so many, memory that is free goes back to the system
NUL = "\0"
LEAST_MEMORY = 2e9  # bytes: what every command takes, however few the cells (benchmarks/results/scale.md)
BYTES_OF_A_VALUE, COPIES = 8, 3  # a value and its column; of the counts, while they are prepared and learnt from
PACKED = 10  # bytes in memory of one in a file whose size inside is not known
IN_MEMORY_ALREADY = "--backed: the cells are in memory already; give the path of a file."
CELL_SUFFIXES = (".h5ad", ".zarr", ".loom", ".h5")


class CellFile(Protocol):
    """A file that grows by batches of cells; `finish` returns what the format could not carry."""

    def append(self, X: sparse.csr_matrix, layers: dict[str, sparse.csr_matrix]) -> None: ...
    def finish(self, obs: pd.DataFrame) -> list[str]: ...
    def close(self) -> None: ...


CellsLike: TypeAlias = "AnnData | str | Path | Sequence[str | Path] | Mapping[str, AnnData | str | Path]"
READERS: dict[Format, Callable[[Path], AnnData]] = {
    "h5ad": h5ad.read,
    "loom": loom.read,
    "10x": tenx.read_folder,
    "10x-h5": tenx.read_h5,
    "zarr": h5ad.read_zarr,
}
FILES: dict[Format, Callable[[Path, pd.DataFrame, dict[str, Any], tuple[str, ...]], CellFile]] = {
    "h5ad": h5ad.H5adFile,
    "loom": loom.LoomFile,
    "10x": tenx.TenxFolder,
    "10x-h5": tenx.TenxH5,
}


def read(path: str | Path) -> AnnData:
    """Cells from an h5ad, zarr, loom or 10x HDF5 file (v2, v3) or a 10x matrix folder (v2, v3, gzipped or not).

    Sparse matrices come back as CSR, cells x genes. The content decides the format; ScdiffWarning when the
    name says another one. 10x: var_names are gene symbols, made unique with a warning; ids are in
    var["gene_ids"].
    Raises FileError when the path is missing, damaged, or holds no cells.
    """
    path = Path(path)
    format = format_of_content(path)
    named = SUFFIXES.get(path.suffix.lower())
    if format not in ("10x", "zarr") and path.suffix.lower() not in (".h5", ".hdf5") and named != format:
        warnings.warn(f"{path} is a {format} file in spite of its name; it is read as such.", ScdiffWarning, 2)
    adata = _rows_first(READERS[format](path))
    log.info("Read %s (%s): %d cells x %d genes", path, format, adata.n_obs, adata.n_vars)
    return adata


def open_cells(
    data: CellsLike, *, backed: bool | None = None, max_memory: float | None = None
) -> tuple[str | None, AnnData | Backed | dict[str, AnnData | Backed]]:
    """Where cells came from, in words (None: memory), and the cells: in memory where they fit, else in their files.

    data: an AnnData; a path that `read` takes; a folder of such files; or several of these, which come back by name.
    backed: leave them in their files, or not; None: when working on them whole would take more than max_memory bytes,
    or, None, than what is free.
    Raises FileError when a file cannot be read, or does not fit and can only be read whole, ConfigError for a
    max_memory in which nothing can be done.
    """
    if max_memory is not None and max_memory < LEAST_MEMORY:
        raise ConfigError(
            f"--max-memory {in_bytes(max_memory)} is too little: give at least {in_bytes(LEAST_MEMORY)}, which the "
            "libraries and a batch of cells need in any case."
        )
    if max_memory is not None and backed is not None:
        raise ConfigError(
            "--max-memory decides by size whether cells stay in their files, and --backed or --in-memory says so: give "
            "one of them."
        )
    if not isinstance(data, (str, Path, Sequence, Mapping)):
        if backed:
            raise ConfigError(IN_MEMORY_ALREADY)
        return None, data
    named: dict[str, Any]
    if isinstance(data, Mapping):
        named = dict(data)
    else:
        listed = [data] if isinstance(data, (str, Path)) else list(data)
        found = [path for item in listed for path in _files(item)]
        stems = [_stem(item, i) for i, item in enumerate(found)]
        if len(set(stems)) < len(stems):
            stems = [f"{stem}-{i}" for i, stem in enumerate(stems)]
        named = dict(zip(stems, found, strict=True))
    if not named:
        raise FileError("No files of cells were given.")
    paths = {name: Path(item) for name, item in named.items() if isinstance(item, (str, Path))}
    if backed is None:
        needed = sum(map(footprint, paths.values()))
        limit = available_memory() if max_memory is None else max_memory
        backed = needed > limit
        if backed:
            log.info("The cells need about %s of memory, there is %s: they stay in their files",
                     in_bytes(needed), in_bytes(limit))  # fmt: skip
    if backed and not paths:
        raise ConfigError(IN_MEMORY_ALREADY)
    opened = {name: (open_backed if backed else read)(paths[name]) if name in paths else named[name] for name in named}
    source = ", ".join(map(str, paths.values())) or None
    return source, opened if len(opened) > 1 else next(iter(opened.values()))


def open_rows(path: str | Path) -> AnnData | Backed:
    """The cells of a file, matrices left in it where rows can be read from there: h5ad and zarr, CSR and dense."""
    path = Path(path)
    if format_of_content(path) not in ("h5ad", "zarr") or is_old(path):
        return read(path)
    cells = open_backed(path)
    return read(path) if any(matrix.kind == "csc" for matrix in cells.matrices.values()) else cells


def _files(item: CellsLike) -> list[Any]:
    """A folder of files as these, in order of their names; anything else as it is."""
    if not isinstance(item, (str, Path)) or not Path(item).is_dir():
        return [item]
    path = Path(item)
    if format_of_content(path) == "zarr" or any(
        p.name.removesuffix(".gz").endswith(TENX_FILES) for p in path.iterdir()
    ):
        return [path]
    return sorted(p for p in path.iterdir() if p.suffix.lower() in CELL_SUFFIXES) or [path]


def _stem(item: Any, i: int) -> str:
    return Path(item).name.split(".")[0] if isinstance(item, (str, Path)) else str(i)


def footprint(path: Path) -> float:
    """Bytes of memory, about, that working on a file of cells as a whole takes."""
    format = format_of_content(path)
    if format in ("h5ad", "zarr") and not is_old(path):
        sizes = [matrix.size for matrix in open_backed(path).matrices.values()]
        return float(BYTES_OF_A_VALUE * (sum(sizes) + COPIES * max(sizes, default=0)))
    if format == "10x-h5":
        with open_hdf5(path) as f:
            try:
                group, _ = tenx.h5_group(f, path)
                return float((1 + COPIES) * BYTES_OF_A_VALUE * group["data"].shape[0])
            except (OSError, KeyError, ValueError) as e:
                raise FileError(damaged(path, e)) from e
    files = path.rglob("*") if path.is_dir() else [path]
    return float(PACKED * sum(file.stat().st_size for file in files if file.is_file()))


def available_memory() -> float:
    """Bytes that this process can still have: of the machine, or of the container or job it runs in."""
    import psutil

    return max(0.0, min([float(psutil.virtual_memory().available), *_left_of_limits()]))


def _left_of_limits(root: Path = Path("/")) -> Iterator[float]:
    """Bytes left under each limit that Linux's control groups set for this process: of a container, of a SLURM job."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text().splitlines() if groups.exists() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":  # version 2
            top, limit, used, cache = root / "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, cache = root / "sys/fs/cgroup/memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        lowest = top / group.lstrip("/")
        for folder in [lowest, *lowest.parents]:
            with suppress(OSError, ValueError):  # not there, or "max": no limit
                kinds = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                in_use = float((folder / used).read_text()) - float(kinds.get(cache, 0))  # files read are given up
                yield float((folder / limit).read_text()) - in_use
            if folder == top:
                break


def in_bytes(n: float) -> str:
    """1.5e9 -> "1.5 GB"."""
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.0f} MB"


def write(adata: AnnData, path: str | Path, *, force: bool = False, format: str | None = None) -> Path:
    """Write cells to .h5ad, .loom, .h5 (10x HDF5) or, without suffix, a 10x matrix folder.

    `format` ("h5ad", "loom", "10x", "10x-h5") overrules the name.
    Complete or not at all: a failure leaves what stood there. The 10x formats take layers["counts"] if there
    is one, else X. What a format cannot carry is listed in one ScdiffWarning.
    Raises FileError when `path` exists (without `force`) or cannot be written, ConfigError for an unknown
    suffix.
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
    """Streams cells to a file with bounded memory (only obs is held until the end).

    with CellWriter("cells.h5ad", genes, uns={...}) as out:
        out.append(X, {"counts": counts}, obs)  # X (b, n_genes) CSR, log1p; counts (b, n_genes) CSR, integers

    The file appears at its path on a clean exit; after an exception nothing is left behind. `lost` lists
    what the format cannot carry; it is said in one ScdiffWarning on exit. Same input, same bytes.
    Raises what `check_output` raises on construction, and DataError when a batch does not fit.
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
        self._names: list[str] = []  # joined: a million strings take five times the memory
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
        """Add b cells. X and layers: (b, n_genes), sparse or dense; layers["counts"] integers; obs: b rows.

        Every batch has the same layers, obs columns and categories. Raises DataError when one does not fit.
        """
        if set(layers) != set(self._layers):
            raise DataError(f"A batch has the layers {sorted(layers)}, expected {sorted(self._layers)}.")
        if self._obs and not obs.dtypes.equals(self._obs[0].dtypes):
            raise DataError("A batch has other obs columns, types or categories than the first.")
        matrices = {name: self._as_csr(matrix, name, len(obs)) for name, matrix in {"X": X, **layers}.items()}
        with writing(self.path):
            self._file.append(matrices.pop("X"), matrices)
        self._batches += 1
        if self._batches % BATCHES_KEPT == 0:  # what is freed lies scattered in the heaps of the threads that took it
            give_back()
        self._index_name = obs.index.name
        self._obs.append(obs.reset_index(drop=True))
        if len(obs):
            self._names.append(NUL.join(map(str, obs.index)))
            if self._names[-1].count(NUL) >= len(obs):
                raise DataError("A cell's name has the character NUL in it, which no format carries: rename it.")
        # Few large pieces: many small ones, between matrices that are freed, would keep memory from being used anew.
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
            give_back()  # what the batches took, before there is every name at once
            obs = pd.concat(self._obs, ignore_index=True) if self._obs else pd.DataFrame()
            obs.index = pd.Index(
                NUL.join(self._names).split(NUL) if self._names else [], dtype=object, name=self._index_name
            )
            self._obs, self._names = [], []
            self.lost += self._file.finish(obs)
        if self.lost:
            warnings.warn(
                f"{self.path}: {self._format} cannot carry {', '.join(self.lost)}; .h5ad carries all.",
                ScdiffWarning,
                2,
            )

    def _as_csr(self, matrix: Any, name: str, n: int) -> sparse.csr_matrix:
        rows = sparse.csr_matrix(matrix)
        if rows.shape != (n, len(self._var)):
            raise DataError(f"A batch has {name} of shape {rows.shape}, expected {(n, len(self._var))}.")
        if not rows.has_canonical_format:
            rows = rows.copy()
            rows.sum_duplicates()
        if name == "counts" and not np.array_equal(rows.data, np.rint(rows.data)):
            raise DataError('layers["counts"] has values that are not integers: it holds raw counts.')
        return rows


def _rows_first(adata: AnnData) -> AnnData:
    """Sparse X, layers and raw as CSR."""
    if sparse.issparse(adata.X) and adata.X.format != "csr":
        adata.X = adata.X.tocsr()
    for name, layer in adata.layers.items():
        if sparse.issparse(layer) and layer.format != "csr":
            adata.layers[name] = layer.tocsr()
    if adata.raw is not None and sparse.issparse(adata.raw.X) and adata.raw.X.format != "csr":
        raw = adata.raw.to_adata()
        raw.X = raw.X.tocsr()
        adata.raw = raw
    return adata
