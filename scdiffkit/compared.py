"""The sets of cells that an evaluation compares: loaded, brought to one scale and the same genes, equal in size.

Cells may stay in their files: these are read block by block for what needs all cells, and of very many only some, drawn
at random, are brought into memory to be compared. Knows AnnData and obs columns; knows no metric.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError, ScdiffWarning, nearest
from scdiffkit.io import Backed, Rows, ahead, blocks, give_back
from scdiffkit.io.backed import rows_at_once
from scdiffkit.metrics.privacy import fingerprints
from scdiffkit.preprocess import TOTAL, counts_of, lognormalise

if TYPE_CHECKING:
    from anndata import AnnData

TARGET_SUM = 1e4
MAX_LOG_VALUE = 20.0  # log1p of half a billion: larger values are not logarithms of counts
FEWEST_GENES, MIN_CELLS = 100, 5
SCALE_RATIO = 1.5  # sums per cell that differ by more than this were hardly normalised in the same way
BLOCK_OF_GENES = 512
POOLED_OF_A_TYPE = 20
SHARE_OF_DONORS, FEWEST_DONORS = 0.8, 5  # that a resample draws; that make drawing some of them worth it
UNLIKE = 0.05  # share of held-out cells of kinds that were not trained on
NO_TYPE = "(none)"
AS_IT_IS = "log1p-normalised X, taken as it is"
log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class InFile:
    """Cells that stay in their file: log1p-normalised values (cells, genes), read or made when they are asked for.

    logged: these as the file has them, None where they are made from the counts. counts: raw counts, of more genes
    perhaps; None where there are none of some genes. library_size: (cells of the file,) that they are normalised by;
    None: their sums. rows: of the file; columns, of_counts: places of the genes in `logged` and `counts`; None: all.
    """

    logged: Rows | None
    counts: Rows | None
    target_sum: float
    library_size: np.ndarray | None = None
    rows: np.ndarray | None = None
    columns: np.ndarray | None = None
    of_counts: np.ndarray | None = None

    @property
    def stored(self) -> Rows:
        """The matrix that values come from."""
        found = self.counts if self.logged is None else self.logged
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int, int]:
        n, genes = self.stored.shape
        columns = self.of_counts if self.logged is None else self.columns
        return (n if self.rows is None else len(self.rows), genes if columns is None else len(columns))

    @property
    def rows_at_once(self) -> int:
        return rows_at_once(self.stored)

    def __getitem__(self, at: slice | np.ndarray) -> sparse.csr_matrix:
        return self.read(at)[0]

    def read(self, at: slice | np.ndarray) -> tuple[sparse.csr_matrix, sparse.csr_matrix | None]:
        """Values of some cells, and, if these are made from them, their counts."""
        rows = at if self.rows is None else self.rows[at]
        if self.logged is not None:
            X = sparse.csr_matrix(self.logged[rows], dtype=np.float32)
            return X if self.columns is None else X[:, self.columns], None
        counts = self.stored[rows]
        X = lognormalise(counts, self.target_sum, None if self.library_size is None else self.library_size[rows])
        return (X, counts) if self.of_counts is None else (X[:, self.of_counts], counts[:, self.of_counts])

    def counts_at(self, at: np.ndarray) -> sparse.csr_matrix | None:
        """Counts of some cells."""
        if self.counts is None:
            return None
        counts = self.counts[at if self.rows is None else self.rows[at]]
        return counts if self.of_counts is None else counts[:, self.of_counts]

    def take(self, rows: np.ndarray) -> InFile:
        """These cells only."""
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def keep_genes(self, places: np.ndarray) -> InFile:
        """These genes only, in this order."""
        columns, of_counts = (places if old is None else old[places] for old in (self.columns, self.of_counts))
        return replace(self, columns=columns, of_counts=of_counts)


@dataclass(frozen=True)
class Everyone:
    """What is known of all n cells of a side, also where only some of them are compared.

    types: cells of each. fingerprints: (n,) of the genes compared; donors: (n,) text, or None. mean_sum: of a cell's
    normalised values before the logarithm.
    """

    types: dict[str, int]
    fingerprints: np.ndarray
    donors: np.ndarray | None
    mean_sum: float

    @property
    def n(self) -> int:
        return len(self.fingerprints)


@dataclass
class Side:
    """One of the data sets: X (cells, genes) log1p-normalised CSR, its genes, and what is known of its cells.

    X: InFile where cells stay in their file, until `gather` has brought some of them into memory. counts: raw counts
    (cells, genes), library_size: their sums (cells,), None where there are none or they were not gathered. types,
    conditions, donors, batches: (cells,) text, the latter three None unless asked for. codec_auc: of the run that made
    the cells, remarks: on how it made them, where they say.
    """

    name: str
    source: str
    X: Any
    counts: sparse.csr_matrix | None
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
    library_size: np.ndarray | None = None
    everyone: Everyone | None = None

    def take(self, rows: np.ndarray) -> None:
        """Keep these cells only."""
        self.X = self.X.take(rows) if isinstance(self.X, InFile) else self.X[rows]
        self._take_of_obs(rows)
        self.counts = None if self.counts is None else self.counts[rows]

    def _take_of_obs(self, rows: np.ndarray) -> None:
        self.types = self.types[rows]
        self.conditions = None if self.conditions is None else self.conditions[rows]
        self.donors = None if self.donors is None else self.donors[rows]
        self.batches = None if self.batches is None else self.batches[rows]

    def keep_genes(self, genes: pd.Index) -> None:
        """Keep these genes only, in this order."""
        places = self.genes.get_indexer(genes)
        self.X = self.X.keep_genes(places) if isinstance(self.X, InFile) else self.X[:, places]
        self.counts, self.genes = None if self.counts is None else self.counts[:, places], genes

    def fingerprints(self, genes: pd.Index, fewest: int) -> np.ndarray:
        """Of all cells (n,), in these genes; see metrics.privacy."""
        places, found = self.genes.get_indexer(genes), np.empty(self.X.shape[0], dtype=np.uint64)
        for part, X in blocks(self.X):
            found[part] = fingerprints(X[:, places], fewest)
        return found

    def gather(self, most: int, rng: np.random.Generator, *, counts_too: bool) -> None:
        """Find what is known of everyone, and of cells in a file bring at most so many into memory to be drawn from, at
        random within types.

        counts_too: whether these cells' counts are wanted, not only their sums.
        """
        n = self.X.shape[0]
        held = np.arange(n)
        if isinstance(self.X, InFile) and n > most:
            held = np.sort(draw_order(self.types, rng)[:most])
        marks, total = np.empty(n, dtype=np.uint64), 0.0
        kept, of_kept, sizes = [], [], []
        no_counts: list[str] = []
        for part, X, here, counts in _blocks(self.X, held, no_counts):
            marks[part] = fingerprints(X)
            total += float(np.expm1(X.data).sum(dtype=np.float64))
            if isinstance(self.X, InFile):
                kept.append(X if len(here) == X.shape[0] else X[here])
                of_kept += [counts] if counts is not None and counts_too else []
                sizes += [] if counts is None else [_sums(counts)]
        self.everyone = Everyone(dict(Counter(self.types)), marks, self.donors, total / max(1, n))
        if no_counts:
            log.info("%s: X is compared without counts. %s", self.name, no_counts[0])
            of_kept, sizes = [], []
        if isinstance(self.X, InFile):
            self.X, self.counts = _stacked(kept), _stacked(of_kept)
            self.library_size = np.concatenate(sizes) if sizes else None
            self._take_of_obs(held)
            kept.clear()
            of_kept.clear()
            give_back()  # the pieces lay between the blocks that they were taken from
        elif self.counts is not None:
            self.library_size = _sums(self.counts)

    def part(self, rows: np.ndarray) -> Part:
        X = self.X[rows]
        X.eliminate_zeros()
        of_cells: dict[str, np.ndarray] = {"genes_detected": np.diff(X.indptr).astype(float)}
        if self.has_types:
            of_cells["types"] = self.types[rows]
        if self.conditions is not None:
            of_cells["conditions"] = self.conditions[rows]
        if self.donors is not None:
            of_cells["donors"] = self.donors[rows]
        if self.batches is not None:
            of_cells["batches"] = self.batches[rows]
        if self.library_size is not None:
            of_cells["library_size"] = self.library_size[rows]
        mitochondrial = self.genes.str.upper().str.startswith("MT-")
        if mitochondrial.any():
            shares = X.copy()
            shares.data = np.expm1(shares.data)
            totals = np.maximum(np.asarray(shares.sum(axis=1)).ravel(), 1e-12)
            of_cells["mitochondrial_share"] = np.asarray(shares[:, mitochondrial].sum(axis=1)).ravel() / totals
        return Part(X, self.types[rows], of_cells)

    def describe(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "sha256": self.sha256,
            "cells": self.n_cells,
            "genes": self.n_genes,
            "scale": self.scale,
        }


def _blocks(
    X: Any, held: np.ndarray, no_counts: list[str]
) -> Iterator[tuple[slice, sparse.csr_matrix, np.ndarray, Any]]:
    """All cells a block at a time: part, X, which of them are held (places in the block), and of those in a file the
    counts; the next block is read while one is worked on.

    Where the counts beside logarithms turn out to be none, there are none from then on, and no_counts has the reason.
    """
    if not isinstance(X, InFile):
        yield from ((part, block, held[part] - part.start, None) for part, block in blocks(X))
        return
    n, step = X.shape[0], X.rows_at_once

    def read(start: int) -> tuple[slice, sparse.csr_matrix, np.ndarray, Any]:
        part = slice(start, min(start + step, n))
        first, last = np.searchsorted(held, [part.start, part.stop])
        here = held[first:last] - part.start
        block, counts = X.read(part)
        if X.logged is not None and not no_counts:
            try:
                counts = X.counts_at(held[first:last])
            except DataError as e:
                no_counts.append(str(e))
        elif counts is not None and len(here) < block.shape[0]:
            counts = counts[here]
        return part, block, here, counts

    yield from ahead(read(start) for start in range(0, n, step))


def _sums(counts: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1), dtype=float).ravel()


def _stacked(parts: list[sparse.csr_matrix]) -> sparse.csr_matrix | None:
    return sparse.vstack(parts, format="csr") if parts else None


@dataclass(frozen=True)
class Part:
    """Cells drawn from a side: X (n, G) log1p-normalised CSR without stored zeros, or their components (n, D); types
    (n,), and what metrics may need besides: by name, an array (n,) each."""

    X: Any
    types: np.ndarray
    of_cells: dict[str, np.ndarray]

    @property
    def has_types(self) -> bool:
        return "types" in self.of_cells

    def take(self, rows: np.ndarray) -> Part:
        """These cells of it, in this order."""
        return Part(self.X[rows], self.types[rows], {name: values[rows] for name, values in self.of_cells.items()})

    def in_genes(self, genes: np.ndarray) -> Part:
        """The same cells, these genes (places) of them."""
        return replace(self, X=self.X[:, genes])

    def shuffled(self, rng: np.random.Generator) -> Part:
        """The same cells with each gene shuffled among the cells of a type."""
        X = shuffle_within(self.X, self.types, rng)
        return Part(X, self.types, self.of_cells | {"genes_detected": np.diff(X.indptr).astype(float)})

    def pooled(self) -> Part:
        """Cells that are all the mean of these; of each type a few, since they are all the same."""
        place = pd.Series(self.types).groupby(self.types).cumcount().to_numpy()
        rows = np.flatnonzero(place < POOLED_OF_A_TYPE)
        X = sparse.vstack([sparse.csr_matrix(self.X.mean(axis=0))] * len(rows), format="csr")
        of_cells = {
            name: np.full(len(rows), values.mean()) if values.dtype.kind == "f" else values[rows]
            for name, values in self.of_cells.items()
        }
        return Part(X, self.types[rows], of_cells | {"genes_detected": np.diff(X.indptr).astype(float)})


def candidates(others: Part, members: Part, reference: Part | None = None) -> Part:
    """All, of dense X, as one set, of_cells["member"] telling 0.0, 1.0 and, of reference cells, 2.0."""
    parts = [others, members] if reference is None else [others, members, reference]
    of_cells = {"member": np.repeat(np.arange(float(len(parts))), [len(part.types) for part in parts])}
    if all("donors" in part.of_cells for part in parts):
        of_cells["donors"] = np.concatenate([part.of_cells["donors"] for part in parts])
    return Part(np.vstack([part.X for part in parts]), np.concatenate([part.types for part in parts]), of_cells)


class Remarks:
    """Collects what a reader of the scores must know."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        warnings.warn(message, ScdiffWarning, stacklevel=4)
        self.warnings.append(message)


