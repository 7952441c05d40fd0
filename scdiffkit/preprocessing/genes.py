"""Which genes are highly variable."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.config import PreprocessConfig
from scdiffkit.errors import ConfigError, DataError, did_you_mean, warn
from scdiffkit.io import Rows, Selected
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.columns import TOTAL, take_rows
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.runtime.memory import trim_memory
from scdiffkit.runtime.threads import openmp_threads_kept

if TYPE_CHECKING:
    from anndata import AnnData

log = logging.getLogger("scdiffkit")
SPANS = (0.3, 0.5, 1.0)  # of seurat_v3's loess; below some 200 cells 0.3 sees too few different means
FEWEST_VARYING = 10
CELLS_AT_ONCE = 2048
MAX_CELLS_TO_CHOOSE = 50_000  # of very many cells, genes are chosen on so many


def check_batch_key(obs: pd.DataFrame, config: PreprocessConfig) -> None:
    if config.batch_key is None:
        return
    if config.hvg_flavor in ("cv", "all", "list"):
        raise ConfigError(
            f"--batch-key is not read by --hvg-flavor {config.hvg_flavor}: leave it out, or choose seurat_v3, seurat "
            "or cell_ranger."
        )
    if config.batch_key not in obs:
        raise DataError(
            f"--batch-key: there is no obs column {config.batch_key!r}; {did_you_mean(config.batch_key, obs.columns)}"
        )
    missing = int(obs[config.batch_key].isna().sum())
    if missing:
        raise DataError(f"--batch-key: obs column {config.batch_key!r} has no value for {missing} cells: fill them in.")


def highly_variable(counts: Rows, obs: pd.DataFrame, names: pd.Index, config: PreprocessConfig) -> np.ndarray:
    """Which of the kept genes are used, (n_genes,) bool."""
    flavor, n_top = config.hvg_flavor, config.n_top_genes
    if flavor == "list":
        chosen = np.asarray(names.isin(config.genes or ()))
    elif flavor == "all":
        chosen = np.ones(len(names), dtype=bool)
    elif n_top >= len(names):
        log.info("All %d genes are used, because --n-top-genes %d is not smaller", len(names), n_top)
        return np.ones(len(names), dtype=bool)
    else:
        cells = _sample(counts, obs, names, config)
        if flavor == "cv":
            chosen = np.zeros(len(names), dtype=bool)
            chosen[np.argsort(-_coefficient_of_variation(cells.X), kind="stable")[:n_top]] = True
        else:
            chosen = _scanpy_genes(cells, config)
    log.info("Genes: %d of %d selected as highly variable (%s)", chosen.sum(), len(names), flavor)
    return chosen


def _sample(counts: Rows, obs: pd.DataFrame, names: pd.Index, config: PreprocessConfig) -> AnnData:
    """All cells, or of very many a random choice, on which genes are chosen; X as the selection wants it."""
    from anndata import AnnData

    if counts.shape[0] > MAX_CELLS_TO_CHOOSE:
        at = _drawn(obs[config.batch_key] if config.batch_key else pd.Series(0, index=obs.index))
        parts = np.array_split(
            at, math.ceil(len(at) / CELLS_AT_ONCE)
        )  # all at once would need several times the memory
        X, obs = sparse.vstack([counts[part] for part in parts], format="csr"), take_rows(obs, at)
        trim_memory()
        log.info("Highly variable genes are selected on %d of the %d cells, drawn at random", len(at), counts.shape[0])
    else:
        X = counts[0 : counts.shape[0]]
        log.debug("Highly variable genes are selected on all %d cells", counts.shape[0])
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
    trim_memory()
    for span in SPANS[:-1]:
        try:
            return _scanpy_selection(cells, config, span=span)
        except DataError:
            warn(
                f"Gene selection 'seurat_v3' cannot fit its trend to {cells.n_obs} cells with a loess span of "
                f"{span}; trying a wider one. --hvg-flavor seurat needs no such fit."
            )
    return _scanpy_selection(cells, config, span=SPANS[-1])


def _check_enough_to_fit(cells: AnnData, config: PreprocessConfig) -> None:
    """Refuse what would make the loess library crash the whole process: hardly any gene that varies."""
    counts = cells.X
    batches = pd.Series("", index=cells.obs_names) if config.batch_key is None else cells.obs[config.batch_key]
    for batch in batches.unique():
        rows = Selected(counts, np.flatnonzero(batches == batch), None)
        ends = [(block.min(axis=0).toarray(), block.max(axis=0).toarray()) for _, block in iter_row_blocks(rows)]
        lowest, highest = (np.vstack(side) for side in zip(*ends, strict=True))
        varying = int((lowest.min(axis=0) != highest.max(axis=0)).sum())
        if varying < FEWEST_VARYING:
            where = f" of {config.batch_key} {str(batch)!r}" if config.batch_key else ""
            raise DataError(
                f"Gene selection 'seurat_v3' needs {FEWEST_VARYING} genes that vary between cells; in the "
                f"{rows.shape[0]} cells{where} there are {varying}. Choose --hvg-flavor seurat."
            )


def _scanpy_selection(cells: AnnData, config: PreprocessConfig, **options: Any) -> np.ndarray:
    import scanpy as sc

    flavor = config.hvg_flavor
    try:
        with openmp_threads_kept():
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
            f"Gene selection {flavor!r} failed on {cells.n_obs} cells x {cells.n_vars} genes ({e}); this happens "
            f"if cells or genes are few or very similar. Choose --hvg-flavor {remedy}."
        ) from e
    return table["highly_variable"].reindex(cells.var_names).to_numpy(dtype=bool)
