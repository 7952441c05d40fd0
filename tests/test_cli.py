"""The command line as a user meets it, in an empty folder; in a process of its own where that is the point."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import typer
from joblib import cpu_count
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.cli.console import parse_cfg_scale, progress, setup_logging
from scdiffkit.config import ARCHS, CODEC_NAMES, PreprocessConfig, SampleConfig, build_run_config, presets
from scdiffkit.config.units import parse_duration
from scdiffkit.errors import ConfigError
from scdiffkit.metrics.profiles import chosen_metrics
from scdiffkit.runtime.progress import seconds

SCDIFF = Path(sys.executable).parent / "scdiff"
TINY = ["--max-steps", "20", "--batch-size", "16", "--hidden-size", "32", "--depth", "1", "--patch-size", "20"]
TINY += ["--set", "codec.max_steps=30", "--set", "codec.tails_steps=10"]
ENV = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PY_COLORS")} | {"COLUMNS": "200"}


def in_process(*args, cwd):
    """Runs a command in this process, which saves the imports."""
    with contextlib.chdir(cwd):
        return CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})


def scdiff(*args, cwd, code=0):
    done = in_process(*args, cwd=cwd)
    assert done.exit_code == code, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def in_a_process(*args, cwd, code=0):
    done = subprocess.run(
        [SCDIFF, *map(str, args)], cwd=cwd, capture_output=True, text=True, timeout=300, env=ENV, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A folder with data.h5ad and one trained run in scdiff-runs/."""
    return with_a_run(tiny, tmp_path_factory.mktemp("work"))


@pytest.fixture(scope="module")
def wide_folder(wide, tmp_path_factory):
    """The same, of enough genes for cells to be compared."""
    return with_a_run(wide, tmp_path_factory.mktemp("wide"))


def with_a_run(cells, folder):
    scdiffkit.write(cells, folder / "data.h5ad")
    scdiff("train", "data.h5ad", "--arch", "whitebox", "--label", "cell_type", *TINY, cwd=folder)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees", "blank_pictures")
def test_evaluate_with_another_papers_protocol_and_compare(wide_folder, tmp_path):
    shutil.copytree(wide_folder, tmp_path / "w", symlinks=True)
    for seed in (1, 2):
        scdiff("sample", "--ddim", 2, "-n", 60, "--seed", seed, "-o", f"made{seed}.h5ad", cwd=tmp_path / "w")
    asked = ["evaluate", "data.h5ad", "made1.h5ad", "--label", "cell_type", "--json"]
    found = json.loads(
        scdiff(*asked, "--fast", "--metrics", "zeros_mae", "--protocol", "cfgen", cwd=tmp_path / "w").stdout
    )
    assert found["resamples"] == 1
    assert "zeros_mae" in {s["metric"] for s in found["scores"]} <= set(chosen_metrics(["zeros_mae"]))
    assert [s["metric"] for s in found["protocol"]["scores"]] == list(found["protocol"]["metrics"])
    assert "centre" in found["protocol"]["flaws"]
    few = json.loads(scdiff(*asked, "--metrics", "minimal,cv_mae", "--force", cwd=tmp_path / "w").stdout)
    assert "cv_mae" in {s["metric"] for s in few["scores"]}
    assert len(few["scores"]) < len(chosen_metrics(["full"])) / 2
    wrong = scdiff(*asked, "--metrics", "rf_acu", "--force", cwd=tmp_path / "w", code=2)
    assert "did you mean 'rf_auc'" in wrong.stderr
    wrong = scdiff(*asked, "--protocol", "cf", "--force", cwd=tmp_path / "w", code=2)
    assert "scrdit, cfgen, scdiffusion" in wrong.stderr
    ranked = scdiff(
        "compare",
        "data.h5ad",
        "made1.h5ad",
        "made2.h5ad",
        "--label",
        "cell_type",
        "--metrics",
        "minimal",
        cwd=tmp_path / "w",
    )
    assert "1. made" in ranked.stdout
    assert "closest to real cells" in ranked.stdout
    assert (tmp_path / "w" / "comparison" / "compare.html").exists()


