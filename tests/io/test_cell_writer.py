"""Cells streamed to disk: the same as written at once, the same bytes again, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from pandas.testing import assert_frame_equal
from scipy import sparse

from scdiffkit import io
from scdiffkit.errors import DataError, FileError, ScdiffWarning

NAMES = ["a.h5ad", "a.loom", "a.h5", "folder"]
pytestmark = pytest.mark.filterwarnings("ignore::scdiffkit.errors.ScdiffWarning")


def stream(
    adata: AnnData,
    path: Path,
    batch: int,
    force: bool = False,
    spoil: Callable[[io.CellWriter], object] = lambda out: None,
) -> Path:
    """Write `adata` in batches; `spoil` is what happens before the file is complete."""
    uns = {"scdiffkit": {"run": "r1", "seed": 0}}
    with io.CellWriter(path, adata.var_names, var=adata.var, uns=uns, force=force) as out:
        for start in range(0, adata.n_obs, batch):
            rows = slice(start, start + batch)
            out.append(adata.X[rows].log1p(), {"counts": adata.X[rows]}, adata.obs.iloc[rows])
        spoil(out)
    return path


def interrupt(_: io.CellWriter) -> None:
    raise KeyboardInterrupt


def content(path: Path) -> dict[str, bytes]:
    members = sorted(path.iterdir()) if path.is_dir() else [path]
    return {p.name: p.read_bytes() for p in members}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [7, 100])
def test_one_batch_or_many(name: str, batch: int, tiny: AnnData, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    one = io.read(stream(tiny, tmp_path / "one" / name, tiny.n_obs))
    many = io.read(stream(tiny, tmp_path / "many" / name, batch))
    counts = [a.layers.get("counts", a.X) for a in (one, many)]
    assert (counts[0] != counts[1]).nnz == 0
    assert (counts[1] != tiny.X).nnz == 0
    assert (one.X != many.X).nnz == 0
    assert list(many.obs_names) == list(tiny.obs_names)
    assert_frame_equal(one.obs, many.obs)
    if name != "a.h5":
        assert_frame_equal(many.obs, tiny.obs)
    if "counts" in many.layers:
        assert np.issubdtype(many.layers["counts"].dtype, np.integer)
        np.testing.assert_allclose(many.X.toarray(), np.log1p(tiny.X.toarray()), rtol=1e-6)


def test_names_of_cells_are_kept_whatever_they_are(tmp_path: Path) -> None:
    names = pd.Index(["", "b", "\n", "T-zelle ä", "细胞", "b" * 999, ""], name="barcode")
    adata = AnnData(sparse.csr_matrix(np.ones((7, 3), dtype=np.float32)), obs=pd.DataFrame(index=names))
    assert anndata.read_h5ad(stream(adata, tmp_path / "a.h5ad", 2)).obs_names.equals(names)


def test_anndata_reads_it_without_a_fix_up(tiny: AnnData, tmp_path: Path) -> None:
    adata = anndata.read_h5ad(stream(tiny, tmp_path / "a.h5ad", 100))
    assert adata.layers["counts"].dtype == np.int32
    assert adata.X.dtype == np.float32
    assert adata.uns["scdiffkit"] == {"run": "r1", "seed": 0}
    assert adata.obs["cell_type"].cat.categories.tolist() == ["B", "Mono", "T"]
    backed = anndata.read_h5ad(tmp_path / "a.h5ad", backed="r")
    assert (backed[10:20].to_memory().layers["counts"] != tiny.X[10:20]).nnz == 0
    backed.file.close()


def test_the_same_input_gives_the_same_bytes(tiny: AnnData, tmp_path: Path) -> None:
    def everything(folder: Path) -> list[dict[str, bytes]]:
        folder.mkdir()
        streamed = [content(stream(tiny, folder / name, 100)) for name in NAMES]
        return [*streamed, content(io.write(tiny, folder / "whole.h5ad"))]

    first = everything(tmp_path / "first")
    time.sleep(1.1)  # time stamps in files have seconds
    second = everything(tmp_path / "second")
    assert first == second


@pytest.mark.parametrize("name", NAMES)
def test_an_interrupted_writer_leaves_nothing_behind(name: str, tiny: AnnData, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        stream(tiny, tmp_path / name, 100, spoil=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_failing_writer_leaves_the_old_file(name: str, tiny: AnnData, tmp_path: Path) -> None:
    path = stream(tiny, tmp_path / name, 240)
    before = content(path)
    with pytest.raises(DataError, match="not integers"):
        stream(
            tiny,
            path,
            100,
            force=True,
            spoil=lambda out: out.append(tiny.X, {"counts": tiny.X / 2}, tiny.obs),
        )
    assert content(path) == before
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_killed_writer_leaves_the_old_file(name: str, tiny: AnnData, tmp_path: Path) -> None:
    path = stream(tiny, tmp_path / name, 240)
    before = content(path)
    code = (
        "import os, signal, sys, pandas as pd, scipy.sparse as sp\n"
        "from scdiffkit.io import CellWriter\n"
        "with CellWriter(sys.argv[1], ['g'], force=True) as out:\n"
        "    X = sp.csr_matrix([[1.0]], dtype='f4')\n"
        "    out.append(X, {'counts': X}, pd.DataFrame(index=['c']))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert (
        subprocess.run([sys.executable, "-c", code, str(path)], env={"PYTHONPATH": ":".join(sys.path)}).returncode < 0
    )
    assert content(path) == before


@pytest.mark.parametrize("name", NAMES)
def test_force_replaces(name: str, tiny: AnnData, tmp_path: Path) -> None:
    path = stream(tiny, tmp_path / name, 240)
    stream(tiny[:10].copy(), path, 240, force=True)
    assert io.read(path).n_obs == 10
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_batch_that_does_not_fit(tiny: AnnData, tmp_path: Path) -> None:
    X, obs, path = tiny.X, tiny.obs, tmp_path / "a.h5ad"
    wrong = {
        r"layers \[\], expected \['counts'\]": (X, {}, obs),
        r"X of shape \(240, 59\), expected \(240, 60\)": (X[:, :59], {"counts": X}, obs),
        r"counts of shape \(3, 60\), expected \(240, 60\)": (X, {"counts": X[:3]}, obs),
        "obs columns, types or categories": (X, {"counts": X}, obs.assign(cell_type="B")),
        "character NUL": (X, {"counts": X}, obs.rename(index={obs.index[0]: "a\0b"})),
    }
    for said, batch in wrong.items():
        with pytest.raises(DataError, match=said):
            stream(tiny, path, 100, spoil=lambda out, batch=batch: out.append(*batch))
    with pytest.raises(DataError, match="var has 60 rows for 2 var_names"):
        io.CellWriter(path, ["a", "b"], var=tiny.var)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scdiffkit.io.h5ad.GrowingCSR.append", full)
    with pytest.raises(FileError, match=r"a.h5ad could not be written: No space left on device"):
        stream(tiny, tmp_path / "a.h5ad", 240)
    monkeypatch.setattr("scdiffkit.io.h5ad.write", full)
    with pytest.raises(FileError, match="No space left"):
        io.write(tiny, tmp_path / "a.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_named(tiny: AnnData, tmp_path: Path) -> None:
    adata = tiny.copy()
    io.write(adata, tmp_path / "a.h5ad")
    before = content(tmp_path / "a.h5ad")
    adata.uns["model"] = object()
    with pytest.raises(DataError, match="model"):
        io.write(adata, tmp_path / "a.h5ad", force=True)
    assert content(tmp_path / "a.h5ad") == before


def test_one_warning_lists_what_is_lost(tiny: AnnData, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        stream(tiny, tmp_path / "a.h5", 100)
    said = [str(w.message) for w in caught if issubclass(w.category, ScdiffWarning)]
    assert len(said) == 1
    assert "obs column 'donor'" in said[0]


MEMORY = """
import resource, sys, warnings
import numpy as np, pandas as pd, scipy.sparse as sp
from scdiffkit.io import CellWriter
warnings.simplefilter("ignore")
counts = sp.random(1000, 1000, 0.2, format="csr", random_state=0, dtype="f4")
counts.data = np.rint(counts.data * 3 + 0.5)
names = range(1000)
def stream(batches):
    with CellWriter(sys.argv[1], [f"g{i}" for i in names], force=True) as out:
        for b in range(batches):
            out.append(counts.log1p(), {"counts": counts}, pd.DataFrame(index=[f"{b}-{i}" for i in names]))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(stream(4), stream(20))
