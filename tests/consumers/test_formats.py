"""What this tool writes, read by h5py, anndata, scanpy, loompy and pandas; never by this package's own readers."""

from __future__ import annotations

import gzip

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import scdiffkit

CODECS, HOW = ("count", "gene"), ("command", "out", "write")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


def check_sparse(matrix, shape=None):
    """One integer type for both index arrays, in order, nothing twice: what scipy's compiled code insists on."""
    assert sparse.issparse(matrix)
    assert matrix.indptr.dtype == matrix.indices.dtype == np.int32
    anew = type(matrix)((matrix.data, matrix.indices, matrix.indptr), shape=matrix.shape)  # flags are not believed
    assert anew.has_canonical_format
    matrix.check_format(full_check=True)
    assert shape is None or matrix.shape == shape


def check_counts(matrix):
    values = matrix.data if sparse.issparse(matrix) else np.asarray(matrix)
    assert (values >= 0).all()
    assert np.array_equal(values, values.round())
    assert values.max() > 0


def same(a, b):
    assert a.shape == b.shape
    assert abs(sparse.csr_matrix(a, dtype=np.float64) - sparse.csr_matrix(b, dtype=np.float64)).max() == 0


@pytest.fixture(scope="module")
def genes(real, runs):
    """Names of the genes that each run models, in the order of the training data."""
    chosen = {codec: set(run.genes()) for codec, run in runs.items()}
    return {codec: [name for name in real.var_names if name in chosen[codec]] for codec in runs}


# h5ad


def sparse_groups(path):
    """Types of the arrays of every sparse matrix in an HDF5 file, by its place."""
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Group) and "indptr" in item:
            found[name] = {part: item[part].dtype for part in ("indptr", "indices", "data")}

    with h5py.File(path) as f:
        f.visititems(visit)
    return found


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("codec", CODECS)
def test_index_arrays_in_h5ad_have_one_type(written, codec, how):
    groups = sparse_groups(written[codec, "h5ad", how])
    assert set(groups) == {"X", "layers/counts"}
    for name, group in groups.items():
        assert group["indptr"] == group["indices"] == np.int32, name
        assert group["data"] == (np.float32 if name == "X" else np.int32)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("codec", CODECS)
def test_anndata_reads_the_same_cells(written, drawn, genes, codec, how):
    cells, memory = ad.read_h5ad(written[codec, "h5ad", how]), drawn[codec]
    for each in (cells, memory):
        check_sparse(each.X, (90, len(genes[codec])))
        check_sparse(each.layers["counts"], (90, len(genes[codec])))
        check_counts(each.layers["counts"])
        assert each.layers["counts"].dtype == np.int32
        assert each.X.dtype == np.float32
        assert list(each.var_names) == genes[codec]
        assert each.obs_names.is_unique
        assert each.obs.index.name is None
    same(cells.layers["counts"], memory.layers["counts"])
    same(cells.X, memory.X)
    pd.testing.assert_frame_equal(cells.obs, memory.obs)
    pd.testing.assert_frame_equal(cells.var, memory.var)


@pytest.mark.parametrize("mode", ["memory", "file"])
@pytest.mark.parametrize("codec", CODECS)
def test_columns_of_the_genes_come_from_the_training_data(written, drawn, real, genes, codec, mode):
    cells = drawn[codec] if mode == "memory" else ad.read_h5ad(written[codec, "h5ad", "command"])
    expected = real.var.loc[genes[codec]]
    for column in ("gene_ids", "feature_types", "mt", "chromosome", "length"):
        assert list(cells.var[column]) == list(expected[column]), column
    assert cells.var["mt"].dtype == bool
    assert pd.api.types.is_integer_dtype(cells.var["length"])


@pytest.mark.parametrize("mode", ["memory", "file"])
@pytest.mark.parametrize("codec", CODECS)
def test_labels_keep_the_order_and_colours_of_the_training_data(written, drawn, real, codec, mode):
    cells = drawn[codec] if mode == "memory" else ad.read_h5ad(written[codec, "h5ad", "command"])
    assert list(cells.obs["cell_type"].cat.categories) == ["T", "B", "Mono"]
    assert list(cells.obs["donor"].cat.categories) == ["d1", "d2"]
    assert list(cells.uns["cell_type_colors"]) == list(real.uns["cell_type_colors"])


