"""Location of the raw counts in an AnnData or a file, and checks that they are counts."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scdiffkit.errors import DataError, FileError
from scdiffkit.io import Backed, OnDisk, Rows, Selected, on_disk

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")
LAYER = 'layers["counts"]'
FIRST_CELLS = 2048  # cells by which counts in a file are recognised
ROUNDING = 1e-6  # counts this close to integers are rounding errors of integers


def selected(counts: Rows, rows: np.ndarray | None, columns: np.ndarray | None) -> Rows:
    """Select rows and columns (None: all); a matrix in memory is sliced at once, one in a file on every access."""
    chosen = Selected(counts, rows, columns)
    return chosen if on_disk(counts) else chosen[0 : chosen.shape[0]]


def find_counts(adata: AnnData) -> tuple[sparse.csr_matrix, str]:
    """Return raw counts (cells x genes, CSR float32 integers) and their location.

    They are searched for in layers["counts"], raw and X, in that order. Counts in `raw` have the genes of
    adata.raw.var_names, which may differ from those of `adata`.
    Raises DataError if none of these holds raw counts, or if layers["counts"] exists and does not.
    """
    places = {LAYER: adata.layers.get("counts"), "raw": None if adata.raw is None else adata.raw.X, "X": adata.X}
    places |= {f'layers["{name}"]': layer for name, layer in adata.layers.items() if name not in ("counts", None)}
    counts, source = _find({place: lambda m=m: m for place, m in places.items() if m is not None})  # type: ignore[misc]
    whole = _whole(counts.data)
    rounded = (counts.data if whole else np.rint(counts.data)).astype(np.float32, copy=False)
    if not whole:
        log.info("Counts in %s were within %g of integers and were rounded", source, ROUNDING)
    log.info("Raw counts: %s (%d cells x %d genes)", source, *counts.shape)
    found = sparse.csr_matrix((rounded, counts.indices, counts.indptr), shape=counts.shape)
    if not rounded.all():  # values rounded to zero must not be explicit
        found = found.copy()
        found.eliminate_zeros()
    return found, source


def _find(places: Mapping[str, Callable[[], Any]]) -> tuple[sparse.csr_matrix, str]:
    """Return the matrix of raw counts, unchanged, and its location.

    places: for each location, a function that returns its matrix.
    """
    wrong: dict[str, str] = {}
    for source in (LAYER, "raw", "X"):
        if source not in places:
            continue
        counts = _as_csr(places[source]())
        reason = _why_not_counts(counts.data)
        if reason is None:
            break
        wrong[source] = reason
    else:
        found = "; ".join(f"{place} {reason}" for place, reason in wrong.items()) or "there is no X"
        other = _others_of_integers(places)
        remedy = "Put the raw integer counts into adata.layers['counts'], or give the file from before normalisation."
        if other:
            remedy = (
                f"{_listed(other)} whole numbers, though: if these are the raw counts, copy them into the layer "
                f"counts (adata.layers['counts'] = adata.{other[0]}); otherwise give the file from before "
                "normalisation."
            )
        raise DataError(f"There are no raw counts: {found}. {remedy}")
    if LAYER in wrong:
        those = [source]
        if source == "raw" and "X" in places and _why_not_counts(_as_csr(places["X"]()).data) is None:
            those.append("X")
        other = _others_of_integers(places)
        also = f" ({_listed(other)} whole numbers, too)" if other else ""
        raise DataError(
            f"{LAYER} {wrong[LAYER]}, but {_listed(those)} raw counts{also}: correct the layer, or drop it "
            f"(del adata.layers['counts']) to use {source}."
        )
    return counts, source


@dataclass(frozen=True)
class _Counts:
    """Raw counts in a file (cells, genes), read as CSR float32; every block read is checked to hold counts."""

    matrix: OnDisk

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape

    @property
    def rows_at_once(self) -> int:
        return self.matrix.rows_at_once

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        counts = _as_csr(self.matrix[at])
        reason = _why_not_counts(counts.data)
        if reason is not None:
            raise DataError(
                f"{self.matrix.path}: {self.matrix.place} {reason}, though its first cells hold raw counts. Put raw "
                "counts of all cells there, or give the file from before normalisation."
            )
        counts.data = np.rint(counts.data).astype(np.float32)
        counts.eliminate_zeros()
        return counts


def counts_of(cells: AnnData | Backed) -> tuple[Rows, str]:
    """Return raw counts (cells, genes) and their location; in a file, they are recognised by the first cells."""
    if not isinstance(cells, Backed):
        return find_counts(cells)
    _, place = _find({place: lambda m=m: m[:FIRST_CELLS] for place, m in cells.matrices.items()})  # type: ignore[misc]
    matrix = cells.matrices[place]
    log.info("Raw counts: %s of %s (%d cells x %d genes), read from the file", place, cells.path, *matrix.shape)
    return _Counts(matrix), place


def are_counts(matrix: Any) -> bool:
    """Whether all values of a matrix (dense or sparse) can be raw counts."""
    values = matrix.data if sparse.issparse(matrix) else np.ravel(matrix)
    return values.dtype.kind in "iufb" and _why_not_counts(values) is None


def _as_csr(matrix: Any) -> sparse.csr_matrix:
    """Convert a matrix to canonical CSR in memory, without explicit zeros or duplicates; copy only if needed."""
    if hasattr(matrix, "to_memory"):  # backed on disk
        matrix = matrix.to_memory()
    elif not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.dtype.kind not in "iufb":
        raise DataError(f"Values of type {matrix.dtype} are not counts: X and layers must hold numbers.")
    if matrix.dtype == np.float16:  # not supported by sparse matrices
        matrix = matrix.astype(np.float32)
    csr = sparse.csr_matrix(matrix)
    if not (csr.has_canonical_format and csr.data.all()):
        csr = csr.copy() if sparse.issparse(matrix) else csr
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def _why_not_counts(values: np.ndarray) -> str | None:
    """Return the reason why stored values are not raw counts; None if they are."""
    if _whole(values):
        return None
    unknown = int((~np.isfinite(values)).sum())
    if unknown:
        return f"has {unknown} values that are NaN or infinite"
    if len(values) and values.min() < -ROUNDING:
        return f"has negative values (down to {values.min():g}), so it was scaled or corrected"
    off = np.abs(values - np.rint(values)) > ROUNDING
    if not off.any():
        return None
    examples = ", ".join(f"{v:g}" for v in values[off][:3])
    kind = "so it looks log-normalised" if values.max() < 20 else "so it looks normalised or corrected"
    return f"has fractions ({examples}; at most {values.max():g}), {kind}"


def _whole(values: np.ndarray) -> bool:
    """Whether all values are exact nonnegative integers; checked in blocks that fit the processor's cache."""
    if values.dtype.kind in "ub":
        return True
    blocks = (values[start : start + 2**16] for start in range(0, len(values), 2**16))
    return all(block.min() >= 0 and block.max() < np.inf and bool((np.rint(block) == block).all()) for block in blocks)


def _others_of_integers(places: Mapping[str, Callable[[], Any]]) -> list[str]:
    """Return the layers, besides "counts", that could hold raw counts."""
    found = []
    for place in (place for place in places if place not in (LAYER, "raw", "X")):
        with contextlib.suppress(DataError, FileError):  # not numeric, or not readable
            if _why_not_counts(_as_csr(places[place]()).data) is None:
                found.append(place.replace('"', "'"))
    return found


def _listed(places: Sequence[str]) -> str:
    """Return "X holds" or "raw, X hold"."""
    return f"{', '.join(places)} {'holds' if len(places) == 1 else 'hold'}"
