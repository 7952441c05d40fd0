"""Data sets that are bundled with dependencies of this package, so that nothing is downloaded."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.errors import DataError

if TYPE_CHECKING:
    from anndata import AnnData


def demo_cells() -> AnnData:
    """Return 700 blood cells x 765 genes, bundled with scanpy: X raw counts (CSR float32), obs["cell_type"] 10 types.

    Source: scanpy.datasets.pbmc68k_reduced (Zheng et al. 2017). Its `raw` is log1p of normalised counts, and counts are
    recovered from the fact that a cell's smallest nonzero value is one count. Raises DataError if this does not give
    integers.
    """
    import scanpy as sc
    from anndata import AnnData

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata warns of the old file format
        bundled = sc.datasets.pbmc68k_reduced()
    normalised = sparse.csr_matrix(bundled.raw.X, dtype=np.float64)
    normalised.eliminate_zeros()
    normalised.data = np.expm1(normalised.data)
    one_count = np.minimum.reduceat(normalised.data, normalised.indptr[:-1])  # no cell is empty
    counts = normalised.data / np.repeat(one_count, np.diff(normalised.indptr))
    if np.abs(counts - np.rint(counts)).max() > 0.2:  # values have 3 digits: error 0.11 at a count of 114
        raise DataError(
            "scanpy's pbmc68k_reduced has changed: its counts cannot be recovered. Use scanpy 1.10 or 1.11."
        )
    normalised.data = np.rint(counts)
    return AnnData(
        X=normalised.astype(np.float32),
        obs=pd.DataFrame({"cell_type": bundled.obs["bulk_labels"]}, index=bundled.obs_names),
        var=pd.DataFrame(index=bundled.raw.var_names),
    )
