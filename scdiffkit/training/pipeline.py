"""The training pipeline: it takes cells and returns a run."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scdiffkit import codecs
from scdiffkit._deprecated import MEMORY, renamed_keywords
from scdiffkit.config import RunConfig, TrainConfig, build_run_config, training_overrides
from scdiffkit.config.units import parse_duration
from scdiffkit.data.cells import LIBRARY_SIZE, fingerprint
from scdiffkit.data.conditions import MIN_PER_CATEGORY, Conditions, listed_briefly
from scdiffkit.errors import ConfigError, warn
from scdiffkit.io import CellsLike
from scdiffkit.run import RUNS, Run, check_new_run
from scdiffkit.runtime.device import device_of, devices_of, precision_of
from scdiffkit.runtime.progress import shown_progress
from scdiffkit.runtime.versions import OF_MODELS, versions
from scdiffkit.training import encoded
from scdiffkit.training.cells import TrainingSet, read_training_set
from scdiffkit.training.codec import CHECK_SHARE_OF_TIME, codec_auc, fit_codec, log_codec
from scdiffkit.training.distributed import (
    ProcessGroup,
    init_process_group,
    shutdown,
    spawn_ranks,
    world_size_from_environment,
)
from scdiffkit.training.loop import fit, run_rank, steps_planned
from scdiffkit.training.resume import check_same_cells, resumed_config
from scdiffkit.training.status import TrainStatus
from scdiffkit.training.validation import Validation

log = logging.getLogger("scdiffkit")
FEW_CELLS = 50


@renamed_keywords(conditions="condition", on_status="on_progress", **MEMORY)
def train(
    data: CellsLike | None = None,
    *,
    label: str | None = None,
    condition: str | Sequence[str] = (),
    arch: str | None = None,
    preset: str | None = None,
    codec: str | None = None,
    n_top_genes: int | None = None,
    max_steps: int | None = None,
    max_epochs: int | None = None,
    max_time: float | str | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    holdout: float | None = None,
    holdout_by: str | None = None,
    val_fraction: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    devices: int | None = None,
    precision: str | None = None,
    join: str | None = None,
    memory: str | float = "auto",
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    progress: bool | None = None,
    on_progress: Callable[[TrainStatus], None] | None = None,
) -> Run:
    """Train a diffusion model on cells and return the run.

    Options have the names and units of the command line. None selects the default of the preset.

    Parameters
    ----------
    data
        AnnData or a file that `read` accepts, with raw counts (preprocessed with the defaults) or preprocessed cells.
        A folder or several files of raw counts are joined into one data set. With `resume` it is optional: the files
        that the run was trained on are read again.
    label, condition
        Categorical obs columns to condition on: the cell type, and further columns such as a treatment.
    arch, preset, codec, n_top_genes
        Architecture ("dit", "whitebox", "unet"); preset ("small", "base", "large", "scrdit", "whitebox-dit"); codec
        ("count", "gene"); number of highly variable genes, which only the gene codec uses.
    max_steps, max_epochs, max_time
        Length of training in steps or epochs, and a time limit (seconds, or "10m", "2h") after which training saves a
        checkpoint and stops.
    batch_size, lr, seed
        Cells per step, peak learning rate, random seed.
    holdout, holdout_by
        Fraction of the cells of each combination of conditions to hold out of all stages of training, for
        `evaluate`. With `holdout_by`, an obs column such as the donor, whole groups are held out (0.2 by default).
    val_fraction
        Fraction of the cells used for validation.
    device, devices, precision
        Device; number of processes on this machine, one per device, that share every batch; precision.
    join, memory
        Genes to use if files differ: "inner" (intersection) or "outer" (union). Where cells of h5ad and zarr files are
        kept: "ram", "disk", or "auto", which leaves them on disk if they do not fit into free memory. An amount such
        as "8G" sets the limit.
    config, overrides
        Further settings, nested as in a YAML file; settings by dotted key ("model.depth"), which take precedence.
    out
        Folder of the run. Default: a new folder in `scdiff-runs/`.
    resume, force
        Continue the run in `out` (default: the latest run) from its newest checkpoint; replace the run in `out`.
    progress
        Show a progress bar. Default: on a terminal and in a notebook, unless `on_progress` is given.
    on_progress
        Callback that receives a TrainStatus at intervals.

    Returns
    -------
    The run. Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt. While the codec is being fitted, nothing
    is saved and an existing run in `out` is not changed.

    Raises
    ------
    DataError
        If the cells cannot be used.
    ConfigError
        If an option cannot be used.
    RunError
        If `resume` does not match the run.
    FileError
        If `out` exists (without `force`) or cannot be written, or if a file of `data` is missing.

    Examples
    --------
    >>> run = scdiffkit.train("data.h5ad", label="cell_type", holdout=0.2, max_time="10m")
    """
    started = time.monotonic()
    conditions = [condition] if isinstance(condition, str) else condition
    if resume and force:
        raise ConfigError("--resume continues a run and --force replaces it: give one of them.")
    overrides = dict(overrides or {}) | training_overrides(
        codec=codec, n_top_genes=n_top_genes, max_steps=max_steps, max_epochs=max_epochs, batch_size=batch_size, lr=lr,
        holdout=holdout, holdout_by=holdout_by, val_fraction=val_fraction, seed=seed, device=device, devices=devices,
        precision=precision, join=join,
    )  # fmt: skip
    max_time = parse_duration(max_time)
    existing = Run.open(out) if resume else None
    if data is None:
        if existing is None:
            raise ConfigError("train needs cells (DATA), unless --resume continues a run.")
        data = existing.data_files()
    if existing:
        run_config = resumed_config(existing, arch, preset, label, conditions, config, overrides)
    else:
        run_config = _new_config(arch, preset, label, conditions, config, overrides)
    c = run_config.train
    group = None
    if _launched_externally(c):
        group = init_process_group(c.device, c.precision, c.devices, c.num_nodes)
        if not group.is_main:
            try:
                return run_rank(group)
            finally:
                shutdown()
    if not existing and out is not None:
        check_new_run(Path(out), force=force)
    explicit = {key for key in overrides if key.startswith("preprocess.")}
    explicit |= {f"preprocess.{key}" for key in (config or {}).get("preprocess", {})}
    training_set, run_config = read_training_set(data, run_config, explicit, memory)
    deadline = math.inf if max_time is None else started + max_time
    with shown_progress("training", progress, on_progress, TrainStatus.progress) as on_progress:
        if existing:
            run = existing
            check_same_cells(run, training_set, run_config)
            run.update_config(run_config)
            cut_short = None
        else:
            run, cut_short = _new_run(out, training_set, run_config, started, deadline, on_progress, force=force)
        with run.logging(), contextlib.ExitStack() as stack:
            stack.callback(shutdown)
            _log_start(run, training_set, cut_short)
            if run.steps() and run.steps()[-1] >= steps_planned(c, len(training_set.train_rows)):
                log.info("the run is complete; give a larger --max-steps to continue training")
                if group is not None:
                    group.broadcast((str(run.path), True))
                return run
            _train_diffusion(run, training_set, run_config, group, stack, started, max_time, on_progress)
            for remark in run.remarks():
                log.warning(remark)
        return run


def _new_config(
    arch: str | None,
    preset: str | None,
    label: str | None,
    conditions: Sequence[str],
    config: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
) -> RunConfig:
    columns = tuple(dict.fromkeys([c for c in (label, *conditions) if c]))
    given = {"conditions": columns} if columns else {}
    run_config = build_run_config(preset, arch, dict(config or {}), {**given, **overrides})
    if LIBRARY_SIZE in run_config.conditions:
        raise ConfigError(
            f"obs column {LIBRARY_SIZE!r} is reserved for library sizes, so it cannot be a condition: rename it."
        )
    return run_config


def _launched_externally(c: TrainConfig) -> bool:
    """Return whether torchrun or srun started this process. Raises ConfigError if the devices cannot share a batch."""
    others = world_size_from_environment(c.devices, c.num_nodes)
    if not others:
        devices_of(c.device, c.devices)
    processes = others or c.devices
    if c.batch_size < processes:
        raise ConfigError(f"--batch-size {c.batch_size} cannot be shared by {processes} processes: give a larger one.")
    return bool(others)


def _new_run(
    out: str | Path | None,
    training_set: TrainingSet,
    run_config: RunConfig,
    started: float,
    deadline: float,
    on_progress: Callable[[TrainStatus], None] | None,
    *,
    force: bool,
) -> tuple[Run, dict[str, int] | None]:
    """Fit the codec and create the run. Also returns the codec's steps, done and planned, if time ran out."""
    cells, conditions = training_set.cells, training_set.conditions
    train_rows, val_rows = training_set.train_rows, training_set.val_rows
    _warn_of_few_cells(conditions, cells.codes[train_rows], len(val_rows))
    codec = codecs.build(
        run_config.codec,
        num_genes=len(training_set.genes),
        target_sum=run_config.preprocess.target_sum,
        num_categories=conditions.num_categories,
    )
    cut_short = fit_codec(codec, cells, train_rows, val_rows, run_config, started, deadline, on_progress)
    auc = None
    if codec.compact and not cut_short:
        now = time.monotonic()
        until = now + CHECK_SHARE_OF_TIME * (deadline - now)
        auc = codec_auc(codec, cells, train_rows, val_rows, run_config.seed, until)
    data_id = training_set.fingerprint(run_config)
    provenance = {
        "run_id": fingerprint(run_config.identity(), data_id),
        "data": {
            "source": training_set.source or "memory",
            "fingerprint": data_id,
            "cells": len(cells),
            "genes": len(training_set.genes),
            "files": [str(Path(file).resolve()) for file in training_set.files],
            "split": training_set.record.to_dict(),
        },
        "versions": versions(OF_MODELS),
        **({"codec_auc": auc} if auc else {}),
        **({"codec_cut_short": cut_short} if cut_short else {}),
    }
    path = Path(out) if out is not None else _new_path(training_set.source, run_config.model.arch)
    run = Run.create(
        path, run_config, provenance, training_set.genes, conditions.to_dict(), codec, var=training_set.var, force=force
    )
    return run, cut_short


