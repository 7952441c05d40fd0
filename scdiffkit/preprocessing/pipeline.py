"""From raw counts to training data: cell and gene filters, normalisation, gene selection."""

from __future__ import annotations

import contextlib
import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pandas.api.types import union_categoricals
from scipy import sparse

from scdiffkit.config import PreprocessConfig, make
from scdiffkit.errors import ConfigError, DataError, FileError, ScdiffWarning, nearest
from scdiffkit.io import Backed, CellWriter, OnDisk, Rows, Selected, Stacked, blocks, give_back, interruption, on_disk
from scdiffkit.runtime.versions import version_of

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")

LAYER = 'layers["counts"]'
SPANS = (0.3, 0.5, 1.0)  # of seurat_v3's loess; below some 200 cells 0.3 sees too few different means
FEWEST_VARYING = 10
TOTAL, FILE = "total_counts", "file"  # obs columns that are added
MAX_CELLS_TO_CHOOSE = 50_000  # of very many cells, genes are chosen on so many
KEPT_APART = 50  # counts a gene, at most, that are kept in memory until it is seen often enough
HEAD = 2048  # cells by which a file's counts are told; and that are taken from it at once
FEW_SHARED = 0.5  # of a file's genes
ROUNDING = 1e-6  # counts this close to integers are integers that went through arithmetic


def preprocess(
    adata: AnnData,
    config: PreprocessConfig | None = None,
    *,
    label: str | Sequence[str] | None = None,
    **options: Any,
) -> AnnData:
    """A new AnnData ready for training; the input is left as it is.

    The result holds X (cells x kept genes, CSR float32: counts scaled to target_sum per cell, then log1p),
    layers["counts"] (raw counts), obs["total_counts"] (the library size: a cell's counts over the kept
    genes), var["highly_variable"], and uns["scdiffkit"]["preprocess"] (every parameter, where the counts
    came from, the version). obs and var columns are kept; `label` columns become categorical. `options` are
    PreprocessConfig's fields, given instead of `config` or to change it.

    Raises DataError when there are no raw counts, a label cannot be used, gene names repeat, or a filter
    leaves nothing; ConfigError for an option that is unknown or that the gene selection does not read.
    """
    config = make(PreprocessConfig, **{**(config.model_dump() if config else {}), **options})
    return prepare(adata, config, label=label).in_memory()


@dataclass(frozen=True)
class Prepared:
    """Cells ready for training, whose matrices are not made yet.

    counts: raw counts (cells, kept genes), in memory or in files; totals: their sums (cells,). obs, var, uns: as
    `preprocess` returns them; without var["highly_variable"] where the genes were not to be chosen. rows: places
    (cells,) of these cells among those given.
    """

    counts: Rows
    totals: np.ndarray
    obs: pd.DataFrame
    var: pd.DataFrame
    uns: dict[str, Any]
    config: PreprocessConfig
    rows: np.ndarray

    @classmethod
    def of(cls, cells: AnnData | Backed) -> Prepared:
        """Cells that `preprocess` has prepared, as they are. Raises DataError for others."""
        config = prepared_config(cells)
        counts, _ = counts_of(cells)
        totals = _totals(counts)
        stored = cells.obs.get(TOTAL, pd.Series(np.nan, index=cells.obs.index))
        if not (pd.to_numeric(stored, errors="coerce").to_numpy(np.float64) >= totals * (1 - 1e-6)).all():  # NaN too
            raise DataError(
                f"obs[{TOTAL!r}] does not hold each cell's total counts, as preparing the data left it. Run "
                "`scdiff preprocess` again, and do not change that column."
            )
        return cls(counts, totals, cells.obs, cells.var, dict(cells.uns), config, np.arange(len(totals)))

    def take(self, rows: np.ndarray) -> Prepared:
        """These cells (places, ascending) only."""
        if len(rows) == len(self.obs):
            return self
        counts, obs = _selected(self.counts, rows, None), _taken(self.obs, rows)
        return replace(self, counts=counts, totals=self.totals[rows], obs=obs, rows=self.rows[rows])

    def in_memory(self) -> AnnData:
        from anndata import AnnData

        counts = sparse.csr_matrix(self.counts[0 : self.counts.shape[0]], copy=True)
        counts.sort_indices()
        X = lognormalise(counts, self.config.target_sum, self.obs[TOTAL].to_numpy(np.float64))
        log.info("Normalised to %g counts per cell, log1p", self.config.target_sum)
        return AnnData(X=X, layers={"counts": counts}, obs=self.obs, var=self.var, uns=self.uns)

    def write(self, path: str | Path, *, force: bool = False) -> Path:
        """The same to a file, a block of cells at a time."""
        with (
            interruption() as interrupted,
            CellWriter(path, self.var.index, var=self.var, uns=self.uns, layers=("counts",), force=force) as out,
        ):
            for part, counts in blocks(self.counts):
                obs = self.obs.iloc[part]
                X = lognormalise(counts, self.config.target_sum, obs[TOTAL].to_numpy(np.float64))
                out.append(X, {"counts": counts}, obs)
                if interrupted.is_set():
                    raise KeyboardInterrupt
        log.info("Normalised to %g counts per cell, log1p", self.config.target_sum)
        return Path(path)