def test_info_of_data_and_of_a_run(folder):
    assert "cell_type" in scdiff("info", "data.h5ad", cwd=folder).stdout
    described = json.loads(scdiff("info", "data.h5ad", "--json", cwd=folder).stdout)
    assert (described["n_obs"], described["n_vars"], described["counts"]) == (240, 60, "X")
    described = json.loads(scdiff("info", "scdiff-runs/latest", "--json", cwd=folder).stdout)
    assert (described["arch"], described["checkpoints"], described["genes"]) == ("whitebox", [20], 60)
    assert "whitebox" in scdiff("info", "scdiff-runs/latest", cwd=folder).stdout


def test_where_and_like(folder, tmp_path):
    scdiff("sample", "--ddim", 2, "-n", 7, "--where", "cell_type=T", "-o", tmp_path / "t.h5ad", cwd=folder)
    assert set(ad.read_h5ad(tmp_path / "t.h5ad").obs["cell_type"]) == {"T"}
    scdiff("sample", "--ddim", 2, "--like", "data.h5ad", "-o", tmp_path / "like.h5ad", cwd=folder)
    assert ad.read_h5ad(tmp_path / "like.h5ad").n_obs == 240


def test_preprocess_then_train(folder, tmp_path):
    done = scdiff(
        "preprocess", folder / "data.h5ad", "-o", "prepared.h5ad", "--label", "cell_type", "--n-top-genes", 30,
        "--hvg-flavor", "cv", "--min-genes", 5, "--max-mito", 0.9, cwd=tmp_path,
    )  # fmt: skip
    assert "30 of them selected" in done.stdout
    assert "240 -> " in done.stderr
    scdiff("train", "prepared.h5ad", "--arch", "unet", "--codec", "gene", *TINY[:4], "--set", "model.channels=8",
           "--set", "model.patch_size=5", "--out", "run", cwd=tmp_path)  # fmt: skip
    assert (tmp_path / "run" / "genes.txt").read_text().count("\n") == 30


def test_a_list_of_genes(folder, tmp_path, tiny):
    (tmp_path / "genes.txt").write_text("\n".join(tiny.var_names[:12]) + "\n\n")
    done = scdiff("preprocess", folder / "data.h5ad", "-o", "p.h5ad", "--genes", "genes.txt", cwd=tmp_path)
    assert "12 of them selected" in done.stdout
    scdiff("preprocess", folder / "data.h5ad", "-o", "q.h5ad", "--genes", "none.txt", cwd=tmp_path, code=2)


