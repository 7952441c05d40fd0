"""info and runs: what is in a file, a run, or a folder of them, and how far training came."""

import json
import shutil

import pytest
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.errors import ConfigError, FileError, RunError

QUICK = {
    "model.patch_size": 64, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2, "codec.name": "gene",
    "train.max_steps": 6, "train.batch_size": 32, "train.val_every_steps": 2,
}  # fmt: skip


def scdiff(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def folder(demo, tmp_path_factory):
    """scdiff-runs/ with a finished run, one that was stopped, and one that was damaged; data.h5ad beside."""
    work = tmp_path_factory.mktemp("work")
    scdiffkit.write(demo, work / "data.h5ad")
    options = {"label": "cell_type", "holdout": 0.3, "overrides": QUICK}
    runs = work / "scdiff-runs"
    scdiffkit.train(work / "data.h5ad", out=runs / "complete", **options)
    with pytest.raises(KeyboardInterrupt):
        scdiffkit.train(work / "data.h5ad", out=runs / "stopped", **options, on_progress=stop)
    shutil.copytree(runs / "complete", runs / "damaged")
    (runs / "damaged" / "config.yaml").write_text("model: [")
    return work


def stop(status):
    if status.step >= 2:
        raise KeyboardInterrupt


@pytest.mark.slow
def test_runs_are_listed_with_state_and_scores(folder):
    rows = scdiffkit.runs(folder / "scdiff-runs").set_index("run")
    assert set(rows.index) == {"complete", "stopped", "damaged"}
    assert rows.loc["complete", ["state", "steps", "planned", "data"]].tolist() == ["complete", 6, 6, "data.h5ad"]
    assert rows.loc["complete", ["holdout", "codec", "conditions"]].tolist() == [0.3, "gene", "cell_type"]
    assert rows.loc["complete", "cells"] == pytest.approx(0.7 * 700, abs=10)
    assert rows.loc["stopped", "state"] in ("stopped early", "not trained")
    assert "not valid YAML" in rows.loc["damaged", "state"]
    assert rows["latest"].sum() == 1
    assert rows["verdict"].isna().all()
    shutil.copytree(folder / "scdiff-runs" / "complete", folder / "scdiff-runs" / "judged")
    evaluation = scdiffkit.evaluate(run=folder / "scdiff-runs" / "judged", metrics="minimal", max_cells=60)
    rows = scdiffkit.runs(folder / "scdiff-runs").set_index("run")
    assert rows.loc["judged", "verdict"] == evaluation.verdict.word
    assert rows.loc["judged", "rf_auc"] == pytest.approx(evaluation["rf_auc"].value, abs=1e-4)
    shutil.rmtree(folder / "scdiff-runs" / "judged")


def test_the_command_prints_them(folder):
    lines = scdiff("runs", folder / "scdiff-runs").output.splitlines()
    assert lines[0].split()[:3] == ["run", "created", "state"]
    assert any(line.startswith("complete") and " complete " in line and "data.h5ad" in line for line in lines)
    found = json.loads(scdiff("runs", folder / "scdiff-runs", "--json").stdout)
    assert {row["run"]: row["steps"] for row in found}["complete"] == 6
    assert "no folder" in scdiff("runs", folder / "nowhere", code=1).output
    with pytest.raises(FileError, match=r"no runs: train one with `scdiffkit\.train"):
        scdiffkit.runs(folder / "nowhere")


def test_info_of_a_folder_lists_what_is_in_it(folder):
    found = scdiffkit.info(folder / "scdiff-runs")
    assert found["format"] == "folder"
    assert {row["run"] for row in found["runs"]} == {"complete", "stopped", "damaged"}
    (folder / "broken.h5ad").write_bytes(b"nothing")
    found = {file["path"].rpartition("/")[2]: file for file in scdiffkit.info(folder)["files"]}
    assert (found["data.h5ad"]["n_obs"], found["data.h5ad"]["counts"]) == (700, "X")
    assert "broken.h5ad" in found["broken.h5ad"]["error"]
    assert "data.h5ad" in scdiff("info", folder).output
    (folder / "broken.h5ad").unlink()
    assert scdiffkit.info(folder / "scdiff-runs" / "complete")["format"] == "run"
    assert scdiffkit.info(folder / "data.h5ad")["format"] == "h5ad"


def test_info_of_cells_in_memory_is_that_of_their_file(demo, folder):
    in_memory, in_file = scdiffkit.info(demo), scdiffkit.info(folder / "data.h5ad")
    assert in_memory["format"] == "memory"
    for key in ("n_obs", "n_vars", "counts", "median_counts", "var"):
        assert in_memory[key] == in_file[key]
    assert [column["name"] for column in in_memory["obs"]] == [column["name"] for column in in_file["obs"]]


def test_a_run_is_resumed_from_its_own_files(folder, demo, tmp_path):
    run = folder / "scdiff-runs" / "complete"
    shutil.copytree(run, tmp_path / "run")
    scdiff("train", "--resume", "--out", tmp_path / "run", "--max-steps", 8)
    assert scdiffkit.Run(tmp_path / "run").steps()[-1] == 8
    assert scdiffkit.train(out=tmp_path / "run", resume=True, max_steps=9).steps()[-1] == 9
    assert "DATA" in scdiff("train", "--label", "cell_type", code=2).output
    with pytest.raises(ConfigError, match="train needs cells"):
        scdiffkit.train(label="cell_type")
    in_memory = scdiffkit.train(demo, label="cell_type", out=tmp_path / "memory", overrides=QUICK)
    with pytest.raises(RunError, match="trained on cells in memory"):
        scdiffkit.train(out=in_memory.path, resume=True)