def raw_cells(
    cells: AnnData | Backed | Mapping[str, AnnData | Backed], config: PreprocessConfig, labels: Sequence[str] = ()
) -> RawCells:
    """The raw counts of cells, or of several sets of them as one; labels: obs columns that all must have.

    cells: several sets by name; config.join says which genes these are given, and a gene that a set lacks is a zero
    there. obs columns that all have are kept, obs["file"] holds the names.
    """
    if not isinstance(cells, Mapping):
        return _raw(cells)
    for name, part in cells.items():
        _check_columns(part.obs, [*labels, *([config.batch_key] if config.batch_key else [])], name)
    return _join({name: _raw(part) for name, part in cells.items()}, config.join)


def prepare(
    cells: AnnData | Backed | Mapping[str, AnnData | Backed] | RawCells,
    config: PreprocessConfig,
    *,
    label: str | Sequence[str] | None = None,
    choose_genes: bool = True,
) -> Prepared:
    """What `preprocess` does, up to the point where matrices are made; cells as `raw_cells` takes them, or gives them.

    choose_genes: whether highly variable genes are wanted.
    Raises what `preprocess` raises, and DataError when sets do not go together.
    """
    labels = [label] if isinstance(label, str) else list(label or ())
    raw = cells if isinstance(cells, RawCells) else raw_cells(cells, config, labels)
    _check_batch_key(raw.obs, config)
    for key in labels:
        check_label(raw, key)
    obs, var, counts = raw.obs, raw.var, raw.counts
    rows, columns, totals = _passing(counts, var.index, config)
    if len(rows) < len(obs) or len(columns) < len(var):
        counts = _selected(counts, rows if len(rows) < len(obs) else None, columns if len(columns) < len(var) else None)
    if totals is None:
        totals = _totals(counts)
    if (totals == 0).any() and (config.min_counts or config.min_genes):  # min_counts holds for the genes that stay
        there = np.flatnonzero(totals)
        log.info("Cells: %d -> %d (no counts in the genes kept)", len(totals), len(there))
        counts = _selected(raw.counts, rows[there], columns)
        rows, totals = rows[there], totals[there]
    obs, var = _taken(obs, rows), var.iloc[columns].copy()
    for key in labels:
        check_label(raw._replace(obs=obs), key)
        obs[key] = obs[key].astype("category").cat.remove_unused_categories()
    if TOTAL in obs:
        log.info("obs['total_counts'] is replaced: it holds the library size over the kept genes now")
    obs[TOTAL] = totals.astype(np.float32)
    give_back()  # names and columns of millions of cells were read, copied and looked through
    if choose_genes:
        var["highly_variable"] = _choose_genes(counts, obs, var.index, config)
    parameters = config.model_dump(mode="json", exclude_none=True)  # h5ad has no None: what is off is left out
    record = {**raw.record, "preprocess": {**parameters, "source": raw.source, "version": version_of("scdiffkit")}}
    kept = {c: [str(x) for x in obs[c].cat.categories] for c in raw.colors if hasattr(obs[c], "cat")}
    return Prepared(
        counts, totals, obs, var, {"scdiffkit": record, "log1p": {}, **color_lists(kept, raw.colors)}, config, rows
    )


def _selected(counts: Rows, rows: np.ndarray | None, columns: np.ndarray | None) -> Rows:
    """Some rows and columns, None: all; what is in memory is taken once, not each time that it is looked through."""
    chosen = Selected(counts, rows, columns)
    return chosen if on_disk(counts) else chosen[0 : chosen.shape[0]]


