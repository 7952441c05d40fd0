"""What is written comes back: any names, labels and shapes, through every format."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pandas.testing import assert_frame_equal
from scipy import sparse

from scdiffkit import io
from scdiffkit.errors import DataError, ScdiffWarning

text = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")), min_size=1, max_size=8)
quick = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@st.composite
def cells(draw: st.DrawFn) -> AnnData:
    n, g = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    values = draw(st.lists(st.sampled_from([0, 0, 1, 2, 70_000]), min_size=n * g, max_size=n * g))
    counts = sparse.csr_matrix(np.array(values, dtype=np.int32).reshape(n, g))
    categories = draw(st.lists(text, min_size=1, max_size=3, unique=True))
    codes = draw(st.lists(st.integers(-1, len(categories) - 1), min_size=n, max_size=n))
    floats = draw(st.lists(st.floats(width=32) | st.just(np.nan), min_size=n, max_size=n))
    obs = pd.DataFrame(
        {
            "label": pd.Categorical.from_codes(codes, categories, ordered=draw(st.booleans())),
            "number": pd.Categorical.from_codes([0] * n, [7, 3]),
            "good": np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n))),
            "size": np.array(floats, dtype=np.float32),
            "rank": np.array(draw(st.lists(st.integers(-(2**60), 2**60), min_size=n, max_size=n))),
            "note": np.array(draw(st.lists(text | st.just("same"), min_size=n, max_size=n)), dtype=object),
        },
        index=pd.Index(draw(st.lists(text, min_size=n, max_size=n, unique=True)), dtype=object),
    )
    genes = pd.Index(draw(st.lists(text, min_size=g, max_size=g, unique=True)), dtype=object)
    var = pd.DataFrame({"gene_ids": np.array([f"ENSG{i}" for i in range(g)], dtype=object)}, index=genes)
    adata = AnnData(X=counts.astype(np.float32).log1p(), obs=obs, var=var, uns={"scdiffkit": {"seed": 3}})
    adata.layers["counts"] = counts
    return adata


@contextmanager
def a_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def there_and_back(adata: AnnData, name: str) -> AnnData:
    with a_folder() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", ScdiffWarning)
        return io.read(io.write(adata.copy(), folder / name))


def assert_same(matrix: sparse.csr_matrix, expected: sparse.csr_matrix) -> None:
    assert matrix.format == "csr"
    assert matrix.shape == expected.shape
    assert (matrix != expected).nnz == 0


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.loom"])
@quick
@given(cells())
def test_h5ad_and_loom_keep_everything(name: str, adata: AnnData) -> None:
    back = there_and_back(adata, name)
    assert_same(back.X, adata.X)
    assert_same(back.layers["counts"], adata.layers["counts"])
    assert np.issubdtype(back.layers["counts"].dtype, np.integer)
    assert_frame_equal(back.obs, adata.obs)
    assert_frame_equal(back.var, adata.var)
    assert back.uns["scdiffkit"]["seed"] == 3


@quick
@given(cells())
def test_a_10x_folder_keeps_counts_labels_and_names(adata: AnnData) -> None:
    back = there_and_back(adata, "folder")
    assert_same(back.X, adata.layers["counts"])
    assert_frame_equal(back.obs, adata.obs)
    assert list(back.var_names) == list(adata.var_names)
    assert list(back.var["gene_ids"]) == list(adata.var["gene_ids"])
    assert back.uns["scdiffkit"]["seed"] == 3


@quick
@given(cells())
def test_10x_hdf5_keeps_counts_and_names(adata: AnnData) -> None:
    back = there_and_back(adata, "cells.h5")
    assert_same(back.X, adata.layers["counts"])
    assert list(back.obs_names) == list(adata.obs_names)
    assert list(back.var_names) == list(adata.var_names)
    assert list(back.var["gene_ids"]) == list(adata.var["gene_ids"])


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.loom", "folder", "cells.h5"])
def test_no_cells_and_empty_cells(name: str, tiny: AnnData) -> None:
    none = there_and_back(tiny[:0].copy(), name)
    assert none.shape == (0, 60)
    if name in ("cells.h5ad", "cells.loom"):
        assert set(none.obs) == {"cell_type", "donor"}
    blank = tiny[:3].copy()
    blank.X = sparse.csr_matrix(blank.shape, dtype=np.float32)
    assert there_and_back(blank, name).X.nnz == 0


def test_h5ad_keeps_what_only_h5ad_carries(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.obsm["X_pca"] = np.ones((240, 2))
    adata.uns["palette"] = ["red", "blue"]
    adata.raw = tiny
    adata.obs["note"] = ["x", None] * 120
    adata.obs["text"] = ["x", "y"] * 120
    before = adata.obs.copy()
    back = io.read(io.write(adata, tmp_path / "a.h5ad"))
    assert_same(back.raw.X, tiny.X)
    assert np.array_equal(back.obsm["X_pca"], adata.obsm["X_pca"])
    assert list(back.uns["palette"]) == ["red", "blue"]
    assert back.obs["note"].isna().sum() == 120
    assert back.obs["text"].dtype == object  # not made categorical
    assert_frame_equal(adata.obs, before)  # writing changes nothing in the caller's cells


def test_column_wise_matrices_come_back_row_wise(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.raw = AnnData(X=tiny.X.tocsc(), var=tiny.var.copy(), obs=tiny.obs.copy())
    adata.X, adata.layers["counts"] = tiny.X.tocsc(), tiny.X.tocsc()
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = io.read(tmp_path / "a.h5ad")
    for matrix in (back.X, back.layers["counts"], back.raw.X):
        assert_same(matrix, tiny.X)


def test_scanpy_reads_our_10x_formats(tiny: AnnData, tmp_path: Path) -> None:
    with pytest.warns(ScdiffWarning, match="obs column 'cell_type'"):
        h5 = sc.read_10x_h5(io.write(tiny, tmp_path / "a.h5"))
    folder = sc.read_10x_mtx(io.write(tiny, tmp_path / "folder"))
    for theirs in (h5, folder):
        assert_same(sparse.csr_matrix(theirs.X), tiny.X)
        assert list(theirs.obs_names) == list(tiny.obs_names)
        assert list(theirs.var_names) == list(tiny.var_names)


def test_loompy_reads_our_loom(tiny: AnnData, tmp_path: Path) -> None:
    import loompy

    adata = tiny.copy()
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"T": "T γδ & CD8&amp;"})
    adata.layers["counts"] = adata.X.astype(np.int32)
    path = io.write(adata, tmp_path / "a.loom")
    assert loompy.LoomValidator().validate(str(path))
    theirs = anndata.io.read_loom(path)
    assert_same(theirs.X, tiny.X)
    assert_same(theirs.layers["counts"], tiny.X)
    assert list(theirs.obs["cell_type"]) == list(adata.obs["cell_type"])
    assert list(theirs.obs_names) == list(tiny.obs_names)
    assert list(theirs.var_names) == list(tiny.var_names)


def test_we_read_a_loom_by_loompy(tiny: AnnData, tmp_path: Path) -> None:
    import loompy

    path = tmp_path / "theirs.loom"
    columns = {
        "CellID": tiny.obs_names.to_numpy(),
        "Class": np.array(["é", "b"] * 120),
        "xy": np.ones((240, 2)),
    }
    layers = {"": tiny.X.T.toarray(), "spliced": tiny.X.T.tocoo()}
    loompy.create(str(path), layers, {"Gene": tiny.var_names.to_numpy()}, columns)
    back = io.read(path)
    assert_same(back.X, tiny.X)
    assert_same(back.layers["spliced"], tiny.X)
    assert list(back.obs["Class"][:2]) == ["é", "b"]
    assert back.obsm["xy"].shape == (240, 2)
    assert list(back.obs_names) == list(tiny.obs_names)


@pytest.mark.parametrize(
    ("name", "named", "unnamed"),
    [
        (
            "a.loom",
            ["obsm['X_pca']", "uns['palette']", "missing values in 'note'"],
            ["uns['scdiffkit']", "counts"],
        ),
        (
            "folder",
            ["obsm['X_pca']", "uns['palette']", 'X (layers["counts"]', "var column 'mt'"],
            ["cell_type"],
        ),
        ("a.h5", ["obsm['X_pca']", "obs column 'cell_type'", "uns['scdiffkit']"], ["gene_ids"]),
    ],
)
def test_what_a_format_cannot_carry_is_said_once(
    name: str, named: list[str], unnamed: list[str], tiny: AnnData, tmp_path: Path
) -> None:
    adata = tiny.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.obsm["X_pca"] = np.ones((240, 2))
    adata.uns = {"palette": ["red"], "scdiffkit": {"seed": 1}}
    adata.var["mt"] = True
    adata.obs["note"] = np.array(["x", None] * 120, dtype=object)
    with pytest.warns(ScdiffWarning) as caught:
        io.write(adata, tmp_path / name)
    assert len(caught) == 1
    message = str(caught[0].message)
    for part in named:
        assert part in message
    for part in unnamed:
        assert part not in message.replace('layers["counts"] is the matrix', "")


def test_real_values_survive_a_10x_folder(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.X = adata.X.log1p()
    assert_same(there_and_back(adata, "folder").X, adata.X)


def test_a_10x_hdf5_refuses_fractions(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.X = adata.X.log1p()
    with pytest.raises(DataError, match="integer counts"):
        io.write(adata, tmp_path / "a.h5")
    assert list(tmp_path.iterdir()) == []


def test_names_that_break_a_table_are_refused(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.obs_names = ["a\tb", *tiny.obs_names[1:]]
    with pytest.raises(DataError, match="'a\\\\tb'"):
        io.write(adata, tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
