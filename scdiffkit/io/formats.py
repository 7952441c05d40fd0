"""Detection of file formats: by name for output, by content for input."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

import h5py
import numpy as np

from scdiffkit.errors import ConfigError, FileError, did_you_mean
from scdiffkit.io.atomic import writing

Format = Literal["h5ad", "loom", "10x", "10x-h5", "zarr"]
FORMATS: tuple[Format, ...] = tuple(name for name in get_args(Format) if name != "zarr")  # output formats
SUFFIXES: dict[str, Format] = {".h5ad": "h5ad", ".loom": "loom", ".h5": "10x-h5", "": "10x"}
KNOWN = "cells.h5ad, cells.loom, cells.h5 (10x HDF5) or a folder name without suffix (10x matrix folder)"

# Files of a 10x folder. A folder with any other file is never replaced.
TENX_FILES = ("barcodes.tsv", "genes.tsv", "features.tsv", "matrix.mtx", "obs.tsv", "scdiffkit.json")

ZARR_FILES = ("zarr.json", ".zgroup")  # zarr versions 3 and 2

_SIGNATURES = (
    (b"\x1f\x8b", "a gzip file: unpack it first (gunzip)"),
    (b"PK\x03\x04", "a zip archive: unpack it first"),
    (b"BZh", "a bzip2 file: unpack it first"),
    (b"X\n", "an R data file (RDS): save it as .h5ad from R"),
    (b"RDX", "an R data file: save it as .h5ad from R"),
    (b"%%MatrixMarket", "a matrix in Matrix Market text: give the 10x folder it belongs to"),
    (b"%PDF", "a PDF document"),
)


def format_of_name(path: str | Path, format: str | None = None) -> Format:
    """Return the output format for `path`: `format` if given, else by suffix. Raises ConfigError if it is unknown."""
    if format is not None:
        if format not in FORMATS:
            raise ConfigError(f"There is no file format {format!r}; {did_you_mean(format, FORMATS)}")
        return next(f for f in FORMATS if f == format)
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ConfigError(f"{path}: cells cannot be written as {suffix!r}; name the output {KNOWN}.")
    return SUFFIXES[suffix]


def format_of_content(path: str | Path) -> Format:
    """Detect the format of an existing file or folder by its content.

    Raises FileError if it is missing, cannot be opened, is truncated, or has no format that this tool reads.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return "zarr" if any((path / name).exists() for name in ZARR_FILES) else "10x"
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError as e:
        raise FileError(_missing(path)) from e
    except OSError as e:
        raise FileError(f"{path} cannot be opened: {e.strerror or e}. Check your permissions and the path.") from e
    if not h5py.is_hdf5(path):
        raise FileError(f"{path} is {_what_it_is(head, path)}.")
    with open_hdf5(path) as f:
        keys = set(f)
        if "row_attrs" in f and "col_attrs" in f and isinstance(f.get("matrix"), h5py.Dataset):
            return "loom"
        if isinstance(f.get("matrix"), h5py.Group) and "barcodes" in f["matrix"]:
            return "10x-h5"
        if any(isinstance(g, h5py.Group) and {"barcodes", "genes", "indptr"} <= set(g) for g in f.values()):
            return "10x-h5"
        if f.attrs.get("encoding-type") == "anndata" or {"obs", "var"} <= keys:
            return "h5ad"
    listed = ", ".join(sorted(keys)[:8]) or "nothing"
    raise FileError(f"{path} is an HDF5 file, but not an h5ad, loom or 10x file (it holds: {listed}).")


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file read-only. Raises FileError if it is truncated or damaged."""
    try:
        return h5py.File(path, "r")
    except OSError as e:
        raise FileError(damaged(path, e)) from e


def open_zarr(path: Path) -> Any:
    """Open the group of a zarr store read-only. Raises FileError if it is damaged or a sparse matrix is incomplete.

    This is checked because zarr silently replaces missing chunks by zeros, and reads past the end of a chunk that is
    cut short.
    """
    import zarr

    try:
        root: Any = zarr.open_group(str(path), mode="r")
        layers = [f"layers/{name}" for name in root["layers"]] if "layers" in root else []
        for place in ("X", "raw/X", *layers):
            if place in root and root[place].attrs.get("encoding-type") in ("csr_matrix", "csc_matrix"):
                _check_sparse(root[place], place)
        for array in path.rglob(".zarray"):
            _check_blosc(array, path)
    except MemoryError:
        raise
    except Exception as e:  # zarr and its codecs have no common exception class
        raise FileError(damaged(path, e)) from e
    return root


def _check_sparse(group: Any, place: str) -> None:
    """Raise OSError if chunks of a sparse matrix in a zarr store are missing, or if indptr does not fit the values."""
    data, indices = group["data"], group["indices"]
    shape = tuple(map(int, group.attrs["shape"]))
    longest = shape[0 if group.attrs["encoding-type"] == "csc_matrix" else 1]
    for name, part in (("data", data), ("indices", indices)):
        missing = part.nchunks - part.nchunks_initialized  # negative if shards hold more chunks than there are
        if missing > 0 and (name == "data" or longest > 1):  # otherwise all may be 0, which zarr omits
            raise OSError(f"{place}/{name}: {missing} of {part.nchunks} chunks are missing")
    row_ends(group, place)


def _check_blosc(array: Path, store: Path) -> None:
    """Raise OSError if a chunk of an array (its `.zarray` file) in a zarr store of version 2 is cut short.

    Blosc, the default compressor, records the size of a chunk in bytes 12 to 15, but does not check it.
    """
    described = json.loads(array.read_text(encoding="utf-8"))
    if (described.get("compressor") or {}).get("id") != "blosc" or described.get("filters"):
        return
    for chunk in array.parent.rglob("*"):  # in folders, if dimensions are separated by "/"
        if chunk.name.startswith(".") or chunk.is_dir():
            continue
        with chunk.open("rb") as file:
            size = max(16, int.from_bytes(file.read(16)[12:], "little"))
        if size != chunk.stat().st_size:
            raise OSError(f"{chunk.relative_to(store)}: {chunk.stat().st_size} of {size} bytes are there")


def row_ends(group: Any, place: str) -> np.ndarray:
    """Read indptr of a sparse matrix in a file. Raises OSError if it cannot be read or does not fit the values."""
    n_cells, n_genes = map(int, group.attrs["shape"])
    longest = n_cells if group.attrs["encoding-type"] == "csc_matrix" else n_genes
    try:
        ends = np.asarray(group["indptr"][:])
    except Exception as e:
        raise OSError(f"{place}/indptr: {e}") from e
    sizes = np.diff(ends)
    if len(sizes) and (sizes.min() < 0 or sizes.max() > longest or ends[-1] != group["data"].shape[0]):
        raise OSError(f"{place}/indptr does not fit the values")
    return ends


def damaged(path: Path, reason: object) -> str:
    """Return the message for a file of the right format that cannot be read completely."""
    kind = "is cut short" if "truncated" in str(reason) else "is damaged or cut short"
    places = (re.search(r"key '([^']+)'.* from /?(.*)", note) for note in getattr(reason, "__notes__", ()))  # anndata's
    where = next((f"{Path(place[2], place[1]).as_posix()}: " for place in places if place), "")
    return f"{path} {kind}: copy or download it again ({where}{' '.join(str(reason).split())[:200]})."


def check_output(path: str | Path, force: bool = False, format: str | None = None) -> None:
    """Check that cells can be written to `path`, so that this does not fail only after hours of work.

    Nothing is written. Raises ConfigError for an unknown suffix. Raises FileError if `path` exists and `force` is
    False, if it is a folder other than a 10x matrix folder (these are never replaced), or if its parent folder is not
    writable.
    """
    path = Path(path)
    chosen = format_of_name(path, format)
    try:
        if path.is_dir():
            _check_folder(path, chosen, force)
        elif path.exists() or path.is_symlink():
            if chosen == "10x":
                raise FileError(f"{path} is a file, so a 10x folder cannot be written there. Name another folder.")
            if not force:
                raise FileError(f"{path} exists already: choose another name, or replace it with --force.")
    except PermissionError as e:
        raise FileError(f"{path} cannot be accessed: {e.strerror}. Choose another place.") from e
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    with writing(path), tempfile.TemporaryFile(dir=folder):
        pass


def _check_folder(path: Path, chosen: Format, force: bool) -> None:
    if chosen != "10x":
        raise FileError(f"{path} is a folder, so a {chosen} file cannot be written there. Name another file.")
    names = sorted(p.name for p in path.iterdir())
    if names and not force:
        raise FileError(f"{path} exists already: choose another name, or replace it with --force.")
    foreign = [name for name in names if name.removesuffix(".gz") not in TENX_FILES]
    if foreign:
        raise FileError(
            f"{path} is a 10x folder that also holds {', '.join(map(repr, foreign[:3]))}. It is not replaced, even "
            "with --force: choose another name."
        )


def _missing(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"{path} does not exist, and neither does the folder {parent}."
    names = sorted(p.name for p in parent.iterdir() if not p.name.startswith("."))
    return f"{path} does not exist. In {parent.absolute()}: {did_you_mean(path.name, names)}"


def _what_it_is(head: bytes, path: Path) -> str:
    if not head:
        return "empty: copy or download it again"
    for signature, kind in _SIGNATURES:
        if head.startswith(signature):
            return f"not an HDF5 file but {kind}"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as e:
        text = head[: e.start].decode("utf-8") if e.start > len(head) - 4 else ""
    if text and all(c.isprintable() or c.isspace() for c in text):
        kind = "a web page (a download that failed?)" if "<html" in text.lower() else "a text file"
        return f"{kind}, not cells; this tool reads h5ad, loom, 10x HDF5 files and 10x matrix folders"
    if path.suffix.lower() in (".h5ad", ".loom", ".h5", ".hdf5"):
        return "not an HDF5 file, so neither h5ad, loom nor 10x: copy or download it again"
    return "of an unknown kind; this tool reads h5ad, loom, 10x HDF5 files and 10x matrix folders"
