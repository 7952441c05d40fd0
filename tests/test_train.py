"""Training through the public surface: what it writes, what it learns, that it goes on where it stopped."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import scdiffkit
from scdiffkit.config import RunConfig
from scdiffkit.errors import ConfigError, DataError, FileError, RunError
from scdiffkit.run import Run
from scdiffkit.training.status import TrainStatus

MODELS = {
    "dit": {"model.patch_size": 20, "model.hidden_size": 32, "model.depth": 2, "model.num_heads": 2},
    "whitebox": {"model.patch_size": 20, "model.hidden_size": 32, "model.depth": 2, "model.num_heads": 2},
    "unet": {"model.patch_size": 4, "model.channels": 8, "model.channel_mults": [1, 2], "model.num_heads": 2},
}
CODECS = {
    "count": {
        "codec.name": "count",
        "codec.max_steps": 30,
        "codec.tails_steps": 10,
        "codec.val_every_steps": 10,
        "codec.hidden_size": 16,
    },
    "gene": {"codec.name": "gene"},
}
SHORT = {"train.batch_size": 16, "train.val_every_steps": 10, "train.checkpoint_every_steps": 10}
each_codec = pytest.mark.parametrize("codec", CODECS)


def fit(adata, out, arch="dit", steps=20, codec="count", **kwargs):
    """A short training; codec: one of CODECS."""
    settings = {**MODELS[arch], **CODECS[codec], **SHORT, "train.max_steps": steps}
    overrides = {**settings, **kwargs.pop("overrides", {})}
    kwargs.setdefault("label", "cell_type")
    return scdiffkit.train(adata, arch=arch, out=out, overrides=overrides, **kwargs)


def weights(run):
    return {name: p.clone() for name, p in run.denoiser().network.named_parameters()}


def assert_same_weights(a, b):
    for x, y in ((a, b), (a.load_checkpoint()["optimizer"], b.load_checkpoint()["optimizer"])):
        x, y = (weights(x), weights(y)) if isinstance(x, Run) else (x, y)
        assert x.keys() == y.keys()
        for name in x:
            torch.testing.assert_close(x[name], y[name], rtol=0, atol=0, msg=name)


@each_codec
@pytest.mark.parametrize("arch", MODELS)
def test_the_run_directory_holds_what_the_contract_says(tiny, tmp_path, arch, codec):
    run = fit(tiny, tmp_path / "run", arch, codec=codec)
    names = {p.name for p in run.path.iterdir()}
    assert {
        "config.yaml",
        "genes.txt",
        "conditions.json",
        "codec.safetensors",
        "checkpoints",
        "metrics.jsonl",
    } <= names
    assert run.steps() == [10, 20]
    folder = {p.name for p in (run.path / "checkpoints" / "step-0000020").iterdir()}
    assert folder == {"weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"}
    assert "20" in (run.path / "train.log").read_text()
    assert (run.config().model.arch, run.config().codec.name, run.codec().name) == (arch, codec, codec)
    assert run.conditions()["categories"] == {"cell_type": sorted(tiny.obs["cell_type"].unique())}
    assert [m["step"] for m in run.metrics()] == [10, 20]


def test_it_learns(tiny, tmp_path):
    learn = {"train.lr": 3e-3, "train.warmup_steps": 5, "diffusion.output": "direct"}
    run = fit(tiny, tmp_path / "run", steps=150, codec="gene", overrides=learn)
    metrics = run.metrics()
    assert metrics[-1]["loss"] < 0.95 * metrics[0]["loss"]
    assert metrics[-1]["val_loss"] < 0.95 * metrics[0]["val_loss"]


def test_both_stages_learn(tiny, tmp_path):
    """Of the count codec 3 coordinates, so that there is more than noise for diffusion to learn."""
    learn = {"train.lr": 3e-3, "train.warmup_steps": 5, "codec.latent_dim": 3, "codec.max_steps": 100}
    seen = []
    run = fit(tiny, tmp_path / "run", steps=150, overrides=learn, on_progress=seen.append)
    held_out = [s.val_loss for s in seen if s.stage == "codec" and s.val_loss is not None]
    assert held_out[-1] < 0.98 * held_out[0]
    metrics = run.metrics()
    assert metrics[-1]["val_loss"] < 0.95 * metrics[0]["val_loss"]


@each_codec
def test_same_seed_same_weights_other_seed_others(tiny, tmp_path, codec):
    a, b = (fit(tiny, tmp_path / name, codec=codec) for name in ("a", "b"))
    assert_same_weights(a, b)
    torch.testing.assert_close(a.codec().state(), b.codec().state(), rtol=0, atol=0)
    c = fit(tiny, tmp_path / "c", codec=codec, overrides={"seed": 1})
    assert not torch.equal(next(iter(weights(a).values())), next(iter(weights(c).values())))
    assert a.provenance()["run_id"] == b.provenance()["run_id"] != c.provenance()["run_id"]


@each_codec
def test_prepared_cells_train_the_same_model_as_raw_ones(tiny, tmp_path, codec):
    few = {"preprocess": {"n_top_genes": 30}}  # which the count codec leaves unread
    raw = fit(tiny, tmp_path / "raw", codec=codec, config=few)
    prepared = scdiffkit.preprocess(tiny, n_top_genes=30, label="cell_type")
    file = tmp_path / "prepared.h5ad"
    scdiffkit.write(prepared, file)
    assert_same_weights(raw, fit(file, tmp_path / "prepared", codec=codec))


def test_the_codec_decides_which_genes_are_modelled(tiny, tmp_path):
    few = {"preprocess": {"n_top_genes": 30, "hvg_flavor": "seurat"}}
    of_all, of_few = (fit(tiny, tmp_path / name, steps=2, codec=name, config=few) for name in CODECS)
    assert of_all.genes() == list(tiny.var_names)
    assert len(of_few.genes()) == 30
    assert set(of_few.genes()) < set(of_all.genes())


class Clock:
    """time.monotonic, until time is up."""

    def __init__(self):
        self.up = False

    def monotonic(self):
        return 1e9 if self.up else 0.0

    strftime = staticmethod(time.strftime)


@each_codec
def test_stopped_by_time_and_resumed_equals_uninterrupted(tiny, tmp_path, codec, monkeypatch):
    whole = fit(tiny, tmp_path / "whole", steps=25, codec=codec)
    clock = Clock()

    def until_step_10(status):
        clock.up = status.stage == "diffusion" and status.step >= 10

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[TrainStatus.__module__], "time", clock)
        part = fit(tiny, tmp_path / "part", steps=25, codec=codec, max_time=60, on_progress=until_step_10)
    assert part.steps()[-1] == 11
    fit(tiny, part.path, steps=25, codec=codec, resume=True, label=None)
    assert_same_weights(whole, part)
    assert [m["step"] for m in part.metrics() if m["step"] != 11] == [10, 20, 25]


def test_time_that_is_up_before_the_codec_is_fitted_still_gives_a_run(tiny, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="scdiffkit"):
        run = fit(tiny, tmp_path / "run", steps=21, max_time=1e-3)
    for said in ("and was stopped early, at step 10", "fit was cut short, after 10 of 30 steps"):
        assert said in caplog.text
        assert said in (run.path / "train.log").read_text()
    assert run.steps() == [1]
    assert scdiffkit.sample(run, 5).n_obs == 5
    caplog.clear()
    fit(tiny, run.path, steps=21, resume=True)
    assert run.steps()[-1] == 21


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import scdiffkit
from test_train import fit
fit({data!r}, {out!r}, steps=60, codec={codec!r})
"""


