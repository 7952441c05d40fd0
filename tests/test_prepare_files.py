"""Preparing cells that stay in their files, and several files as one, against the same in memory."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scdiffkit.cli import app
from scdiffkit.config import PreprocessConfig
from scdiffkit.errors import DataError, ScdiffWarning
from scdiffkit.io import open_backed, open_cells, read
from scdiffkit.preprocessing import counts, genes, pipeline
from scdiffkit.preprocessing.pipeline import Prepared, is_prepared, prepare, preprocess


def in_file(adata: AnnData, path: Path) -> Path:
    adata.write_h5ad(path, compression="gzip")
    return path


@pytest.mark.parametrize("storage", ["csr", "dense"])
@pytest.mark.parametrize(
    "options",
    [
        {"hvg_flavor": "seurat_v3", "n_top_genes": 20},
        {"hvg_flavor": "cell_ranger", "n_top_genes": 20, "batch_key": "donor"},
        {"hvg_flavor": "cv", "n_top_genes": 20, "min_counts": 120, "max_mito": 0.05, "min_cells": 60},
        {"hvg_flavor": "list", "genes": ("gene07", "MT-CO1"), "max_genes": 40},
    ],
    ids=lambda o: o["hvg_flavor"],
)
def test_from_a_file_as_in_memory(
    options: dict[str, Any], storage: str, tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdiffkit.io.matrices.VALUES_AT_ONCE", 500)  # many blocks
    expected = preprocess(tiny, label="cell_type", **options)
    cells = tiny.copy()
    if storage == "dense":
        cells.X = cells.X.toarray()
    backed = open_backed(in_file(cells, tmp_path / "cells.h5ad"))
    prepared = prepare(backed, PreprocessConfig(**options), label="cell_type")
    prepared.write(tmp_path / "out.h5ad")
    written = read(tmp_path / "out.h5ad")
    for found in (prepared.in_memory(), written):
        assert (found.X != expected.X).nnz == 0
        assert (found.layers["counts"] != expected.layers["counts"]).nnz == 0
        pd.testing.assert_frame_equal(found.obs, expected.obs)
        pd.testing.assert_frame_equal(found.var, expected.var)
        assert is_prepared(found)
    again = Prepared.of(open_backed(tmp_path / "out.h5ad"))
    np.testing.assert_array_equal(again.totals, expected.obs["total_counts"])


def test_the_command_writes_the_same_file(tiny: AnnData, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    path = in_file(tiny, tmp_path / "cells.h5ad")
    for name, memory in (("a.h5ad", "disk"), ("b.h5ad", "ram")):
        done = CliRunner().invoke(app, ["preprocess", str(path), "-o", str(tmp_path / name), "--memory", memory])
        assert done.exit_code == 0, done.output
    assert (tmp_path / "a.h5ad").read_bytes() == (tmp_path / "b.h5ad").read_bytes()


@pytest.mark.parametrize("place", ["counts", "raw"])
def test_counts_are_found_where_they_are(place: str, tiny: AnnData, tmp_path: Path) -> None:
    cells = preprocess(tiny, min_cells=0)
    if place == "raw":
        cells.raw = tiny
        del cells.layers["counts"]
    backed = open_backed(in_file(cells, tmp_path / "cells.h5ad"))
    if place == "counts":
        assert is_prepared(backed)
    found = prepare(backed, PreprocessConfig(min_cells=0), choose_genes=False).in_memory()
    assert (found.layers["counts"] != tiny.X).nnz == 0


def test_values_further_down_that_are_no_counts(tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "FIRST_CELLS", 10)
    cells = tiny.copy()
    cells.X.data[-1] = 0.5
    backed = open_backed(in_file(cells, tmp_path / "cells.h5ad"))
    with pytest.raises(DataError, match=r"cells\.h5ad: X has fractions.*first cells hold raw counts"):
        prepare(backed, PreprocessConfig())


@pytest.mark.parametrize("memory", ["ram", "disk"])
@pytest.mark.parametrize("join", ["inner", "outer"])
def test_several_files_are_anndatas_concatenation(join: Any, memory: str, tiny: AnnData, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    first, second = tiny[:100, rng.permutation(60)[:50]].copy(), tiny[100:, rng.permutation(60)[:45]].copy()
    first.obs["only"] = 1
    paths = [in_file(part, tmp_path / f"{name}.h5ad") for part, name in ((first, "a"), (second, "b"))]
    _, cells = open_cells(paths, memory)
    config = PreprocessConfig(min_cells=0, min_counts=0, min_genes=0, join=join)
    found = prepare(cells, config, label="cell_type", choose_genes=False).in_memory()
    expected = ad.concat({"a": first, "b": second}, join=join, label="file")
    assert list(found.obs_names) == list(expected.obs_names)
    assert set(found.var_names) == set(expected.var_names)
    assert (found.layers["counts"] != sparse.csr_matrix(expected[:, found.var_names].X)).nnz == 0
    for column in ("cell_type", "donor", "file"):
        assert list(found.obs[column].astype(str)) == list(expected.obs[column].astype(str))
    assert "only" not in found.obs
    np.testing.assert_array_equal(found.obs["total_counts"], np.asarray(found.layers["counts"].sum(axis=1)).ravel())


def test_files_that_do_not_go_together(tiny: AnnData, tmp_path: Path) -> None:
    other = tiny.copy()
    other.var_names = [f"ENSG{i}" for i in range(60)]
    with pytest.raises(DataError, match=r"no gene in common \(a: gene00, gene01, gene02; b: ENSG0"):
        prepare({"a": tiny, "b": other}, PreprocessConfig())
    unlabelled = tiny.copy()
    unlabelled.obs = unlabelled.obs.rename(columns={"cell_type": "celltype"})
    with pytest.raises(DataError, match=r"b has no obs column 'cell_type'; .*celltype"):
        prepare({"a": tiny, "b": unlabelled}, PreprocessConfig(), label="cell_type")
    few = tiny.copy()
    few.var_names = [*tiny.var_names[:20], *(f"other{i}" for i in range(40))]
    with pytest.warns(ScdiffWarning, match="Only 20 genes are in all 2 files"):
        prepare({"a": tiny, "b": few}, PreprocessConfig(min_cells=0), choose_genes=False)


def test_the_file_can_be_a_label_and_a_batch(tiny: AnnData, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "scdiffkit")
    second = tiny[:90].copy()
    second.obs["file"] = "of another join"
    tiny = tiny.copy()
    tiny.obs["file"] = "too"
    config = PreprocessConfig(min_cells=0, hvg_flavor="seurat", n_top_genes=20, batch_key="file")
    found = prepare({"a": tiny, "b": second}, config, label="file")
    assert dict(found.obs["file"].value_counts()) == {"a": 240, "b": 90}
    assert found.var["highly_variable"].sum() == 20
    assert "is replaced by the name of each cell's file" in caplog.text


def test_columns_of_other_types_are_put_together(tiny: AnnData, tmp_path: Path) -> None:
    first, second = tiny[:120].copy(), tiny[120:].copy()
    n = {"a": 120, "b": 120}
    kinds = {
        "text or nothing": (pd.Categorical(["x"] * n["a"]), np.full(n["b"], np.nan)),
        "text or number": (pd.Categorical(["1"] * n["a"]), np.ones(n["b"], dtype=int)),
        "in order or not": (pd.Categorical(["x"] * n["a"], ordered=True), pd.Categorical(["y"] * n["b"])),
        "integers with gaps": (pd.array([1, None] * 60, dtype="Int64"), pd.array([2] * n["b"], dtype="Int64")),
        "truth or text": ([True] * n["a"], ["no"] * n["b"]),
    }
    for column, (a, b) in kinds.items():
        first.obs[column], second.obs[column] = a, b
    found = prepare({"a": first, "b": second}, PreprocessConfig(min_cells=0), label="cell_type", choose_genes=False)
    read(found.write(tmp_path / "cells.h5ad"))
    for column, (a, b) in kinds.items():
        expected = pd.Series([*a, *b]).map(str, na_action="ignore").fillna("nothing")
        written = found.obs[column].astype(object).map(str, na_action="ignore").fillna("nothing")
        assert list(written) == list(expected), column


def test_cell_names_that_files_share_are_told_apart(tiny: AnnData) -> None:
    found = prepare({"a": tiny, "b": tiny[:5].copy()}, PreprocessConfig(min_cells=0), choose_genes=False)
    assert found.obs.index.is_unique
    assert list(found.obs.index[-2:]) == ["cell003-1", "cell004-1"]
    assert list(found.obs["file"].astype(str).iloc[[0, -1]]) == ["a", "b"]


def test_genes_are_chosen_on_some_of_very_many_cells(tiny: AnnData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    cv = genes._coefficient_of_variation
    whole = preprocess(tiny, n_top_genes=20, hvg_flavor="cv")
    monkeypatch.setattr(genes, "MAX_CELLS_TO_CHOOSE", 200)
    monkeypatch.setattr(genes, "_coefficient_of_variation", lambda X: seen.append(X.shape[0]) or cv(X))
    some = preprocess(tiny, n_top_genes=20, hvg_flavor="cv")
    assert (some.n_obs, seen) == (240, [200])
    both = (some.var["highly_variable"] & whole.var["highly_variable"]).sum()
    assert 10 <= both <= 20


def test_small_batches_are_among_the_cells_that_genes_are_chosen_on(
    tiny: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny.copy()
    tiny.obs["donor"] = pd.Categorical(["small"] * 30 + ["large"] * 210)
    chosen = genes._scanpy_genes
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(genes, "MAX_CELLS_TO_CHOOSE", 100)

    def looked_on(cells: AnnData, config: PreprocessConfig) -> np.ndarray:
        seen.append(dict(cells.obs["donor"].value_counts()))
        return chosen(cells, config)

    monkeypatch.setattr(genes, "_scanpy_genes", looked_on)
    preprocess(tiny, n_top_genes=20, hvg_flavor="seurat", batch_key="donor", min_counts=0, min_genes=0)
    assert seen == [{"large": 70, "small": 30}]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_comes_while_a_library_tidies_up_stops_the_writing(
    tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What finalisers and callbacks of weak references raise is lost; after each write h5py runs some."""

    class Finaliser:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    class Writer(pipeline.CellWriter):
        def append(self, *args: Any) -> None:
            super().append(*args)
            Finaliser()

    monkeypatch.setattr(pipeline, "CellWriter", Writer)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            prepare(tiny, PreprocessConfig(n_top_genes=20)).write(tmp_path / "prepared.h5ad")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())