BAD = [
    # arguments, exit code, what the message must say
    (["train", "data.h5da"], 1, "did you mean 'data.h5ad'"),
    (["train", "text.h5ad"], 1, "text.h5ad"),
    (["train", "truncated.h5ad"], 1, "truncated.h5ad"),
    (["train", "lognormalised.h5ad"], 1, "log-normalised"),
    (["train", "negative.h5ad"], 1, "negative"),
    (["train", "nan.h5ad"], 1, "NaN"),
    (["preprocess", "data.h5ad", "-o", "new.h5ad", "--min-genes", "61"], 1, "--min-genes 61"),
    (["preprocess", "data.h5ad", "-o", "new.h5ad", "--min-cells", "241"], 1, "--min-cells 241"),
    (["train", "data.h5ad", "--label", "celltype"], 1, "did you mean 'cell_type'"),
    (["train", "data.h5ad", "--label", "one_value"], 1, "one value"),
    (["train", "data.h5ad", "--label", "all_values"], 1, "a different value in each"),
    (["train", "data.h5ad", "--label", "with_nan"], 1, "no value for 3 of"),
    (["train", "duplicated.h5ad"], 1, "var_names_make_unique"),
    (["train", "data.h5ad", "--arch", "dti"], 2, "did you mean 'dit'"),
    (["train", "data.h5ad", "--arch", "dit", "--set", "model.ista_lambda=1"], 2, "not read by model 'dit'"),
    (["train", "data.h5ad", "--codec", "nope"], 2, "codec"),
    (["train", "data.h5ad", "--max-time", "soon"], 2, "--max-time"),
    (["train", "data.h5ad", "--set", "train.lr"], 2, "KEY=VALUE"),
    (["train", "data.h5ad", "--config", "none.yaml"], 2, "none.yaml"),
    (["train", "data.h5ad", "--out", "scdiff-runs/latest"], 1, "--force"),
    (["train", "data.h5ad", "--out", "text.h5ad/run"], 1, "--out"),
    (["train", "other.h5ad", "--resume"], 1, "other cells"),
    (["train", "data.h5ad", "--resume", "--arch", "dit"], 1, "trained with model.arch"),
    (["train", "data.h5ad", "--resume", "--out", "nowhere"], 1, "no run nowhere"),
    (["sample", "empty-run"], 1, "no checkpoint"),
    (["sample", "nowhere"], 1, "no run nowhere"),
    (["sample", "--where", "cell_type=Tee", "-o", "new.h5ad"], 1, "never seen cell_type='Tee'"),
    (["sample", "--where", "cell_type", "-o", "new.h5ad"], 2, "COLUMN=VALUE"),
    (["sample", "--where", "cell_type=B", "--where", "cell_type=B", "-o", "new.h5ad"], 2, "more than once"),
    (["sample", "--cfg-scale", "celltype=2", "-o", "new.h5ad"], 1, "did you mean 'cell_type'"),
    (["sample", "--cfg-scale", "cell_type=-2", "-o", "new.h5ad"], 2, "at least 0"),
    (["sample", "--cfg-scale", "much", "-o", "new.h5ad"], 2, "COLUMN=NUMBER"),
    (["sample", "--library-size", "0", "-o", "new.h5ad"], 2, "--library-size"),
    (["train", "data.h5ad", "--n-top-genes", "20"], 2, "only with --codec gene"),
    (["train", "data.h5ad", "--set", "diffusion.output=spike-slab"], 2, "--codec gene"),
    (["train", "data.h5ad", "--codec", "cuont"], 2, "did you mean 'count'"),
    (["train", "data.h5ad", "--codec", "count", "--preset", "scrdit"], 2, "--preset small"),
    (["sample", "--ddim", "5", "--ddpm", "-o", "new.h5ad"], 2, "not both"),
    (["sample", "--ddim", "0", "-o", "new.h5ad"], 2, "steps"),
    (["sample", "--ddim", "5", "--steps", "5", "-o", "new.h5ad"], 2, "--steps, not both"),
    (["sample", "--ddim", "5", "--sampler", "dpm", "-o", "new.h5ad"], 2, "--sampler dpm contradict"),
    (["sample", "--ddpm", "--steps", "5", "-o", "new.h5ad"], 2, "--steps is read only by"),
    (["sample", "--sampler", "dpm", "--eta", "1", "-o", "new.h5ad"], 2, "--eta is read only by"),
    (["sample", "--sampler", "heun", "-o", "new.h5ad"], 2, r"'ddim', 'dpm++' or 'ddpm'"),
    (["sample", "--sampler", "dpm", "--speedup", "2000", "-o", "new.h5ad"], 2, "--speedup 2000"),
    (["sample", "-n", "0", "-o", "new.h5ad"], 2, "at least 1"),
    (["sample", "--devices", "0", "-o", "new.h5ad"], 2, "devices"),
    (["sample", "--devices", "9999", "--device", "cpu", "-o", "new.h5ad"], 2, "--devices 9999 is more than the"),
    (["sample", "-o", "data.h5ad"], 1, "--force"),
    (["sample", "-o", "cells.csv"], 2, ".h5ad"),
    (["sample", "-o", "text.h5ad/cells.h5ad"], 1, "text.h5ad"),
    (["evaluate", "data.h5ad", "nothing.h5ad"], 1, "nothing.h5ad"),
    (["info", "nothing.h5ad"], 1, "nothing.h5ad"),
    (["info", "text.h5ad"], 1, "text.h5ad"),
    (["preprocess", "data.h5ad", "-o", "folder"], 2, "only be written as .h5ad or .loom"),
    (["train", "data.h5ad", "--resume", "--force"], 2, "give one of them"),
    (["nonsense"], 2, "nonsense"),
    (["sample", "--nonsense"], 2, "nonsense"),
]