def _totals(counts: Rows) -> np.ndarray:
    """Sum of each cell's counts, (cells,)."""
    totals = np.empty(counts.shape[0])
    for part, block in blocks(counts):
        totals[part] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    return totals


def with_columns(cells: AnnData | Backed, wanted: Sequence[str | None], first: int = 0) -> AnnData | Backed:
    """The same cells; of millions in a file, only these columns of obs (all, where one is not there), and numbers from
    `first` on for their names."""
    columns = list(dict.fromkeys(column for column in wanted if column))
    if not isinstance(cells, Backed) or any(column not in cells.obs for column in columns):
        return cells
    columns += [TOTAL] if TOTAL in cells.obs and TOTAL not in columns else []
    return replace(cells, obs=cells.obs[columns].set_axis(pd.RangeIndex(first, first + cells.n_obs)))


def is_prepared(adata: AnnData | Backed) -> bool:
    """Whether `adata` is a result of `preprocess`."""
    recorded = adata.uns.get("scdiffkit", {})
    counts = LAYER in adata.matrices if isinstance(adata, Backed) else "counts" in adata.layers
    return "preprocess" in recorded and counts and "highly_variable" in adata.var


def prepared_config(adata: AnnData | Backed) -> PreprocessConfig:
    """The parameters `adata` was prepared with. Raises DataError when it was not prepared by this tool."""
    if not is_prepared(adata):
        raise DataError("These cells were not prepared by this tool: run `scdiff preprocess` on their raw counts.")
    recorded = dict(adata.uns["scdiffkit"]["preprocess"])
    for key in ("source", "version"):
        recorded.pop(key, None)
    return make(PreprocessConfig, **{key: _plain(value) for key, value in recorded.items()})


def find_counts(adata: AnnData) -> tuple[sparse.csr_matrix, str]:
    """Raw counts (cells x genes, CSR float32 integers) and where they were.

    They are looked for in layers["counts"], raw and X, in that order.
    `raw` may hold other genes than `adata`: then they are those of adata.raw.var_names.
    Raises DataError when none of them holds raw counts, or when layers["counts"] is there and does not.
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
    if not rounded.all():  # what was rounded to zero was not detected
        found = found.copy()
        found.eliminate_zeros()
    return found, source


def _find(places: Mapping[str, Callable[[], Any]]) -> tuple[sparse.csr_matrix, str]:
    """The matrix of raw counts as it is, and where it was; places: what gives each matrix there is."""
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
                f"{_listed(other)} whole numbers, though: if these are the raw counts, put them where they are looked "
                f"for (adata.layers['counts'] = adata.{other[0]}); else give the file from before normalisation."
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
    """Raw counts in a file (cells, genes), CSR float32; every block that is read is checked."""

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
    """Raw counts (cells, genes) and where they were; in a file they are told by its first cells."""
    if not isinstance(cells, Backed):
        return find_counts(cells)
    _, place = _find({place: lambda m=m: m[:HEAD] for place, m in cells.matrices.items()})  # type: ignore[misc]
    matrix = cells.matrices[place]
    log.info("Raw counts: %s of %s (%d cells x %d genes), read from the file", place, cells.path, *matrix.shape)
    return _Counts(matrix), place


def are_counts(matrix: Any) -> bool:
    """Whether all values of a matrix (dense or sparse) can be raw counts."""
    values = matrix.data if sparse.issparse(matrix) else np.ravel(matrix)
    return values.dtype.kind in "iufb" and _why_not_counts(values) is None


def colors_of(obs: pd.DataFrame, uns: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """scanpy's uns["COLUMN_colors"] as column -> category -> colour; of columns whose colours fit their categories."""
    found = {}
    for column in obs.select_dtypes("category"):
        categories, colors = obs[column].cat.categories, uns.get(f"{column}_colors")
        if isinstance(colors, (list, tuple, np.ndarray)) and len(colors) == len(categories):
            found[str(column)] = {str(name): str(color) for name, color in zip(categories, colors, strict=True)}
    return found


def color_lists(
    categories: Mapping[str, Sequence[str]], colors: Mapping[str, Mapping[str, str]]
) -> dict[str, list[str]]:
    """The reverse: uns["COLUMN_colors"] of the columns, each with its categories, for which there is a colour each."""
    return {
        f"{column}_colors": [colors[column][name] for name in names]
        for column, names in categories.items()
        if names and all(name in colors.get(column, {}) for name in names)
    }