@pytest.mark.process
@pytest.mark.parametrize(
    ("signal_number", "codec"),
    [(signal.SIGKILL, "count"), (signal.SIGINT, "count"), (signal.SIGTERM, "gene")],
)
def test_killed_and_resumed_equals_uninterrupted(tiny, tmp_path, signal_number, codec):
    data, out = tmp_path / "tiny.h5ad", tmp_path / "killed"
    scdiffkit.write(tiny, data)
    script = SCRIPT.format(tests=str(Path(__file__).parent), data=str(data), out=str(out), codec=codec)
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "checkpoints" / "step-0000010").exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal_number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    killed = Run.open(out)
    if signal_number != signal.SIGKILL:
        assert "KeyboardInterrupt" in stderr
    resumed_from = killed.steps()[-1]
    assert resumed_from < 60
    fit(data, out, steps=60, codec=codec, resume=True)
    assert_same_weights(fit(data, tmp_path / "whole", steps=60, codec=codec), killed)


def test_interrupted_while_the_codec_is_fitted_leaves_nothing_behind(tiny, tmp_path):
    def stop(status):
        assert status.stage == "codec"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path / "run", on_progress=stop)
    assert list(tmp_path.iterdir()) == []
    earlier = fit(tiny, tmp_path / "run", steps=10)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path / "run", force=True, on_progress=stop)
    assert earlier.steps() == [10]


