"""An analyst's first lines in scanpy, on cells as they come out of this tool."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from pandas.testing import assert_frame_equal
from scipy import sparse

import scdiffkit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning")


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


@pytest.fixture(scope="module")
def paths(draw, work):
    """240 cells of each codec in h5ad files."""
    return {codec: draw(codec, n=240, out=work / f"{codec}-240.h5ad") for codec in ("count", "gene")}


@pytest.fixture(params=["count", "gene"])
def cells(request, paths):
    """Cells of each codec, as scanpy reads them."""
    return sc.read_h5ad(paths[request.param])


@pytest.fixture
def counted(paths):
    return sc.read_h5ad(paths["count"])


# normalising, choosing genes, components


def test_normalising_the_counts_gives_x(counted):
    again = counted.copy()
    again.X = again.layers["counts"].copy()
    sc.pp.normalize_total(again, target_sum=1e4)
    sc.pp.log1p(again)
    np.testing.assert_allclose(dense(again.X), dense(counted.X), rtol=1e-5)


def test_normalising_some_genes_by_the_library_size_gives_x(cells):
    """With the gene codec the library size counts genes that are not modelled too."""
    counts, size = dense(cells.layers["counts"]), cells.obs["total_counts"].to_numpy()
    np.testing.assert_allclose(np.log1p(counts * (1e4 / size)[:, None]), dense(cells.X), rtol=1e-5)


def test_quality_control_of_the_counts(counted, real):
    sc.pp.calculate_qc_metrics(counted, layer="counts", qc_vars=["mt"], percent_top=None, inplace=True)
    counts = dense(counted.layers["counts"])
    np.testing.assert_array_equal(counted.obs["n_genes_by_counts"], (counts > 0).sum(axis=1))
    np.testing.assert_array_equal(counted.obs["total_counts"], counts.sum(axis=1))
    share = counts[:, real.var["mt"].to_numpy()].sum(axis=1) / counts.sum(axis=1) * 100
    np.testing.assert_allclose(counted.obs["pct_counts_mt"], share, rtol=1e-4)
    before = counted.shape
    sc.pp.filter_cells(counted, min_genes=1)
    sc.pp.filter_genes(counted, min_cells=1)
    assert counted.n_obs == before[0]


@pytest.mark.parametrize(("flavor", "options"), [("seurat", {}), ("seurat_v3", {"layer": "counts", "span": 0.6})])
def test_highly_variable_genes_are_the_planted_ones(counted, markers, flavor, options):
    sc.pp.highly_variable_genes(counted, n_top_genes=25, flavor=flavor, **options)
    chosen = counted.var_names[counted.var["highly_variable"]]
    share = np.isin(chosen, sorted(set().union(*markers.values()))).mean()
    assert share > 0.75, chosen


def test_components_are_those_of_a_dense_copy(cells):
    full = cells.copy()
    full.X = dense(full.X)
    for each in (cells, full):
        sc.pp.pca(each, n_comps=10)
    np.testing.assert_allclose(
        cells.uns["pca"]["variance_ratio"], full.uns["pca"]["variance_ratio"], rtol=1e-3, atol=1e-5
    )
    sc.pp.pca(cells, n_comps=5, layer="counts", key_added="of_counts")
    assert np.isfinite(cells.obsm["of_counts"]).all()


def test_scaling(cells):
    sc.pp.scale(cells)
    spread = dense(cells.X).std(axis=0, ddof=1)
    np.testing.assert_allclose(spread[spread > 0], 1, rtol=1e-3)


@pytest.mark.slow
def test_from_pca_to_leiden_and_umap(counted, tmp_path):
    """Clusters found in the synthetic cells are their labels, and everything can be drawn and saved."""
    import matplotlib.pyplot as plt
    from sklearn.metrics import adjusted_rand_score

    sc.pp.pca(counted, n_comps=10)
    sc.pp.neighbors(counted, n_neighbors=15)
    sc.tl.leiden(counted, resolution=0.4, random_state=0)
    assert adjusted_rand_score(counted.obs["cell_type"], counted.obs["leiden"]) > 0.6
    sc.tl.umap(counted, random_state=0)
    assert counted.obsm["X_umap"].shape == (240, 2)
    assert np.isfinite(counted.obsm["X_umap"]).all()
    before = list(counted.uns["cell_type_colors"])
    sc.pl.umap(counted, color=["cell_type", "donor", "gene00"], show=False)
    plt.close("all")
    assert list(counted.uns["cell_type_colors"]) == before
    counted.write_h5ad(tmp_path / "done.h5ad")
    back = sc.read_h5ad(tmp_path / "done.h5ad")
    np.testing.assert_array_equal(back.obsm["X_umap"], counted.obsm["X_umap"])
    assert list(back.obs["leiden"]) == list(counted.obs["leiden"])


# genes of the types


@pytest.mark.parametrize("method", ["t-test", "wilcoxon"])
def test_marker_genes_come_out(cells, markers, method):
    sc.tl.rank_genes_groups(cells, "cell_type", method=method)
    found = sc.get.rank_genes_groups_df(cells, None)
    for kind, planted in markers.items():
        best = found[found["group"] == kind].sort_values("scores", ascending=False)["names"].head(5)
        assert set(best) <= planted, (kind, list(best))


@pytest.mark.parametrize("mode", ["memory", "file"])
def test_markers_of_two_types_that_were_asked_for(draw, markers, tmp_path, mode):
    wanted = {"cell_type": ["Mono", "T"]}
    if mode == "file":
        cells = sc.read_h5ad(draw(n=100, where=wanted, out=tmp_path / "two.h5ad"))
    else:
        cells = draw(n=100, where=wanted)
    sc.tl.rank_genes_groups(cells, "cell_type", method="wilcoxon")
    assert cells.uns["rank_genes_groups"]["names"].dtype.names == ("T", "Mono")
    for kind in ("Mono", "T"):
        best = sc.get.rank_genes_groups_df(cells, kind)["names"].head(5)
        assert set(best) <= markers[kind], (kind, list(best))
    sc.tl.rank_genes_groups(cells, "cell_type", reference="T", method="t-test")
    assert set(sc.get.rank_genes_groups_df(cells, "Mono")["names"].head(5)) <= markers["Mono"]


def test_one_type_that_was_asked_for_is_set_against_the_real_others(draw, real, markers, tmp_path):
    """The use that it is drawn for: more cells of one type beside the real ones."""
    rare = sc.read_h5ad(draw(n=60, where={"cell_type": "T"}, out=tmp_path / "rare.h5ad"))
    assert rare.obs["cell_type"].value_counts().to_dict() == {"T": 60}
    others = real[real.obs["cell_type"] != "T"].copy()
    sc.pp.normalize_total(others, target_sum=1e4)
    sc.pp.log1p(others)
    both = sc.concat({"real": others, "synthetic": rare}, label="origin", index_unique="-")
    sc.tl.rank_genes_groups(both, "origin", method="wilcoxon")
    assert set(sc.get.rank_genes_groups_df(both, "synthetic")["names"].head(5)) <= markers["T"]


def test_gene_scores(cells, markers):
    for kind, planted in markers.items():
        there = [gene for gene in sorted(planted) if gene in cells.var_names]
        sc.tl.score_genes(cells, there, score_name=kind, ctrl_size=10)
    best = cells.obs[["T", "B", "Mono"]].idxmax(axis=1)
    assert (best == cells.obs["cell_type"].astype(str)).mean() > 0.8


def test_pseudobulk(counted):
    bulk = sc.get.aggregate(counted, by=["cell_type", "donor"], func="sum", layer="counts")
    assert bulk.n_obs == counted.obs.groupby(["cell_type", "donor"], observed=True).ngroups
    assert bulk.layers["sum"].sum() == counted.layers["counts"].sum()


# beside the real cells


def test_concatenated_with_the_real_cells(cells, real):
    both = sc.concat({"real": real, "synthetic": cells}, label="origin")
    assert both.shape == (480, cells.n_vars)
    assert list(both.var_names) == list(cells.var_names)
    assert both.obs_names.is_unique
    assert set(both.obs["cell_type"].cat.categories) == {"T", "B", "Mono"}
    assert both.obs["cell_type"].notna().all()
    expected = np.vstack([dense(real[:, cells.var_names].layers["counts"]), dense(cells.layers["counts"])])
    np.testing.assert_array_equal(dense(both.layers["counts"]), expected)
    table = pd.crosstab(both.obs["cell_type"], both.obs["origin"])
    assert table["synthetic"].to_dict() == table["real"].to_dict()  # the training composition
    outer = ad.concat([real, cells], join="outer", merge="first")
    assert outer.var["gene_ids"].to_dict() == real.var["gene_ids"].to_dict()
    sc.pp.pca(both[::3].copy(), n_comps=5)


def test_concatenated_cells_of_some_types(draw, real, tmp_path):
    """Categories of parts add up, and colours are not mixed up."""
    some = [sc.read_h5ad(draw(n=10, where={"cell_type": k}, out=tmp_path / f"{k}.h5ad")) for k in ("B", "T")]
    both = sc.concat([real, *some])
    assert both.obs_names.is_unique
    assert both.obs["cell_type"].value_counts().to_dict() == {"B": 130, "Mono": 80, "T": 50}


# slices, frames, files


SLICES = {
    "step": lambda a: slice(None, None, 5),
    "reversed": lambda a: slice(None, None, -1),
    "reversed step": lambda a: slice(200, 10, -7),
    "boolean": lambda a: np.arange(a.n_obs) % 3 == 0,
    "column": lambda a: a.obs["cell_type"] == "B",
    "isin": lambda a: a.obs["cell_type"].isin(["B", "T"]),
    "names": lambda a: list(a.obs_names[[5, 3, 100]]),
    "integers": lambda a: [7, 7, 2],
    "one": lambda a: 3,
    "one name": lambda a: a.obs_names[8],
    "none": lambda a: [],
}


@pytest.mark.parametrize("kind", SLICES)
def test_slices_of_cells(cells, kind):
    at = SLICES[kind](cells)
    rows = np.atleast_1d(pd.Series(range(cells.n_obs), index=cells.obs_names)[at] if kind != "integers" else at)
    rows = np.asarray([3] if kind == "one" else rows, dtype=int)
    part = cells[at].copy()
    for matrix, whole in ((part.X, cells.X), (part.layers["counts"], cells.layers["counts"])):
        np.testing.assert_array_equal(dense(matrix), dense(whole)[rows])
    assert list(part.obs_names) == list(cells.obs_names[rows])
    if len(rows):
        np.testing.assert_array_equal(dense(cells.X[rows]), dense(part.X))
        np.testing.assert_array_equal(dense(cells.X[::2]), dense(cells.X)[::2])
    assert list(part.obs["cell_type"].cat.categories) == [
        k for k in ["T", "B", "Mono"] if k in set(part.obs["cell_type"])
    ]


def test_slices_of_genes(cells, markers, real):
    names = [gene for gene in sorted(markers["Mono"]) if gene in cells.var_names][::-1]
    part = cells[:, names].copy()
    np.testing.assert_array_equal(dense(part.X), dense(cells.X)[:, cells.var_names.get_indexer(names)])
    both = cells[cells.obs["donor"] == "d1", cells.var["mt"]].copy()
    assert list(both.var_names) == [n for n in real.var_names[real.var["mt"]] if n in cells.var_names]
    assert set(both.obs["donor"]) == {"d1"}
    value = dense(cells.layers["counts"])[0, cells.var_names.get_loc(names[0])]
    assert cells[0, names[0]].layers["counts"].sum() == value
    assert cells.obs_vector(names[0], layer="counts")[0] == value


def test_frames(cells):
    frame = cells.to_df()
    assert frame.shape == cells.shape
    np.testing.assert_array_equal(frame.to_numpy(), dense(cells.X))
    assert cells.to_df(layer="counts").dtypes.eq(np.int32).all()
    found = sc.get.obs_df(cells, keys=["cell_type", cells.var_names[0]])
    np.testing.assert_array_equal(found[cells.var_names[0]], dense(cells.X)[:, 0])


def test_obs_is_what_was_asked_for(cells, real, draw):
    obs = cells.obs
    assert obs["cell_type"].value_counts().to_dict() == {"B": 120, "Mono": 80, "T": 40}
    assert pd.crosstab(obs["cell_type"], obs["donor"]).equals(pd.crosstab(real.obs["cell_type"], real.obs["donor"]))
    for column in ("cell_type", "donor"):
        assert isinstance(obs[column].dtype, pd.CategoricalDtype)
        assert not obs[column].cat.ordered
        assert obs[column].cat.categories.inferred_type == "string"
    assert obs["total_counts"].dtype.kind == "f"
    assert obs["total_counts"].gt(0).all()
    assert obs.groupby("cell_type", observed=False)["total_counts"].mean().gt(0).all()
    one = draw(n=30, where={"cell_type": "Mono", "donor": "d2"}).obs
    assert one.value_counts(["cell_type", "donor"]).to_dict() == {("Mono", "d2"): 30}
    split = draw(n=40, where={"cell_type": ["B", "T"]}).obs["cell_type"].value_counts()
    assert split.to_dict() == {"B": 30, "T": 10}


@pytest.mark.parametrize("mode", ["file", "memory"])
def test_written_again_and_read_back(counted, drawn, tmp_path, mode):
    cells = counted if mode == "file" else drawn["count"].copy()
    path = tmp_path / "again.h5ad"
    cells.write_h5ad(path, compression="gzip")
    back = ad.read_h5ad(path)
    for matrix, other in ((back.X, cells.X), (back.layers["counts"], cells.layers["counts"])):
        assert matrix.dtype == other.dtype
        np.testing.assert_array_equal(dense(matrix), dense(other))
    assert_frame_equal(back.obs, cells.obs)
    assert_frame_equal(back.var, cells.var)
    assert set(back.uns) == set(cells.uns)
    assert back.uns["scdiffkit"]["run_id"] == cells.uns["scdiffkit"]["run_id"]


def test_written_as_zarr(counted, tmp_path):
    counted.write_zarr(tmp_path / "cells.zarr")
    back = ad.read_zarr(tmp_path / "cells.zarr")
    np.testing.assert_array_equal(dense(back.layers["counts"]), dense(counted.layers["counts"]))
    assert list(back.obs["cell_type"]) == list(counted.obs["cell_type"])


def test_backed(paths):
    cells = ad.read_h5ad(paths["count"], backed="r")
    part = cells[::5].to_memory()
    whole = ad.read_h5ad(paths["count"])
    np.testing.assert_array_equal(dense(part.X), dense(whole.X)[::5])
    some = cells[whole.obs["cell_type"] == "T"].to_memory()
    assert some.n_obs == 40
    cells.file.close()


def test_prepared_cells_serve_scanpy(prepared, markers):
    cells = sc.read_h5ad(prepared["h5ad"])
    sc.pp.pca(cells, n_comps=10)  # of the highly variable genes
    assert cells.varm["PCs"][~cells.var["highly_variable"].to_numpy()].sum() == 0
    sc.tl.rank_genes_groups(cells, "cell_type", method="t-test")
    for kind, planted in markers.items():
        assert set(sc.get.rank_genes_groups_df(cells, kind)["names"].head(5)) <= planted
    part = cells[::5, cells.var["highly_variable"]].copy()
    assert part.shape == (48, 30)


def test_cells_written_with_the_package_serve_scanpy(real, tmp_path):
    """`scdiffkit.write` of an analyst's own object."""
    path = scdiffkit.write(real, tmp_path / "real.h5ad")
    cells = sc.read_h5ad(path)
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=5)
    np.testing.assert_array_equal(dense(cells[::2].copy().layers["counts"]), dense(real.layers["counts"])[::2])


