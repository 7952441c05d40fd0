"""Runs that earlier versions wrote are opened, drawn from, described and resumed as then; see data/README.md."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.codecs import GeneCodec
from scdiffkit.config import SampleConfig, make
from scdiffkit.run import Run
from scdiffkit.sampling import plan

DATA = Path(__file__).parent / "data"
GENE_RUN = DATA / "run-gene-0.1"  # from before there was a count codec
CPU = {"device": "cpu", "precision": "32"}


def draw(n=20, seed=7, **kwargs):
    values = {"steps": 20, "seed": seed, **CPU, **kwargs.pop("config", {})}
    return scdiffkit.sample(GENE_RUN, n, config=make(SampleConfig, **values), **kwargs)


def scdiff(*args, code=0):
    done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
    assert done.exit_code == code, done.output
    return done


@pytest.fixture
def copy(tmp_path):
    """The old run in a folder that may be written to."""
    return Path(shutil.copytree(GENE_RUN, tmp_path / "run"))


def test_an_old_run_opens():
    run = Run.open(GENE_RUN)
    config = run.config()
    assert (config.codec.name, config.model.arch, config.diffusion.output) == ("gene", "dit", "spike-slab")
    assert isinstance(run.codec(), GeneCodec)
    assert config.conditions == ("cell_type",)
    assert run.steps() == [300]
    assert {name: p.shape for name, p in run.denoiser().state_dict().items()} == {
        name: p.shape for name, p in run.load_checkpoint()["ema"].items()
    }


@pytest.mark.parametrize(("name", "config"), [("ddim", {}), ("guided", {"eta": 0.5, "cfg_scale": 2.0})])
def test_an_old_run_gives_the_cells_that_the_old_code_drew(name, config, monkeypatch):
    """Oracle: 20 cells that the code that wrote the run drew with the same settings, and its random numbers: one
    stream for all 20 cells, of the seed alone."""
    monkeypatch.setitem(plan.BLOCK_OF_CELLS, "cpu", 20)
    monkeypatch.setattr(plan.Request, "rng", lambda self: np.random.default_rng([7, 0]))
    old_seed = int(np.random.SeedSequence([7, 0]).generate_state(1, np.uint64)[0] >> 1)
    monkeypatch.setattr(plan.Request, "seed_of_block", lambda self, number: old_seed)
    old = pd.read_csv(DATA / f"run-gene-0.1-{name}.csv", index_col="cell")
    cells = draw(config=config)
    assert len(cells) == len(old)
    assert list(cells.var_names) == list(old.columns[2:])
    assert cells.obs["cell_type"].astype(str).tolist() == old["cell_type"].tolist()
    np.testing.assert_array_equal(cells.obs["total_counts"], old["total_counts"])
    X = old[cells.var_names].to_numpy()
    counts = np.rint(np.expm1(X) * old["total_counts"].to_numpy()[:, None] / 1e4)
    np.testing.assert_array_equal(cells.layers["counts"].toarray(), counts)
    np.testing.assert_allclose(cells.X.toarray(), X, rtol=0, atol=1e-4)


def test_labelled_cells_of_an_old_run(tiny):
    cells = draw(where={"cell_type": "T"})
    genes = (GENE_RUN / "genes.txt").read_text(encoding="utf-8").split()
    assert list(cells.var_names) == genes
    assert set(genes) < set(tiny.var_names)
    assert cells.shape == (20, 40)
    assert set(cells.obs["cell_type"]) == {"T"}
    assert list(cells.obs["cell_type"].cat.categories) == ["T"]
    counts = cells.layers["counts"].toarray()
    assert (counts == counts.round()).all()
    assert counts.min() == 0
    assert (counts.max(axis=1) > 0).all()
    assert np.isfinite(cells.X.toarray()).all()
    assert cells.uns["scdiffkit"]["run_id"] == Run.open(GENE_RUN).provenance()["run_id"]
    again, other = draw(where={"cell_type": "T"}), draw(where={"cell_type": "T"}, seed=8)
    assert (again.layers["counts"] != cells.layers["counts"]).nnz == 0
    assert list(again.obs_names) == list(cells.obs_names)
    assert (other.layers["counts"] != cells.layers["counts"]).nnz > 0


def test_info_of_an_old_run():
    described = json.loads(scdiff("info", GENE_RUN, "--json").stdout)
    assert (described["arch"], described["codec"], described["genes"]) == ("dit", "gene", 40)
    assert described["conditions"] == {"cell_type": ["B", "Mono", "T"]}
    assert (described["checkpoints"], described["sampled_from"]) == ([300], 300)
    assert described["val_loss"] == 0.504556
    assert described["codec_auc"] is None  # not measured then
    lines = dict(line.split(maxsplit=1) for line in scdiff("info", GENE_RUN).stdout.splitlines() if " " in line.strip())
    assert (lines["codec"], lines["checkpoints"], lines["cell_type"]) == ("gene", "300", "B, Mono, T")


def test_an_old_run_is_resumed_as_the_old_code_would_have(copy, tiny, tmp_path):
    scdiffkit.write(tiny, tmp_path / "tiny.h5ad")
    before = Run.open(copy).config().to_dict()
    scdiff("train", tmp_path / "tiny.h5ad", "--resume", "--out", copy, "--max-steps", 400)
    run = Run.open(copy)
    before["train"]["max_steps"] = 400
    assert run.config().to_dict() == before
    assert run.steps() == [300, 400]
    assert [m["step"] for m in run.metrics()] == [300, 400]
    assert run.metrics()[-1]["val_loss"] == pytest.approx(0.505457, abs=1e-4)  # the old code's; see data/README.md


def test_an_old_run_is_not_resumed_with_the_new_codec(copy, tiny, tmp_path):
    scdiffkit.write(tiny, tmp_path / "tiny.h5ad")
    done = scdiff("train", tmp_path / "tiny.h5ad", "--resume", "--out", copy, "--codec", "count", code=1)
    said = f"{done.output} {done.exception}"
    assert "trained with codec.name = 'gene', not 'count'" in said
    assert Run.open(copy).steps() == [300]