def _log_start(run: Run, training_set: TrainingSet, cut_short: dict[str, int] | None) -> None:
    if cut_short:
        log.warning(
            "the codec used half of the time left by --max-time and was stopped early, at step %d of %d. --resume "
            "continues to train the diffusion, not the codec; for a better codec, start a new run with a longer "
            "--max-time.",
            cut_short["steps"], cut_short["planned"],
        )  # fmt: skip
    left_out = training_set.record.cells - len(training_set.cells)
    log.info(
        "run %s: %d training cells, %d validation cells%s",
        run.path, len(training_set.train_rows), len(training_set.val_rows),
        f", {left_out} cells held out or dropped by filters" if training_set.record.holdout else "",
    )  # fmt: skip
    log_codec(run.provenance().get("codec_auc"))


def _train_diffusion(
    run: Run,
    training_set: TrainingSet,
    run_config: RunConfig,
    group: ProcessGroup | None,
    stack: contextlib.ExitStack,
    started: float,
    max_time: float | None,
    on_progress: Callable[[TrainStatus], None] | None,
) -> None:
    """Train from the run's newest checkpoint. `group` is given if torchrun or srun started the processes."""
    c, cells, codec = run_config.train, training_set.cells, run.codec()
    in_files = cells.on_disk or group is not None or c.devices > 1
    if in_files and not encoded.is_cached(run.vectors):
        encoded.write(codec, cells, training_set.train_rows, run.vectors, device_of(c.device))
    if group is None:
        if c.devices > 1:
            # Resolve the precision once: all processes must use the same.
            settings = [c.device, precision_of(c.device, c.precision), str(c.devices)]
            stack.enter_context(spawn_ranks(["-m", "scdiffkit.training.loop", *settings], c.devices))
        group = init_process_group(c.device, c.precision, c.devices)
    device = group.fabric.device
    validation = Validation(cells, codec, training_set.val_rows, run_config, group.fabric)
    group.broadcast((str(run.path.resolve()), False))  # releases the other ranks
    if in_files:
        vectors = encoded.open_written(codec, run.vectors, device)
    else:
        vectors = encoded.in_memory(codec, cells, training_set.train_rows, device)
    if fit(run, group, vectors, validation, started=started, max_time=max_time, on_progress=on_progress):
        encoded.remove(run.vectors)


def _warn_of_few_cells(conditions: Conditions, codes: np.ndarray, held_out: int) -> None:
    """Warn (ScdiffWarning) about categories with few training cells. `codes` (n, K) are those of the training cells."""
    few = [f"{len(codes)} in all"] if len(codes) < FEW_CELLS else []
    for k, (column, categories) in enumerate(conditions.categories.items()):
        counts = np.bincount(codes[:, k], minlength=len(categories) + 1)[1:]
        few += [f"{n} of {column}={name}" for name, n in zip(categories, counts, strict=True) if n < MIN_PER_CATEGORY]
    if few:
        also = f", or train without the {held_out} validation cells (--val-fraction 0)" if held_out else ""
        warn(
            f"There are few training cells: {listed_briefly(few)}. Generated cells of these categories are "
            f"unreliable. Give more cells, or merge rare categories{also}."
        )


def _new_path(source: str | None, arch: str) -> Path:
    stem = Path(source.split(", ")[0]).name.split(".")[0] if source else "cells"
    base = f"{stem}-{arch}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = RUNS / base, 1
    while path.exists():
        path, n = RUNS / f"{base}-{n}", n + 1
    return path