# the demo


@pytest.mark.slow
def test_the_demos_cells(scdiff, tmp_path, monkeypatch):
    """`scdiff demo` with a small network and no report: its cells go through the usual steps."""
    import functools
    import importlib

    command = importlib.import_module("scdiffkit.cli.demo")  # the package has a function of that name
    small = {"codec": "gene", "patch_size": 45, "hidden_size": 32, "depth": 1, "num_heads": 2, "max_steps": 30}
    monkeypatch.setattr(command, "train", functools.partial(command.train, **small))
    monkeypatch.setattr(command, "evaluate", lambda *args, **kwargs: None)
    scdiff("demo", "-o", tmp_path / "demo")
    cells, real = (sc.read_h5ad(tmp_path / "demo" / name) for name in ("cells.h5ad", "real.h5ad"))
    assert cells.n_obs == real.n_obs == 700
    assert list(cells.var_names) == [name for name in real.var_names if name in set(cells.var_names)]
    assert cells.n_vars > 0.95 * real.n_vars  # but the rarest
    sc.pp.pca(cells)
    assert cells.obsm["X_pca"].shape == (700, 50)
    sc.tl.rank_genes_groups(cells, "cell_type", method="t-test")
    assert cells[::5].copy().n_obs == 140
    both = sc.concat({"real": real, "synthetic": cells}, label="origin")
    assert both.obs_names.is_unique
    shares = pd.crosstab(both.obs["cell_type"], both.obs["origin"], normalize="columns")
    np.testing.assert_allclose(shares["synthetic"], shares["real"], atol=0.01)  # some cells may be held out
