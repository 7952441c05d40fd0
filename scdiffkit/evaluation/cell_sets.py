"""The sets of cells that an evaluation compares, and the subsamples drawn from them.

This module does not depend on metrics or on the names of obs columns.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

MIN_CELLS = 5  # minimum size of a set that can be compared
BLOCK_OF_GENES = 512
POOLED_CELLS_PER_TYPE = 20


@dataclass(frozen=True)
class SetSummary:
    """Statistics of all n cells of a set, including those that are not loaded for the comparison.

    types: number of cells of each type. fingerprints: (n,), hashes of the compared genes. donors: (n,) text, or None.
    mean_sum: mean over cells of a cell's sum of normalised values, before log1p.
    """

    types: dict[str, int]
    fingerprints: np.ndarray
    donors: np.ndarray | None
    mean_sum: float

    @property
    def n(self) -> int:
        return len(self.fingerprints)


@dataclass(frozen=True, kw_only=True)
class AnnotatedCells:
    """A named set of cells: its genes, and annotations of its cells.

    types, conditions, donors, batches: (cells,) text; the latter three are None unless requested. n_cells, n_genes:
    size before cells or genes were dropped. codec_auc, remarks: what synthetic cells record, else empty: the
    AUC of the run's codec, and what makes the cells less reliable.
    """

    name: str
    source: str
    genes: pd.Index
    types: np.ndarray
    has_types: bool
    conditions: np.ndarray | None
    donors: np.ndarray | None
    batches: np.ndarray | None
    scale: str
    n_cells: int
    n_genes: int
    codec_auc: dict[str, float]
    remarks: list[str]
    sha256: str | None

    def annotations_at(self, rows: np.ndarray) -> dict[str, Any]:
        """Return types, conditions, donors and batches of these cells, by name."""
        found = {name: getattr(self, name) for name in ("types", "conditions", "donors", "batches")}
        return {name: None if values is None else values[rows] for name, values in found.items()}

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "sha256": self.sha256,
            "cells": self.n_cells,
            "genes": self.n_genes,
            "scale": self.scale,
        }


@dataclass(frozen=True, kw_only=True)
class CellSet(AnnotatedCells):
    """A set of cells in memory that is ready to be compared.

    X: (cells, genes), log1p-normalised CSR. counts: raw counts (cells, genes), and library_size: their sums (cells,);
    None if there are none or they were not loaded. summary: statistics of all cells, also of those that were not
    loaded.
    """

    X: sparse.csr_matrix
    counts: sparse.csr_matrix | None
    library_size: np.ndarray | None
    summary: SetSummary

    def subsample(self, rows: np.ndarray) -> Subsample:
        """Select these cells, with the per-cell arrays that metrics need."""
        X = self.X[rows]
        X.eliminate_zeros()
        per_cell: dict[str, np.ndarray] = {"genes_detected": np.diff(X.indptr).astype(float)}
        if self.has_types:
            per_cell["types"] = self.types[rows]
        if self.conditions is not None:
            per_cell["conditions"] = self.conditions[rows]
        if self.donors is not None:
            per_cell["donors"] = self.donors[rows]
        if self.batches is not None:
            per_cell["batches"] = self.batches[rows]
        if self.library_size is not None:
            per_cell["library_size"] = self.library_size[rows]
        mitochondrial = self.genes.str.upper().str.startswith("MT-")
        if mitochondrial.any():
            shares = X.copy()
            shares.data = np.expm1(shares.data)
            totals = np.maximum(np.asarray(shares.sum(axis=1)).ravel(), 1e-12)
            per_cell["mitochondrial_share"] = np.asarray(shares[:, mitochondrial].sum(axis=1)).ravel() / totals
        return Subsample(X, self.types[rows], per_cell)


@dataclass(frozen=True)
class Subsample:
    """Cells drawn from a CellSet.

    X: (n, G) log1p-normalised CSR without explicit zeros, or principal components (n, D). types: (n,). per_cell:
    further per-cell arrays (n,) that metrics need, by name.
    """

    X: Any
    types: np.ndarray
    per_cell: dict[str, np.ndarray]

    @property
    def has_types(self) -> bool:
        return "types" in self.per_cell

    def take(self, rows: np.ndarray) -> Subsample:
        """Select these cells, in this order."""
        return Subsample(self.X[rows], self.types[rows], {name: values[rows] for name, values in self.per_cell.items()})

    def in_genes(self, genes: np.ndarray) -> Subsample:
        """Select genes by their indices."""
        return replace(self, X=self.X[:, genes])

    def shuffled(self, rng: np.random.Generator) -> Subsample:
        """Return a copy in which each gene is shuffled among the cells of a type."""
        X = shuffle_within(self.X, self.types, rng)
        return Subsample(X, self.types, self.per_cell | {"genes_detected": np.diff(X.indptr).astype(float)})

    def pooled(self) -> Subsample:
        """Return cells that all equal the mean cell; a few per type are enough, since they are identical."""
        place = pd.Series(self.types).groupby(self.types).cumcount().to_numpy()
        rows = np.flatnonzero(place < POOLED_CELLS_PER_TYPE)
        X = sparse.vstack([sparse.csr_matrix(self.X.mean(axis=0))] * len(rows), format="csr")
        per_cell = {
            name: np.full(len(rows), values.mean()) if values.dtype.kind == "f" else values[rows]
            for name, values in self.per_cell.items()
        }
        return Subsample(X, self.types[rows], per_cell | {"genes_detected": np.diff(X.indptr).astype(float)})


def join_members(others: Subsample, members: Subsample, reference: Subsample | None = None) -> Subsample:
    """Join sets with dense X into one; per_cell["member"] is 0.0 for others, 1.0 for members, 2.0 for reference."""
    parts = [others, members] if reference is None else [others, members, reference]
    per_cell = {"member": np.repeat(np.arange(float(len(parts))), [len(part.types) for part in parts])}
    if all("donors" in part.per_cell for part in parts):
        per_cell["donors"] = np.concatenate([part.per_cell["donors"] for part in parts])
    return Subsample(np.vstack([part.X for part in parts]), np.concatenate([part.types for part in parts]), per_cell)


def draw_order(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a random order of cells (n,) in which every contiguous part has about the composition of the whole set.

    Cells of each type are spread evenly over the order, from a random start (systematic sampling).
    """
    position = np.empty(len(types))
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        position[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def shuffle_within(X: sparse.csr_matrix, types: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """Permute each gene of X (n, G), independently of the other genes, among the cells of each type (n,)."""
    columns, blocks = X.tocsc(), []
    for start in range(0, X.shape[1], BLOCK_OF_GENES):
        block = columns[:, start : start + BLOCK_OF_GENES].toarray()
        for name in np.unique(types):
            rows = np.flatnonzero(types == name)
            block[rows] = rng.permuted(block[rows], axis=0)
        blocks.append(sparse.csc_matrix(block))
    return sparse.hstack(blocks, format="csr")
