"""Cells left in their files, against the same cells in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scdiffkit.errors import ConfigError, FileError
from scdiffkit.io import Backed, Selected, Stacked, open_backed, open_cells, read, write
from scdiffkit.io.matrices import iter_row_blocks
from scdiffkit.preprocessing.counts import counts_of
from scdiffkit.runtime.memory import _left_of_limits, available_memory
from scdiffkit.runtime.prefetch import prefetch

STORES = ["csr.h5ad", "dense.h5ad", "csr.zarr", "dense.zarr"]


def stored(adata: AnnData, folder: Path, kind: str) -> Path:
    """The cells in one of STORES."""
    storage, suffix = kind.split(".")
    path = folder / f"cells-{storage}.{suffix}"
    adata = adata.copy()
    if storage == "dense":
        adata.X = adata.X.toarray()
    if suffix == "zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path, compression="gzip")
    return path


@pytest.mark.parametrize("kind", STORES)
def test_rows_are_those_in_memory(kind: str, tiny: AnnData, tmp_path: Path) -> None:
    backed = open_backed(stored(tiny, tmp_path, kind))
    X, whole = backed.matrices["X"], tiny.X.toarray()
    for at in (slice(3, 9), np.array([7, 0, 7, 239, 100]), np.array([], dtype=int), np.arange(240)):
        np.testing.assert_array_equal(X[at].toarray(), whole[at])
    assert list(backed.obs["cell_type"]) == list(tiny.obs["cell_type"])
    assert list(backed.var.index) == list(tiny.var_names)
    np.testing.assert_array_equal(sparse.vstack([b for _, b in iter_row_blocks(X)]).toarray(), whole)


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_selections_and_stacks_are_numpys(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    parts = [rng.poisson(0.5, (data.draw(st.integers(1, 6)), 5)).astype(np.float32) for _ in range(3)]
    places = [rng.permutation(5)[:3] for _ in parts]
    places[1][0] = -1  # a gene that this part lacks
    stacked = Stacked([Selected(sparse.csr_matrix(p), None, c) for p, c in zip(parts, places, strict=True)])
    expected = np.vstack([np.pad(p, ((0, 0), (0, 1)))[:, c] for p, c in zip(parts, places, strict=True)])
    at = rng.integers(0, len(expected), data.draw(st.integers(0, 8)))
    assert stacked.shape == expected.shape
    np.testing.assert_array_equal(stacked[at].toarray(), expected[at])
    rows = rng.permutation(len(expected))[:4]
    some = Selected(stacked, rows, np.array([2, 0]))
    np.testing.assert_array_equal(some[0 : len(rows)].toarray(), expected[rows][:, [2, 0]])


def test_the_next_item_is_made_meanwhile_and_errors_come_through() -> None:
    made: list[int] = []

    def items() -> Any:
        for i in range(3):
            made.append(i)
            yield i
        raise ValueError("here")

    found = prefetch(items(), 2)
    assert next(found) == 0
    assert next(found) == 1
    assert next(found) == 2
    with pytest.raises(ValueError, match="here"):
        next(found)
    assert made == [0, 1, 2]


def test_the_choice_between_memory_and_file(tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = stored(tiny, tmp_path, "csr.h5ad")
    assert isinstance(open_cells(path)[1], AnnData)
    assert isinstance(open_cells(path, memory="disk")[1], Backed)
    monkeypatch.setattr("scdiffkit.io.reading.available_memory", lambda: 1000.0)
    assert isinstance(open_cells(path)[1], Backed)
    assert isinstance(open_cells(path, memory="ram")[1], AnnData)
    assert isinstance(open_cells(path, memory=2e9)[1], AnnData)
    source, cells = open_cells(tiny)
    assert source is None
    assert cells is tiny


def test_a_folder_of_files_and_files_of_one_name(tiny: AnnData, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tiny, tmp_path / name / "cells.h5ad")
    write(tiny, tmp_path / "a" / "more.h5ad")
    assert list(open_cells(tmp_path / "a")[1]) == ["cells", "more"]
    assert list(open_cells([tmp_path / "a" / "cells.h5ad", tmp_path / "b" / "cells.h5ad"])[1]) == ["cells-0", "cells-1"]
    write(tiny, tmp_path / "tenx")
    assert isinstance(open_cells(tmp_path / "tenx")[1], AnnData)


@pytest.mark.parametrize("kind", ["csr.zarr", "dense.zarr"])
def test_zarr_is_read_but_not_written(kind: str, tiny: AnnData, tmp_path: Path) -> None:
    path = stored(tiny, tmp_path, kind)
    assert (sparse.csr_matrix(read(path).X) != tiny.X).nnz == 0
    with pytest.raises(ConfigError, match=r"\.zarr"):
        write(tiny, tmp_path / "out.zarr")


def test_what_cannot_stay_in_its_file(tiny: AnnData, tmp_path: Path) -> None:
    columns = tiny.copy()
    columns.X = columns.X.tocsc()
    columns.write_h5ad(tmp_path / "csc.h5ad")
    with pytest.raises(FileError, match="stored by genes"):
        open_backed(tmp_path / "csc.h5ad").matrices["X"][0:3]
    write(tiny, tmp_path / "cells.loom")
    with pytest.raises(FileError, match="can only be read into memory as a whole"):
        open_cells(tmp_path / "cells.loom", memory="disk")
    with pytest.raises(ConfigError, match="in memory already"):
        open_cells({"a": tiny}, memory="disk")
    with pytest.raises(ConfigError, match="in memory already"):
        open_cells(tiny, memory="disk")
    with pytest.raises(ConfigError, match="too little"):
        open_cells(tmp_path / "csc.h5ad", memory="1M")
    with pytest.raises(ConfigError, match="`memory` 'much' is not auto, disk, ram or an amount"):
        open_cells(tmp_path / "csc.h5ad", memory="much")


def test_matrices_that_nobody_needs_do_not_matter(tiny: AnnData, tmp_path: Path) -> None:
    cells = tiny.copy()
    cells.layers["counts"] = tiny.X.copy()
    cells.X = cells.X.log1p().tocsc()
    cells.layers["half"] = cells.X.toarray().astype(np.float16)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = open_backed(tmp_path / "cells.h5ad")
    counts, place = counts_of(backed)
    assert place == 'layers["counts"]'
    np.testing.assert_array_equal(counts[5:9].toarray(), tiny.X[5:9].toarray())
    np.testing.assert_allclose(backed.matrices['layers["half"]'][0:3].toarray(), cells.X[:3].toarray(), rtol=1e-3)


def test_a_store_in_shards(tiny: AnnData, tmp_path: Path) -> None:
    with ad.settings.override(zarr_write_format=3):
        tiny.write_zarr(tmp_path / "cells.zarr")
    root = zarr.open_group(str(tmp_path / "cells.zarr"))
    for name in ("data", "indices"):
        values = root[f"X/{name}"][:]
        attributes = dict(root[f"X/{name}"].attrs)
        del root[f"X/{name}"]
        made = root.create_array(f"X/{name}", shape=values.shape, dtype=values.dtype, chunks=(100,), shards=(300,))
        made[:] = values
        made.attrs.update(attributes)
    zarr.consolidate_metadata(str(tmp_path / "cells.zarr"))
    assert len(tiny.X.data) % 300 > 100
    assert (sparse.csr_matrix(read(tmp_path / "cells.zarr").X) != tiny.X).nnz == 0
    (tmp_path / "cells.zarr" / "X" / "data" / "c" / "1").unlink()
    with pytest.raises(FileError, match=r"X/data: \d+ of \d+ chunks are missing"):
        read(tmp_path / "cells.zarr")


def test_files_that_are_no_whole_ones_are_said_to_be_damaged(tiny: AnnData, tmp_path: Path) -> None:
    path = tmp_path / "cells.h5ad"
    tiny.write_h5ad(path)
    with h5py.File(path, "r+") as f:
        del f["obs"]
    with h5py.File(tmp_path / "cells.h5", "w") as f:
        f.create_group("matrix")["barcodes"] = np.array([b"a"])
    for broken in (path, tmp_path / "cells.h5"):
        with pytest.raises(FileError, match="is damaged"):
            open_cells(broken)


@pytest.mark.parametrize("version", [1, 2])
def test_memory_is_what_every_limit_leaves(version: int, tmp_path: Path) -> None:
    """As Linux's control groups tell, also of a job above the process's own; files that were read do not count."""
    top, names = tmp_path / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        top, names = top / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    own = top / "slurm" / "job_7" / "step_0"
    own.mkdir(parents=True)
    (tmp_path / "proc/self").mkdir(parents=True)
    line = "4:memory:/slurm/job_7/step_0" if version == 1 else "0::/slurm/job_7/step_0"
    (tmp_path / "proc/self/cgroup").write_text(f"3:cpuset:/\n{line}\n")
    for folder, limit in ((own, "max" if version == 2 else "9000"), (own.parent, "5000")):
        (folder / names[0]).write_text(limit)
        (folder / names[1]).write_text("3000\n")
        (folder / "memory.stat").write_text(f"anon 500\n{names[2]} 1000\n")
    assert list(_left_of_limits(tmp_path)) == [*([7000.0] if version == 1 else []), 3000.0]
    assert available_memory() > 0


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    X = sparse.random(400, 50, 0.5, "csr", np.float32, random_state=0)
    cells = AnnData(X)
    cells.write_h5ad(tmp_path / "cells.h5ad", compression="gzip")
    with h5py.File(tmp_path / "cells.h5ad") as f:
        where = f["X/data"].id.get_chunk_info(0)
    with (tmp_path / "cells.h5ad").open("r+b") as f:
        f.seek(where.byte_offset + where.size // 2)
        f.write(b"\xff" * 64)
    cells.write_zarr(tmp_path / "cells.zarr", chunks=100)
    files = [p for p in (tmp_path / "cells.zarr" / "X").rglob("*") if p.is_file()]
    chunk = max((p for p in files if p.name.isdigit()), key=lambda p: p.stat().st_size)  # not what describes them
    with pytest.raises(FileError, match=r"cells\.h5ad is damaged.*X, cells"):
        list(iter_row_blocks(open_backed(tmp_path / "cells.h5ad").matrices["X"]))
    whole = chunk.read_bytes()
    for size in (0, 8, len(whole) // 2, len(whole) - 1):  # Blosc reads past the end of a chunk
        chunk.write_bytes(whole[:size])
        for opened in (open_backed, read):
            with pytest.raises(FileError, match=r"cells\.zarr is damaged or cut short.* bytes are there"):
                opened(tmp_path / "cells.zarr")


def test_zarr_of_either_version(tiny: AnnData, tmp_path: Path) -> None:
    for version in (2, 3):
        with ad.settings.override(zarr_write_format=version):
            tiny.write_zarr(tmp_path / f"v{version}.zarr")
        assert zarr.open_group(str(tmp_path / f"v{version}.zarr")).metadata.zarr_format == version
        np.testing.assert_array_equal(
            open_backed(tmp_path / f"v{version}.zarr").matrices["X"][0:240].toarray(), tiny.X.toarray()
        )
