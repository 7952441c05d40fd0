"""Selection of highly variable genes."""

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
SPANS = (0.3, 0.5, 1.0)  # loess spans of seurat_v3; below about 200 cells, 0.3 covers too few distinct means
FEWEST_VARYING = 10
CELLS_AT_ONCE = 2048
MAX_CELLS_TO_CHOOSE = 50_000  # maximum number of cells on which genes are selected


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
    """Return a mask of the selected genes among the kept ones, (n_genes,) bool."""
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
    """Return the cells on which genes are selected: all, or a random sample of MAX_CELLS_TO_CHOOSE.

    X holds counts for seurat_v3, else log-normalised values.
    """
    from anndata import AnnData

    if counts.shape[0] > MAX_CELLS_TO_CHOOSE:
        at = _drawn(obs[config.batch_key] if config.batch_key else pd.Series(0, index=obs.index))
        parts = np.array_split(
            at, math.ceil(len(at) / CELLS_AT_ONCE)
        )  # all rows at once would need several times the memory
        X, obs = sparse.vstack([counts[part] for part in parts], format="csr"), take_rows(obs, at)
        trim_memory()
        log.info("Highly variable genes are selected on %d of the %d cells, drawn at random", len(at), counts.shape[0])
    else:
        X = counts[0 : counts.shape[0]]
        log.debug("Highly variable genes are selected on all %d cells", counts.shape[0])
    if config.hvg_flavor != "seurat_v3":  # seurat_v3 uses counts
        X = lognormalise(X, config.target_sum, obs[TOTAL].to_numpy(np.float64))
    return AnnData(X=X, obs=obs[[config.batch_key] if config.batch_key else []], var=pd.DataFrame(index=names))


def _drawn(batches: pd.Series) -> np.ndarray:
    """Draw MAX_CELLS_TO_CHOOSE cells, equally many from each batch or all of a smaller batch; return sorted indices."""
    order = np.random.default_rng(0).permutation(len(batches))
    rank = pd.Series(order).groupby(batches.to_numpy()[order]).cumcount().to_numpy()
    return np.sort(order[np.argsort(rank, kind="stable")[:MAX_CELLS_TO_CHOOSE]])


def _coefficient_of_variation(X: sparse.csr_matrix) -> np.ndarray:
    """Compute the coefficient of variation (standard deviation / mean) of each gene; 0 for undetected genes.

    Source: scRDiT, gene selection.
    """
    values = X.astype(np.float64)
    mean = np.asarray(values.mean(axis=0)).ravel()
    variance = np.asarray(values.multiply(values).mean(axis=0)).ravel() - mean**2
    return np.divide(np.sqrt(np.maximum(variance, 0)), mean, out=np.zeros_like(mean), where=mean > 0)


def _scanpy_genes(cells: AnnData, config: PreprocessConfig) -> np.ndarray:
    """Select genes with scanpy; seurat_v3 is retried with wider spans if its loess is singular."""
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
    """Raise DataError if too few genes vary: the loess library would crash the whole process."""
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
