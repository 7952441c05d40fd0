"""Conversion of the given cells to sets on one scale: log1p-normalised, with cell types and other obs columns."""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit._deprecated import migrate_codec_auc
from scdiffkit.errors import DataError, did_you_mean
from scdiffkit.evaluation.cell_sets import MIN_CELLS
from scdiffkit.evaluation.loaded_cells import DiskCells, LoadedCells
from scdiffkit.io import Backed, Rows
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.columns import TOTAL
from scdiffkit.preprocessing.counts import counts_of
from scdiffkit.preprocessing.normalise import lognormalise

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")
TARGET_SUM = 1e4
MAX_LOG_VALUE = 20.0  # log1p of half a billion: larger values are not logarithms of counts
NO_TYPE = "(none)"
AS_IT_IS = "log1p-normalised X, used as it is"


def load(
    cells: Mapping[str, AnnData | Backed],
    sources: Mapping[str, str],
    label: str | None,
    conditions: Sequence[str] = (),
    donor: str | None = None,
    batch: str | None = None,
) -> dict[str, LoadedCells]:
    """Put cells on one scale, by name; sources: where they came from, by name.

    Raises DataError if an obs column is missing, except in synthetic cells.
    """
    target_sum = _target_sum(cells["synthetic"]) or _target_sum(cells["real"]) or TARGET_SUM
    loaded: dict[str, LoadedCells] = {}
    for name, side in cells.items():
        source = sources[name]
        path = str(side.path) if isinstance(side, Backed) else source
        who = f"The {name} cells" if path == "memory" else f"The {name} cells ({path})"
        types, has_types = _types_of(side.obs, label, name, who)
        of_conditions = _texts(side.obs, conditions, "--condition", name, who)
        donors = _texts(side.obs, [donor] if donor else [], "--donor", name, who)
        batches = _texts(side.obs, [batch] if batch else [], "--batch", name, who)
        made_here = name == "synthetic" or "scdiffkit" in side.uns
        X, counts, genes, scale = _values(side, who, target_sum, made_here)
        loaded[name] = LoadedCells(
            name=name,
            source=source,
            X=X,
            counts=counts,
            genes=genes,
            types=types,
            has_types=has_types,
            conditions=of_conditions,
            donors=donors,
            batches=batches,
            scale=scale,
            n_cells=X.shape[0],
            n_genes=X.shape[1],
            codec_auc=migrate_codec_auc(side.uns.get("scdiffkit", {}).get("codec_auc", {})),
            remarks=[str(remark) for remark in side.uns.get("scdiffkit", {}).get("remarks", ())],
            sha256=sha256(Path(source)),
        )
    return loaded


def sha256(path: Path) -> str | None:
    """Compute the SHA-256 of a file; None if `path` is not a file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _target_sum(cells: AnnData | Backed) -> float | None:
    """Return the counts per cell of this tool's normalisation, from uns; None if not recorded."""
    recorded = cells.uns.get("scdiffkit", {})
    value = recorded.get("target_sum") or recorded.get("preprocess", {}).get("target_sum")
    return float(value) if value else None


def _values(
    cells: AnnData | Backed, who: str, target_sum: float, made_here: bool
) -> tuple[sparse.csr_matrix | DiskCells, sparse.csr_matrix | None, pd.Index, str]:
    """Return log1p-normalised values (cells, genes), raw counts of the same genes (None if there are none or they stay
    in a file), the genes, and a description of the source of the values.

    X that is log-normalised already is used unchanged, as synthetic cells may have fewer genes than they were
    normalised over. Raw counts of cells made by this tool are normalised by the library sizes in obs["total_counts"]
    (even if a format has lost `uns`), other raw counts by their sums over all genes of the set.
    """
    found: tuple[Rows, pd.Index, str] | DataError
    try:
        counts, place = counts_of(cells)
        found = counts, _var_names(cells, place), place
    except DataError as e:
        found = e
    X: Rows | None
    if isinstance(cells, Backed):
        X = cells.matrices.get("X")
    else:
        X = None if cells.X is None else sparse.csr_matrix(_in_memory(cells.X), dtype=np.float32)
    ours = "scdiffkit" in cells.uns
    if X is not None and _are_logged(X, who, ours):
        genes = _checked(X.shape, _var_names(cells, "X"), who)
        count_columns, places = None, None
        if not isinstance(found, DataError) and _are_among(genes, found[1]):
            count_columns, places = found[0], None if found[1].equals(genes) else found[1].get_indexer(genes)
        if isinstance(cells, Backed):
            return DiskCells(X, count_columns, target_sum, count_columns=places), None, genes, AS_IT_IS
        if count_columns is not None and places is not None:
            count_columns = count_columns[:, places]
        return X, count_columns, genes, AS_IT_IS
    if isinstance(found, DataError):
        raise DataError(f"{who} are neither raw counts nor log1p-normalised. {found}") from found
    counts, genes, place = found
    sizes = None
    if made_here and TOTAL in cells.obs:
        sizes = cells.obs[TOTAL].to_numpy()
        scale = f"raw counts in {place}, normalised by obs['total_counts'] to {target_sum:g}, log1p"
    else:
        scale = f"raw counts in {place}, normalised over {counts.shape[1]} genes to {target_sum:g}, log1p"
    _checked(counts.shape, genes, who)
    if isinstance(cells, Backed):
        return DiskCells(None, counts, target_sum, sizes), None, genes, scale
    return lognormalise(counts, target_sum, sizes), counts, genes, scale