def load(
    cells: Mapping[str, AnnData | Backed],
    sources: Mapping[str, str],
    label: str | None,
    conditions: Sequence[str] = (),
    donor: str | None = None,
    batch: str | None = None,
) -> dict[str, Side]:
    """The sides by name, from where they came from by name; synthetic cells may lack the columns, others may not
    (DataError)."""
    target_sum = _target_sum(cells["synthetic"]) or _target_sum(cells["real"]) or TARGET_SUM
    sides: dict[str, Side] = {}
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
        sides[name] = Side(
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
            codec_auc=dict(side.uns.get("scdiffkit", {}).get("codec_auc", {})),
            remarks=[str(remark) for remark in side.uns.get("scdiffkit", {}).get("remarks", ())],
            sha256=sha256(Path(source)),
        )
    return sides


def sha256(path: Path) -> str | None:
    """Of a file; None of anything else."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _target_sum(cells: AnnData | Backed) -> float | None:
    """Counts per cell that this tool recorded having normalised to."""
    recorded = cells.uns.get("scdiffkit", {})
    value = recorded.get("target_sum") or recorded.get("preprocess", {}).get("target_sum")
    return float(value) if value else None


def _values(
    cells: AnnData | Backed, who: str, target_sum: float, made_here: bool
) -> tuple[sparse.csr_matrix | InFile, sparse.csr_matrix | None, pd.Index, str]:
    """log1p-normalised values (cells, genes), raw counts of the same genes where there are any and they are in memory,
    the genes, and where the values came from, in words.

    X that is log-normalised already is taken as it is: synthetic cells may hold fewer genes than they were
    normalised over. Raw counts are normalised by obs["total_counts"], the library size that this tool leaves
    in the cells it makes (also where a format has lost `uns`), else over all genes that the side has.
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
        of_counts, places = None, None
        if not isinstance(found, DataError) and _are_among(genes, found[1]):
            of_counts, places = found[0], None if found[1].equals(genes) else found[1].get_indexer(genes)
        if isinstance(cells, Backed):
            return InFile(X, of_counts, target_sum, of_counts=places), None, genes, AS_IT_IS
        if of_counts is not None and places is not None:
            of_counts = of_counts[:, places]
        return X, of_counts, genes, AS_IT_IS
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
        return InFile(None, counts, target_sum, sizes), None, genes, scale
    return lognormalise(counts, target_sum, sizes), counts, genes, scale


