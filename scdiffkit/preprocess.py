"""From raw counts to training data: cell and gene filters, normalisation, gene selection."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.config import PreprocessConfig, make
from scdiffkit.errors import ConfigError, DataError, ScdiffWarning, nearest

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")

LAYER = 'layers["counts"]'
SPANS = (0.3, 0.5, 1.0)  # of seurat_v3's loess; below some 200 cells 0.3 sees too few different means
FEWEST_VARYING = 10
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
    _check_batch_key(adata, config)
    labels = [label] if isinstance(label, str) else list(label or ())
    for key in labels:
        check_label(adata, key)
    cells, source = _counts_adata(adata)

    cells = _filter_cells(cells, config)
    cells = _filter_genes(cells, config)
    for key in labels:
        check_label(cells, key)
        cells.obs[key] = cells.obs[key].astype("category").cat.remove_unused_categories()

    totals = np.asarray(cells.X.sum(axis=1, dtype=np.float64)).ravel()
    cells.layers["counts"] = cells.X.copy()
    cells.X = lognormalise(cells.layers["counts"], config.target_sum)
    if "total_counts" in cells.obs:
        log.info("obs['total_counts'] is replaced: it holds the library size over the kept genes now")
    cells.obs["total_counts"] = totals.astype(np.float32)
    cells.var["highly_variable"] = _choose_genes(cells, config)
    log.info("Normalised to %g counts per cell, log1p", config.target_sum)

    parameters = config.model_dump(mode="json", exclude_none=True)  # h5ad has no None: what is off is left out
    cells.uns["scdiffkit"] = {
        **adata.uns.get("scdiffkit", {}),
        "preprocess": {**parameters, "source": source, "version": _version()},
    }
    return cells


def is_prepared(adata: AnnData) -> bool:
    """Whether `adata` is a result of `preprocess`."""
    recorded = adata.uns.get("scdiffkit", {})
    return "preprocess" in recorded and "counts" in adata.layers and "highly_variable" in adata.var


def prepared_config(adata: AnnData) -> PreprocessConfig:
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
    raw = None if adata.raw is None else adata.raw.X
    wrong: dict[str, str] = {}
    for source, matrix in ((LAYER, adata.layers.get("counts")), ("raw", raw), ("X", adata.X)):
        if matrix is None:
            continue
        counts = _as_csr(matrix)
        reason = _why_not_counts(counts.data)
        if reason is None:
            break
        wrong[source] = reason
    else:
        found = "; ".join(f"{place} {reason}" for place, reason in wrong.items()) or "there is no X"
        other = _other_layers_of_integers(adata)
        remedy = "Put the raw integer counts into adata.layers['counts'], or give the file from before normalisation."
        if other:
            remedy = (
                f"{_listed(other)} whole numbers, though: if these are the raw counts, put them where they are looked "
                f"for (adata.layers['counts'] = adata.{other[0]}); else give the file from before normalisation."
            )
        raise DataError(f"There are no raw counts: {found}. {remedy}")
    if LAYER in wrong:
        places = [source]
        if source == "raw" and adata.X is not None and _why_not_counts(_as_csr(adata.X).data) is None:
            places.append("X")
        other = _other_layers_of_integers(adata)
        also = f" ({_listed(other)} whole numbers, too)" if other else ""
        raise DataError(
            f"{LAYER} {wrong[LAYER]}, but {_listed(places)} raw counts{also}: correct the layer, or drop it "
            f"(del adata.layers['counts']) to use {source}."
        )
    rounded = np.rint(counts.data).astype(np.float32)
    if not np.array_equal(rounded, counts.data):
        log.info("Counts in %s were within %g of integers and were rounded", source, ROUNDING)
    log.info("Raw counts: %s (%d cells x %d genes)", source, *counts.shape)
    counts = sparse.csr_matrix((rounded, counts.indices, counts.indptr), shape=counts.shape)
    counts.eliminate_zeros()  # what was rounded to zero was not detected
    return counts, source


def are_counts(matrix: Any) -> bool:
    """Whether all values of a matrix (dense or sparse) can be raw counts."""
    values = matrix.data if sparse.issparse(matrix) else np.ravel(matrix)
    return values.dtype.kind in "iufb" and _why_not_counts(values) is None


def check_label(adata: AnnData, key: str) -> None:
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


def _counts_adata(adata: AnnData) -> tuple[AnnData, str]:
    """A new AnnData with the raw counts as X, and obs and var columns; nothing else is carried on."""
    from anndata import AnnData
    from anndata.utils import make_index_unique

    counts, source = find_counts(adata)
    var = adata.raw.var if source == "raw" else adata.var
    if source == "raw" and counts.shape[1] != adata.n_vars:
        log.info("raw has %d genes, X %d: those of raw are used", counts.shape[1], adata.n_vars)
    for axis, n in (("cells", counts.shape[0]), ("genes", counts.shape[1])):
        if n == 0:
            raise DataError(f"The data has no {axis} ({counts.shape[0]} cells x {counts.shape[1]} genes).")
    repeated = var.index[var.index.duplicated()].unique()
    if len(repeated):
        examples = ", ".join(repr(str(name)) for name in repeated[:3])
        raise DataError(
            f"{len(repeated)} gene names occur more than once ({examples}): run adata.var_names_make_unique() first."
        )
    obs = adata.obs.copy()
    if not obs.index.is_unique:
        n = int(obs.index.duplicated().sum())
        obs.index = make_index_unique(obs.index)
        warnings.warn(
            f"{n} cell names repeat an earlier one; -1, -2, ... was added to tell them apart.",
            ScdiffWarning,
            3,
        )
    return AnnData(X=counts, obs=obs, var=var.copy()), source


def _as_csr(matrix: Any) -> sparse.csr_matrix:
    """A canonical CSR copy, in memory: no explicit zeros, no duplicates."""
    if hasattr(matrix, "to_memory"):  # backed on disk
        matrix = matrix.to_memory()
    elif not sparse.issparse(matrix):
        matrix = np.asarray(matrix)
    if matrix.dtype.kind not in "iufb":
        raise DataError(f"Values of type {matrix.dtype} are not counts: X and layers must hold numbers.")
    if matrix.dtype == np.float16:  # which sparse matrices do not know
        matrix = matrix.astype(np.float32)
    csr = sparse.csr_matrix(matrix, copy=True)
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


def _other_layers_of_integers(adata: AnnData) -> list[str]:
    """The layers, besides "counts", that could be raw counts."""
    found = []
    for name, matrix in adata.layers.items():
        with contextlib.suppress(DataError):  # not numbers
            if name is not None and name != "counts" and _why_not_counts(_as_csr(matrix).data) is None:
                found.append(f"layers[{name!r}]")
    return found


def _listed(places: Sequence[str]) -> str:
    """ "X holds" or "raw, X hold"."""
    return f"{', '.join(places)} {'holds' if len(places) == 1 else 'hold'}"


def _check_batch_key(adata: AnnData, config: PreprocessConfig) -> None:
    if config.batch_key is None:
        return
    if config.hvg_flavor in ("cv", "all", "list"):
        raise ConfigError(
            f"--batch-key is not read by --hvg-flavor {config.hvg_flavor}: leave it out, or choose "
            f"seurat_v3, seurat "
            "or cell_ranger."
        )
    if config.batch_key not in adata.obs:
        raise DataError(
            f"--batch-key: there is no obs column {config.batch_key!r}; {nearest(config.batch_key, adata.obs.columns)}"
        )
    missing = int(adata.obs[config.batch_key].isna().sum())
    if missing:
        raise DataError(f"--batch-key: obs column {config.batch_key!r} has no value for {missing} cells: fill them in.")


def _filter_cells(cells: AnnData, config: PreprocessConfig) -> AnnData:
    counts = cells.X
    totals = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    genes = np.diff(counts.indptr)
    checks: list[tuple[str, Any, np.ndarray, np.ndarray]] = [
        ("min_counts", config.min_counts, totals, totals >= config.min_counts),
        ("min_genes", config.min_genes, genes, genes >= config.min_genes),
    ]
    if config.max_counts is not None:
        checks.append(("max_counts", config.max_counts, totals, totals <= config.max_counts))
    if config.max_genes is not None:
        checks.append(("max_genes", config.max_genes, genes, genes <= config.max_genes))
    if config.max_mito is not None:
        share = _mito_share(cells, totals, config.mito_prefix)
        checks.append(("max_mito", config.max_mito, share, share <= config.max_mito))
    keep = np.ones(cells.n_obs, dtype=bool)
    for name, limit, values, passed in checks:
        before, keep = keep, keep & passed
        if not keep.any():
            raise DataError(
                f"No cells are left: --{name.replace('_', '-')} {limit} drops the last {before.sum()} of "
                f"{cells.n_obs} cells (their median is {np.median(values[before]):g}). Choose a milder value."
            )
        log.info("Cells: %d -> %d (%s %s)", before.sum(), keep.sum(), name, limit)
    return cells[keep].copy() if not keep.all() else cells


def _mito_share(cells: AnnData, totals: np.ndarray, prefix: str) -> np.ndarray:
    """Share of a cell's counts in mitochondrial genes, 0..1."""
    mito = np.array([str(name).casefold().startswith(prefix.casefold()) for name in cells.var_names])
    if not mito.any():
        warnings.warn(
            f"No gene name starts with {prefix!r}: --max-mito drops nothing. Set --mito-prefix (mouse: "
            f"mt-), or leave "
            "it out.",
            ScdiffWarning,
            4,
        )
    in_mito = np.asarray(cells.X[:, mito].sum(axis=1, dtype=np.float64)).ravel()
    return np.divide(in_mito, totals, out=np.zeros_like(totals), where=totals > 0)