def check_label(adata: AnnData | Backed | RawCells, key: str) -> None:
    """Check that an obs column can label cells.

    Raises DataError when it is missing, has missing values, has one value, or another value for every cell.
    """
    if key not in adata.obs:
        raise DataError(f"There is no obs column {key!r}; {nearest(key, adata.obs.columns)}")
    column = adata.obs[key]
    missing, different = int(column.isna().sum()), int(column.nunique())
    if missing:
        raise DataError(
            f"obs column {key!r} has no value for {missing} of {len(column)} cells: fill them in, or drop "
            f"these cells "
            f"(adata = adata[adata.obs[{key!r}].notna()])."
        )
    if different <= 1:
        value = repr(str(column.iloc[0])) if len(column) else "no cell"
        raise DataError(f"obs column {key!r} has one value ({value}): there is nothing to learn from it; leave it out.")
    if different == len(column):
        raise DataError(
            f"obs column {key!r} has another value for each of the {different} cells: it names cells "
            f"instead of "
            "labelling groups of them; choose a column such as the cell type."
        )


def lognormalise(
    counts: sparse.csr_matrix, target_sum: float, library_size: np.ndarray | None = None
) -> sparse.csr_matrix:
    """log1p of counts (n, genes) scaled from each cell's library size to `target_sum` (CSR float32).

    library_size: (n,), where the matrix does not hold all genes; default the sum of each cell's counts. An empty
    cell stays all zero.
    """
    size = np.asarray(counts.sum(axis=1, dtype=np.float64) if library_size is None else library_size).ravel()
    factors = np.divide(target_sum, size, out=np.zeros(len(size)), where=size > 0)
    values = np.log1p(counts.data * np.repeat(factors, np.diff(counts.indptr))).astype(np.float32)
    return sparse.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)


def demo_cells() -> AnnData:
    """700 blood cells x 765 genes that come with scanpy: X raw counts (CSR float32), obs["cell_type"] 10 types.

    Source: scanpy.datasets.pbmc68k_reduced (Zheng et al. 2017). Its `raw` is log1p of normalised counts, in
    which a cell's smallest value stands for one count. Raises DataError when that does not give integers.
    """
    import scanpy as sc
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an old file format, which anndata reads but remarks on
        bundled = sc.datasets.pbmc68k_reduced()
    normalised = sparse.csr_matrix(bundled.raw.X, dtype=np.float64)
    normalised.eliminate_zeros()
    normalised.data = np.expm1(normalised.data)
    one_count = np.minimum.reduceat(normalised.data, normalised.indptr[:-1])  # no cell is empty
    counts = normalised.data / np.repeat(one_count, np.diff(normalised.indptr))
    if np.abs(counts - np.rint(counts)).max() > 0.2:  # stored to 3 digits: 0.11 off at a count of 114
        raise DataError(
            "scanpy's pbmc68k_reduced has changed: its counts cannot be recovered. Use scanpy 1.10 or 1.11."
        )
    normalised.data = np.rint(counts)
    return AnnData(
        X=normalised.astype(np.float32),
        obs=pd.DataFrame({"cell_type": bundled.obs["bulk_labels"]}, index=bundled.obs_names),
        var=pd.DataFrame(index=bundled.raw.var_names),
    )


class RawCells(NamedTuple):
    """Raw counts (cells, genes) with obs and var; source: where they were; record: earlier uns["scdiffkit"]."""

    counts: Rows
    obs: pd.DataFrame
    var: pd.DataFrame
    source: str
    record: dict[str, Any]
    colors: dict[str, dict[str, str]]  # obs column -> category -> colour

    def take(self, rows: np.ndarray) -> RawCells:
        """These cells (places, ascending) only."""
        if len(rows) == len(self.obs):
            return self
        return self._replace(counts=_selected(self.counts, rows, None), obs=_taken(self.obs, rows))