def _var_names(cells: AnnData | Backed, place: str) -> pd.Index:
    """Genes of the matrix in a place."""
    if isinstance(cells, Backed):
        return cells.var_of(place).index
    return cells.raw.var_names if place == "raw" else cells.var_names


def _are_among(wanted: pd.Index, genes: pd.Index) -> bool:
    """Whether each of the genes that are wanted is in one place among others."""
    return genes.equals(wanted) or not (genes.has_duplicates or len(wanted.difference(genes)))


def _are_logged(X: Rows, who: str, ours: bool) -> bool:
    """Whether X (cells, genes) holds logarithms of normalised counts, by all its values. DataError where some are no
    numbers, or negative in cells that this tool made (ours)."""
    unknown, low, high, whole = 0, 0.0, 0.0, True
    for values in [X.data] if isinstance(X, sparse.csr_matrix) else _values_of(X, who):
        if len(values):
            unknown += int((~np.isfinite(values)).sum())
            low, high = min(low, values.min()), max(high, values.max())
            whole = whole and np.array_equal(values, np.rint(values))
    if unknown:
        raise DataError(
            f"{who} have {unknown} values in X that are NaN or infinite: no score would mean anything. Remove these "
            "cells, or make them again."
        )
    if low < 0 and ours:
        raise DataError(f"{who} have negative values in X (down to {low:g}): sample them again.")
    return not (low < 0 or whole) and (ours or high < MAX_LOG_VALUE)


