"""A run is the directory of a trained model. This module reads and writes its files.

config.yaml           all settings and the provenance of the run; `scdiff train --config` accepts it
genes.txt             the genes of the output, in order
var.json              the columns of the training data's var for these genes
conditions.json       condition columns, categories, composition of the training cells
codec.safetensors     the fitted codec
checkpoints/step-*/   weights.safetensors, ema.safetensors, optimizer.safetensors, state.json
metrics.jsonl         one line of losses and speed per logged step
train.log             log messages
evaluations.jsonl     one line for each evaluation of the run
vectors/              cached encoded cells until training is complete, see training.encoded

The module is long because all access to the files of a run is in one place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import pandas as pd
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from scdiffkit import codecs, config, models
from scdiffkit._deprecated import migrate_codec_auc
from scdiffkit.codecs import Codec
from scdiffkit.config import RunConfig
from scdiffkit.data.conditions import Conditions
from scdiffkit.diffusion.denoiser import Denoiser, SpikeSlab
from scdiffkit.diffusion.schedule import Schedule
from scdiffkit.errors import ConfigError, FileError, RunError, did_you_mean
from scdiffkit.io import atomic_write_bytes, atomic_write_text, columns

RUNS = Path("scdiff-runs")
LATEST = "latest"
UNDERTRAINED_SHARE = 1 / 3  # share of the preset's steps; a run with fewer planned steps counts as undertrained
log = logging.getLogger("scdiffkit")


class Run:
    """A run directory. The object holds only the path, so runs can be moved, copied and opened elsewhere."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @classmethod
    def create(
        cls,
        path: str | Path,
        run_config: RunConfig,
        provenance: dict[str, Any],
        genes: list[str],
        conditions: dict[str, Any],
        codec: Codec,
        *,
        var: pd.DataFrame | None = None,
        force: bool = False,
    ) -> Run:
        """Create the directory and write everything that is known before diffusion is trained, such as the codec.

        `var` is the table of the genes, in their order. Raises FileError if `path` exists. `force` replaces an
        existing run, but nothing else.
        """
        run = cls(path)
        check_new_run(run.path, force=force)
        building = cls(run.path.with_name(f".{run.path.name}.tmp"))  # renamed when complete
        shutil.rmtree(building.path, ignore_errors=True)
        building._make_folder(building.path / "checkpoints")
        try:
            atomic_write_text(building.path / "genes.txt", "".join(f"{g}\n" for g in genes))
            text = json.dumps(conditions, indent=1, ensure_ascii=False)
            atomic_write_text(building.path / "conditions.json", text)
            if var is not None and len(var.columns):
                values, spec, _ = columns.encode(var)
                text = json.dumps({"spec": spec, "values": columns.plain(values)}, ensure_ascii=False)
                atomic_write_text(building.path / "var.json", text)
            atomic_write_bytes(building.path / "codec.safetensors", save_tensors(codec.state()))
            building._write_config(run_config, {**provenance, "codec": codec.settings()})
            if run.path.exists():
                shutil.rmtree(run.path)
            os.replace(building.path, run.path)
        finally:
            shutil.rmtree(building.path, ignore_errors=True)
        run._point_latest()
        return run

    @classmethod
    def open(cls, path: str | Path | None = None) -> Run:
        """Open an existing run, by default the latest one in `scdiff-runs/`.

        Raises RunError if the run does not exist or the folder is not a run.
        """
        if path is None:
            path = RUNS / LATEST
            if not path.exists():
                there = sorted(p.parent.name for p in RUNS.glob("*/config.yaml"))
                others = f" There are: {', '.join(there)}." if there else ""
                raise RunError(
                    f"There is no latest run in {RUNS}/: train one with `scdiff train DATA`, or name the folder of "
                    f"a run.{others}"
                )
            if path.is_symlink():  # in a copied folder, `latest` may be a directory
                path = path.parent / os.readlink(path)
        run = cls(path)
        if not run.path.is_dir() and (RUNS / run.path / "config.yaml").is_file():
            run = cls(RUNS / run.path)  # a name within scdiff-runs/
        if not run.path.exists():
            known = [p.name for p in run.path.parent.iterdir()] if run.path.parent.is_dir() else []
            raise RunError(f"There is no run {run.path}; {did_you_mean(run.path.name, known)}")
        if not is_run(run.path):
            raise RunError(f"{run.path} is not a run (config.yaml or genes.txt is missing). Give the folder of a run.")
        return run

    # Configuration and data

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def _config_values(self) -> dict[str, Any]:
        return config.parse_yaml(
            (self.path / "config.yaml").read_text(encoding="utf-8"), str(self.path / "config.yaml")
        )

    def config(self) -> RunConfig:
        values = self._config_values()
        values.pop("provenance", None)
        return RunConfig.from_dict(values)

    def update_config(self, run_config: RunConfig) -> None:
        """Record settings that were changed when the run was resumed (length, devices, checkpoints, compiling)."""
        self._write_config(run_config, self.provenance())

    def _write_config(self, run_config: RunConfig, provenance: dict[str, Any]) -> None:
        values = {**run_config.to_dict(), "provenance": provenance}
        atomic_write_text(self.path / "config.yaml", yaml.safe_dump(values, sort_keys=False, allow_unicode=True))

    def provenance(self) -> dict[str, Any]:
        """Return run id, versions, and source and fingerprint of the data."""
        return self._config_values()["provenance"]

    def data_files(self) -> list[Path]:
        """Return the files of the training data. Raises RunError if it was in memory or a file is missing."""
        data = self.provenance()["data"]
        listed = data.get("files", [] if data["source"] == "memory" else data["source"].split(", "))  # older versions
        files = [Path(file) for file in listed]
        missing = [file for file in files if not file.exists()]
        if missing or not files:
            why = f"{missing[0]} no longer exists" if missing else "it was trained on cells in memory"
            raise RunError(f"The cells that {self.path} was trained on cannot be read: {why}. Give them (DATA).")
        return files

    def genes(self) -> list[str]:
        return self._text("genes.txt").splitlines()

    def var(self) -> pd.DataFrame:
        """Return the training data's var of the genes (ids, feature types ...), indexed by gene names."""
        genes = pd.Index(self.genes(), dtype=object)
        if not (self.path / "var.json").exists():  # older version, or var had no columns
            return pd.DataFrame(index=genes)
        stored = json.loads(self._text("var.json"))
        return pd.DataFrame(
            {name: columns.decode(stored["values"][name], spec) for name, spec in stored["spec"].items()}, index=genes
        )

    def conditions(self) -> dict[str, Any]:
        """Return `categories` (by column), `combinations` (training composition) etc., see data.Conditions."""
        return json.loads(self._text("conditions.json"))

    def _text(self, name: str) -> str:
        try:
            return (self.path / name).read_text(encoding="utf-8")
        except FileNotFoundError as e:
            raise RunError(
                f"The run {self.path} is incomplete: {name} is missing. Copy it again, or train a new run."
            ) from e

    def _tensors(self, path: Path) -> dict[str, Tensor]:
        try:
            return load_tensors(path.read_bytes())
        except FileNotFoundError as e:
            raise RunError(f"The run {self.path} is incomplete: {path.name} is missing. Copy it again.") from e
        except Exception as e:  # safetensors raises its own class for a truncated or foreign file
            raise RunError(f"{path} is damaged ({e}). Copy it again, or use another checkpoint.") from e

    def codec(self) -> Codec:
        return self.load().codec

    def denoiser(self, step: int | None = None) -> Denoiser:
        """Return the trained denoiser, see TrainedModel.denoiser."""
        return self.load().denoiser(step)

    def load(self) -> TrainedModel:
        """Read the run's model once. The denoiser's weights are not loaded yet."""
        values = self._config_values()
        provenance = values.pop("provenance")
        run_config = RunConfig.from_dict(values)
        codec = codecs.build(run_config.codec, **provenance["codec"])
        codec.load_state(self._tensors(self.path / "codec.safetensors"))
        return TrainedModel(self, run_config, provenance, Conditions.from_dict(self.conditions()), codec)

    def weights(self, step: int | None = None) -> dict[str, Tensor]:
        """Return the trained weights of a checkpoint, or their moving average if there is one.

        The default step is that of the lowest held-out loss, or the newest if there is no held-out loss. Raises
        RunError if there is no checkpoint.
        """
        folder = self._checkpoint(step or self.best_step())
        ema = folder / "ema.safetensors"
        return self._tensors(ema if ema.exists() else folder / "weights.safetensors")

    # Progress of training

    def training(self) -> dict[str, Any]:
        """Return how long diffusion and codec were trained, as plain values.

        `steps` and `planned` are steps of diffusion. `ended` is "complete", "converged" (the held-out loss stopped
        improving) or "stopped early". `usual` is the number of steps of the preset, if it sets one. `codec_steps` and
        `codec_planned` are given if time ran out while the codec was fitted.
        """
        run_config, steps, metrics = self.config(), self.steps(), self.metrics()
        c, done = run_config.train, steps[-1] if steps else 0
        planned = c.max_steps or (metrics[-1]["max_steps"] if metrics else 0)
        waited = done - (self.best_step() or done)
        converged = bool(c.patience) and waited >= cast(int, c.patience) * c.val_every_steps
        ended = "complete" if 0 < planned <= done else "converged" if converged else "stopped early"
        found: dict[str, Any] = {"steps": done, "planned": planned, "ended": ended}
        usual = self._preset_steps(run_config)
        if usual:
            found["usual"] = usual
        cut = self.provenance().get("codec_cut_short")
        return found | ({"codec_steps": cut["steps"], "codec_planned": cut["planned"]} if cut else {})

    def _preset_steps(self, run_config: RunConfig) -> int | None:
        """Return the number of steps in the run's preset; None if the preset sets epochs or no longer exists."""
        overrides = {"codec.name": run_config.codec.name}
        try:
            return config.build_run_config(run_config.preset, run_config.model.arch, {}, overrides).train.max_steps
        except ConfigError:
            return None

    def remarks(self) -> list[str]:
        """Return sentences on what makes cells of this run less reliable: training that was too short."""
        found, of = [], self.training()
        steps, planned = of["steps"], of["planned"]
        if of["ended"] == "stopped early":
            of_planned = f" of {planned:,} planned" if planned else ""
            found.append(f"The run is undertrained: its training was stopped early, after {steps:,}{of_planned} steps.")
        elif of["ended"] == "complete" and planned < UNDERTRAINED_SHARE * of.get("usual", 0):
            found.append(
                f"The run is undertrained: it was planned with {planned:,} steps, and its preset has {of['usual']:,}."
            )
        if "codec_steps" in of:
            found.append(
                f"The run's codec is undertrained: its fit was cut short, after {of['codec_steps']:,} of "
                f"{of['codec_planned']:,} steps."
            )
        return found

    # Cached encoded cells

    @property
    def vectors(self) -> Path:
        """Folder of the cached encoded training cells. It may exist until training is complete."""
        return self.path / "vectors"

    # Checkpoints

    def steps(self) -> list[int]:
        """Return the steps of all complete checkpoints in ascending order."""
        folders = (self.path / "checkpoints").glob("step-*")
        return sorted(int(f.name.removeprefix("step-")) for f in folders if (f / "state.json").exists())

    def best_step(self) -> int | None:
        """Return the step with the lowest held-out loss, else of the newest checkpoint, else None."""
        steps = self.steps()
        losses = {step: self._state(step).get("val_loss") for step in steps}
        scored = [(loss, step) for step, loss in losses.items() if loss is not None]
        return min(scored)[1] if scored else (steps[-1] if steps else None)

    def _state(self, step: int) -> dict[str, Any]:
        return json.loads((self._checkpoint(step) / "state.json").read_text())

    def _checkpoint(self, step: int | None) -> Path:
        steps = self.steps()
        if not steps:
            raise RunError(
                f"The run {self.path} holds no checkpoint yet. "
                f"Continue with `scdiff train DATA --resume --out {self.path}`."
            )
        if step is not None and step not in steps:
            raise RunError(f"There is no checkpoint of step {step}; there are: {', '.join(map(str, steps))}.")
        return self.path / "checkpoints" / f"step-{step or steps[-1]:07d}"

    def save_checkpoint(
        self,
        step: int,
        weights: dict[str, Tensor],
        ema: dict[str, Tensor] | None,
        optimizer: dict[str, Tensor],
        val_loss: float | None,
        keep: int,
    ) -> None:
        """Write a checkpoint atomically, and remove all others but the newest `keep` and the best.

        `val_loss` is the held-out loss of exactly these weights, or None if it was not computed at this step.
        """
        final = self.path / "checkpoints" / f"step-{step:07d}"
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        self._make_folder(temporary)
        atomic_write_bytes(temporary / "weights.safetensors", save_tensors(weights))
        if ema is not None:
            atomic_write_bytes(temporary / "ema.safetensors", save_tensors(ema))
        atomic_write_bytes(temporary / "optimizer.safetensors", save_tensors(optimizer))
        atomic_write_text(temporary / "state.json", json.dumps({"step": step, "val_loss": val_loss}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        for old in self.steps()[:-keep]:
            if old != self.best_step():
                shutil.rmtree(self._checkpoint(old))

    def load_checkpoint(self, step: int | None = None) -> dict[str, Any]:
        """Return the weights, ema (or None), optimizer and state of a checkpoint."""
        folder = self._checkpoint(step)
        has_ema = (folder / "ema.safetensors").exists()
        return {
            "weights": self._tensors(folder / "weights.safetensors"),
            "ema": self._tensors(folder / "ema.safetensors") if has_ema else None,
            "optimizer": self._tensors(folder / "optimizer.safetensors"),
            "state": json.loads((folder / "state.json").read_text()),
        }

    # Metrics and logs

    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, oldest first."""
        return self._lines("metrics.jsonl")

    def _lines(self, name: str) -> list[dict[str, Any]]:
        path = self.path / name
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]  # a killed run may leave an incomplete line

    def log_metrics(self, **figures: Any) -> None:
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(figures) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the metrics after `step`, because a resumed run logs them again."""
        kept = [json.dumps(m) + "\n" for m in self.metrics() if m["step"] <= step]
        atomic_write_text(self.path / "metrics.jsonl", "".join(kept))

    def log_evaluation(self, **figures: Any) -> None:
        """Record the result of an evaluation of the run, unless the folder is not writable."""
        with contextlib.suppress(OSError), (self.path / "evaluations.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(figures) + "\n")

    def evaluations(self) -> list[dict[str, Any]]:
        """Return the lines of evaluations.jsonl, oldest first."""
        return self._lines("evaluations.jsonl")

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Also write the package's log messages to train.log within the block."""
        handler = logging.FileHandler(self.path / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        level = log.level
        log.setLevel(min(level or logging.INFO, logging.INFO))
        try:
            yield
        finally:
            log.setLevel(level)
            log.removeHandler(handler)
            handler.close()

    def describe(self) -> dict[str, Any]:
        """Return what `scdiff info` prints about the run."""
        run_config, provenance, metrics = self.config(), self.provenance(), self.metrics()
        conditions, steps = self.conditions(), self.steps()
        last = metrics[-1] if metrics else {}
        return {
            "format": "run",
            "path": str(self.path),
            "run_id": provenance["run_id"],
            "arch": run_config.model.arch,
            "codec": run_config.codec.name,
            "preset": run_config.preset,
            "genes": len(self.genes()),
            "training_data": provenance["data"],
            "codec_auc": migrate_codec_auc(provenance["codec_auc"]) if provenance.get("codec_auc") else None,
            "conditions": conditions["categories"],
            "checkpoints": steps,
            "sampled_from": self.best_step(),
            "max_steps": last.get("max_steps"),
            "training": self.training()["ended"],
            "remarks": self.remarks(),
            "loss": last.get("loss"),
            "val_loss": next((m["val_loss"] for m in reversed(metrics) if m.get("val_loss") is not None), None),
            "evaluation": next(iter(self.evaluations()[::-1]), None),
            "versions": provenance["versions"],
        }

    # Folders

    def _make_folder(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise FileError(f"The folder {path} cannot be made ({e.strerror}). Choose another with --out.") from e

    def _point_latest(self) -> None:
        """Point the link `latest` at this run, if its parent folder is called scdiff-runs."""
        if self.path.parent.name != RUNS.name:
            return
        temporary = self.path.parent / f".{LATEST}.{os.getpid()}.tmp"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.path.name, target_is_directory=True)
        os.replace(temporary, self.path.parent / LATEST)


@dataclass(frozen=True)
class TrainedModel:
    """The contents of a run, read once."""

    run: Run
    config: RunConfig
    provenance: dict[str, Any]
    conditions: Conditions
    codec: Codec

    @cached_property
    def genes(self) -> list[str]:
        return self.run.genes()

    @cached_property
    def best_step(self) -> int | None:
        """Step of the checkpoint used for sampling, see Run.best_step."""
        return self.run.best_step()

    def new_denoiser(self) -> Denoiser:
        """Build an untrained denoiser, whose initial weights depend on torch's seed."""
        d, codec = self.config.diffusion, self.codec
        head = SpikeSlab(*codec.spike_slab()) if d.output == "spike-slab" else None
        outputs = 2 if head else 1
        network = models.build(codec.dim, self.config.model, self.conditions.num_categories, outputs=outputs)
        return Denoiser(network, Schedule.from_config(d), d.prediction_type, d.min_snr_gamma, codec.bounds, head)

    def denoiser(self, step: int | None = None) -> Denoiser:
        """Return the trained denoiser of a checkpoint, by default the best. Raises RunError if there is none."""
        denoiser = self.new_denoiser()
        denoiser.load_state_dict(self.run.weights(step or self.best_step))
        return denoiser.eval().requires_grad_(False)


def is_run(path: Path) -> bool:
    return (path / "config.yaml").is_file() and (path / "genes.txt").is_file()


def check_new_run(path: Path, *, force: bool = False) -> None:
    """Raise FileError if a new run cannot be written to `path`: it exists, or its folder is not writable."""
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        if not force:
            raise FileError(
                f"{path} exists. Choose another --out, continue it with --resume, or replace it with --force."
            )
        if not is_run(path):
            raise FileError(f"{path} exists and is not a run, so --force does not replace it. Choose another --out.")
    if path.resolve() == Path.cwd():
        raise FileError("The current folder cannot become a run: give --out the name of a new folder.")
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise FileError(f"{path} cannot be made: {existing} cannot be written. Choose another folder with --out.")
