"""The sets of cells that an evaluation compares: loaded, brought to one scale and the same genes, equal in size.

Knows AnnData and obs columns; knows no metric.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError, ScdiffWarning, nearest
from scdiffkit.io import read
from scdiffkit.metrics.privacy import fingerprints
from scdiffkit.preprocess import find_counts, lognormalise

if TYPE_CHECKING:
    from anndata import AnnData

TARGET_SUM = 1e4
MAX_LOG_VALUE = 20.0  # log1p of half a billion: larger values are not logarithms of counts
FEW_GENES, FEW_CELLS, MIN_CELLS = 100, 100, 5
SCALE_RATIO = 1.5  # sums per cell that differ by more than this were hardly normalised in the same way
BLOCK_OF_GENES = 512
POOLED_OF_A_TYPE = 20
NO_TYPE = "(none)"


@dataclass
class Side:
    """One of the data sets: X (cells, genes) log1p-normalised CSR, its genes, and what is known of its cells.

    counts: raw counts (cells, genes), None where there are none. types, conditions, donors: (cells,) text, the latter
    two None unless asked for. codec_auc: of the run that made the cells, where they say.
    """

    name: str
    source: str
    X: sparse.csr_matrix
    counts: sparse.csr_matrix | None
    genes: pd.Index
    types: np.ndarray
    has_types: bool
    conditions: np.ndarray | None
    donors: np.ndarray | None
    scale: str
    n_cells: int
    n_genes: int
    codec_auc: dict[str, float]
    sha256: str | None

    def take(self, rows: np.ndarray) -> None:
        """Keep these cells only."""
        self.X, self.types = self.X[rows], self.types[rows]
        self.counts = None if self.counts is None else self.counts[rows]
        self.conditions = None if self.conditions is None else self.conditions[rows]
        self.donors = None if self.donors is None else self.donors[rows]

    def keep_genes(self, genes: pd.Index) -> None:
        """Keep these genes only, in this order."""
        places = self.genes.get_indexer(genes)
        self.X, self.genes = self.X[:, places], genes
        self.counts = None if self.counts is None else self.counts[:, places]

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
        if self.counts is not None:
            of_cells["library_size"] = np.asarray(self.counts[rows].sum(axis=1), dtype=float).ravel()
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


def candidates(others: Part, members: Part) -> Part:
    """Both, of dense X, as one set, of_cells["member"] telling 0.0 and 1.0."""
    of_cells = {"member": np.repeat([0.0, 1.0], [len(others.types), len(members.types)])}
    if "donors" in others.of_cells:
        of_cells["donors"] = np.concatenate([others.of_cells["donors"], members.of_cells["donors"]])
    X = np.vstack([others.X, members.X])
    return Part(X, np.concatenate([others.types, members.types]), of_cells)


class Remarks:
    """Collects what a reader of the scores must know."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        warnings.warn(message, ScdiffWarning, stacklevel=4)
        self.warnings.append(message)


def load(
    cells: dict[str, AnnData | str | Path], label: str | None, conditions: Sequence[str] = (), donor: str | None = None
) -> dict[str, Side]:
    """The sides by name; synthetic cells may lack the columns, others may not (DataError)."""
    read_in = {name: read(c) if isinstance(c, (str, Path)) else c for name, c in cells.items()}
    target_sum = _target_sum(read_in["synthetic"]) or _target_sum(read_in["real"]) or TARGET_SUM
    sides: dict[str, Side] = {}
    for name, adata in read_in.items():
        source = "memory" if cells[name] is adata else str(cells[name])
        who = f"The {name} cells" if source == "memory" else f"The {name} cells ({source})"
        found = _counts(adata)
        X, genes, scale = _log_values(
            adata, found, who, target_sum, made_here=name == "synthetic" or "scdiffkit" in adata.uns
        )
        types, has_types = _types_of(adata.obs, label, name, who)
        sides[name] = Side(
            name=name,
            source=source,
            X=X,
            counts=_of_genes(found, genes),
            genes=genes,
            types=types,
            has_types=has_types,
            conditions=_texts(adata.obs, conditions, "--condition", name, who),
            donors=_texts(adata.obs, [donor] if donor else [], "--donor", name, who),
            scale=scale,
            n_cells=X.shape[0],
            n_genes=X.shape[1],
            codec_auc=dict(adata.uns.get("scdiffkit", {}).get("codec_auc", {})),
            sha256=sha256(Path(source)),
        )
    return sides


