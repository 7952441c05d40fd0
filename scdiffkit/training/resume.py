"""Check the options and the cells with which a run is resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scdiffkit.config import RunConfig
from scdiffkit.errors import RunError
from scdiffkit.run import Run
from scdiffkit.training.cells import TrainingSet
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
    """Return the run's configuration with the options given now.

    Only length, devices, compiling and checkpoints may differ from the run; RunError for any other option.
    """
    stored = run.config()
    if config:
        raise RunError("--resume continues with the run's own configuration; leave --config out.")
    asked: dict[str, Any] = {"model.arch": arch, "preset": preset}
    columns = tuple(dict.fromkeys(c for c in (label, *conditions) if c))
    if columns:
        asked["conditions"] = columns
    asked |= dict(overrides or {})
    values = stored.to_dict()
    # The number of processes belongs to the machine, not to the run: the launcher knows it.
    if launcher() == "torchrun":
        values["train"] |= {"devices": 1, "num_nodes": 1}
    elif launcher() is None:
        values["train"]["num_nodes"] = 1
    free = {f"train.{f}" for f in ("max_steps", "max_epochs", "device", "keep_checkpoints")}
    free |= {"train.checkpoint_every_steps", "train.checkpoint_every_minutes", "train.devices", "train.num_nodes"}
    free.add("train.compile")  # not every machine can compile
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


def check_same_cells(run: Run, training_set: TrainingSet, run_config: RunConfig) -> None:
    """Raise RunError if these are not the cells that the run was trained on."""
    of_run = run.provenance()["data"]
    if "split" in of_run:
        same = of_run["fingerprint"] == training_set.fingerprint(run_config)
    else:
        same = of_run["fingerprint"] in training_set.older_fingerprints(run_config)
    if not same:
        raise RunError(
            f"{run.path} was trained on other cells ({of_run['source']}), with other preprocessing, or by an older "
            "version. Resume with the same data, or start a new run with another --out."
        )
