"""Reading of cells in any supported format, into memory or, if they do not fit, backed by their files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from scipy import sparse

from scdiffkit.config.units import parse_bytes
from scdiffkit.errors import ConfigError, FileError, warn
from scdiffkit.io import h5ad, loom, tenx
from scdiffkit.io.backed import Backed, is_old, open_backed
from scdiffkit.io.formats import (
    SUFFIXES,
    TENX_FILES,
    Format,
    damaged,
    format_of_content,
    open_hdf5,
)
from scdiffkit.runtime.memory import available_memory, in_bytes

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")
LEAST_MEMORY = 2e9  # bytes that every command needs, however few the cells (benchmarks/results/scale.md)
BYTES_OF_A_VALUE, COPIES = 8, 3  # bytes of a value and its index; copies of the counts in preparation and training
MEMORY_PER_DISK_BYTE = 10  # bytes in memory per byte on disk, for files of unknown compression
IN_MEMORY_ALREADY = "--memory disk: the cells are in memory already; give the path of a file."
PLACES = ("auto", "disk", "ram")
CELL_SUFFIXES = (".h5ad", ".zarr", ".loom", ".h5")
CellsLike: TypeAlias = "AnnData | str | Path | Sequence[str | Path] | Mapping[str, AnnData | str | Path]"
READERS: dict[Format, Callable[[Path], AnnData]] = {
    "h5ad": h5ad.read,
    "loom": loom.read,
    "10x": tenx.read_folder,
    "10x-h5": tenx.read_h5,
    "zarr": h5ad.read_zarr,
}


def read(path: str | Path) -> AnnData:
    """Read cells from a file or folder.

    Parameters
    ----------
    path
        An h5ad, zarr, loom or 10x HDF5 file (v2, v3), or a 10x matrix folder (v2, v3, gzipped or not). The content
        determines the format; ScdiffWarning if the name suggests another one.

    Returns
    -------
    AnnData, cells x genes, with sparse matrices as CSR. For 10x formats, `var_names` are gene symbols, made unique with
    a warning, and `var["gene_ids"]` holds the ids.

    Raises
    ------
    FileError
        If the path is missing, damaged, or holds no cells.

    Examples
    --------
    >>> adata = scdiffkit.read("filtered_feature_bc_matrix.h5")
    """
    path = Path(path)
    format = format_of_content(path)
    named = SUFFIXES.get(path.suffix.lower())
    if format not in ("10x", "zarr") and path.suffix.lower() not in (".h5", ".hdf5") and named != format:
        warn(f"{path} is a {format} file in spite of its name; it is read as such.")
    adata = _rows_first(READERS[format](path))
    log.info("Read %s (%s): %d cells x %d genes", path, format, adata.n_obs, adata.n_vars)
    return adata


def open_cells(
    data: CellsLike, memory: str | float = "auto"
) -> tuple[str | None, AnnData | Backed | dict[str, AnnData | Backed]]:
    """Open cells in memory or backed by their files; return their source as text (None: memory) and the cells.

    data: an AnnData; a path for `read`; a folder of such files; or several of these, which are returned by name.
    memory: "ram" reads cells into memory; "disk" leaves them in their files; "auto" leaves them there if working on
    them needs more than the free memory, and an amount ("8G", or bytes) if it needs more than this amount.
    Raises FileError if a file cannot be read, or if it does not fit and can only be read whole; ConfigError if the
    amount of memory is too small for any work.
    """
    limit = None if memory in PLACES else parse_bytes(memory)
    if limit is not None and limit < LEAST_MEMORY:
        raise ConfigError(
            f"--memory {in_bytes(limit)} is too little: give at least {in_bytes(LEAST_MEMORY)}, which the libraries "
            "and a batch of cells need in any case."
        )
    on_disk = memory == "disk"
    if not isinstance(data, (str, Path, Sequence, Mapping)):
        if on_disk:
            raise ConfigError(IN_MEMORY_ALREADY)
        return None, data
    named: dict[str, Any]
    if isinstance(data, Mapping):
        named = dict(data)
    else:
        listed = [data] if isinstance(data, (str, Path)) else list(data)
        found = [path for item in listed for path in files_in(item)]
        stems = [_stem(item, i) for i, item in enumerate(found)]
        if len(set(stems)) < len(stems):
            stems = [f"{stem}-{i}" for i, stem in enumerate(stems)]
        named = dict(zip(stems, found, strict=True))
    if not named:
        raise FileError("No files of cells were given.")
    paths = {name: Path(item) for name, item in named.items() if isinstance(item, (str, Path))}
    if memory not in ("disk", "ram"):
        needed = sum(map(footprint, paths.values()))
        limit = available_memory() if limit is None else limit
        on_disk = needed > limit
        if on_disk:
            log.info("The cells need about %s of memory and %s is available, so they stay in their files",
                     in_bytes(needed), in_bytes(limit))  # fmt: skip
    if on_disk and not paths:
        raise ConfigError(IN_MEMORY_ALREADY)
    opened = {name: (open_backed if on_disk else read)(paths[name]) if name in paths else named[name] for name in named}
    source = ", ".join(map(str, paths.values())) or None
    return source, opened if len(opened) > 1 else next(iter(opened.values()))


def open_rows(path: str | Path) -> AnnData | Backed:
    """Open a file; matrices stay in it if rows can be read from there (h5ad and zarr, CSR or dense)."""
    path = Path(path)
    if format_of_content(path) not in ("h5ad", "zarr") or is_old(path):
        return read(path)
    cells = open_backed(path)
    return read(path) if any(matrix.kind == "csc" for matrix in cells.matrices.values()) else cells


def files_in(item: CellsLike) -> list[Any]:
    """Return the files of a folder of cell files, sorted by name; anything else is returned as the only item."""
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
    """Estimate the bytes of memory needed to work on all cells of a file."""
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
    return float(MEMORY_PER_DISK_BYTE * sum(file.stat().st_size for file in files if file.is_file()))


def _rows_first(adata: AnnData) -> AnnData:
    """Convert sparse X, layers and raw to CSR."""
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