def _raw(cells: AnnData | Backed) -> RawCells:
    """The raw counts of one set of cells; nothing else than obs and var columns is carried on."""
    from anndata.utils import make_index_unique

    counts, source = counts_of(cells)
    if isinstance(cells, Backed):
        var = cells.var_of(source)
    else:
        var = cells.raw.var if source == "raw" else cells.var
    if source == "raw" and counts.shape[1] != cells.n_vars:
        log.info("raw has %d genes, X %d: those of raw are used", counts.shape[1], cells.n_vars)
    for axis, n in (("cells", counts.shape[0]), ("genes", counts.shape[1])):
        if n == 0:
            raise DataError(f"The data has no {axis} ({counts.shape[0]} cells x {counts.shape[1]} genes).")
    repeated = var.index[var.index.duplicated()].unique()
    if len(repeated):
        examples = ", ".join(repr(str(gene)) for gene in repeated[:3])
        raise DataError(
            f"{len(repeated)} gene names occur more than once ({examples}): run adata.var_names_make_unique() first."
        )
    obs = cells.obs.copy(deep=not isinstance(cells, Backed))  # what a file gave is nobody else's
    if not pd.Index(obs.index.to_numpy(), dtype=obs.index.dtype).is_unique:  # one that takes its table of names away
        n = int(obs.index.duplicated().sum())
        obs.index = make_index_unique(obs.index)
        warnings.warn(
            f"{n} cell names repeat an earlier one; -1, -2, ... was added to tell them apart.",
            ScdiffWarning,
            4,
        )
    return RawCells(
        counts, obs, var.copy(), source, dict(cells.uns.get("scdiffkit", {})), colors_of(cells.obs, cells.uns)
    )


def _join(named: Mapping[str, RawCells], join: Literal["inner", "outer"]) -> RawCells:
    """Several sets of cells as one."""
    parts = list(named.values())
    shared = parts[0].var.index
    everything = shared
    for part in parts[1:]:
        shared = shared[shared.isin(part.var.index)]
        everything = everything.append(part.var.index[~part.var.index.isin(everything)])
    if shared.empty:
        some = list(named.items())[:3]
        examples = "; ".join(f"{name}: {', '.join(map(str, part.var.index[:3]))}" for name, part in some)
        raise DataError(
            f"The files have no gene in common ({examples}). All need the same kind of names in var_names, symbols or "
            "Ensembl ids, of the same species."
        )
    chosen = shared if join == "inner" else everything
    fewest = min(len(part.var) for part in parts)
    if join == "inner" and len(shared) < FEW_SHARED * fewest:
        warnings.warn(
            f"Only {len(shared)} genes are in all {len(parts)} files (the smallest has {fewest}); the others are left "
            "out. --join outer keeps them, as zeros where a file lacks them.",
            ScdiffWarning,
            4,
        )
    log.info("Genes of %d files: %d in all, %d in any; join %s", len(parts), len(shared), len(everything), join)
    places = [part.var.index.get_indexer(chosen) for part in parts]
    counts = Stacked(
        [
            part.counts if part.var.index.equals(chosen) else Selected(part.counts, None, place)
            for part, place in zip(parts, places, strict=True)
        ]
    )
    columns = [c for c in parts[0].obs if all(c in part.obs for part in parts)]
    obs = pd.DataFrame(index=_unique_names(parts))
    for column in columns:
        values = [part.obs[column] for part in parts]
        if any(isinstance(v.dtype, pd.CategoricalDtype) for v in values):
            obs[column] = union_categoricals([_named_categories(v) for v in values], sort_categories=False)
        else:
            together = pd.concat(values)
            obs[column] = (together.map(str, na_action="ignore") if together.dtype == object else together).array
    if FILE in obs:
        log.info("obs['file'] is replaced: it names the files now")
    of_file = np.repeat(np.arange(len(parts)), [len(part.obs) for part in parts])
    obs[FILE] = pd.Categorical.from_codes(of_file, pd.Index(list(named), dtype=object))
    var = parts[0].var
    for part in parts[1:] if join == "outer" else ():
        var = pd.concat([var, part.var.loc[~part.var.index.isin(var.index), part.var.columns.isin(var.columns)]])
    colors: dict[str, dict[str, str]] = {}
    for part in reversed(parts):
        for column, of in part.colors.items():
            colors[column] = colors.get(column, {}) | of
    source = " and ".join(sorted({part.source for part in parts}))
    return RawCells(counts, obs, var.loc[chosen].copy(), source, {}, colors)


def _named_categories(values: pd.Series) -> pd.Categorical:
    """As categories that are text and in no order, as those of several files can be put together."""
    column = pd.Categorical(values)
    return pd.Categorical.from_codes(column.codes, pd.Index([str(c) for c in column.categories], dtype=object))


