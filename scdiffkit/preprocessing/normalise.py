"""Log-normalisation."""

from __future__ import annotations

import numpy as np
from scipy import sparse


def lognormalise(
    counts: sparse.csr_matrix, target_sum: float, library_size: np.ndarray | None = None
) -> sparse.csr_matrix:
    """Scale counts (n, genes) of each cell from its library size to `target_sum` and apply log1p (CSR float32).

    library_size: (n,), needed if the matrix does not have all genes; by default, the sum of each cell's counts. An
    empty cell stays zero.
    """
    size = np.asarray(counts.sum(axis=1, dtype=np.float64) if library_size is None else library_size).ravel()
    factors = np.divide(target_sum, size, out=np.zeros(len(size)), where=size > 0)
    values = np.log1p(counts.data * np.repeat(factors, np.diff(counts.indptr))).astype(np.float32)
    return sparse.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