def _var_names(cells: AnnData | Backed, place: str) -> pd.Index:
    """Return the genes of the matrix at a place ("X", "raw", 'layers["counts"]', ...)."""
    if isinstance(cells, Backed):
        return cells.var_of(place).index
    return cells.raw.var_names if place == "raw" else cells.var_names


def _are_among(wanted: pd.Index, genes: pd.Index) -> bool:
    """Whether each of the wanted genes occurs exactly once among `genes`."""
    return genes.equals(wanted) or not (genes.has_duplicates or len(wanted.difference(genes)))


def _are_logged(X: Rows, who: str, ours: bool) -> bool:
    """Whether X (cells, genes) holds logarithms of normalised counts, judged by all its values.

    Raises DataError for NaN or infinite values, and for negative values in cells that this tool made (ours).
    """
    unknown, low, high, whole = 0, 0.0, 0.0, True
    for values in [X.data] if isinstance(X, sparse.csr_matrix) else _values_of(X, who):
        if len(values):
            unknown += int((~np.isfinite(values)).sum())
            low, high = min(low, values.min()), max(high, values.max())
            whole = whole and np.array_equal(values, np.rint(values))
    if unknown:
        raise DataError(
            f"{who} have {unknown} values in X that are NaN or infinite, so no score would be meaningful. Remove "
            "these cells, or generate them again."
        )
    if low < 0 and ours:
        raise DataError(f"{who} have negative values in X (down to {low:g}): sample them again.")
    return not (low < 0 or whole) and (ours or high < MAX_LOG_VALUE)


def _values_of(X: Rows, who: str) -> Iterator[np.ndarray]:
    """Iterate over the stored values of a matrix in a file, block by block."""
    log.info("%s: checking X of %s cells", who, f"{X.shape[0]:,}")
    for _, block in iter_row_blocks(X):
        yield block.data.astype(np.float32, copy=False)


def _in_memory(X: Any) -> Any:
    return X.to_memory() if hasattr(X, "to_memory") else X


def _checked(shape: tuple[int, int], genes: pd.Index, who: str) -> pd.Index:
    """Return the genes. Raises DataError if there are no cells or genes, or if gene names are not unique."""
    if 0 in shape:
        raise DataError(f"{who} are empty ({shape[0]} cells x {shape[1]} genes).")
    repeated = genes[genes.duplicated()].unique()
    if len(repeated):
        raise DataError(
            f"{who} have {len(repeated)} gene names more than once (such as {repeated[0]!r}), so genes cannot be "
            "matched by name: run adata.var_names_make_unique() first."
        )
    return genes


def _types_of(obs: pd.DataFrame, label: str | None, name: str, who: str) -> tuple[np.ndarray, bool]:
    """Return the types of the cells (n,) as text, and whether there are any; only synthetic cells may lack them."""
    if label is None or (label not in obs and name == "synthetic"):
        return np.full(len(obs), NO_TYPE, dtype=object), False
    if label not in obs:
        raise DataError(f"{who} have no obs column {label!r} (--label); {did_you_mean(label, obs.columns)}")
    types = obs[label].astype(object).where(obs[label].notna(), NO_TYPE).astype(str).to_numpy(dtype=object)
    if len(types) > 2 * MIN_CELLS and len(set(types)) > len(types) / 2:
        raise DataError(
            f"{who} have {len(set(types))} different values of {label!r} (--label) in {len(types)} cells: choose a "
            "column that groups cells, such as the cell type."
        )
    return types, True


def _texts(obs: pd.DataFrame, columns: Sequence[str], option: str, name: str, who: str) -> np.ndarray | None:
    """Join the values of obs columns to one text per cell, (n,); None if no column is requested.

    Only synthetic cells may lack the columns.
    """
    missing = [column for column in columns if column not in obs]
    if not columns or (missing and name == "synthetic"):
        return None
    if missing:
        raise DataError(f"{who} have no obs column {missing[0]!r} ({option}); {did_you_mean(missing[0], obs.columns)}")
    values = [obs[c].astype(object).where(obs[c].notna(), NO_TYPE).astype(str) for c in columns]
    return np.array([sys.intern(" | ".join(row)) for row in zip(*values)], dtype=object)  # store each text once
