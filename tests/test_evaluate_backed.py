"""evaluate and compare on cells that stay in their files: the same scores, and what is said of those not compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scdiffkit
from scdiffkit import io
from scdiffkit.errors import DataError, FileError, ScdiffWarning
from scdiffkit.evaluation.result import Evaluation
from scdiffkit.preprocessing.normalise import lognormalise

pytestmark = pytest.mark.filterwarnings("ignore:Only .* cells per set")


@pytest.fixture(scope="module")
def tiny(wide: AnnData) -> AnnData:
    """Small cells of enough genes to be compared."""
    return wide


@pytest.fixture(autouse=True)
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here does not hang on the forest's size."""
    monkeypatch.setattr("scdiffkit.metrics.classifier.N_TREES", 20)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few cells in each block that is read."""
    monkeypatch.setattr("scdiffkit.io.matrices.VALUES_AT_ONCE", 1000)


@pytest.fixture
def few_held(monkeypatch: pytest.MonkeyPatch) -> int:
    """At most so many cells of a side are compared."""
    monkeypatch.setattr("scdiffkit.evaluation.pipeline.MAX_KNOWN_CELLS", 50)
    return 50


@pytest.fixture(scope="module")
def many(tiny: AnnData) -> AnnData:
    """480 cells, no two of which are alike."""
    return ad.concat([tiny, fresh(tiny)], index_unique="-")


def evaluate(*args: Any, **options: Any) -> Evaluation:
    return scdiffkit.evaluate(*args, **{"resamples": 1, "max_cells": 20, **options})


def written(cells: AnnData, path: Path) -> Path:
    """As h5ad or, by its name, a zarr store of version 2 or 3."""
    if path.suffix == ".h5ad":
        cells.write_h5ad(path)
        return path
    with ad.settings.override(zarr_write_format=2 if "v2" in path.stem else 3):
        cells.write_zarr(path)
    return path


def thirds(cells: AnnData) -> tuple[AnnData, AnnData, AnnData]:
    """Real, synthetic and training cells."""
    order = np.random.default_rng(0).permutation(cells.n_obs)
    a, b, c = (cells[rows].copy() for rows in np.array_split(order, 3))
    return a, b, c


def fresh(cells: AnnData, seed: int = 0) -> AnnData:
    """Other cells that are much like these."""
    made = cells.copy()
    made.X = sparse.csr_matrix(np.random.default_rng(seed).poisson(cells.X.toarray()).astype(np.float32))
    return made


def scores(evaluation: Evaluation) -> dict[str, Any]:
    """All that is found, without where it was found."""
    found = evaluation.to_dict()
    for key in ("inputs", "command", "versions"):
        found.pop(key)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5ad", "-v2.zarr", "-v3.zarr"])
def test_cells_in_files_score_as_in_memory(suffix: str, tiny: AnnData, tmp_path: Path, small_blocks: None) -> None:
    real, synthetic, train = thirds(tiny)
    train = ad.concat([train, real[:7]])  # which are left out
    real.X = real.X.toarray()
    synthetic.layers["counts"] = synthetic.X.astype(np.int64)
    synthetic.X = lognormalise(synthetic.X, 1e4)
    synthetic = synthetic[:, np.random.default_rng(0).permutation(120)[:110]].copy()
    paths = [written(c, tmp_path / f"{i}{suffix}") for i, c in enumerate((real, synthetic, train))]
    options: dict[str, Any] = {"label": "cell_type", "donor": "donor", "condition": ["donor"], "protocol": "cfgen"}
    expected = evaluate(real, synthetic, train=train, **options)
    with pytest.warns(ScdiffWarning, match="7 of the 80 real cells are also in `train`"):
        found = evaluate(*paths[:2], train=paths[2], memory="disk", **options)
    assert scores(found) == scores(expected)
    assert found.inputs["real"]["source"] == str(paths[0])
    assert found.sampled == {}


def test_counts_are_found_where_they_are_in_memory(tiny: AnnData, tmp_path: Path, small_blocks: None) -> None:
    real, synthetic, _ = thirds(tiny)
    in_raw = real.copy()
    in_raw.X = lognormalise(real.X, 1e4)
    in_raw.raw = real
    in_raw = in_raw[:, ::-1].copy()
    made = synthetic.copy()
    made.obs["total_counts"] = np.asarray(made.X.sum(axis=1)).ravel() * 2
    logged = synthetic.copy()
    logged.X = lognormalise(synthetic.X, 1e4)
    for a, b in ((in_raw, made), (real, logged)):
        paths = [written(a, tmp_path / "a.h5ad"), written(b, tmp_path / "b.h5ad")]
        few = {"metrics": "minimal", "max_cells": 50}
        expected, found = evaluate(a, b, **few), evaluate(*paths, memory="disk", **few)
        assert scores(found) == scores(expected)
        assert [i["scale"] for i in found.inputs.values()] == [i["scale"] for i in expected.inputs.values()]


def test_genes_chosen_by_counts(many: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scdiffkit.evaluation.scoring.N_VARIABLE", 30)
    real, synthetic, _ = thirds(many)
    paths = [written(real, tmp_path / "a.h5ad"), written(synthetic, tmp_path / "b.h5ad")]
    options: dict[str, Any] = {"protocol": "scdiffusion", "label": "cell_type", "metrics": "minimal"}
    monkeypatch.setattr("scdiffkit.metrics.protocols.SCDIFFUSION_TREES", 50)
    expected, found = evaluate(real, synthetic, **options), evaluate(*paths, memory="disk", **options)
    of_both = [[s.value for s in e.of_protocol] for e in (found, expected)]
    assert of_both[0] == pytest.approx(of_both[1], rel=1e-12)  # whose last digit hangs on where arrays lie


def test_cells_stay_in_files_where_memory_is_short(
    tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, synthetic, _ = thirds(tiny)
    paths = [written(real, tmp_path / "a.h5ad"), written(synthetic, tmp_path / "b.h5ad")]
    caplog.set_level("INFO", "scdiffkit")
    few: dict[str, Any] = {"metrics": "minimal", "max_cells": 30}
    evaluate(*paths, **few)
    assert "they stay in their files" not in caplog.text
    monkeypatch.setattr("scdiffkit.io.reading.available_memory", lambda: 1000.0)
    evaluate(*paths, **few)
    assert "they stay in their files" in caplog.text
    caplog.clear()
    evaluate(*paths, memory=2e9, **few)
    assert "they stay in their files" not in caplog.text


@pytest.mark.usefixtures("blank_pictures")
def test_of_many_cells_some_are_compared_and_that_is_said(
    many: AnnData, tmp_path: Path, few_held: int, small_blocks: None
) -> None:
    real, rest, train = thirds(many)
    synthetic = fresh(rest)
    names = ("real", "synthetic", "train")
    paths = [written(c, tmp_path / f"{name}.h5ad") for name, c in zip(names, (real, synthetic, train), strict=True)]
    out = tmp_path / "report"
    some: dict[str, Any] = {"label": "cell_type", "fast": True, "metrics": ["minimal", "mean_mae", "nn_ratio"]}
    options: dict[str, Any] = {**some, "memory": "disk"}
    evaluation = evaluate(*paths[:2], train=paths[2], out=out, **options)
    assert evaluation.sampled == {name: (few_held, c.n_obs) for name, c in zip(names, (real, synthetic, train))}
    note = f"real: 50 of {real.n_obs} cells, drawn at random within types, are compared."
    assert note in evaluation.notes
    assert note in (out / "report.html").read_text()
    assert json.loads((out / "metrics.json").read_text())["sampled"]["train"] == [50, train.n_obs]
    assert [n for n in evaluation.notes if "nearest training cell among these 50 only" in n]
    assert "--memory disk" in evaluation.command()
    in_memory = evaluate(real, synthetic, train=train, **some)
    assert evaluation.types == in_memory.types  # of all cells
    assert evaluation["mean_mae"].real_reference == pytest.approx(in_memory["mean_mae"].real_reference, abs=0.1)
    assert in_memory.sampled == {}
    again = evaluate(*paths[:2], train=paths[2], **options)
    assert scores(again) == scores(evaluation)
    other = evaluate(*paths[:2], train=paths[2], seed=1, **options)
    assert other["mean_mae"].values != evaluation["mean_mae"].values


def test_what_is_of_all_cells_is_of_all_cells(many: AnnData, tmp_path: Path, few_held: int, small_blocks: None) -> None:
    real, rest, train = thirds(many)
    train = ad.concat([train, real[:100]], index_unique="-")
    synthetic = ad.concat([fresh(rest), train[:30]], index_unique="-")
    for cells in (real, train):
        cells.obs["donor"] = "anna"
    train.obs["donor"] = np.where(np.arange(train.n_obs) < 15, "bert", "anna")
    paths = [written(c, tmp_path / f"{i}.h5ad") for i, c in enumerate((real, synthetic, train))]
    with pytest.warns(ScdiffWarning, match=f"100 of the {real.n_obs} real cells are also in `train`"):
        evaluation = evaluate(*paths[:2], train=paths[2], donor="donor", memory="disk", metrics="minimal")
    assert evaluation.sampled["real"] == (few_held, real.n_obs - 100)
    copied = np.diff(train[:30].X.indptr) >= 20  # cells of fewer genes may be alike by chance
    assert evaluation["exact_duplicates"].value == pytest.approx(copied.sum() / synthetic.n_obs)
    of_donors = evaluation.donors_to_frame().set_index(["donor", "metric"])
    assert of_donors.loc[("anna", "exact_duplicates"), "value"] == pytest.approx(copied[15:].sum() / synthetic.n_obs)
    assert evaluation.verdict.word == "copied"


def test_more_cells_are_held_where_more_are_compared(many: AnnData, tmp_path: Path, few_held: int) -> None:
    real, synthetic, _ = thirds(many)
    paths = [written(real, tmp_path / "a.h5ad"), written(synthetic, tmp_path / "b.h5ad")]
    evaluation = evaluate(*paths, memory="disk", max_cells=60, resamples=2, metrics="minimal")
    assert evaluation.sampled["real"] == (150, real.n_obs)
    assert evaluation.n_cells == 60


def test_compare_with_cells_in_files(many: AnnData, tmp_path: Path) -> None:
    real, synthetic, train = thirds(many)
    paths = [written(c, tmp_path / f"{n}.h5ad") for n, c in (("real", real), ("one", synthetic), ("two", train))]
    options: dict[str, Any] = {"resamples": 1, "max_cells": 30, "label": "cell_type", "metrics": "minimal"}
    expected = scdiffkit.compare(real, {"one": synthetic, "two": train}, **options)
    found = scdiffkit.compare(paths[0], paths[1:], memory="disk", **options)
    assert {n: scores(e) for n, e in found.evaluations.items()} == {
        n: scores(e) for n, e in expected.evaluations.items()
    }
    assert found.evaluations["one"].inputs["synthetic"]["source"] == str(paths[1])
    assert found.evaluations["one"].inputs["real"]["sha256"]


def test_compare_says_of_how_many_cells(many: AnnData, tmp_path: Path, few_held: int) -> None:
    from typer.testing import CliRunner

    from scdiffkit.cli import app

    real, synthetic, train = thirds(many)
    paths = [written(c, tmp_path / f"{n}.h5ad") for n, c in (("real", real), ("one", synthetic), ("two", train))]
    out = tmp_path / "out"
    argv = [
        "compare",
        *paths,
        "--memory",
        "disk",
        "--max-cells",
        20,
        "--resamples",
        1,
        "--metrics",
        "minimal",
        "-o",
        out,
    ]
    done = CliRunner().invoke(app, [str(word) for word in argv])
    assert done.exit_code == 0
    assert f"one: 50 of the {real.n_obs} real cells, drawn at random, are compared" in done.stderr
    assert f"50 of the {real.n_obs} real cells were drawn at random" in (out / "compare.html").read_text()


# what is wrong with a file is said as in memory, or by the file and the place


def test_bad_cells_are_refused_as_in_memory(
    tiny: AnnData, tmp_path: Path, small_blocks: None, caplog: pytest.LogCaptureFixture
) -> None:
    real, synthetic, _ = thirds(tiny)
    good = written(real, tmp_path / "real.h5ad")
    for name, value, message in (
        ("nan", np.nan, "1 values in X that are NaN or infinite"),
        ("negative", -2.0, "neither raw counts nor.*negative values"),
        ("scaled", 99.5, "neither raw counts nor.*normalised or corrected"),
    ):
        X = synthetic.X.toarray()
        X[3, 4] = value
        path = written(AnnData(X, synthetic.obs, synthetic.var), tmp_path / f"{name}.h5ad")
        with pytest.raises(DataError, match=message) as said:
            evaluate(good, path, memory="disk")
        assert str(path) in str(said.value)
    late = ad.concat([tiny] * 12, index_unique="-")
    late.layers["counts"] = late.X.copy()
    late.layers["counts"].data[-1] = 0.5
    path = written(late, tmp_path / "late.h5ad")
    with pytest.raises(DataError, match=r'late\.h5ad: layers\["counts"\] has fractions'):
        evaluate(path, good, memory="disk")
    late.X = lognormalise(late.X, 1e4)  # which is what is compared, as in memory
    path = written(late, tmp_path / "logged.h5ad")
    caplog.set_level("INFO")
    found = evaluate(path, good, memory="disk")
    assert "the values of X are compared, without counts" in caplog.text
    pd.testing.assert_frame_equal(found.to_frame(), evaluate(late, real).to_frame())


def test_no_cells(tiny: AnnData, tmp_path: Path) -> None:
    paths = [written(tiny, tmp_path / "real.h5ad"), written(tiny[:0].copy(), tmp_path / "none.h5ad")]
    with pytest.raises(DataError, match=r"The synthetic cells.*empty \(0 cells"):
        evaluate(*paths, memory="disk")


def damaged(path: Path, place: str) -> Iterator[Path]:
    """Copies of a file of cells, each with one chunk of a matrix broken in another way."""
    junk = np.random.default_rng(0).bytes
    if path.suffix == ".h5ad":
        import h5py

        with h5py.File(path) as f:
            chunk = f[place].id.get_chunk_info(f[place].id.get_num_chunks() // 2)
        copy = Path(shutil.copy(path, path.with_name(f"junk-{path.name}")))
        with copy.open("r+b") as file:
            file.seek(chunk.byte_offset + chunk.size // 2)
            file.write(junk(chunk.size // 2))
        yield copy
        return
    for way in ("cut", "junk", "empty", "gone"):
        copy = Path(shutil.copytree(path, path.with_name(f"{way}-{path.name}")))
        chunks = sorted(p for p in (copy / place).rglob("*") if p.is_file() and p.name.isdigit())
        chunk = chunks[len(chunks) // 2]
        whole = chunk.read_bytes()
        if way == "gone":
            chunk.unlink()
        else:
            chunk.write_bytes({"cut": whole[: len(whole) // 2], "junk": junk(len(whole)), "empty": b""}[way])
        yield copy


@pytest.mark.parametrize("name", ["cells.h5ad", "cells-v2.zarr", "cells-v3.zarr"])
@pytest.mark.parametrize("part", ["data", "indices", "indptr"])
def test_a_damaged_file_is_named_with_the_place(name: str, part: str, tiny: AnnData, tmp_path: Path) -> None:
    cells = ad.concat([tiny] * 5, index_unique="-")
    good = written(tiny, tmp_path / "good.h5ad")
    path = tmp_path / name
    if name.endswith("h5ad"):
        cells.write_h5ad(path, compression="gzip")
    else:
        written(cells, path)
    out = tmp_path / "report"
    for copy in damaged(path, f"X/{part}"):
        asked: list[Callable[[], Any]] = [
            lambda: evaluate(good, copy, memory="disk", out=out),  # noqa: B023
            lambda: evaluate(good, copy, memory="ram", out=out),  # noqa: B023
        ]
        asked += [lambda: io.describe(copy)] if part == "data" else []  # noqa: B023  which reads no more
        for ask in asked:
            with pytest.raises(FileError, match=r"damaged or cut short: .* \(X[/,:]") as said:
                ask()
            assert str(said.value).startswith(str(copy))
            assert not out.exists()


def test_places_of_genes_that_do_not_exist(tiny: AnnData, tmp_path: Path) -> None:
    """Garbage that can be unpacked would make scipy read and write where it must not."""
    path = written(tiny, tmp_path / "cells-v3.zarr")
    import zarr

    zarr.open_group(str(path))["X/indices"][100] = 70_000
    for memory in ("disk", "ram"):
        with pytest.raises(FileError, match=r"X.*indices"):
            evaluate(path, path, memory=memory)


def test_files_of_old_are_read_whole(tmp_path: Path) -> None:
    path, X = tmp_path / "old.h5ad", np.random.default_rng(0).poisson(1.0, (40, 130)).astype(np.float32)
    import h5py

    with h5py.File(path, "w") as f:
        f["obs"] = np.array([(f"c{i}".encode(),) for i in range(40)], dtype=[("index", "S4")])
        f["var"] = np.array([(f"g{i}".encode(),) for i in range(130)], dtype=[("index", "S4")])
        f["X"] = X
    assert evaluate(path, path).inputs["real"]["cells"] == 40
    with pytest.raises(FileError, match=r"older than 0\.8.*write it again"):
        evaluate(path, path, memory="disk")
