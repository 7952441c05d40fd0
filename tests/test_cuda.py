"""Training and sampling on a CUDA GPU, where there is one."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import scdiffkit
from scdiffkit.config import SampleConfig
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.run import Run
from scdiffkit.training import step as training_step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
TINY = {
    "model.hidden_size": 32, "model.depth": 2, "model.num_heads": 2, "train.batch_size": 16, "train.max_steps": 30,
    "train.val_every_steps": 5, "train.checkpoint_every_steps": 10,
}  # fmt: skip
CODECS = {
    "gene": {"codec.name": "gene", "model.patch_size": 20},
    "count": {
        "codec.name": "count",
        "codec.max_steps": 30,
        "codec.tails_steps": 10,
        "codec.val_every_steps": 10,
        "codec.hidden_size": 16,
    },
}


def fit(data: object, out: Path, codec: str = "count", arch: str = "dit", resume: bool = False, **train: object) -> Run:
    settings = {"device": "cuda", "precision": "32"} | train
    overrides = TINY | CODECS[codec] | {f"train.{key}": value for key, value in settings.items()}
    return scdiffkit.train(data, arch=arch, label="cell_type", out=out, resume=resume, overrides=overrides)  # type: ignore[arg-type]


def losses(run: Run) -> list[float]:
    return [m["val_loss"] for m in run.metrics()]


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each recorded step that was launched."""
    calls: list[int] = []
    launch = training_step._Recorded.__call__
    monkeypatch.setattr(training_step._Recorded, "__call__", lambda self, batch: calls.append(1) or launch(self, batch))
    return calls


@pytest.mark.parametrize("arch", ["dit", "whitebox"])
@pytest.mark.parametrize("codec", ["gene", "count"])
def test_recorded_steps_train_as_those_launched_one_by_one(
    codec: str, arch: str, tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replayed: list[int]
) -> None:
    recorded = losses(fit(tiny, tmp_path / "recorded", codec, arch))
    assert len(replayed) == 30 - training_step.WARM_UP
    monkeypatch.setattr(training_step, "WARM_UP", math.inf)
    np.testing.assert_allclose(recorded, losses(fit(tiny, tmp_path / "plain", codec, arch)), rtol=1e-4)


def test_a_step_that_cannot_be_recorded_is_launched_one_by_one(
    tiny: AnnData,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    replayed: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="scdiffkit")
    plain = losses(fit(tiny, tmp_path / "plain"))
    replayed.clear()
    forward = Denoiser.forward

    def waits(self: Denoiser, x0: torch.Tensor, *args: torch.Tensor) -> torch.Tensor:
        x0.sum().item()  # waits for the GPU, which a recording must not
        return forward(self, x0, *args)

    monkeypatch.setattr(Denoiser, "forward", waits)
    np.testing.assert_allclose(losses(fit(tiny, tmp_path / "run")), plain, rtol=1e-4)
    assert "run without a CUDA graph" in caplog.text
    assert not replayed
    assert torch.cuda.current_stream() == torch.cuda.default_stream()


def test_a_compiled_network_trains_alike_and_resumes(tiny: AnnData, tmp_path: Path) -> None:
    plain = fit(tiny, tmp_path / "plain", "gene")
    compiled = fit(tiny, tmp_path / "compiled", "gene", compile=True)
    np.testing.assert_allclose(losses(compiled), losses(plain), rtol=1e-3)
    fit(tiny, tmp_path / "halves", "gene", compile=True, max_steps=20)
    halves = fit(tiny, tmp_path / "halves", "gene", resume=True, compile=True, max_steps=30)
    np.testing.assert_allclose(losses(halves), losses(plain), rtol=1e-3)


def test_a_gpu_trains_as_the_cpu_does_but_for_its_random_numbers(tiny: AnnData, tmp_path: Path) -> None:
    gpu, cpu = fit(tiny, tmp_path / "gpu", max_steps=200), fit(tiny, tmp_path / "cpu", max_steps=200, device="cpu")
    assert losses(gpu)[-1] < 0.95 * losses(gpu)[0]
    np.testing.assert_allclose(losses(gpu)[-1], losses(cpu)[-1], rtol=0.1)


@pytest.mark.parametrize("codec", ["gene", "count"])
def test_cells_drawn_on_a_gpu_are_the_same_each_time_and_labelled(codec: str, tiny: AnnData, tmp_path: Path) -> None:
    run = fit(tiny, tmp_path / "run", codec)
    config = SampleConfig(steps=5, device="cuda", batch_size=40)
    drawn, again = (scdiffkit.sample(run, 100, where={"cell_type": "B"}, config=config) for _ in range(2))
    assert (drawn.X != again.X).nnz == 0
    assert set(drawn.obs["cell_type"]) == {"B"}
    counts = drawn.layers["counts"]
    assert counts.nnz > 0
    assert counts.min() >= 0


@pytest.mark.slow
def test_a_batch_that_the_gpu_does_not_hold_is_worked_on_in_parts(
    tiny: AnnData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the first step, nor the recording of one, ends the training."""
    held = torch.cuda.memory_allocated() + 300 * 2**20
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(held / torch.cuda.get_device_properties(0).total_memory)
    try:
        settings = {"batch_size": 2048, "max_steps": 6, "val_every_steps": 3}
        overrides = TINY | CODECS["gene"] | {f"train.{k}": v for k, v in settings.items()}
        overrides |= {"model.patch_size": 1, "model.hidden_size": 64, "train.device": "cuda"}
        run = scdiffkit.train(tiny, arch="dit", label="cell_type", out=tmp_path / "run", overrides=overrides)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    assert "into micro-batches of" in caplog.text
    assert run.steps()[-1] == 6