@each_codec
def test_killed_before_the_first_checkpoint_resumes_from_the_start(tiny, tmp_path, codec):
    whole = fit(tiny, tmp_path / "whole", codec=codec)
    run = fit(tiny, tmp_path / "run", codec=codec)
    shutil.rmtree(run.path / "checkpoints")
    (run.path / "checkpoints").mkdir()
    with pytest.raises(RunError, match=r"no checkpoint yet.*resume=True"):
        run.denoiser()
    fit(tiny, run.path, codec=codec, resume=True)
    assert_same_weights(whole, run)


def test_old_checkpoints_go(tiny, tmp_path):
    run = fit(tiny, tmp_path / "run", steps=45, overrides={"train.keep_checkpoints": 2})
    assert run.steps() == sorted({40, 45, run.best_step()})


def test_training_stops_when_it_only_memorises_and_samples_come_from_the_best(tiny, tmp_path):
    few = tiny[:40].copy()
    learn = {"train.lr": 1e-2, "train.warmup_steps": 1, "train.patience": 3, "model.hidden_size": 64}
    run = fit(few, tmp_path / "run", steps=2000, overrides=learn)
    losses = {m["step"]: m["val_loss"] for m in run.metrics()}
    best = min(losses, key=losses.get)
    assert max(losses) == best + 30 < 2000  # three validations, ten steps apart
    assert run.best_step() == best
    assert best in run.steps()
    newest = run.denoiser(max(losses)).state_dict()
    assert any(not torch.equal(p, newest[name]) for name, p in run.denoiser().state_dict().items())


def test_a_longer_run_may_be_asked_for(tiny, tmp_path):
    run = fit(tiny, tmp_path / "run", steps=10)
    fit(tiny, run.path, steps=20, resume=True)
    assert run.steps()[-1] == 20
    assert run.config().train.max_steps == 20


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"arch": "whitebox"}, "trained with model.arch = 'dit', not 'whitebox'"),
        ({"label": "donor"}, "trained with conditions"),
        ({"overrides": {"train.lr": 0.5}}, "trained with train.lr"),
        ({"codec": "gene"}, "trained with codec.name = 'count', not 'gene'"),
        ({"overrides": {"codec.max_steps": 31}}, "trained with codec.max_steps = 30, not 31"),
    ],
)
def test_resume_with_other_settings_is_refused(tiny, tmp_path, kwargs, message):
    run = fit(tiny, tmp_path / "run")
    before = weights(run)
    with pytest.raises(RunError, match=message):
        fit(tiny, run.path, resume=True, **kwargs)
    torch.testing.assert_close(weights(run), before)


