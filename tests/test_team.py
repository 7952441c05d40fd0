"""Training from files and by several processes, against training in memory by one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from anndata import AnnData
from scipy import sparse

import scdiffkit
from scdiffkit.codecs import GeneCodec
from scdiffkit.config import GeneCodecConfig, PreprocessConfig
from scdiffkit.data.cells import TrainingCells
from scdiffkit.data.conditions import Conditions
from scdiffkit.errors import ConfigError, RunError
from scdiffkit.io import open_backed
from scdiffkit.preprocessing.pipeline import prepare
from scdiffkit.run import Run
from scdiffkit.training import encoded

BEFORE = set(os.environ)
SMALL = {
    "model.hidden_size": 32, "model.depth": 2, "model.num_heads": 2, "train.batch_size": 15, "train.max_steps": 30,
    "train.val_every_steps": 5, "train.checkpoint_every_steps": 10, "codec.max_steps": 30,
    "codec.tails_steps": 10, "codec.val_every_steps": 10,
    "codec.hidden_size": 16,
}  # fmt: skip
GENE = {key: value for key, value in SMALL.items() if not key.startswith("codec.")} | {
    "codec.name": "gene", "model.patch_size": 20,
}  # fmt: skip


def fit(data: object, out: Path, settings: dict[str, object] = SMALL, **kwargs: object) -> Run:
    overrides = {**settings, **kwargs.pop("overrides", {})}  # type: ignore[dict-item]
    return scdiffkit.train(data, label="cell_type", out=out, overrides=overrides, **kwargs)  # type: ignore[arg-type]


def losses(run: Run) -> list[float]:
    return [m["val_loss"] for m in run.metrics()]


def state(run: Run) -> dict[str, torch.Tensor]:
    return run.load_checkpoint()["weights"]


@pytest.fixture(scope="module")
def path(tiny: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "cells.h5ad"
    tiny.write_h5ad(file, compression="gzip")
    return file


@pytest.fixture(scope="module")
def alone(tiny: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tiny, tmp_path_factory.mktemp("alone") / "run")


def test_training_leaves_threads_to_come_as_many_of_torchs(tiny: AnnData, tmp_path: Path) -> None:
    before, found = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        fit(tiny, tmp_path / "run", {**GENE, "train.max_steps": 2})
        for _ in range(2):
            thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
            thread.start()
            thread.join()
    finally:
        torch.set_num_threads(before)
    assert found == [3, 3]


# files


def test_with_the_gene_codec_files_give_the_very_weights(tiny: AnnData, path: Path, tmp_path: Path) -> None:
    a, b = fit(tiny, tmp_path / "a", GENE), fit(path, tmp_path / "b", GENE, memory="disk")
    assert a.provenance()["data"]["fingerprint"] == b.provenance()["data"]["fingerprint"]
    assert losses(a) == losses(b)
    for name, value in state(a).items():
        torch.testing.assert_close(state(b)[name], value, rtol=0, atol=0)


def test_with_the_count_codec_only_the_order_differs(alone: Run, path: Path, tmp_path: Path) -> None:
    run = fit(path, tmp_path / "run", memory="disk")
    assert run.provenance()["data"]["fingerprint"] == alone.provenance()["data"]["fingerprint"]
    assert losses(run)[-1] == pytest.approx(losses(alone)[-1], rel=0.1)
    assert not run.vectors.exists()  # complete


@pytest.mark.process
def test_resuming_from_files_goes_on_exactly(path: Path, tmp_path: Path) -> None:
    whole = fit(path, tmp_path / "whole", memory="disk", overrides={"train.lr_schedule": "constant"})
    part = fit(
        path, tmp_path / "part", memory="disk", overrides={"train.max_steps": 20, "train.lr_schedule": "constant"}
    )
    part.vectors.mkdir()  # its removal was cut short: what is left is not to be used
    part = fit(path, part.path, {}, memory="disk", resume=True, overrides={"train.max_steps": 30})
    for name, value in state(whole).items():
        torch.testing.assert_close(state(part)[name], value, rtol=0, atol=0)


def test_a_complete_run_is_left_as_it_is(
    tiny: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = fit(tiny, tmp_path / "run", {**GENE, "train.max_steps": 5})
    monkeypatch.setattr("scdiffkit.training.pipeline.spawn_ranks", None)
    fit(tiny, run.path, {}, resume=True, overrides={"train.devices": 2})
    assert "the run is complete; give a larger --max-steps" in caplog.text
    assert run.steps() == [5]
    assert not run.vectors.exists()


def test_a_batch_of_genes_from_files_reads_no_more_than_its_cells(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = sparse.random(5000, 500, density=0.2, format="csr", rng=rng, dtype=np.float32)
    cells = TrainingCells(counts, np.ones(5000, np.float32), np.zeros((5000, 1), np.int64))
    codec = GeneCodec(GeneCodecConfig(), 500, 1e4)
    encoded.write(codec, cells, np.arange(5000), tmp_path / "vectors", torch.device("cpu"))
    written = encoded.open_written(codec, tmp_path / "vectors", torch.device("cpu"))
    places, generator = rng.integers(5000, size=32), torch.Generator()
    tracemalloc.start()
    x0, _ = written.batch(places, slice(None), generator)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected, _ = encoded.in_memory(codec, cells, np.arange(5000), torch.device("cpu")).batch(
        places, slice(None), generator
    )
    torch.testing.assert_close(x0, expected, rtol=0, atol=0)
    assert peak < counts.indices.nbytes / 2


@pytest.mark.parametrize("memory", ["ram", "disk"])
def test_a_folder_of_files_with_the_file_as_condition(memory: str, tiny: AnnData, tmp_path: Path) -> None:
    for name, part in (("a", tiny[:100]), ("b", tiny[100:])):
        (tmp_path / "data").mkdir(exist_ok=True)
        part.copy().write_h5ad(tmp_path / "data" / f"{name}.h5ad")
    run = fit(tmp_path / "data", tmp_path / "run", {**SMALL, "train.max_steps": 2}, memory=memory, condition=("file",))
    categories = run.conditions()["categories"]
    assert categories == {"cell_type": ["B", "Mono", "T"], "file": ["a", "b"]}
    assert sum(c["cells"] for c in run.conditions()["combinations"] if c["codes"][1] == 1) == 100
    assert set(scdiffkit.sample(run, 20, where={"file": "b"}).obs["file"]) == {"b"}


def on_disk(path: Path) -> TrainingCells:
    prepared = prepare(open_backed(path), PreprocessConfig(min_cells=0), choose_genes=False)
    return TrainingCells.of(prepared, Conditions.of(prepared.obs, ["cell_type"]), highly_variable=False)


def test_an_epoch_from_files_has_every_cell_once_and_mixes_blocks(
    path: Path, tiny: AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scdiffkit.data.cells.BLOCK", 4)
    monkeypatch.setattr("scdiffkit.data.cells.BUFFER", 64)
    cells, rows = on_disk(path), np.arange(0, 240, 2)
    assert cells.on_disk
    stream = cells.shuffled(rows, 8, [0, 1])
    epoch = [next(stream) for _ in range(15)]
    places = np.concatenate([p for p, _ in epoch])
    assert sorted(places) == list(range(120))
    assert np.mean([len(np.unique(p // 4)) for p, _ in epoch]) > 5  # of 8 cells, so many from different blocks
    for at, part in epoch[:3]:
        counts, size, codes = part.batch(np.arange(8))
        np.testing.assert_array_equal(counts, tiny.X[rows[at]].toarray())
        np.testing.assert_array_equal(size, tiny.X[rows[at]].toarray().sum(1))
        np.testing.assert_array_equal(codes, cells.codes[rows[at]])
    again = cells.shuffled(rows, 8, [0, 1])
    np.testing.assert_array_equal(next(again)[0], epoch[0][0])
    assert set(next(stream)[0]) != set(epoch[0][0])  # the next epoch is another order


@pytest.mark.process
def test_a_full_disk_is_said_and_leaves_nothing(path: Path, tmp_path: Path) -> None:
    script = f"""
