"""compare: several sets in one table, ranked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scdiffkit
from scdiffkit.errors import ConfigError, FileError, ScdiffWarning
from scdiffkit.evaluation.cell_sets import shuffle_within
from scdiffkit.evaluation.ranking import Comparison
from scdiffkit.metrics.profiles import MINIMAL

pytestmark = pytest.mark.filterwarnings("ignore:Only .* (genes are in all|cells per set)")


@pytest.fixture(scope="module")
def sets(demo: AnnData) -> dict[str, AnnData]:
    order = np.random.default_rng(0).permutation(demo.n_obs)
    real, other = demo[order[:350]].copy(), demo[order[350:]].copy()
    shuffled = other.copy()
    shuffled.X = shuffle_within(other.X, other.obs["cell_type"].astype(str).to_numpy(), np.random.default_rng(0))
    return {"real": real, "fresh": other, "shuffled": shuffled, "copied": real.copy()}


METRICS = [*MINIMAL, "correlation_structure", "coverage"]


@pytest.fixture(scope="module")
def comparison(sets: dict[str, AnnData], tmp_path_factory: pytest.TempPathFactory) -> tuple[Comparison, Path]:
    out = tmp_path_factory.mktemp("compare") / "new"
    made = {name: sets[name] for name in ("shuffled", "copied", "fresh")}
    return scdiffkit.compare(sets["real"], made, label="cell_type", out=out, resamples=2, metrics=METRICS), out


def test_fresh_cells_come_first_and_copies_last(comparison: tuple[Comparison, Path]) -> None:
    ranking = comparison[0].ranking()
    assert list(ranking["name"]) == list(comparison[0].evaluations) == ["fresh", "shuffled", "copied"]
    assert ranking["verdict"].iloc[-1] == "copied"
    distance = dict(zip(ranking["name"], ranking["distance"]))
    assert distance["fresh"] < 0.1 < distance["shuffled"]


def test_every_set_has_a_column_and_the_best_is_named(comparison: tuple[Comparison, Path]) -> None:
    frame = comparison[0].to_frame().set_index("metric")
    assert list(frame.columns) == ["family", "real_reference", "baseline", "fresh", "shuffled", "copied", "best"]
    assert frame.loc["correlation_structure", "best"] != "shuffled"
    for name, evaluation in comparison[0].evaluations.items():
        assert frame.loc["rf_auc", name] == evaluation["rf_auc"].value


def test_all_sets_are_scored_with_as_many_cells(sets: dict[str, AnnData]) -> None:
    made = {"few": sets["fresh"][:60].copy(), "many": sets["shuffled"]}
    found = scdiffkit.compare(sets["real"], made, resamples=1, metrics="minimal")
    assert {evaluation.n_cells for evaluation in found.evaluations.values()} == {60}


def test_what_is_written_says_the_same(comparison: tuple[Comparison, Path]) -> None:
    found, out = comparison
    assert sorted(p.name for p in out.iterdir()) == ["compare.csv", "compare.html", "compare.json"]
    read = json.loads((out / "compare.json").read_text())
    assert [row["name"] for row in read["ranking"]] == list(found.evaluations)
    assert read["sets"]["fresh"]["verdict"]["word"] == found.evaluations["fresh"].verdict.word
    assert list(pd.read_csv(out / "compare.csv")["metric"]) == list(found.to_frame()["metric"])
    page = (out / "compare.html").read_text()
    assert page.index("fresh is closest") < page.index("<table>")


@pytest.mark.slow
def test_refusals_and_warnings(sets: dict[str, AnnData], tmp_path: Path) -> None:
    real, fresh, shuffled = (sets[name] for name in ("real", "fresh", "shuffled"))
    with pytest.raises(ConfigError, match="two sets"):
        scdiffkit.compare(real, {"fresh": fresh})
    (tmp_path / "compare.csv").write_text("old")
    with pytest.raises(FileError, match=r"compare\.csv already.*`force=True`"):
        scdiffkit.compare(real, {"a": fresh, "b": shuffled}, out=tmp_path)
    assert (tmp_path / "compare.csv").read_text() == "old"
    with pytest.raises(ConfigError, match="same file"):
        scdiffkit.compare(real, [tmp_path / "a.h5ad", tmp_path / "a.h5ad"])
    fewer = fresh[:, :500].copy()
    with pytest.warns(ScdiffWarning, match="different numbers of genes.*fewer 500"):
        scdiffkit.compare(real, {"fewer": fewer, "all": fresh}, resamples=1, max_cells=50, metrics="minimal")
    unlabelled = fresh.copy()
    del unlabelled.obs["cell_type"]
    with pytest.warns(ScdiffWarning, match=r"bare cannot be scored by .*type_f1.*\(no `label`"):
        found = scdiffkit.compare(
            real,
            {"bare": unlabelled, "all": fresh},
            label="cell_type",
            resamples=1,
            max_cells=50,
            metrics=["minimal", "type_f1"],
        )
    assert "type_f1" not in set(found.to_frame()["metric"])


def test_files_are_named_after_themselves(sets: dict[str, AnnData], tmp_path: Path) -> None:
    paths = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "cells.h5ad")
        sets["fresh"].write_h5ad(paths[-1])
    found = scdiffkit.compare(sets["real"], paths, resamples=1, max_cells=50, metrics="minimal")
    assert set(found.evaluations) == {str(path.with_suffix("")) for path in paths}
    sources = {evaluation.inputs["synthetic"]["source"] for evaluation in found.evaluations.values()}
    assert sources == set(map(str, paths))
    hashes = {evaluation.inputs["synthetic"]["sha256"] for evaluation in found.evaluations.values()}
    assert hashes == {hashlib.sha256(paths[0].read_bytes()).hexdigest()}
