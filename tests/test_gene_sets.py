"""The sets of genes that cells are compared in, against scanpy and against genes of known abundance."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import scdiffkit
from scdiffkit.evaluation.gene_sets import choose_gene_sets, counts_per_cell
from scdiffkit.metrics import GENE_SETS, METRICS
from scdiffkit.preprocessing.normalise import lognormalise

MEANS = np.repeat([0.005, 0.01, 0.05, 0.1, 0.5, 2.0], 100)


@pytest.fixture(scope="module")
def counts() -> sparse.csr_matrix:
    """400 cells x 600 Poisson genes of MEANS, some of which differ between two halves of the cells."""
    rng = np.random.default_rng(0)
    rates = np.tile(MEANS, (400, 1))
    rates[:200, ::7] *= 3
    return sparse.csr_matrix(rng.poisson(rates).astype(np.float32))


@pytest.mark.parametrize("flavor", ["seurat", "seurat_v3"])
def test_highly_variable_genes_are_those_of_scanpy(counts: sparse.csr_matrix, flavor: str) -> None:
    X = lognormalise(counts, 1e4)
    table = sc.pp.highly_variable_genes(
        AnnData(X if flavor == "seurat" else counts), flavor=flavor, n_top_genes=100, inplace=False
    )
    chosen = choose_gene_sets(X, counts, n_genes=100).places[f"hvg_{flavor}"]
    np.testing.assert_array_equal(chosen, np.flatnonzero(table["highly_variable"]))


def test_classes_of_abundance_by_counts_per_cell(counts: sparse.csr_matrix) -> None:
    mean = np.asarray(counts.mean(axis=0)).ravel()
    expected = {"rare": (mean > 0) & (mean < 0.02), "medium": (mean >= 0.02) & (mean < 0.2), "abundant": mean >= 0.2}
    found = choose_gene_sets(lognormalise(counts, 1e4), counts, n_genes=600).places
    for name, genes in expected.items():
        np.testing.assert_array_equal(found[name], np.flatnonzero(genes))


def test_only_so_many_genes_of_a_class_those_of_the_highest_dispersion(counts: sparse.csr_matrix) -> None:
    dense = counts.toarray().astype(float)
    dispersion = dense.var(axis=0) / np.maximum(dense.mean(axis=0), 1e-9)
    for known in (counts, None):
        X = lognormalise(counts, 1e4)
        every = choose_gene_sets(X, known, n_genes=600).places["medium"]
        found = choose_gene_sets(X, known, n_genes=50).places["medium"]
        assert len(found) == 50
        others = np.setdiff1d(every, found)
        if known is not None:
            assert dispersion[found].min() >= dispersion[others].max()
        assert dispersion[found].mean() > dispersion[others].mean()


def test_abundance_without_counts_is_that_of_poisson_genes(counts: sparse.csr_matrix) -> None:
    X = lognormalise(counts, 1e4)
    of_zeros, of_counts = counts_per_cell(X, None), counts_per_cell(X, counts)
    np.testing.assert_allclose(of_zeros[200:500], of_counts[200:500], rtol=0.3)
    found = choose_gene_sets(X, None, n_genes=100)
    assert set(found.places) == set(GENE_SETS) - {"hvg_seurat_v3"}
    assert found.missing == {"hvg_seurat_v3": "the real cells have no raw counts"}
    assert counts_per_cell(sparse.csr_matrix(np.ones((3, 1))), None)[0] == np.inf  # a gene that is in every cell


@pytest.mark.parametrize("cells", ["equal", "empty", "few"])
def test_what_cannot_be_chosen_is_said_and_nothing_crashes(cells: str) -> None:
    """loess takes the process down where hardly any gene varies."""
    rng = np.random.default_rng(1)
    values = {
        "equal": np.tile(rng.poisson(1.0, (1, 300)), (20, 1)),
        "empty": np.zeros((20, 300)),
        "few": rng.poisson(0.3, (5, 300)),
    }[cells]
    counts = sparse.csr_matrix(values.astype(np.float32))
    found = choose_gene_sets(lognormalise(counts, 1e4), counts, n_genes=100)
    assert set(found.places) | set(found.missing) == set(GENE_SETS)
    assert all(found.missing.values())
    if cells == "empty":
        assert not set(found.places) & {"rare", "medium", "abundant"}


def test_few_genes_are_no_choice(counts: sparse.csr_matrix) -> None:
    found = choose_gene_sets(lognormalise(counts, 1e4), counts)
    assert "rf_auc_genes already uses all of the 600 genes" in found.missing["hvg_seurat"]
    assert "rf_auc_genes already uses all of the 600 genes" in found.missing["hvg_seurat_v3"]


@pytest.mark.slow
def test_a_fault_in_genes_of_one_class_is_seen_in_this_class(few_trees: None) -> None:
    """Genes of 0.02 to 0.2 counts a cell come in clumps, at the right mean: the 2000 most variable genes hide it."""
    rng = np.random.default_rng(2)
    means = np.repeat([0.01, 0.1, 1.5], [400, 400, 2200])
    real, synthetic = (rng.poisson(means, (500, len(means))).astype(np.float32) for _ in range(2))
    medium = np.flatnonzero(means == 0.1)
    synthetic[:, medium] = 4 * rng.poisson(0.1 / 4, (500, len(medium)))
    names = pd.DataFrame(index=[f"gene{i}" for i in range(len(means))])
    cells = [AnnData(sparse.csr_matrix(X), var=names) for X in (real, synthetic)]
    asked = [name for name in METRICS if name.startswith("rf_auc")]
    found = scdiffkit.evaluate(*cells, resamples=1, metrics=asked)
    assert found["rf_auc_genes"].value < 0.6
    assert found["rf_auc_medium_genes"].value > 0.9
    for name in ("rf_auc_rare_genes", "rf_auc_abundant_genes"):
        assert found[name].value == pytest.approx(0.5, abs=0.1)
    assert found["rf_auc_hvg_seurat_v3"].real_reference == pytest.approx(0.5, abs=0.1)
    logged = [AnnData(lognormalise(c.X, 1e4), var=names) for c in cells]
    without = scdiffkit.evaluate(*logged, resamples=1, metrics=asked[-4:])
    assert without.skipped["rf_auc_hvg_seurat_v3"] == "the real cells have no raw counts"
    assert without["rf_auc_medium_genes"].value > 0.9