import resource, scdiffkit
from scdiffkit.errors import FileError
from scdiffkit.training import encoded
write = encoded.write
def limited(*args):  # a limit on the size of files fails as a full disk does, in the middle of writing
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    try:
        write(*args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
encoded.write = limited
try:
    scdiffkit.train({str(path)!r}, label="cell_type", memory="disk", out={str(tmp_path / "run")!r}, overrides={SMALL!r})
except FileError as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "vectors could not be written: File too large. Check the free space" in done.stdout
    assert not list((tmp_path / "run").glob("*vectors*"))
    run = fit(path, tmp_path / "run", {}, memory="disk", resume=True)
    assert run.steps()[-1] == 30


# memory


def test_a_batch_that_memory_does_not_hold_is_worked_on_in_parts(
    alone: Run, tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from scdiffkit.diffusion.denoiser import Denoiser

    forward = Denoiser.forward

    def small(self: Denoiser, x0: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        if self.training and len(x0) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, x0, *args)

    monkeypatch.setattr(Denoiser, "forward", small)
    run = fit(tiny, tmp_path / "run")
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-3)
    assert "into micro-batches of 4, with the same result" in caplog.text


# compiled


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch compiles with g++")
def test_a_compiled_network_trains_alike(alone: Run, tiny: AnnData, tmp_path: Path) -> None:
    run = fit(tiny, tmp_path / "run", overrides={"train.compile": True})
    np.testing.assert_allclose(losses(run), losses(alone), rtol=1e-3)
    assert state(run).keys() == state(alone).keys()
    assert losses(run) == losses(fit(tiny, tmp_path / "again", overrides={"train.compile": True}))


def test_without_a_compiler_the_option_is_refused(tiny: AnnData, tmp_path: Path) -> None:
    import torch._inductor.config as inductor

    torch._dynamo.reset()  # what was compiled in this process
    with (
        inductor.patch({"cpp.cxx": ("/no/compiler",), "force_disable_caches": True}),
        pytest.raises(ConfigError, match=r"cannot be compiled here .*C\+\+ compiler, and on a GPU Triton: install"),
    ):
        fit(tiny, tmp_path / "run", overrides={"train.compile": True})


# several processes


@pytest.fixture(scope="module")
def together(tiny: AnnData, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return fit(tiny, tmp_path_factory.mktemp("together") / "run", overrides={"train.devices": 2})


@pytest.mark.process
def test_two_processes_train_as_one(alone: Run, together: Run) -> None:
    np.testing.assert_allclose(losses(together), losses(alone), rtol=1e-3)
    for name, value in state(alone).items():
        torch.testing.assert_close(state(together)[name], value, rtol=1e-2, atol=1e-3)
    assert not together.vectors.exists()
    assert not {"WORLD_SIZE", "RANK", "OMP_NUM_THREADS"} & (os.environ.keys() - BEFORE)
    assert len(scdiffkit.sample(together, 10)) == 10


@pytest.mark.process
def test_two_processes_with_the_gene_codec(tiny: AnnData, tmp_path: Path) -> None:
    settings = {key: value for key, value in GENE.items() if not key.startswith("model.")} | {
        "train.max_steps": 10,
        "model.patch_size": 4, "model.channels": 8, "model.channel_mults": [1, 2], "model.num_heads": 2,
    }  # fmt: skip
    one = fit(tiny, tmp_path / "one", settings, arch="unet")
    two = fit(tiny, tmp_path / "two", settings, arch="unet", overrides={"train.devices": 2})
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-3)


@pytest.mark.process
def test_the_number_of_processes_may_change(alone: Run, tiny: AnnData, tmp_path: Path) -> None:
    short = {"train.max_steps": 20, "train.lr_schedule": "constant"}
    whole = fit(tiny, tmp_path / "whole", overrides={"train.lr_schedule": "constant"})
    one = fit(tiny, tmp_path / "one", overrides=short)
    two = fit(tiny, one.path, {}, resume=True, overrides={"train.max_steps": 25, "train.devices": 2})
    three = fit(tiny, two.path, {}, resume=True, overrides={"train.max_steps": 30, "train.devices": 1})
    assert three.steps()[-1] == 30
    np.testing.assert_allclose(losses(three), losses(whole), rtol=1e-3)


@pytest.mark.process
def test_torchrun(path: Path, alone: Run, tmp_path: Path) -> None:
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29611", "-m", "scdiffkit",
        "train", str(path), "--label", "cell_type", "--out", str(tmp_path / "run"), *settings,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'run'}\n"  # once
    np.testing.assert_allclose(losses(Run.open(tmp_path / "run")), losses(alone), rtol=1e-3)


