"""When a network is compiled, and what is done where that, or memory, gives out; recorded steps are in test_cuda.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

import scdiffkit
from scdiffkit.config import DiTConfig, UNetConfig
from scdiffkit.models import build
from scdiffkit.run import Run
from scdiffkit.runtime.device import make_fabric
from scdiffkit.training import step as training_step
from scdiffkit.training.step import TrainStep, clip, pays_to_compile


def fit(data: AnnData, out: Path, **options: object) -> Run:
    overrides = {
        "model.hidden_size": 32, "model.depth": 2, "model.num_heads": 2, "train.batch_size": 15, "train.max_steps": 20,
        "train.val_every_steps": 5, "codec.name": "gene", "model.patch_size": 20,
    }  # fmt: skip
    return scdiffkit.train(data, label="cell_type", out=out, overrides=overrides | options)


def losses(run: Run) -> list[float]:
    return [m["val_loss"] for m in run.metrics()]


def test_transformers_are_compiled_on_gpus_for_long_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    dit, unet = (
        build(40, model) for model in (DiTConfig(hidden_size=16, depth=1, num_heads=2), UNetConfig(channels=8))
    )
    monkeypatch.setattr(training_step, "find_spec", lambda name: object())
    monkeypatch.setattr(training_step.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    assert [pays_to_compile(dit, cuda, steps) for steps in (1500, 20_000)] == [False, True]
    assert not pays_to_compile(dit, cpu, 20_000)
    assert not pays_to_compile(unet, cuda, 20_000)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert not pays_to_compile(dit, cuda, 20_000)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(training_step.shutil, "which", lambda name: None)
    assert not pays_to_compile(dit, cuda, 20_000)


@pytest.mark.slow
def test_what_cannot_be_compiled_unasked_trains_without(
    tiny: AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch._inductor.config as inductor

    plain = losses(fit(tiny, tmp_path / "plain"))
    monkeypatch.setattr("scdiffkit.training.loop.pays_to_compile", lambda *_: True)
    torch._dynamo.reset()  # what was compiled in this process
    with inductor.patch({"cpp.cxx": ("/no/compiler",), "force_disable_caches": True}):
        run = fit(tiny, tmp_path / "run")
    assert "cannot be compiled here and is trained without" in caplog.text
    np.testing.assert_array_equal(losses(run), plain)


def test_compiling_can_be_left_off_when_a_run_goes_on(tiny: AnnData, tmp_path: Path) -> None:
    fit(tiny, tmp_path / "run", **{"train.max_steps": 10})
    overrides = {"train.max_steps": 20, "train.compile": False}
    run = scdiffkit.train(tiny, out=tmp_path / "run", resume=True, overrides=overrides)
    assert run.steps()[-1] == 20


def test_a_recording_makes_room_for_the_held_out_cells(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="scdiffkit")
    model = torch.nn.Linear(2, 1)
    found = TrainStep(make_fabric("cpu"), 1, model, torch.optim.AdamW(model.parameters()), 4)

    def work() -> int:
        if found.recorded is not None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 7

    found.recorded = object()  # type: ignore[assignment]
    assert found.without_graph_on_oom(work) == 7
    assert "run without a CUDA graph" in caplog.text

    def never() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        found.without_graph_on_oom(never)


@pytest.mark.parametrize("length", [0.5, 3.0, float("nan")])
def test_gradients_are_clipped_as_torch_clips_them(length: float) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    direction = torch.nn.functional.normalize(torch.randn(18), dim=0) * length
    for network in (ours, theirs):
        network.weight.grad, network.bias.grad = direction[:15].view(3, 5).clone(), direction[15:].clone()
    clip(ours, 1.0)
    torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, equal_nan=True)