@pytest.mark.parametrize("how", ["memory", "out", "command"])
@pytest.mark.parametrize("kinds", [["Mono"], ["Mono", "T"]], ids="-".join)
def test_absent_labels_are_no_categories(draw, runs, scdiff, real, tmp_path, kinds, how):
    if how == "memory":
        cells = draw(n=20, where={"cell_type": kinds})
    elif how == "out":
        cells = ad.read_h5ad(draw(n=20, where={"cell_type": kinds}, out=tmp_path / "some.h5ad"))
    else:
        asked = [word for kind in kinds for word in ("--where", f"cell_type={kind}")]
        scdiff("sample", runs["count"].path, "-n", 20, "--ddim", 5, *asked, "-o", tmp_path / "some.h5ad")
        cells = ad.read_h5ad(tmp_path / "some.h5ad")
    column = cells.obs["cell_type"]
    assert list(column.cat.categories) == [kind for kind in ["T", "B", "Mono"] if kind in kinds]
    assert column.value_counts().gt(0).all()
    colours = dict(zip(real.obs["cell_type"].cat.categories, real.uns["cell_type_colors"], strict=True))
    assert list(cells.uns["cell_type_colors"]) == [colours[kind] for kind in column.cat.categories]


def test_preprocessed_cells(prepared, real):
    for name, group in sparse_groups(prepared["h5ad"]).items():
        assert group["indptr"] == group["indices"] == np.int32, name
    cells = ad.read_h5ad(prepared["h5ad"])
    in_memory = scdiffkit.preprocess(real.copy(), n_top_genes=30, hvg_flavor="seurat", label="cell_type")
    for each in (cells, in_memory):
        check_sparse(each.X, (240, 60))
        check_sparse(each.layers["counts"], (240, 60))
        same(each.layers["counts"], real.layers["counts"])
        assert list(each.var_names) == list(real.var_names)
        assert list(each.var["gene_ids"]) == list(real.var["gene_ids"])
        assert each.var["highly_variable"].sum() == 30
        assert list(each.obs["cell_type"].cat.categories) == ["T", "B", "Mono"]
        assert list(each.uns["cell_type_colors"]) == list(real.uns["cell_type_colors"])
    same(cells.X, in_memory.X)
    check_sparse(cells[::5].copy().X, (48, 60))


# loom


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("codec", CODECS)
def test_loom_by_loompy_and_anndata(written, drawn, genes, real, codec, how):
    import loompy

    path, memory = written[codec, "loom", how], drawn[codec]
    with loompy.connect(path, "r", validate=True) as loom:
        assert loom.shape == (len(genes[codec]), 90)
        assert list(loom.ra["Gene"]) == genes[codec]
        assert list(loom.ra["gene_ids"]) == list(real.var.loc[genes[codec], "gene_ids"])
        assert list(loom.ca["CellID"]) == list(memory.obs_names)
        assert list(loom.ca["cell_type"]) == list(memory.obs["cell_type"])
        assert loom.layers["counts"].dtype == "int32"
        check_counts(loom.layers["counts"][:, :])
        same(loom.layers["counts"][:, :].T, memory.layers["counts"])
    cells = ad.io.read_loom(path)
    check_sparse(cells.X, (90, len(genes[codec])))
    same(cells.X, memory.X)
    same(cells.layers["counts"], memory.layers["counts"])
    assert list(cells.var_names) == genes[codec]
    assert list(cells.obs_names) == list(memory.obs_names)
    cells[::2].copy()


def test_prepared_loom(prepared, real):
    cells = ad.io.read_loom(prepared["loom"])
    same(cells.layers["counts"], real.layers["counts"])
    assert list(cells.var_names) == list(real.var_names)
    assert list(cells.obs["cell_type"]) == list(real.obs["cell_type"])