"""


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_cells(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", MEMORY, str(tmp_path / name)]
    out = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, check=True)
    few, many = (int(n) for n in out.stdout.split())
    assert many - few < 20  # MB; the 16,000 further cells hold 51 MB of values


def index_arrays(path, place):
    with h5py.File(path) as f:
        return f[place]["indices"][:], f[place]["indptr"][:]


@pytest.mark.parametrize("suffix", [".h5ad", ".h5"])
def test_a_sparse_matrix_has_index_arrays_of_one_type_and_can_be_sliced_by_anndata(tmp_path, tiny, suffix):
    path = tmp_path / f"cells{suffix}"
    with io.CellWriter(path, tiny.var_names, layers=("counts",)) as out:
        for rows in (slice(0, 100), slice(100, 240)):
            counts = tiny.X[rows]
            out.append(counts.log1p(), {"counts": counts}, tiny.obs.iloc[rows][[]])
    for place in ("X", "layers/counts") if suffix == ".h5ad" else ("matrix",):
        indices, indptr = index_arrays(path, place)
        assert indices.dtype == indptr.dtype == np.int32
    if suffix == ".h5ad":
        cells = anndata.read_h5ad(path)
        np.testing.assert_array_equal(cells[::-7].copy().layers["counts"].toarray(), tiny.X[::-7].toarray())
        np.testing.assert_array_equal(cells.layers["counts"][::2].toarray(), tiny.X[::2].toarray())


def test_beyond_int32_both_index_arrays_are_int64(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("scdiffkit.io.h5ad.LARGEST_INT32", tiny.X.nnz // 2)
    monkeypatch.setattr("scdiffkit.io.h5ad.WIDENED_AT_ONCE", 1000)
    with io.CellWriter(tmp_path / "cells.h5ad", tiny.var_names, layers=()) as out:
        for start in range(0, 240, 60):
            out.append(tiny.X[start : start + 60], {}, tiny.obs.iloc[start : start + 60][[]])
    indices, indptr = index_arrays(tmp_path / "cells.h5ad", "X")
    assert indices.dtype == indptr.dtype == np.int64
    np.testing.assert_array_equal(anndata.read_h5ad(tmp_path / "cells.h5ad").X[::3].toarray(), tiny.X[::3].toarray())


def test_a_matrix_with_two_index_types_or_unsorted_indices_is_written_sound(tmp_path, tiny):
    cells = tiny.copy()
    cells.X.indptr = cells.X.indptr.astype(np.int64)  # as a file of an older version is read by anndata
    unsorted = tiny.X.copy()
    for start, stop in pairwise(unsorted.indptr):
        unsorted.indices[start:stop] = unsorted.indices[start:stop][::-1].copy()
        unsorted.data[start:stop] = unsorted.data[start:stop][::-1].copy()
    unsorted.has_sorted_indices = False
    cells.layers["counts"] = unsorted
    cells.raw = cells
    io.write(cells, tmp_path / "cells.h5ad")
    for place in ("X", "layers/counts", "raw/X"):
        indices, indptr = index_arrays(tmp_path / "cells.h5ad", place)
        assert indices.dtype == indptr.dtype == np.int32
        assert all((np.diff(indices[a:b]) > 0).all() for a, b in pairwise(indptr))
    back = anndata.read_h5ad(tmp_path / "cells.h5ad")
    for matrix in (back.X, back.layers["counts"], back.raw.X):
        np.testing.assert_array_equal(matrix[::5].toarray(), tiny.X[::5].toarray())
    assert cells.X.indptr.dtype == np.int64, "the caller's matrix stays as it is"
