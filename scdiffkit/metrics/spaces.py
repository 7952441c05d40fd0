"""The spaces in which cells are compared: genes, highly variable genes and principal components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.marginals import variance_per_gene
from scdiffkit.metrics.registry import GENE_SETS, N_VARIABLE, Space

N_COMPONENTS = 20


def as_csr(cells: Any) -> sparse.csr_matrix:
    """Convert cells (n, G), sparse or dense, to CSR float64 without explicit zeros.

    float64 is needed because variances and distances are differences of large sums.
    """
    csr = sparse.csr_matrix(cells, dtype=np.float64, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def in_space(
    space: Space, real: Any, synthetic: Any, gene_sets: Mapping[Space, np.ndarray] | None = None
) -> tuple[Any, Any]:
    """Transform log-normalised cells real (n, G) and synthetic (m, G), sparse or dense, to the given space.

    "variable" selects the 2000 genes with the highest variance in both sets together, dense. "pca" is also fitted on
    both sets together: with a fit to the real cells alone, cells used for the fit and other cells are distributed
    differently, so that even two halves of one data set can be distinguished (on pbmc3k, a random forest then has an
    AUC of 0.81 instead of 0.51).
    gene_sets: column indices of the genes of each of GENE_SETS. Raises KeyError if `space` is one of GENE_SETS and is
    missing here.
    """
    if space in GENE_SETS:
        places = (gene_sets or {})[space]
        a, b = (as_csr(side[:, places]).astype(np.float32).toarray() for side in (real, synthetic))
        return a, b
    real, synthetic = as_csr(real), as_csr(synthetic)
    if space == "genes":
        return real, synthetic
    both = sparse.vstack([real, synthetic], format="csr")
    if space == "variable":
        genes = np.sort(np.argsort(-variance_per_gene(both), kind="stable")[:N_VARIABLE])
        return real[:, genes].toarray(), synthetic[:, genes].toarray()
    a, b = np.split(principal_components(both), [real.shape[0]])
    return a, b


def principal_components(
    cells: sparse.csr_matrix, n_components: int = N_COMPONENTS, *, rest: sparse.csr_matrix | None = None
) -> np.ndarray:
    """Compute principal components (n, k) of cells (n, G), centred but not scaled per gene.

    If `rest` (m, G) is given, its cells are projected onto the components fitted to `cells`, and the result has n + m
    rows. k is n_components, or less if there are too few cells or genes.
    """
    from sklearn.decomposition import PCA

    n_components = min(n_components, min(cells.shape) - 1)
    all_equal = (cells.max(axis=0) - cells.min(axis=0)).count_nonzero() == 0
    if n_components < 1 or all_equal:  # one gene, or no variance
        every = cells if rest is None else sparse.vstack([cells, rest], format="csr")
        return np.asarray(every[:, 0].toarray() - cells[:, 0].mean())
    pca = PCA(n_components, svd_solver="arpack", random_state=0)
    fitted = pca.fit_transform(cells)
    return fitted if rest is None or rest.shape[0] == 0 else np.vstack([fitted, pca.transform(rest)])