def _values_of(X: Rows, who: str) -> Iterator[np.ndarray]:
    """Those stored in a file, a block at a time."""
    log.info("%s: looking through X of %s cells", who, f"{X.shape[0]:,}")
    for _, block in blocks(X):
        yield block.data.astype(np.float32, copy=False)


def _in_memory(X: Any) -> Any:
    return X.to_memory() if hasattr(X, "to_memory") else X


def _checked(shape: tuple[int, int], genes: pd.Index, who: str) -> pd.Index:
    """The genes, when there are cells and genes can be matched by name."""
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
    """Types of cells (n,) as text; only synthetic cells may lack them."""
    if label is None or (label not in obs and name == "synthetic"):
        return np.full(len(obs), NO_TYPE, dtype=object), False
    if label not in obs:
        raise DataError(f"{who} have no obs column {label!r} (--label); {nearest(label, obs.columns)}")
    types = obs[label].astype(object).where(obs[label].notna(), NO_TYPE).astype(str).to_numpy(dtype=object)
    if len(types) > 2 * MIN_CELLS and len(set(types)) > len(types) / 2:
        raise DataError(
            f"{who} have {len(set(types))} different values of {label!r} (--label) in {len(types)} cells: choose a "
            "column that groups cells, such as the cell type."
        )
    return types, True