def sha256(path: Path) -> str | None:
    """Of a file; None of anything else."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _target_sum(adata: AnnData) -> float | None:
    """Counts per cell that this tool recorded having normalised to."""
    recorded = adata.uns.get("scdiffkit", {})
    value = recorded.get("target_sum") or recorded.get("preprocess", {}).get("target_sum")
    return float(value) if value else None


def _counts(adata: AnnData) -> tuple[sparse.csr_matrix, pd.Index, str] | DataError:
    """Raw counts, their genes and where they were; or why there are none."""
    try:
        counts, place = find_counts(adata)
    except DataError as e:
        return e
    return counts, adata.raw.var_names if place == "raw" else adata.var_names, place


def _of_genes(found: tuple[sparse.csr_matrix, pd.Index, str] | DataError, wanted: pd.Index) -> sparse.csr_matrix | None:
    """Raw counts of the genes that are wanted; None where there are none of some."""
    if isinstance(found, DataError):
        return None
    counts, genes, _ = found
    if genes.equals(wanted):
        return counts
    if genes.has_duplicates or len(wanted.difference(genes)):
        return None
    return counts[:, genes.get_indexer(wanted)]


def _log_values(
    adata: AnnData,
    found: tuple[sparse.csr_matrix, pd.Index, str] | DataError,
    who: str,
    target_sum: float,
    made_here: bool,
) -> tuple[sparse.csr_matrix, pd.Index, str]:
    """log1p-normalised values (cells, genes), their genes, and where they came from, in words.

    X that is log-normalised already is taken as it is: synthetic cells may hold fewer genes than they were
    normalised over. Raw counts are normalised by obs["total_counts"], the library size that this tool leaves
    in the cells it makes (also where a format has lost `uns`), else over all genes that the side has.
    """
    ours = "scdiffkit" in adata.uns
    X = None if adata.X is None else sparse.csr_matrix(_in_memory(adata.X), dtype=np.float32)
    if X is not None:
        _check_finite(X.data, who)
        negative = len(X.data) > 0 and X.data.min() < 0
        whole = np.array_equal(X.data, np.rint(X.data))
        if negative and ours:
            raise DataError(f"{who} have negative values in X (down to {X.data.min():g}): sample them again.")
        if not (negative or whole) and (ours or X.data.max() < MAX_LOG_VALUE):
            return _named(X, adata.var_names, who), adata.var_names, "log1p-normalised X, taken as it is"
    if isinstance(found, DataError):
        raise DataError(f"{who} are neither raw counts nor log1p-normalised. {found}") from found
    counts, genes, place = found
    if made_here and "total_counts" in adata.obs:
        X = lognormalise(counts, target_sum, adata.obs["total_counts"].to_numpy())
        scale = f"raw counts in {place}, normalised by obs['total_counts'] to {target_sum:g}"
    else:
        X = lognormalise(counts, target_sum)
        scale = f"raw counts in {place}, normalised over {counts.shape[1]} genes to {target_sum:g}"
    return _named(X, genes, who), genes, f"{scale}, log1p"


def _in_memory(X: Any) -> Any:
    return X.to_memory() if hasattr(X, "to_memory") else X


def _check_finite(values: np.ndarray, who: str) -> None:
    unknown = int((~np.isfinite(values)).sum())
    if unknown:
        raise DataError(
            f"{who} have {unknown} values in X that are NaN or infinite: no score would mean anything. Remove these "
            "cells, or make them again."
        )


def _named(X: sparse.csr_matrix, genes: pd.Index, who: str) -> sparse.csr_matrix:
    """X, when it has cells and its genes can be matched by name."""
    if 0 in X.shape:
        raise DataError(f"{who} are empty ({X.shape[0]} cells x {X.shape[1]} genes).")
    repeated = genes[genes.duplicated()].unique()
    if len(repeated):
        raise DataError(
            f"{who} have {len(repeated)} gene names more than once (such as {repeated[0]!r}), so genes cannot be "
            "matched by name: run adata.var_names_make_unique() first."
        )
    return X


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
    return np.array([" | ".join(row) for row in zip(*values)], dtype=object)


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
    if len(shared) < FEW_GENES:
        remarks.warn(f"Only {len(shared)} genes are in all sets of cells: the scores say nothing about the others.")
    for side in sides.values():
        side.keep_genes(shared)
    sums = {side.name: float(np.expm1(side.X.data).sum()) / side.X.shape[0] for side in sides.values()}
    for side in others:
        low, high = sorted([sums["real"], sums[side.name]])
        if high > SCALE_RATIO * low:
            remarks.warn(
                f"The common genes of a cell sum to {sums['real']:.4g} in real and {sums[side.name]:.4g} in "
                f"{side.name} cells. If they were normalised differently (to another total, or over other genes), "
                "no score is meaningful: give both as raw counts of the same genes, or normalised alike."
            )


def drop_trained_on(sides: dict[str, Side], remarks: Remarks) -> None:
    """Take out of the real cells those that are also training cells: to a model they are not new.

    To be called before genes that synthetic cells lack are left out: in few genes, cells are alike by chance.
    """
    real, train = sides["real"], sides["train"]
    genes = real.genes.intersection(train.genes)
    if genes.empty:
        return  # which match_genes refuses
    known, cells = (fingerprints(side.X[:, side.genes.get_indexer(genes)], fewest=0) for side in (train, real))
    trained_on = set(known)
    new = np.array([cell not in trained_on for cell in cells])
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
    names = sorted({*real.types, *(synthetic.types if synthetic.has_types else ())})
    counts = {
        name: {side.name: int((side.types == name).sum()) if side.has_types else 0 for side in (real, synthetic)}
        for name in names
    }
    if synthetic.has_types:
        for side, other in ((synthetic, real), (real, synthetic)):
            missing = [name for name in names if not counts[name][side.name]]
            if missing:
                remarks.notes.append(
                    f"Types of the {other.name} cells that no {side.name} cell has: {', '.join(missing)}."
                )
    return counts


def parts(sides: dict[str, Side], max_cells: int, seed: int) -> tuple[Part, Part, Part]:
    """Real cells, other real cells (training cells, where they are given) and synthetic cells, as many of each, drawn
    at random within types."""
    real, synthetic, train = sides["real"], sides["synthetic"], sides.get("train")
    orders = {
        name: draw_order(side.types, np.random.default_rng([seed, i]))
        for i, (name, side) in enumerate(sorted(sides.items()))
    }
    n = min(cells_a_side(sides), max_cells)
    first = real.part(orders["real"][:n])
    second = train.part(orders["train"][:n]) if train else real.part(orders["real"][n : 2 * n])
    return first, second, synthetic.part(orders["synthetic"][:n])


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