def _unique_names(parts: Sequence[RawCells]) -> pd.Index:
    """Cell names of all parts; where parts share some, each gets its file's number."""
    names = parts[0].obs.index.append([part.obs.index for part in parts[1:]])
    if names.is_unique:
        return names
    log.info("Cell names occur in several files: -0, -1, ... was added, the number of the file")
    return pd.Index([f"{name}-{i}" for i, part in enumerate(parts) for name in part.obs.index])


def _check_columns(obs: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    for column in columns:
        if column not in obs and column != FILE:  # which is there once they are joined
            raise DataError(f"{name} has no obs column {column!r}; {nearest(column, obs.columns)}")


def _taken(obs: pd.DataFrame, rows: np.ndarray) -> pd.DataFrame:
    """Some rows of obs, categories that no longer occur left out, as AnnData does."""
    if len(rows) == len(obs):
        return obs
    obs = obs.iloc[rows].copy()
    for column in obs.select_dtypes("category"):
        obs[column] = obs[column].cat.remove_unused_categories()
    return obs


def _as_csr(matrix: Any) -> sparse.csr_matrix:
    """As canonical CSR, in memory: no explicit zeros, no duplicates. The matrix itself where it is that already."""
    if hasattr(matrix, "to_memory"):  # backed on disk
        matrix = matrix.to_memory()
    elif not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.dtype.kind not in "iufb":
        raise DataError(f"Values of type {matrix.dtype} are not counts: X and layers must hold numbers.")
    if matrix.dtype == np.float16:  # which sparse matrices do not know
        matrix = matrix.astype(np.float32)
    csr = sparse.csr_matrix(matrix)
    if not (csr.has_canonical_format and csr.data.all()):
        csr = csr.copy() if sparse.issparse(matrix) else csr
        csr.sum_duplicates()
        csr.eliminate_zeros()
    return csr


def _why_not_counts(values: np.ndarray) -> str | None:
    """What keeps stored values from being raw counts; None if nothing does."""
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
    """Whether all are exact integers from 0, by blocks that stay in the processor's cache."""
    if values.dtype.kind in "ub":
        return True
    blocks = (values[start : start + 2**16] for start in range(0, len(values), 2**16))
    return all(block.min() >= 0 and block.max() < np.inf and bool((np.rint(block) == block).all()) for block in blocks)


def _others_of_integers(places: Mapping[str, Callable[[], Any]]) -> list[str]:
    """The layers, besides "counts", that could be raw counts."""
    found = []
    for place in (place for place in places if place not in (LAYER, "raw", "X")):
        with contextlib.suppress(DataError, FileError):  # not numbers, or not to be read from its file
            if _why_not_counts(_as_csr(places[place]()).data) is None:
                found.append(place.replace('"', "'"))
    return found


def _listed(places: Sequence[str]) -> str:
    """ "X holds" or "raw, X hold"."""
    return f"{', '.join(places)} {'holds' if len(places) == 1 else 'hold'}"


def _check_batch_key(obs: pd.DataFrame, config: PreprocessConfig) -> None:
    if config.batch_key is None:
        return
    if config.hvg_flavor in ("cv", "all", "list"):
        raise ConfigError(
            f"--batch-key is not read by --hvg-flavor {config.hvg_flavor}: leave it out, or choose "
            f"seurat_v3, seurat "
            "or cell_ranger."
        )
    if config.batch_key not in obs:
        raise DataError(
            f"--batch-key: there is no obs column {config.batch_key!r}; {nearest(config.batch_key, obs.columns)}"
        )
    missing = int(obs[config.batch_key].isna().sum())
    if missing:
        raise DataError(f"--batch-key: obs column {config.batch_key!r} has no value for {missing} cells: fill them in.")


def _passing(
    counts: Rows, names: pd.Index, config: PreprocessConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Places of the cells and of the genes that pass the filters, and the sums of these genes' counts in these cells.

    Genes are counted in the cells that pass. The sums come of the same look at the counts, where those of genes that
    are too rare so far are kept apart; None where these could be many.
    """
    mito = _mitochondrial(names, config) if config.max_mito is not None else None
    of_cells = np.zeros((3, counts.shape[0]))  # total counts, genes detected, mitochondrial share
    detected = np.zeros(counts.shape[1], dtype=np.int64)
    of_rare: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # cells, genes and counts
    for part, block in blocks(counts):
        totals = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
        of_cells[0, part], of_cells[1, part] = totals, np.diff(block.indptr)
        if mito is not None:
            in_mito = np.asarray(block[:, mito].sum(axis=1, dtype=np.float64)).ravel()
            of_cells[2, part] = np.divide(in_mito, totals, out=np.zeros_like(totals), where=totals > 0)
        passed = np.all([passed for *_, passed in _checks(config, *of_cells[:, part])], axis=0)
        of_passed = np.repeat(passed, np.diff(block.indptr))
        detected += np.bincount(block.indices[of_passed], minlength=len(detected))
        if config.min_cells > KEPT_APART:
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
                f"{len(keep)} cells (their median is {np.median(values[before]):g}). Choose a milder value."
            )
        log.info("Cells: %d -> %d (%s %s)", before.sum(), keep.sum(), name, limit)
    genes = _passing_genes(detected, int(keep.sum()), names, config)
    if config.min_cells > KEPT_APART:
        return np.flatnonzero(keep), genes, None
    cell, gene, value = (np.concatenate(values) for values in zip(*of_rare, strict=True))
    dropped = detected[gene] < config.min_cells
    totals = of_cells[0] - np.bincount(cell[dropped], value[dropped], len(keep))
    return np.flatnonzero(keep), genes, totals[keep]


def _checks(
    config: PreprocessConfig, totals: np.ndarray, genes: np.ndarray, mito: np.ndarray
) -> list[tuple[str, Any, np.ndarray, np.ndarray]]:
    """The cell filters that are on: name, limit, the value of each cell, and which cells pass."""
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
    """Which genes are mitochondrial, (n_genes,) bool."""
    prefix = config.mito_prefix
    mito = np.array([str(name).casefold().startswith(prefix.casefold()) for name in names])
    if not mito.any():
        warnings.warn(
            f"No gene name starts with {prefix!r}: --max-mito drops nothing. Set --mito-prefix (mouse: "
            f"mt-), or leave "
            "it out.",
            ScdiffWarning,
            4,
        )
    return mito


def _passing_genes(detected: np.ndarray, n_cells: int, names: pd.Index, config: PreprocessConfig) -> np.ndarray:
    keep = detected >= config.min_cells
    if not keep.any():
        raise DataError(
            f"No genes are left: --min-cells {config.min_cells} drops all {len(keep)} genes (the most "
            f"frequent one "
            f"is detected in {detected.max()} of {n_cells} cells). Choose a milder value."
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
            f"({', '.join(map(repr, absent[:5]))}); {absent[0]!r}: {nearest(absent[0], all_genes)}"
        )
    dropped = [gene for gene in wanted if gene not in left]
    if dropped:
        raise DataError(
            f"{len(dropped)} of the {len(wanted)} genes listed ({', '.join(map(repr, dropped[:5]))}) are "
            f"detected in "
            f"fewer than {config.min_cells} cells: take them off the list, or choose --min-cells 0."
        )


def _choose_genes(counts: Rows, obs: pd.DataFrame, names: pd.Index, config: PreprocessConfig) -> np.ndarray:
    """Which of the kept genes are used, (n_genes,) bool."""
    flavor, n_top = config.hvg_flavor, config.n_top_genes
    if flavor == "list":
        chosen = np.asarray(names.isin(config.genes or ()))
    elif flavor == "all":
        chosen = np.ones(len(names), dtype=bool)
    elif n_top >= len(names):
        log.info("All %d genes are used: --n-top-genes %d asks for no fewer", len(names), n_top)
        return np.ones(len(names), dtype=bool)
    else:
        cells = _sample(counts, obs, names, config)
        if flavor == "cv":
            chosen = np.zeros(len(names), dtype=bool)
            chosen[np.argsort(-_coefficient_of_variation(cells.X), kind="stable")[:n_top]] = True
        else:
            chosen = _scanpy_genes(cells, config)
    log.info("Genes: %d of %d chosen as highly variable (%s)", chosen.sum(), len(names), flavor)
    return chosen


def _sample(counts: Rows, obs: pd.DataFrame, names: pd.Index, config: PreprocessConfig) -> AnnData:
    """All cells, or of very many a random choice, on which genes are chosen; X as the selection wants it."""
    from anndata import AnnData

    if counts.shape[0] > MAX_CELLS_TO_CHOOSE:
        at = _drawn(obs[config.batch_key] if config.batch_key else pd.Series(0, index=obs.index))
        parts = np.array_split(at, math.ceil(len(at) / HEAD))  # taking them at once would need several times the memory
        X, obs = sparse.vstack([counts[part] for part in parts], format="csr"), _taken(obs, at)
        give_back()
        log.info("Genes are chosen on %d of the %d cells, drawn at random", len(at), counts.shape[0])
    else:
        X = counts[0 : counts.shape[0]]
        log.debug("Genes are chosen on all %d cells", counts.shape[0])
    if config.hvg_flavor != "seurat_v3":  # which looks at counts
        X = lognormalise(X, config.target_sum, obs[TOTAL].to_numpy(np.float64))
    return AnnData(X=X, obs=obs[[config.batch_key] if config.batch_key else []], var=pd.DataFrame(index=names))


def _drawn(batches: pd.Series) -> np.ndarray:
    """Places of MAX_CELLS_TO_CHOOSE cells, sorted: of each batch as many as of any other, all of smaller ones."""
    order = np.random.default_rng(0).permutation(len(batches))
    rank = pd.Series(order).groupby(batches.to_numpy()[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(rank, kind="stable")[:MAX_CELLS_TO_CHOOSE]])


def _coefficient_of_variation(X: sparse.csr_matrix) -> np.ndarray:
    """Standard deviation over mean of each gene, 0 for one never detected. Source: scRDiT, gene selection."""
    values = X.astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    return np.divide(np.sqrt(np.maximum(variance, 0)), mean, out=np.zeros_like(mean), where=mean > 0)


def _scanpy_genes(cells: AnnData, config: PreprocessConfig) -> np.ndarray:
    """scanpy's choice; seurat_v3 is tried with wider spans where its loess is singular."""
    if config.hvg_flavor != "seurat_v3":
        return _scanpy_selection(cells, config)
    _check_enough_to_fit(cells, config)
    give_back()
    for span in SPANS[:-1]:
        try:
            return _scanpy_selection(cells, config, span=span)
        except DataError:
            warnings.warn(
                f"Gene selection 'seurat_v3' cannot fit its trend to {cells.n_obs} cells with a loess span "
                f"of {span}; "
                "trying a wider one. --hvg-flavor seurat does without.",
                ScdiffWarning,
                4,
            )
    return _scanpy_selection(cells, config, span=SPANS[-1])


def _check_enough_to_fit(cells: AnnData, config: PreprocessConfig) -> None:
    """Refuse what would make the loess library crash the whole process: hardly any gene that varies."""
    counts = cells.X
    batches = pd.Series("", index=cells.obs_names) if config.batch_key is None else cells.obs[config.batch_key]
    for batch in batches.unique():
        rows = Selected(counts, np.flatnonzero(batches == batch), None)
        ends = [(block.min(axis=0).toarray(), block.max(axis=0).toarray()) for _, block in blocks(rows)]
        lowest, highest = (np.vstack(side) for side in zip(*ends, strict=True))
        varying = int((lowest.min(axis=0) != highest.max(axis=0)).sum())
        if varying < FEWEST_VARYING:
            where = f" of {config.batch_key} {str(batch)!r}" if config.batch_key else ""
            raise DataError(
                f"Gene selection 'seurat_v3' needs {FEWEST_VARYING} genes that differ between cells; in the "
                f"{rows.shape[0]} cells{where} there are {varying}. Choose --hvg-flavor seurat."
            )


def _scanpy_selection(cells: AnnData, config: PreprocessConfig, **options: Any) -> np.ndarray:
    import scanpy as sc

    flavor = config.hvg_flavor
    try:
        table = sc.pp.highly_variable_genes(
            cells,
            flavor=flavor,
            n_top_genes=config.n_top_genes,
            batch_key=config.batch_key,
            inplace=False,
            **options,
        )
    except (ValueError, ZeroDivisionError, IndexError, KeyError) as e:
        remedy = "seurat" if flavor == "seurat_v3" else "cv"
        raise DataError(
            f"Gene selection {flavor!r} failed on {cells.n_obs} cells x {cells.n_vars} genes ({e}); that "
            f"happens "
            f"with few or very similar cells or genes. Choose --hvg-flavor {remedy}."
        ) from e
    return table["highly_variable"].reindex(cells.var_names).to_numpy(dtype=bool)


def _plain(value: Any) -> Any:
    """numpy's types, as they come back from h5ad, as Python's own."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