def _texts(obs: pd.DataFrame, columns: Sequence[str], option: str, name: str, who: str) -> np.ndarray | None:
    """Values of columns as one text a cell, (n,); None where none is asked for. Only synthetic cells may lack them."""
    missing = [column for column in columns if column not in obs]
    if not columns or (missing and name == "synthetic"):
        return None
    if missing:
        raise DataError(f"{who} have no obs column {missing[0]!r} ({option}); {nearest(missing[0], obs.columns)}")
    values = [obs[c].astype(object).where(obs[c].notna(), NO_TYPE).astype(str) for c in columns]
    return np.array([sys.intern(" | ".join(row)) for row in zip(*values)], dtype=object)  # a text once, not a cell


def note_scales(sides: dict[str, Side], remarks: Remarks) -> None:
    for side in sides.values():
        remarks.notes.append(f"{side.name}: {side.n_cells} cells x {side.n_genes} genes; {side.scale}.")


def match_genes(sides: dict[str, Side], remarks: Remarks) -> None:
    """Leave on every side the genes that all have, in the order of their names."""
    real, others = sides["real"], [side for side in sides.values() if side.name != "real"]
    shared = real.genes
    for side in others:
        both = shared.intersection(side.genes)
        if both.empty:
            examples = "; ".join(f"{s.name}: {', '.join(map(str, s.genes[:3]))}" for s in (real, side))
            raise DataError(
                f"The real and the {side.name} cells have no gene in common ({examples}). Both need the same kind "
                "of names in var_names, symbols or Ensembl ids, of the same species."
            )
        remarks.notes.append(
            f"Genes: {len(real.genes.intersection(side.genes))} in both real and {side.name} cells; "
            f"{len(real.genes.difference(side.genes))} only in real, "
            f"{len(side.genes.difference(real.genes))} only in {side.name}."
        )
        shared = both
    shared = shared.sort_values()
    if len(shared) < FEWEST_GENES:
        raise DataError(
            f"Only {len(shared)} genes are in all sets of cells ({', '.join(map(str, shared[:3]))} ...); at least "
            f"{FEWEST_GENES} are needed for scores that mean anything. Are genes named alike, symbols or Ensembl ids?"
        )
    for side in sides.values():
        side.keep_genes(shared)


def gather(
    sides: dict[str, Side], most: int, seed: int, remarks: Remarks, counts_of: Sequence[str] = ()
) -> dict[str, tuple[int, int]]:
    """Look through all cells, and of those in files bring at most `most` a side into memory, to be compared; warns
    where sides were hardly normalised alike. How many of how many, of the sides that have more.

    counts_of: sides whose counts are wanted, too. The same seed chooses the same cells.
    """
    sampled = {}
    for i, (name, side) in enumerate(sorted(sides.items())):
        if isinstance(side.X, InFile):
            log.info("%s: reading all %s cells", name, f"{side.X.shape[0]:,}")
        side.gather(most, np.random.default_rng([seed, 9, i]), counts_too=name in counts_of)
        if side.X.shape[0] < _everyone(side).n:
            sampled[name] = (side.X.shape[0], _everyone(side).n)
    sums = {side.name: _everyone(side).mean_sum for side in sides.values()}
    for side in (side for side in sides.values() if side.name != "real"):
        low, high = sorted([sums["real"], sums[side.name]])
        if high > SCALE_RATIO * low:
            remarks.warn(
                f"The common genes of a cell sum to {sums['real']:.4g} in real and {sums[side.name]:.4g} in "
                f"{side.name} cells. If they were normalised differently (to another total, or over other genes), "
                "no score is meaningful: give both as raw counts of the same genes, or normalised alike."
            )
    for name, (n, of) in sampled.items():
        within = " within types" if sides[name].has_types else ""
        remarks.notes.append(f"{name}: {n:,} of {of:,} cells, drawn at random{within}, are compared.")
    known = "train" if "train" in sides else "real"
    if known in sampled:
        what = "training" if known == "train" else "real"
        remarks.notes.append(
            f"nn_ratio, near_duplicates and membership_auc look for the nearest {what} cell among these "
            f"{sampled[known][0]:,} alone: what is like another one escapes them. exact_duplicates is of all cells."
        )
    return sampled


