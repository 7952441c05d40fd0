"""The spaces that cells are compared in."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scdiffkit.metrics.registry import Space

N_COMPONENTS = 20


def as_csr(cells: Any) -> sparse.csr_matrix:
    """Cells (n, G), sparse or dense, as CSR float64 without stored zeros.

    float64 because variances and distances are differences of large sums.
    """
    csr = sparse.csr_matrix(cells, dtype=np.float64, copy=True)
    csr.sum_duplicates()
    csr.eliminate_zeros()
    return csr


def in_space(space: Space, real: Any, *others: Any) -> list[Any]:
    """Log-normalised cells (n, G), sparse or dense, in the given space; "pca" is fitted on `real` alone."""
    sides = [as_csr(side) for side in (real, *others)]
    return principal_components(*sides) if space == "pca" else sides


def principal_components(
    real: sparse.csr_matrix, *others: sparse.csr_matrix, n_components: int = N_COMPONENTS
) -> list[np.ndarray]:
    """Principal components (cells, k) of each matrix (cells, G), fitted on the first.

    k is n_components, or fewer where cells or genes do not allow as many. Centred, not scaled per gene.
    """
    from sklearn.decomposition import PCA

    n_components = min(n_components, min(real.shape) - 1)
    mean = np.asarray(real.mean(axis=0))
    if n_components < 1:  # one gene is its own component
        return [np.asarray(side - mean) for side in (real, *others)]
    if abs(real - sparse.csr_matrix(np.tile(real[0].toarray(), (1, 1)))).max() == 0 if real.shape[0] == 1 else False:
        return []
    pca = PCA(n_components, svd_solver="arpack", random_state=0).fit(real)
    return [pca.transform(side) for side in (real, *others)]