def test_resume_with_other_preparation_is_refused(tiny, tmp_path):
    a, b = (scdiffkit.preprocess(tiny, target_sum=t, label="cell_type") for t in (1e3, 5e3))
    run = fit(a, tmp_path / "run")
    with pytest.raises(RunError, match="other cells"):
        fit(b, run.path, resume=True)
    renamed = tiny.copy()
    renamed.obs["cell_type"] = renamed.obs["cell_type"].cat.rename_categories({"B": "Bee"})
    raw = fit(tiny, tmp_path / "raw")
    with pytest.raises(RunError, match="other cells"):
        fit(renamed, raw.path, resume=True)
    with pytest.raises(ConfigError, match="give one of them"):
        fit(tiny, raw.path, resume=True, force=True)


def test_library_sizes_are_checked_not_believed(tiny, tmp_path):
    own = tiny.copy()
    own.obs["total_counts"] = ["low", "high"] * 120
    with pytest.raises(ConfigError, match="rename it"):
        fit(own, tmp_path / "run", condition=["total_counts"])
    prepared = scdiffkit.preprocess(tiny, label="cell_type")
    prepared.obs["total_counts"] /= 10
    with pytest.raises(DataError, match="again, and do not change"):
        fit(prepared, tmp_path / "run")
    with pytest.raises(ConfigError, match="prepared with n_top_genes = 2000, not 20"):
        fit(scdiffkit.preprocess(tiny), tmp_path / "run", overrides={"preprocess.n_top_genes": 20}, codec="gene")
    empty = tiny.copy()
    empty.X[3, :] = 0
    with pytest.raises(DataError, match="no counts at all"):
        fit(empty, tmp_path / "run", overrides={"preprocess.min_counts": 0, "preprocess.min_genes": 0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("codec", "n_obs", "n_vars", "message"),
    [
        ("gene", 240, 1, "nothing to learn"),
        ("count", 240, 1, "x 1 genes: .*at least 3 cells and 2 genes"),
        ("count", 2, 60, "2 training cells x"),
    ],
)
def test_too_few_cells_or_genes_are_refused(tiny, tmp_path, codec, n_obs, n_vars, message):
    with pytest.raises(DataError, match=message):
        fit(
            tiny[:n_obs, :n_vars].copy(), tmp_path / "run", codec=codec, label=None,
            config={"preprocess": {"hvg_flavor": "all", "min_cells": 0}},
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@each_codec
@pytest.mark.parametrize("deeper", [1, 3])
def test_cells_that_are_all_alike_are_refused(tiny, tmp_path, codec, deeper):
    """Alike but for their depth, too."""
    alike = tiny.copy()
    depth = np.where(np.arange(alike.n_obs) % 2, 1, deeper)
    alike.X = depth[:, None].astype(np.float32) * np.ones(alike.n_vars, dtype=np.float32)
    with pytest.raises(DataError, match="nothing to learn"):
        fit(alike, tmp_path / "run", codec=codec, config={"preprocess": {"hvg_flavor": "all"}})


def test_few_cells_train_a_small_codec(tiny, tmp_path):
    run = fit(tiny[:8].copy(), tmp_path / "run", label=None, config={"preprocess": {"hvg_flavor": "all"}})
    assert scdiffkit.sample(run, 5).n_obs == 5


def test_where_an_interrupt_falls_does_not_decide_the_best(tiny, tmp_path):
    part = fit(tiny, tmp_path / "part", steps=25, codec="gene", max_time=1e-3)
    assert part.steps() == [1]
    assert all(m["step"] % 10 == 0 for m in part.metrics() if m["val_loss"] is not None)


def test_a_copy_without_links_and_the_current_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fit(tiny, None, steps=2)
    shutil.copytree("scdiff-runs", "copy/scdiff-runs")  # follows links, as zip and cloud drives do
    monkeypatch.chdir(tmp_path / "copy")
    assert Run.open().steps() == [2]
    monkeypatch.chdir(tmp_path)
    os.replace(run.path, tmp_path / "scdiff-runs" / "renamed")
    with pytest.raises(RunError, match="There are: renamed"):
        Run.open()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileError, match="current folder"):
        fit(tiny, ".")


def test_resume_with_other_data_is_refused(tiny, tmp_path):
    run = fit(tiny, tmp_path / "run")
    other = tiny.copy()
    other.X = other.X.copy()
    other.X.data[0] += 1
    with pytest.raises(RunError, match="trained on other cells"):
        fit(other, run.path, resume=True)
    assert run.steps() == [10, 20]


def test_an_existing_run_is_replaced_only_by_force(tiny, tmp_path):
    run = fit(tiny, tmp_path / "run")
    with pytest.raises(FileError, match=r"`resume=True`.*`force=True`"):
        fit(tiny, run.path)
    assert run.steps() == [10, 20]
    fit(tiny, run.path, steps=10, force=True)
    assert run.steps() == [10]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1").touch()
    with pytest.raises(FileError, match="not a run"):
        fit(tiny, tmp_path / "thesis", force=True)
    assert (tmp_path / "thesis" / "chapter1").exists()


def test_an_unwritable_folder_is_named_before_any_work(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match="`out`"):
        fit(tiny, tmp_path / "file" / "run")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda a: a.obs.drop(columns="cell_type", inplace=True), "no obs column 'cell_type'"),
        (lambda a: a.obs.__setitem__("cell_type", "B"), "one value"),
        (lambda a: a.obs.__setitem__("cell_type", a.obs_names), "a different value in each"),
        (lambda a: a.obs.__setitem__("cell_type", [None, *["B", "T"] * 119, "B"]), "no value for 1 of"),
        (lambda a: a.X.data.__setitem__(0, np.nan), "NaN"),
        (lambda a: a.X.data.__setitem__(0, -1), "negative"),
        (lambda a: np.log1p(a.X.data, out=a.X.data), "log-normalised"),
    ],
)  # fmt: skip
def test_unusable_cells_leave_nothing_behind(tiny, tmp_path, spoil, message):
    cells = tiny.copy()
    spoil(cells)
    with pytest.raises(DataError, match=message):
        fit(cells, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there(tiny, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(ConfigError, match="no device 'cuda'"):
        fit(tiny, tmp_path / "run", overrides={"train.device": "cuda"})


def test_several_conditions_and_none(tiny, tmp_path):
    both = fit(tiny, tmp_path / "both", condition=["donor"])
    assert list(both.conditions()["categories"]) == ["cell_type", "donor"]
    none = fit(tiny, tmp_path / "none", label=None)
    assert none.conditions()["categories"] == {}


def test_the_newest_run_is_the_latest_and_moves_with_its_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError, match=r"scdiffkit\.train"):
        Run.open()
    first, second = fit(tiny, None, steps=2), fit(tiny, None, arch="whitebox", steps=2)
    assert Run.open().path.resolve() == second.path.resolve()
    assert Run.open(first.path.name).path.resolve() == first.path.resolve()
    shutil.move("scdiff-runs", "elsewhere")
    assert Run.open(Path("elsewhere") / second.path.name).steps() == [2]
    with pytest.raises(RunError, match="did you mean"):
        Run.open(Path("elsewhere") / (second.path.name + "x"))
    with pytest.raises(RunError, match="is not a run"):
        Run.open("elsewhere")


def test_a_damaged_checkpoint_is_named(tiny, tmp_path):
    run = fit(tiny, tmp_path / "run")
    file = run.path / "checkpoints" / "step-0000020" / "ema.safetensors"
    os.truncate(file, 100)
    with pytest.raises(RunError, match=r"ema\.safetensors is damaged"):
        run.denoiser()
    (run.path / "genes.txt").unlink()
    with pytest.raises(RunError, match=r"genes\.txt is missing"):
        run.genes()


@each_codec
def test_a_run_repeats_from_its_own_config(tiny, tmp_path, codec):
    run = fit(tiny, tmp_path / "run", codec=codec)
    from scdiffkit.config import load_file

    again = scdiffkit.train(tiny, out=tmp_path / "again", config=load_file(run.path / "config.yaml"))
    assert isinstance(again.config(), RunConfig)
    assert again.config() == run.config()
    assert_same_weights(run, again)


@each_codec
def test_status_reports_every_figure(tiny, tmp_path, codec):
    seen = []
    fit(tiny, tmp_path / "run", codec=codec, on_progress=seen.append)
    stages = [s.stage for s in seen]
    assert stages == sorted(stages)  # the codec's come first
    assert set(stages) == ({"codec", "diffusion"} if codec == "count" else {"diffusion"})
    assert all(np.isfinite(s.loss) and s.cells_per_s > 0 for s in seen)
    for stage, steps in (("codec", 30), ("diffusion", 20)):
        of_stage = [s for s in seen if s.stage == stage]
        assert all(s.max_steps == steps for s in of_stage)
        assert not of_stage or (of_stage[-1].step == steps and of_stage[-1].val_loss is not None)
    none_held_out = []
    fit(tiny, tmp_path / "all", codec=codec, on_progress=none_held_out.append, overrides={"train.val_fraction": 0.0})
    assert all(s.val_loss is None for s in none_held_out)


@pytest.mark.slow
def test_the_codec_alone_is_scored_where_enough_cells_are_held_out(tiny, tmp_path, caplog):
    with caplog.at_level("INFO", logger="scdiffkit"):
        run = fit(tiny, tmp_path / "run", steps=2, overrides={"train.val_fraction": 0.25})
    auc = run.provenance()["codec_auc"]
    assert set(auc) == {"held_out", "training", "real_reference", "standard_error"}
    assert auc["standard_error"] == pytest.approx(np.sqrt(121 / (12 * 60**2)), abs=1e-4)  # 60 cells held out
    assert all(0 <= x <= 1 for x in auc.values())
    assert run.describe()["codec_auc"] == auc
    assert f"distinguishes encoded and decoded cells from real cells with AUC {auc['held_out']:.2f}" in caplog.text
    few = fit(tiny, tmp_path / "few", steps=2)  # 24 cells held out
    assert "codec_auc" not in few.provenance()


@pytest.mark.parametrize(
    ("arch", "settings"),
    [("dit", {}), ("whitebox", {}), ("whitebox", {"model.ista_residual": "crate"}), ("unet", {})],
    ids=["dit", "whitebox", "crate", "unet"],
)
def test_bfloat16_trains_to_about_the_same_loss(tiny, tmp_path, arch, settings):
    losses = [
        fit(tiny, tmp_path / p, arch, codec="gene", overrides={**settings, "train.precision": p}).metrics()[-1][
            "val_loss"
        ]
        for p in ("32", "bf16")
    ]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)


REPEAT = """
import sys
import numpy as np, scdiffkit
from anndata import AnnData
from scipy import sparse
rng = np.random.default_rng(0)
types = rng.integers(0, 4, 300)
rates = rng.gamma(0.3, 1.0, 800) * rng.lognormal(0, 0.5, (4, 800))[types]
cells = AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs={"cell_type": types.astype(str)})
quick = {"codec.max_steps": 30, "codec.tails_steps": 10, "train.max_steps": 2}
scdiffkit.train(cells, label="cell_type", out=sys.argv[1], overrides=quick)
"""


@pytest.mark.slow
def test_another_process_gives_the_same_codec(tmp_path):
    """Memory lies elsewhere in each: no sum may depend on where."""
    here, there = tmp_path / "here", tmp_path / "there"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PADDING": "x" * 5000}
    subprocess.run([sys.executable, "-c", REPEAT, str(there)], env=env, check=True, capture_output=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        exec(REPEAT.replace("sys.argv[1]", repr(str(here))), {})
    finally:
        torch.set_num_threads(threads)
    assert (here / "codec.safetensors").read_bytes() == (there / "codec.safetensors").read_bytes()