def _everyone(side: Side) -> Everyone:
    assert side.everyone is not None, "gather comes first"
    return side.everyone


def separate(sides: dict[str, Side], unseen: np.ndarray, trained: np.ndarray) -> None:
    """Make two sides of the real cells, those that a model has not seen and those it was trained on (places)."""
    sides["train"] = replace(sides["real"], name="train")
    for name, rows in (("real", unseen), ("train", trained)):
        sides[name].take(rows)
        sides[name].n_cells = len(rows)


def of_known_kinds(real: Side, train: Side) -> bool:
    """Whether held-out cells are of the types and conditions that were trained on, but for a few."""
    columns = [
        (real.types, train.types) if real.has_types and train.has_types else None,
        (real.conditions, train.conditions) if real.conditions is not None else None,
    ]
    pairs = [pair for pair in columns if pair is not None]
    if not pairs:
        return True
    of_real, of_train = (list(zip(*(pair[side] for pair in pairs), strict=True)) for side in (0, 1))
    trained = set(of_train)
    return sum(kind not in trained for kind in of_real) <= UNLIKE * len(of_real)


def other_donors(real: Part, train: Part) -> bool:
    """Whether held-out cells are of other donors than those trained on, and so unlike them anyway."""
    both = [set(part.of_cells["donors"]) for part in (real, train) if "donors" in part.of_cells]
    return len(both) == 2 and both[0].isdisjoint(both[1])


def drop_trained_on(sides: dict[str, Side], remarks: Remarks) -> None:
    """Take out of the real cells those that are also training cells: to a model they are not new.

    To be called before genes that synthetic cells lack are left out: in few genes, cells are alike by chance.
    """
    real, train = sides["real"], sides["train"]
    genes = real.genes.intersection(train.genes)
    if genes.empty:
        return  # which match_genes refuses
    for side in (train, real):
        if isinstance(side.X, InFile):
            log.info("%s: looking through %s cells for those in both real and train", side.name, f"{side.X.shape[0]:,}")
    new = ~np.isin(real.fingerprints(genes, 0), train.fingerprints(genes, 0))
    if new.all():
        return
    if new.sum() < MIN_CELLS:
        raise DataError(
            f"{(~new).sum()} of the {len(new)} real cells are also in the training cells (--train), so hardly any "
            "were held out. Give cells that the model was not trained on, or leave --train out."
        )
    remarks.warn(f"{(~new).sum()} of the {len(new)} real cells are also in --train and were left out.")
    real.take(np.flatnonzero(new))


def count_types(sides: dict[str, Side], label: str, remarks: Remarks) -> dict[str, dict[str, int]]:
    """Cells of each type in real and synthetic cells; notes the types that one of them lacks."""
    real, synthetic = sides["real"], sides["synthetic"]
    if not synthetic.has_types:
        remarks.warn(f"The synthetic cells have no obs column {label!r}: they are compared as a whole only.")
    of_types = {side.name: _everyone(side).types if side.has_types else {} for side in (real, synthetic)}
    names = sorted({*of_types["real"], *of_types["synthetic"]})
    if synthetic.has_types and not {*of_types["real"]} & {*of_types["synthetic"]}:
        shown = "; ".join(f"{side}: {', '.join(sorted(of)[:5])}" for side, of in of_types.items())
        raise DataError(
            f"No {label} is in both real and synthetic cells ({shown}), so they cannot be compared within types: give "
            "the column that holds the same names in both (--label), or leave it out."
        )
    counts = {name: {side: of_types[side].get(name, 0) for side in of_types} for name in names}
    if synthetic.has_types:
        for side, other in ((synthetic, real), (real, synthetic)):
            missing = [name for name in names if not counts[name][side.name]]
            if missing:
                remarks.notes.append(
                    f"Types of the {other.name} cells that no {side.name} cell has: {', '.join(missing)}."
                )
    return counts