def _filter_genes(cells: AnnData, config: PreprocessConfig) -> AnnData:
    detected = np.bincount(cells.X.indices, minlength=cells.n_vars)
    keep = detected >= config.min_cells
    if not keep.any():
        raise DataError(
            f"No genes are left: --min-cells {config.min_cells} drops all {cells.n_vars} genes (the most "
            f"frequent one "
            f"is detected in {detected.max()} of {cells.n_obs} cells). Choose a milder value."
        )
    log.info("Genes: %d -> %d (min_cells %d)", cells.n_vars, keep.sum(), config.min_cells)
    if config.hvg_flavor == "list":
        _check_list(config, list(cells.var_names), list(cells.var_names[keep]))
    kept = cells[:, keep].copy() if not keep.all() else cells
    empty = np.diff(kept.X.indptr) == 0
    if empty.any() and (config.min_counts or config.min_genes):  # min_counts holds for the genes that stay
        log.info("Cells: %d -> %d (no counts in the genes kept)", kept.n_obs, kept.n_obs - empty.sum())
        kept = kept[~empty].copy()
    return kept


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


def _choose_genes(cells: AnnData, config: PreprocessConfig) -> np.ndarray:
    """Which of the kept genes are used, (n_genes,) bool."""
    flavor, n_top = config.hvg_flavor, config.n_top_genes
    if flavor == "list":
        chosen = np.asarray(cells.var_names.isin(config.genes or ()))
    elif flavor == "all":
        chosen = np.ones(cells.n_vars, dtype=bool)
    elif n_top >= cells.n_vars:
        log.info("All %d genes are used: --n-top-genes %d asks for no fewer", cells.n_vars, n_top)
        return np.ones(cells.n_vars, dtype=bool)
    elif flavor == "cv":
        chosen = np.zeros(cells.n_vars, dtype=bool)
        chosen[np.argsort(-_coefficient_of_variation(cells.X), kind="stable")[:n_top]] = True
    else:
        chosen = _scanpy_genes(cells, config)
    log.info("Genes: %d of %d chosen as highly variable (%s)", chosen.sum(), cells.n_vars, flavor)
    return chosen


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
    for span in SPANS[:-1]:
        try:
            return _scanpy_selection(cells, config, layer="counts", span=span)
        except DataError:
            warnings.warn(
                f"Gene selection 'seurat_v3' cannot fit its trend to {cells.n_obs} cells with a loess span "
                f"of {span}; "
                "trying a wider one. --hvg-flavor seurat does without.",
                ScdiffWarning,
                4,
            )
    return _scanpy_selection(cells, config, layer="counts", span=SPANS[-1])


def _check_enough_to_fit(cells: AnnData, config: PreprocessConfig) -> None:
    """Refuse what would make the loess library crash the whole process: hardly any gene that varies."""
    counts = cells.layers["counts"]
    batches = pd.Series("", index=cells.obs_names) if config.batch_key is None else cells.obs[config.batch_key]
    for batch in batches.unique():
        rows = counts[(batches == batch).to_numpy()]
        varying = int((rows.max(axis=0) != rows.min(axis=0)).sum())
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


def _version() -> str:
    try:
        return metadata.version("scdiffkit")
    except metadata.PackageNotFoundError:  # run from a source tree that was not installed
        return "unknown"
