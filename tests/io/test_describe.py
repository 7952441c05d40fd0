"""`describe` says what a file holds, whatever its format, and agrees with what reading it gives."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from scdiffkit import io
from scdiffkit.errors import FileError


@pytest.mark.parametrize("name", ["a.h5ad", "a.loom", "a.h5", "folder"])
@pytest.mark.filterwarnings("ignore::scdiffkit.errors.ScdiffWarning")
def test_every_format(name: str, tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.X.data[adata.X.indices < 30] = 0  # zeros that are stored
    adata.uns["scdiffkit"] = {"seed": np.int64(3), "genes": np.array(["a"])}
    found = io.describe(io.write(adata, tmp_path / name))
    json.dumps(found)
    dense = adata.X.toarray()
    assert found["format"] == {"a.h5ad": "h5ad", "a.loom": "loom", "a.h5": "10x-h5", "folder": "10x"}[name]
    assert (found["n_obs"], found["n_vars"]) == (240, 60)
    assert found["counts"] == "X"
    assert found["median_counts"] == np.median(dense.sum(1))
    assert found["median_genes"] == np.median((dense > 0).sum(1))
    assert found["size_bytes"] > 1000
    assert set(found) == set(io.describe(io.write(tiny, tmp_path / "other.h5ad")))
    if name == "a.h5":
        assert found["obs"] == []
        return
    cell_type = next(column for column in found["obs"] if column["name"] == "cell_type")
    assert cell_type["dtype"] == "category"
    assert cell_type["n_categories"] == 3
    assert list(cell_type["top"].items()) == [("B", 120), ("Mono", 80), ("T", 40)]
    assert found["scdiffkit"] == {"seed": 3, "genes": ["a"]}


@pytest.mark.parametrize("shape_of", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_every_storage_in_blocks(
    shape_of: type, tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = tiny.X.toarray()
    path = io.write(AnnData(X=shape_of(dense), obs=tiny.obs), tmp_path / "a.h5ad")
    for block in (1, 500, 1 << 22):
        monkeypatch.setattr("scdiffkit.io.summary.BLOCK", block)
        found = io.describe(path)
        assert found["median_counts"] == np.median(dense.sum(1))
        assert found["median_genes"] == np.median((dense > 0).sum(1))


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shape_of", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
@pytest.mark.filterwarnings("ignore::UserWarning")  # anndata's and zarr's, of what is to come
def test_zarr(shape_of: type, version: int, tiny: AnnData, tmp_path: Path) -> None:
    adata = AnnData(X=shape_of(tiny.X.toarray()), obs=tiny.obs, var=tiny.var, layers={"other": tiny.X})
    adata.raw, adata.obsm["X_pca"], adata.uns["scdiffkit"] = tiny, np.zeros((240, 2)), {"seed": 3}
    path = tmp_path / "a.zarr"
    with anndata.settings.override(zarr_write_format=version):
        adata.write_zarr(path)
    adata.write_h5ad(tmp_path / "a.h5ad")
    found, expected = io.describe(path), io.describe(tmp_path / "a.h5ad")
    assert (found["format"], found["n_obs"], found["layers"], found["obsm"]) == ("zarr", 240, ["other"], ["X_pca"])
    assert found["size_bytes"] == sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    assert {**found, "path": 0, "format": 0, "size_bytes": 0} == {**expected, "path": 0, "format": 0, "size_bytes": 0}
    json.dumps(found)


def test_where_the_counts_are(tiny: AnnData, tmp_path: Path) -> None:
    def counts_of(adata: AnnData, name: str) -> tuple[str | None, dict[str, bool]]:
        found = io.describe(io.write(adata, tmp_path / name))
        return found["counts"], {place: m["integers"] for place, m in found["matrices"].items()}

    logged = tiny.copy()
    logged.X = logged.X.log1p()
    assert counts_of(logged, "logged.h5ad") == (None, {"X": False})
    assert io.describe(tmp_path / "logged.h5ad")["median_counts"] is None
    logged.raw = tiny
    assert counts_of(logged, "raw.h5ad") == ("raw", {"X": False, "raw": True})
    logged.layers["counts"] = tiny.X
    expected = {"X": False, "raw": True, 'layers["counts"]': True}
    assert counts_of(logged, "layer.h5ad") == ('layers["counts"]', expected)
    negative = tiny.copy()
    negative.X = -negative.X
    assert counts_of(negative, "negative.h5ad") == (None, {"X": False})


def test_columns_of_every_type(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    adata.obs["age"] = np.arange(240.0)
    adata.obs["note"] = [f"n{i % 2}" for i in range(240)]
    adata.obs["well"] = ["a", None, "b"] * 80
    found = {c["name"]: c for c in io.describe(io.write(adata, tmp_path / "a.h5ad"))["obs"]}
    assert found["age"] == {
        "name": "age",
        "dtype": "float64",
        "missing": 0,
        "n_categories": None,
        "top": None,
    }
    assert found["note"]["dtype"] == "text"
    assert found["note"]["top"] == {"n0": 120, "n1": 120}
    assert found["well"]["missing"] == 80


def test_no_cells_and_no_x(tiny: AnnData, tmp_path: Path) -> None:
    assert io.describe(io.write(tiny[:0].copy(), tmp_path / "none.h5ad"))["median_counts"] is None
    found = io.describe(io.write(AnnData(obs=tiny.obs, var=tiny.var), tmp_path / "bare.h5ad"))
    assert (found["n_obs"], found["n_vars"], found["counts"], found["matrices"]) == (240, 60, None, {})


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="does not exist"):
        io.describe(tmp_path / "a.h5ad")


def test_it_loads_no_scanpy(tiny: AnnData, tmp_path: Path) -> None:
    tiny.write_h5ad(tmp_path / "a.h5ad")
    code = "import sys, scdiffkit.io as io; io.describe(sys.argv[1]); assert 'scanpy' not in sys.modules"
    command = [sys.executable, "-c", code, str(tmp_path / "a.h5ad")]
    subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, check=True)