def parts(sides: dict[str, Side], max_cells: int, seed: int) -> tuple[Part, Part, Part]:
    """Real cells, other real cells (training cells, where they are given) and synthetic cells, as many of each, in the
    order of `order_of`."""
    real, synthetic, train = sides["real"], sides["synthetic"], sides.get("train")
    n = min(cells_a_side(sides), max_cells)
    orders = {name: order_of(sides, name, seed, n) for name in sides}
    first = real.part(orders["real"][:n])
    second = train.part(orders["train"][:n]) if train else real.part(orders["real"][n : 2 * n])
    return first, second, synthetic.part(orders["synthetic"][:n])


def order_of(sides: dict[str, Side], name: str, seed: int, n: int) -> np.ndarray:
    """The order in which a resample draws the cells of a side: the first n, and of real cells without training cells
    the next n as their other half; at random within types.

    Where there are donors enough, those of SHARE_OF_DONORS of them first, the same donors on all sides; where these
    have fewer cells than are drawn, all that are drawn have as many of the other donors.
    """
    side = sides[name]
    order = draw_order(side.types, np.random.default_rng([seed, sorted(sides).index(name)]))
    if side.donors is None or not draws_donors(sides):
        return order
    kept = _kept_donors(sides, seed)
    sets = {other: 2 if other == "real" and "train" not in sides else 1 for other in sides}
    n_kept = min([n, *(int(mask.sum()) // sets[other] for other, mask in kept.items())])
    of_kept, of_others = order[kept[name][order]], order[~kept[name][order]]
    drawn = []
    for _ in range(sets[name]):
        one = np.concatenate([of_kept[:n_kept], of_others[: n - n_kept]])
        of_kept, of_others = of_kept[n_kept:], of_others[n - n_kept :]
        missing = n - len(one)  # where a donor's cells do not halve evenly
        drawn += [one, of_kept[:missing]]
        of_kept = of_kept[missing:]
    return np.concatenate([*drawn, of_kept, of_others])


def _kept_donors(sides: dict[str, Side], seed: int) -> dict[str, np.ndarray]:
    """Of each side that has donors, which cells (mask) are of those that a resample draws first."""
    donors = {name: side.donors.astype(str) for name, side in sides.items() if side.donors is not None}
    ranked = np.random.default_rng([seed, 10]).permutation(np.unique(np.concatenate(list(donors.values()))))
    kept = {}
    for name, of in donors.items():
        here = ranked[np.isin(ranked, of)]
        kept[name] = np.isin(of, here[: math.ceil(SHARE_OF_DONORS * len(here))])
    return kept


def draws_donors(sides: dict[str, Side]) -> bool:
    """Whether resamples draw donors, not cells alone: where the real cells are of enough of them."""
    donors = sides["real"].donors
    return donors is not None and len(set(donors)) >= FEWEST_DONORS


def cells_a_side(sides: dict[str, Side]) -> int:
    """How many cells there are to be compared; DataError when they are too few."""
    real, synthetic, train = sides["real"], sides["synthetic"], sides.get("train")
    for side, wanted in ((real, MIN_CELLS if train else 2 * MIN_CELLS), (synthetic, MIN_CELLS)):
        if side.X.shape[0] < wanted:
            raise DataError(
                f"{side.X.shape[0]} {side.name} cells are too few to compare: at least {wanted} are needed."
            )
    available = [real.X.shape[0] if train else real.X.shape[0] // 2, synthetic.X.shape[0]]
    return min([*available, train.X.shape[0]] if train else available)


def draw_order(types: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random order of cells (n,) in which any run of neighbours has the composition of the whole.

    Cells of a type are spread evenly over it, from a random start (systematic sampling).
    """
    position = np.empty(len(types))
    for name in np.unique(types):
        rows = np.flatnonzero(types == name)
        position[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    return np.argsort(position, kind="stable")


def shuffle_within(X: sparse.csr_matrix, types: np.ndarray, rng: np.random.Generator) -> sparse.csr_matrix:
    """X (n, G) with each gene permuted, independently of the others, among the cells of each type (n,)."""
    columns, blocks = X.tocsc(), []
    for start in range(0, X.shape[1], BLOCK_OF_GENES):
        block = columns[:, start : start + BLOCK_OF_GENES].toarray()
        for name in np.unique(types):
            rows = np.flatnonzero(types == name)
            block[rows] = rng.permuted(block[rows], axis=0)
        blocks.append(sparse.csc_matrix(block))
    return sparse.hstack(blocks, format="csr")
