"""Filters of cells and genes."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pandas as pd

from scdiffkit.config import PreprocessConfig
from scdiffkit.errors import DataError, did_you_mean, warn
from scdiffkit.io import Rows
from scdiffkit.io.matrices import iter_row_blocks

log = logging.getLogger("scdiffkit")
MAX_MIN_CELLS_IN_ONE_PASS = 50  # maximum min_cells for which counts of genes that are still too rare are kept in memory


def passing(
    counts: Rows, names: pd.Index, config: PreprocessConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Return the indices of the cells and of the genes that pass the filters, and the library size of these cells over
    these genes.

    Genes are counted in the cells that pass. Library sizes are computed in the same pass over the counts, which
    collects the counts of genes that are too rare so far; None if min_cells is so high that these could be too many.
    """
    mito = _mitochondrial(names, config) if config.max_mito is not None else None
    of_cells = np.zeros((3, counts.shape[0]))  # total counts, genes detected, mitochondrial share
    detected = np.zeros(counts.shape[1], dtype=np.int64)
    of_rare: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # cells, genes and counts
    for part, block in iter_row_blocks(counts):
        totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        of_cells[0, part], of_cells[1, part] = totals, np.diff(block.indptr)
        if mito is not None:
            in_mito = np.asarray(block[:, mito].sum(axis=1, dtype=np.float64)).ravel()
            of_cells[2, part] = np.divide(in_mito, totals, out=np.zeros_like(totals), where=totals > 0)
        passed = np.all([passed for *_, passed in _checks(config, *of_cells[:, part])], axis=0)
        of_passed = np.repeat(passed, np.diff(block.indptr))
        detected += np.bincount(block.indices[of_passed], minlength=len(detected))
        if config.min_cells > MAX_MIN_CELLS_IN_ONE_PASS:
            continue
        rare = np.flatnonzero(of_passed & (detected < config.min_cells)[block.indices])
        cell = part.start + np.searchsorted(block.indptr, rare, side="right") - 1
        of_rare.append((cell, block.indices[rare], block.data[rare]))
    keep = np.ones(counts.shape[0], dtype=bool)
    for name, limit, values, passed in _checks(config, *of_cells):
        before, keep = keep, keep & passed
        if not keep.any():
            raise DataError(
                f"No cells are left: --{name.replace('_', '-')} {limit} drops the last {before.sum()} of "
                f"{len(keep)} cells (their median is {np.median(values[before]):g}). Choose a less strict value."
            )
        log.info("Cells: %d -> %d (%s %s)", before.sum(), keep.sum(), name, limit)
    genes = _passing_genes(detected, int(keep.sum()), names, config)
    if config.min_cells > MAX_MIN_CELLS_IN_ONE_PASS:
        return np.flatnonzero(keep), genes, None
    cell, gene, value = (np.concatenate(values) for values in zip(*of_rare, strict=True))
    dropped = detected[gene] < config.min_cells
    totals = of_cells[0] - np.bincount(cell[dropped], value[dropped], len(keep))
    return np.flatnonzero(keep), genes, totals[keep]


def _checks(
    config: PreprocessConfig, totals: np.ndarray, genes: np.ndarray, mito: np.ndarray
) -> list[tuple[str, Any, np.ndarray, np.ndarray]]:
    """Return name, limit, value of each cell, and mask of passing cells for each active cell filter."""
    checks: list[tuple[str, Any, np.ndarray, np.ndarray]] = [
        ("min_counts", config.min_counts, totals, totals >= config.min_counts),
        ("min_genes", config.min_genes, genes, genes >= config.min_genes),
    ]
    if config.max_counts is not None:
        checks.append(("max_counts", config.max_counts, totals, totals <= config.max_counts))
    if config.max_genes is not None:
        checks.append(("max_genes", config.max_genes, genes, genes <= config.max_genes))
    if config.max_mito is not None:
        checks.append(("max_mito", config.max_mito, mito, mito <= config.max_mito))
    return checks


def _mitochondrial(names: pd.Index, config: PreprocessConfig) -> np.ndarray:
    """Return a mask of the mitochondrial genes, (n_genes,) bool. Warns if there are none."""
    prefix = config.mito_prefix
    mito = np.array([str(name).casefold().startswith(prefix.casefold()) for name in names])
    if not mito.any():
        warn(
            f"No gene name starts with {prefix!r}: --max-mito drops nothing. Set --mito-prefix (mouse: mt-), or leave "
            "it out."
        )
    return mito


def _passing_genes(detected: np.ndarray, n_cells: int, names: pd.Index, config: PreprocessConfig) -> np.ndarray:
    keep = detected >= config.min_cells
    if not keep.any():
        raise DataError(
            f"No genes are left: --min-cells {config.min_cells} drops all {len(keep)} genes (the most frequent one "
            f"is detected in {detected.max()} of {n_cells} cells). Choose a less strict value."
        )
    log.info("Genes: %d -> %d (min_cells %d)", len(keep), keep.sum(), config.min_cells)
    if config.hvg_flavor == "list":
        _check_list(config, list(names), list(names[keep]))
    return np.flatnonzero(keep)


def _check_list(config: PreprocessConfig, all_genes: list[str], kept: list[str]) -> None:
    wanted, there, left = config.genes or (), set(all_genes), set(kept)
    absent = [gene for gene in wanted if gene not in there]
    if absent:
        raise DataError(
            f"{len(absent)} of the {len(wanted)} genes listed are not in the data "
            f"({', '.join(map(repr, absent[:5]))}); {absent[0]!r}: {did_you_mean(absent[0], all_genes)}"
        )
    dropped = [gene for gene in wanted if gene not in left]
    if dropped:
        raise DataError(
            f"{len(dropped)} of the {len(wanted)} genes listed ({', '.join(map(repr, dropped[:5]))}) are detected in "
            f"fewer than {config.min_cells} cells: take them off the list, or choose --min-cells 0."
        )
