"""What a resumed run may be asked for, and whether the cells are those that it was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scdiffkit.config import RunConfig
from scdiffkit.data.cells import TrainingCells, fingerprint
from scdiffkit.data.conditions import Conditions
from scdiffkit.data.split import TrainingData
from scdiffkit.errors import RunError
from scdiffkit.run import Run
from scdiffkit.training.distributed import launcher


def resumed_config(
    run: Run,
    arch: str | None,
    preset: str | None,
    label: str | None,
    conditions: Sequence[str],
    config: Mapping[str, Any] | None,
    overrides: Mapping[str, Any] | None,
) -> RunConfig:
    """The run's own configuration; what is asked for may differ in its length, device and checkpoints only."""
    stored = run.config()
    if config:
        raise RunError("--resume goes on with the run's own configuration; leave --config out.")
    asked: dict[str, Any] = {"model.arch": arch, "preset": preset}
    columns = tuple(dict.fromkeys(c for c in (label, *conditions) if c))
    if columns:
        asked["conditions"] = columns
    asked |= dict(overrides or {})
    values = stored.to_dict()
    # How many processes there are is of the machine, not of the run: what started them knows.
    if launcher() == "torchrun":
        values["train"] |= {"devices": 1, "num_nodes": 1}
    elif launcher() is None:
        values["train"]["num_nodes"] = 1
    free = {f"train.{f}" for f in ("max_steps", "max_epochs", "device", "keep_checkpoints")}
    free |= {"train.checkpoint_every_steps", "train.checkpoint_every_minutes", "train.devices", "train.num_nodes"}
    free.add("train.compile")  # what one machine compiles another may not
    for key, value in asked.items():
        if value is None:
            continue
        section: Any = values
        *parents, leaf = key.split(".")
        for part in parents:
            section = section.get(part, {})
        was = section.get(leaf)
        if key in free:
            section[leaf] = value
            if leaf in ("max_steps", "max_epochs"):
                section["max_epochs" if leaf == "max_steps" else "max_steps"] = None
        elif (list(value) if isinstance(value, tuple) else value) != was:
            raise RunError(
                f"{run.path} was trained with {key} = {was!r}, not {value!r}. Leave the option out to resume, or "
                "start a new run with another --out."
            )
    return RunConfig.from_dict(values)


@dataclass(frozen=True)
class TrainingSet:
    """The cells of a training, prepared.

    train_rows, val_rows: places among the cells. var: of the codec's genes. known: what a run records of all cells that
    it was given, those left out included. source: where they came from, in words; None: memory.
    """

    cells: TrainingCells
    train_rows: np.ndarray
    val_rows: np.ndarray
    conditions: Conditions
    var: pd.DataFrame
    known: TrainingData
    source: str | None

    @property
    def genes(self) -> list[str]:
        return [str(gene) for gene in self.var.index]

    @property
    def files(self) -> list[str]:
        return self.source.split(", ") if self.source else []

    def fingerprint(self, run_config: RunConfig) -> str:
        """Of the cells and of how they were prepared: a run is resumed with the same."""
        return fingerprint("\n".join(self.genes), self._settings(run_config), repr(self.known))

    def older_fingerprints(self, run_config: RunConfig) -> list[str]:
        """What older versions gave runs: before cells could be held out, and before they could stay in files."""
        genes, settings, cells = "\n".join(self.genes), self._settings(run_config), self.cells
        found = [fingerprint(genes, settings, cells.digest())]
        if cells.on_disk:
            return found
        counts = sparse.csr_matrix(cells.counts[0 : len(cells)])
        counts.sort_indices()
        arrays = (counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64))
        settings = settings.replace(" join='inner'", "")
        return [*found, fingerprint(genes, settings, *arrays, cells.library_size, cells.codes)]

    def _settings(self, run_config: RunConfig) -> str:
        return f"{run_config.preprocess} {self.conditions.categories}"


def check_same_cells(run: Run, training_set: TrainingSet, run_config: RunConfig) -> None:
    """Raises RunError where these are not the cells that the run was trained on."""
    of_run = run.provenance()["data"]
    if "split" in of_run:
        same = of_run["fingerprint"] == training_set.fingerprint(run_config)
    else:
        same = of_run["fingerprint"] in training_set.older_fingerprints(run_config)
    if not same:
        raise RunError(
            f"{run.path} was trained on other cells ({of_run['source']}), with other preprocessing, or by an older "
            "version. Resume with the same data, or start anew with another --out."
        )