# 10x


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("codec", CODECS)
def test_10x_folder_by_scanpy_and_pandas(written, drawn, genes, real, codec, how):
    folder, memory = written[codec, "10x", how], drawn[codec]
    ids = list(real.var.loc[genes[codec], "gene_ids"])
    by_symbol, by_id = (sc.read_10x_mtx(folder, var_names=names) for names in ("gene_symbols", "gene_ids"))
    for cells in (by_symbol, by_id):
        check_sparse(cells.X, (90, len(genes[codec])))
        check_counts(cells.X)
        same(cells.X, memory.layers["counts"])
        assert list(cells.obs_names) == list(memory.obs_names)
    assert list(by_symbol.var_names) == list(by_id.var["gene_symbols"]) == genes[codec]
    assert list(by_symbol.var["gene_ids"]) == list(by_id.var_names) == ids
    assert set(by_symbol.var["feature_types"]) == {"Gene Expression"}
    with gzip.open(folder / "matrix.mtx.gz", "rt") as matrix:
        assert matrix.readline().split()[3] == "integer"  # not "real"
    labels = pd.read_csv(folder / "obs.tsv.gz", sep="\t", index_col=0)
    assert list(labels.index) == list(memory.obs_names)
    assert list(labels["cell_type"]) == list(memory.obs["cell_type"])


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("codec", CODECS)
def test_10x_h5_by_scanpy_and_h5py(written, drawn, genes, real, codec, how):
    path, memory = written[codec, "10x-h5", how], drawn[codec]
    cells = sc.read_10x_h5(path)
    check_sparse(cells.X, (90, len(genes[codec])))
    check_counts(cells.X)
    same(cells.X, memory.layers["counts"])
    assert list(cells.obs_names) == list(memory.obs_names)
    assert list(cells.var_names) == genes[codec]
    assert list(cells.var["gene_ids"]) == list(real.var.loc[genes[codec], "gene_ids"])
    assert set(cells.var["feature_types"]) == {"Gene Expression"}
    cells[::2].copy()
    with h5py.File(path) as f:
        matrix = f["matrix"]
        assert matrix["indptr"].dtype == matrix["indices"].dtype
        assert matrix["data"].dtype.kind == "i"
        assert list(matrix["shape"]) == [len(genes[codec]), 90]


# several files


def test_cells_of_two_requests_do_not_share_names_or_values(draw):
    """Files that were drawn with one seed are put together like any others."""
    some, others = (draw(n=20, where={"cell_type": kind}) for kind in ("B", "T"))
    more = draw(n=25, where={"cell_type": "B"})
    seeded = draw(n=20, seed=1, where={"cell_type": "B"})
    together = ad.concat([some, others, more, seeded])
    assert together.obs_names.is_unique
    counts = together.layers["counts"].toarray()
    assert len(np.unique(counts, axis=0)) == len(counts)
    again = draw(n=20, where={"cell_type": "B"})
    assert list(again.obs_names) == list(some.obs_names)
    same(again.layers["counts"], some.layers["counts"])


def test_gene_ids_are_ids_where_names_are_all_there_is(tiny, tmp_path):
    """Without a column of ids, 10x files hold the names in both columns, as Seurat and scanpy expect."""
    with pytest.warns(scdiffkit.errors.ScdiffWarning, match="obs column"):
        scdiffkit.write(tiny, tmp_path / "cells.h5")
    cells = sc.read_10x_h5(tmp_path / "cells.h5")
    assert list(cells.var["gene_ids"]) == list(cells.var_names) == list(tiny.var_names)


def test_ordered_and_numbered_labels(real, tmp_path):
    """Days stay in order, clusters are not sorted as text, labels that are text become categories as in scanpy."""
    cells = real.copy()
    cells.obs["day"] = pd.Categorical.from_codes(np.arange(240) % 3, ["d0", "d2", "d10"], ordered=True)
    cells.obs["leiden"] = pd.Categorical.from_codes(np.arange(240) % 12, [str(i) for i in range(12)])
    cells.uns["leiden_colors"] = [f"#0000{i:02d}" for i in range(12)]
    cells.obs["batch"] = np.array(["b", "a"], dtype=object)[np.arange(240) // 12 % 2]
    run = scdiffkit.train(
        cells, arch="dit", label="leiden", condition=["day", "batch"], out=tmp_path / "run",
        overrides={"codec.name": "gene", "preprocess.hvg_flavor": "all", "train.max_steps": 2, "model.hidden_size": 16,
                   "model.depth": 1, "model.num_heads": 2, "model.patch_size": 20},
    )  # fmt: skip
    path = scdiffkit.sample(run, 40, where={"leiden": ["10", "2"], "day": ["d10", "d2"]}, out=tmp_path / "cells.h5ad")
    some = ad.read_h5ad(path)
    assert list(some.obs["leiden"].cat.categories) == ["2", "10"]
    assert list(some.uns["leiden_colors"]) == ["#000002", "#000010"]
    assert some.obs["day"].cat.ordered
    assert some.obs["day"].min() == "d2"
    assert list(some.obs["batch"].cat.categories) == ["a", "b"]
    loom = ad.io.read_loom(scdiffkit.sample(run, 40, out=tmp_path / "cells.loom"))
    assert set(loom.obs["day"]) == {"d0", "d2", "d10"}