@pytest.mark.process
def test_torchrun_goes_on_with_a_run_of_another_number_of_processes(together: Run, path: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(together.path, tmp_path / "run"))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", "--master-port=29612", "-m", "scdiffkit",
        "train", str(path), "--resume", "--out", str(run), "--max-steps", "33",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert Run.open(run).steps()[-1] == 33


OF_STEP = {  # what srun sets
    "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_JOB_ID": "29613", "SLURM_JOB_NAME": "train",
    "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1", "SLURM_NTASKS_PER_NODE": "2",
}  # fmt: skip


@pytest.mark.process
def test_srun(path: Path, alone: Run, tmp_path: Path) -> None:
    """As far as environment variables tell: srun itself is not here."""
    run = tmp_path / "run"
    settings = [f"--set={key}={value}" for key, value in SMALL.items()]
    command = [sys.executable, "-m", "scdiffkit", "train", str(path), "--label", "cell_type", "--out", str(run)]

    def start(rank: int) -> subprocess.Popen[str]:
        environment = {**os.environ, **OF_STEP, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        return subprocess.Popen(
            [*command, *settings, "--devices", "2"], env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    processes = [start(rank) for rank in (0, 1)]
    (out, said), (other_out, _) = (process.communicate() for process in processes)
    assert [process.returncode for process in processes] == [0, 0], said
    assert (out, other_out) == (f"{run}\n", "")
    np.testing.assert_allclose(losses(Run.open(run)), losses(alone), rtol=1e-3)


def test_srun_with_other_numbers_is_refused(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**OF_STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="srun started 2 processes, but --devices 1 x --num-nodes 1 asks for 1"):
        fit(path, tmp_path / "run")


@pytest.mark.process
def test_a_process_that_dies_stops_the_others_and_the_run_goes_on(tiny: AnnData, tmp_path: Path) -> None:
    def kill_another() -> None:
        while not (tmp_path / "run" / "checkpoints" / "step-0000010").exists():
            if time.monotonic() - started > 120:
                return
            time.sleep(0.05)
        for child in psutil.Process().children():
            if "scdiffkit.training.loop" in child.cmdline():
                child.send_signal(signal.SIGKILL)

    started = time.monotonic()
    killer = threading.Thread(target=kill_another)
    killer.start()
    with pytest.raises(RunError, match=r"Another process of this training has ended.*`resume=True`"):
        fit(tiny, tmp_path / "run", overrides={"train.devices": 2, "train.max_steps": 100_000})
    killer.join()
    assert time.monotonic() - started < 120
    assert not [c for c in psutil.Process().children() if "scdiffkit.training.loop" in c.cmdline()]
    run = Run.open(tmp_path / "run")
    done = run.steps()[-1]
    run = fit(tiny, run.path, {}, resume=True, overrides={"train.devices": 1, "train.max_steps": done + 5})
    assert run.steps()[-1] == done + 5


@pytest.mark.process
def test_ctrl_c_saves_and_ends_all_processes(path: Path, tmp_path: Path) -> None:
    settings = [f"--set={key}={value}" for key, value in {**SMALL, "train.max_steps": 1_000_000}.items()]
    command = [sys.executable, "-m", "scdiffkit", "train", str(path), "--label", "cell_type", "--devices", "2"]
    run = tmp_path / "run"
    with subprocess.Popen([*command, "--out", str(run), *settings], stderr=subprocess.PIPE, text=True) as process:
        while not (run / "checkpoints" / "step-0000010").exists():
            assert process.poll() is None
            time.sleep(0.05)
        (other,) = (c for c in psutil.Process(process.pid).children() if "scdiffkit.training.loop" in c.cmdline())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"continue with: scdiff train DATA --resume --out {run}" in said
    assert not other.is_running()
    assert run.joinpath("vectors").exists()  # for whoever goes on
    step = Run.open(run).steps()[-1]
    done = fit(path, run, {}, resume=True, overrides={"train.max_steps": step + 2, "train.devices": 1})
    assert done.steps()[-1] == step + 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.devices": 4096}, r"`devices=4096` is more than the \d+ processor cores"),
        ({"train.devices": 2, "train.device": "cuda"}, "There is no device 'cuda'"),
        ({"train.devices": 2, "train.batch_size": 1}, "`batch_size=1` cannot be shared by 2 processes"),
        ({"train.num_nodes": 2}, r"torchrun --nnodes 2 --nproc-per-node 1 .* or with srun --nodes 2"),
    ],
)
def test_devices_that_are_not_there(
    settings: dict[str, object], message: str, tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message):
        fit(tiny, tmp_path / "run", overrides=settings)
    assert not (tmp_path / "run").exists()