@pytest.fixture(scope="module")
def bad(folder, tiny, tmp_path_factory):
    """A folder with every kind of bad input."""
    where = tmp_path_factory.mktemp("bad") / "w"
    shutil.copytree(folder, where, symlinks=True)

    def save(name, change):
        cells = tiny.copy()
        change(cells)
        cells.write_h5ad(where / f"{name}.h5ad")

    def columns(cells):
        cells.obs["one_value"] = "x"
        cells.obs["all_values"] = [f"c{i}" for i in range(cells.n_obs)]
        cells.obs["with_nan"] = [None, None, None, *["a", "b"] * 118, "a"]

    os.remove(where / "data.h5ad")
    save("data", columns)
    save("lognormalised", lambda a: np.log1p(a.X.data / 3, out=a.X.data))
    save("negative", lambda a: a.X.data.__setitem__(slice(3), -1))
    save("nan", lambda a: a.X.data.__setitem__(slice(3), np.nan))
    save("other", lambda a: a.X.data.__imul__(2))
    save("duplicated", lambda a: setattr(a, "var_names", ["gene", *a.var_names[:-1]][:1] * 2 + list(a.var_names[2:])))
    (where / "text.h5ad").write_text("not cells")
    shutil.copy(where / "data.h5ad", where / "truncated.h5ad")
    os.truncate(where / "truncated.h5ad", 3000)
    shutil.copytree(where / "scdiff-runs" / "latest", where / "empty-run")
    shutil.rmtree(where / "empty-run" / "checkpoints")
    return where


def contents(folder):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("args", "code", "message"), BAD, ids=[" ".join(args) for args, *_ in BAD])
def test_bad_input_is_named_and_nothing_is_written_or_lost(bad, args, code, message):
    before = contents(bad)
    assert message in scdiff(*args, cwd=bad, code=code).stderr
    assert contents(bad) == before


@pytest.mark.process
def test_a_process_of_its_own_gives_the_same_message_and_exit_code(bad):
    for args, code, message in BAD[:1] + BAD[-1:]:
        assert message in in_a_process(*args, cwd=bad, code=code).stderr


@pytest.mark.process
def test_ctrl_c_saves_and_says_how_to_go_on(folder, tmp_path):
    shutil.copy(folder / "data.h5ad", tmp_path)
    command = [SCDIFF, "train", "data.h5ad", *TINY, "--max-steps", "1000000", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists():  # training is under way
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "scdiff train DATA --resume --out run" in stderr
    assert "Traceback" not in stderr
    assert scdiffkit.Run.open(tmp_path / "run").steps()


@pytest.mark.process
@pytest.mark.skipif(cpu_count() < 2, reason="one processor core")
def test_ctrl_c_ends_all_processes_and_leaves_no_file(folder, tmp_path):
    command = [
        SCDIFF,
        "sample",
        "-n",
        "1000000",
        "--ddim",
        "2",
        "--batch-size",
        "2",
        "--devices",
        "2",
        "--device",
        "cpu",
    ]
    command += ["-o", str(tmp_path / "new" / "cells.h5ad")]
    process = subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where tests run in the background
    )  # fmt: skip
    said = iter(process.stderr.readline, "")
    assert any("sampling: " in line for line in said)  # it is under way
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True)
    workers = [int(pid) for pid in found.stdout.split()]
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert "Traceback" not in process.stderr.read()
    assert process.wait(30) == 130
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.process
def test_help_loads_neither_torch_nor_scanpy():
    heavy = "torch", "scanpy", "anndata", "pandas", "numpy"
    for code in ("import scdiffkit", "import scdiffkit.cli"):
        out = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}; print([m for m in {heavy!r} if m in sys.modules])"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert out.stdout.strip() == "[]"


