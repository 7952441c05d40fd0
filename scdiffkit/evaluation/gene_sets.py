"""Gene sets, selected once on the real cells, in which cells are compared besides all genes.

Two sets are the highly variable genes an analysis would start from; three are classes of abundance, because a model may
generate abundant genes well and the others badly. This module knows counts and log values, but no cell sets or metrics.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.config import PreprocessConfig
from scdiffkit.errors import DataError, ScdiffWarning
from scdiffkit.metrics.marginals import mean_per_gene, variance_per_gene, zeros_per_gene
from scdiffkit.metrics.registry import ABUNDANT, GENE_SETS, MEDIUM, N_VARIABLE, Space
from scdiffkit.metrics.spaces import as_csr
from scdiffkit.preprocessing.pipeline import prepare
from scdiffkit.runtime.threads import openmp_threads_kept

FEWEST_GENES = 10  # minimum size of a gene set
FLAVORS = {"hvg_seurat": "seurat", "hvg_seurat_v3": "seurat_v3"}
CLASSES = {"rare": (0.0, MEDIUM), "medium": (MEDIUM, ABUNDANT), "abundant": (ABUNDANT, np.inf)}

log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class GeneSets:
    """The selected gene sets.

    places: sorted gene indices of each set. missing: the reason, as text, for each set that could not be selected.
    """

    places: dict[Space, np.ndarray] = field(default_factory=dict)
    missing: dict[Space, str] = field(default_factory=dict)


def choose_gene_sets(
    X: sparse.csr_matrix,
    counts: sparse.csr_matrix | None,
    wanted: Collection[Space] = GENE_SETS,
    n_genes: int = N_VARIABLE,
) -> GeneSets:
    """Select the `wanted` sets, with at most `n_genes` genes each, on real cells.

    X (cells, genes): log1p-normalised values. counts: raw counts of the same cells and genes. If they are None,
    "hvg_seurat_v3" is missing and abundance is estimated from the share of zeros. A set that cannot be selected is
    listed in `missing`; nothing is raised.
    """
    places: dict[Space, np.ndarray] = {}
    missing: dict[Space, str] = {}
    if not wanted:
        return GeneSets()
    abundance, dispersion = counts_per_cell(X, counts), dispersion_per_gene(X, counts)
    for name in (name for name in GENE_SETS if name in wanted):
        try:
            places[name] = (
                _highly_variable(X, counts, FLAVORS[name], n_genes)
                if name in FLAVORS
                else _of_abundance(name, abundance, dispersion, n_genes)
            )
        except DataError as e:
            missing[name] = e.text
    return GeneSets(places, missing)


def counts_per_cell(X: sparse.csr_matrix, counts: sparse.csr_matrix | None) -> np.ndarray:
    """Compute the mean counts per cell of each gene, (genes,).

    Without counts, the estimate is -log(share of zeros), the mean of a Poisson variable with this share of zeros. It is
    too low for overdispersed genes.
    """
    if counts is not None:
        return mean_per_gene(counts)
    zeros = zeros_per_gene(X)
    return np.where(zeros > 0, -np.log(np.maximum(zeros, 1e-300)), np.inf)


def _of_abundance(name: Space, abundance: np.ndarray, dispersion: np.ndarray, n_genes: int) -> np.ndarray:
    """Select the genes with the highest dispersion from a class of abundance.

    These genes reveal a model that spreads a gene's outliers over all cells. Undetected genes belong to no class.
    """
    low, high = CLASSES[name]
    genes = np.flatnonzero((abundance > 0) & (abundance >= low) & (abundance < high))
    if len(genes) < FEWEST_GENES:
        raise DataError(f"only {len(genes)} of the compared genes have {low:g} to {high:g} counts per cell")
    return np.sort(genes[np.argsort(-dispersion[genes], kind="stable")[:n_genes]])


def dispersion_per_gene(X: sparse.csr_matrix, counts: sparse.csr_matrix | None) -> np.ndarray:
    """Compute variance / mean of each gene's counts, (genes,), or without counts of its normalised values.

    Undetected genes get 0.
    """
    values = as_csr(X if counts is None else counts)
    if counts is None:
        values.data = np.expm1(values.data)
    mean = mean_per_gene(values)
    return np.divide(variance_per_gene(values), mean, out=np.zeros_like(mean), where=mean > 0)


def _highly_variable(X: sparse.csr_matrix, counts: sparse.csr_matrix | None, flavor: str, n_genes: int) -> np.ndarray:
    """Select highly variable genes with scanpy."""
    if X.shape[1] <= n_genes:
        raise DataError(f"rf_auc_genes already uses all of the {X.shape[1]} genes")
    if flavor == "seurat":
        return _seurat(X, n_genes)
    if counts is None:
        raise DataError("the real cells have no raw counts")
    from anndata import AnnData

    cells = AnnData(counts, var=pd.DataFrame(index=[str(i) for i in range(counts.shape[1])]))
    config = PreprocessConfig(
        hvg_flavor="seurat_v3", n_top_genes=n_genes, min_cells=0, min_genes=0, min_counts=0, batch_key=None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ScdiffWarning)  # they suggest options of `scdiff preprocess`
        chosen = prepare(cells, config).var["highly_variable"].to_numpy(dtype=bool)
    return np.flatnonzero(chosen)


def _seurat(X: sparse.csr_matrix, n_genes: int) -> np.ndarray:
    """Select highly variable genes from log values alone, as the cells may have no counts."""
    import scanpy as sc
    from anndata import AnnData

    try:
        with openmp_threads_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = sc.pp.highly_variable_genes(
                AnnData(X.astype(np.float32)), flavor="seurat", n_top_genes=n_genes, inplace=False
            )
    except (ValueError, ZeroDivisionError, IndexError, KeyError) as e:
        raise DataError(f"scanpy's gene selection failed on the real cells ({e})") from e
    return np.flatnonzero(table["highly_variable"].to_numpy(dtype=bool))