def test_every_command_explains_itself(tmp_path):
    for command in ("demo", "preprocess", "train", "sample", "evaluate", "compare", "info", "runs", "split"):
        assert "Usage" in scdiff(command, "--help", cwd=tmp_path).stdout
    assert scdiffkit.__version__ in scdiff("--version", cwd=tmp_path).stdout


@pytest.mark.parametrize(("text", "value"), [(None, None), ("90", 90), ("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_durations(text, value):
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    ("values", "scales"),
    [
        (None, None),
        (["2"], 2.0),
        (["cell_type=2", "donor=1.5"], {"cell_type": 2.0, "donor": 1.5}),
        (["is=odd=2"], {"is=odd": 2.0}),
    ],
)
def test_guidance_scales(values, scales):
    assert parse_cfg_scale(values) == scales


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2", "cell_type=2"], "not both"),
        (["cell_type=2", "2"], "not both"),
        (["2", "3"], "`cfg_scale=3` contradicts 2"),
        (["cell_type=2", "cell_type=2"], "cell_type=2 contradicts cell_type=2"),
        (["=2"], "COLUMN=NUMBER"),
        (["cell_type"], "COLUMN=NUMBER"),
        (["cell_type="], "COLUMN=NUMBER"),
    ],
)
def test_guidance_scales_that_contradict_or_say_nothing(values, message):
    with pytest.raises(ConfigError, match=message):
        parse_cfg_scale(values)


@pytest.mark.parametrize("text", ["", "m", "-3", "0", "10x", "inf", "nan"])
def test_durations_that_are_none(text):
    with pytest.raises(ConfigError, match="10m"):
        parse_duration(text)


def test_seconds_read_well():
    assert [seconds(s) for s in (5.4, 90, 3725)] == ["5 s", "1 min 30 s", "1 h 2 min"]


def test_time_left_is_that_of_the_stage_at_hand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """A codec of 600 slow steps says nothing of how fast the diffusion's 1500 are."""
    now = 0.0
    monkeypatch.setattr("scdiffkit.runtime.progress.time.monotonic", lambda: now)
    setup_logging()
    with progress("training") as update:
        for step in range(1, 601):
            now += 0.2
            update(step, "codec", 600)
        for step in range(1, 1501):
            now += 0.05
            update(step, "diffusion", 1500)
    lines = capsys.readouterr().err.splitlines()
    left = {stage: [line.split(", ")[1] for line in lines if line.endswith(stage)] for stage in ("codec", "diffusion")}
    assert left["codec"][0].startswith("1 min")  # 600 x 0.2 s and 10 s gone
    assert left["diffusion"][0].startswith("1 min")  # 1500 x 0.05 s and up to 10 s gone


@pytest.mark.parametrize(
    ("command", "config"),
    [("preprocess", PreprocessConfig()), ("sample", SampleConfig()), ("train", None)],
    ids=["preprocess", "sample", "train"],
)
def test_help_names_the_defaults_and_choices_that_hold(command, config):
    parameters = {p.name: p for p in typer.main.get_command(app).commands[command].params}
    values = config.model_dump() if config else {}
    if config is None:
        small = build_run_config()
        values = {name: getattr(small.train, name) for name in ("holdout", "val_fraction", "devices", "num_nodes")}
        values |= {"preset": small.preset, "codec": small.codec.name, "seed": small.seed, "join": small.preprocess.join}
    checked = 0
    for name, value in values.items():
        shown = getattr(parameters.get(name), "show_default", None)
        if isinstance(shown, str) and name not in ("steps", "batch_size"):
            assert shown.split(",")[0] == (f"{value:g}" if isinstance(value, float) else str(value)), name
            checked += 1
    assert checked >= 6
    for name, allowed in {"arch": ARCHS, "codec": CODEC_NAMES, "preset": presets()}.items():
        if name in parameters:
            assert set(parameters[name].metavar.strip("[]").split("|")) == set(allowed)
