"""The training pipeline: cells in, a run out."""

from __future__ import annotations

import contextlib
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

import scdiffkit
from scdiffkit import codecs, vectors
from scdiffkit.codecs import Codec, CountCodec
from scdiffkit.codecs.count import fold_of
from scdiffkit.config import PreprocessConfig, RunConfig, build_run_config, training_overrides
from scdiffkit.data import FEW_OF_A_CATEGORY, LIBRARY_SIZE, Cells, Conditions, fingerprint, listed_briefly, split
from scdiffkit.device import device_of, devices_of, make_fabric, precision_of
from scdiffkit.errors import ConfigError, DataError, RunError, ScdiffWarning, nearest
from scdiffkit.fit import TrainStatus, Validation, fit, follow, steps_planned
from scdiffkit.holdout import FILTERS, TrainingData, data_fingerprint
from scdiffkit.io import Backed, CellsLike, open_cells
from scdiffkit.metrics import in_space
from scdiffkit.metrics.classifier import rf_auc
from scdiffkit.preprocess import (
    FILE,
    Prepared,
    RawCells,
    check_label,
    is_prepared,
    lognormalise,
    prepare,
    prepared_config,
    raw_cells,
    with_columns,
)
from scdiffkit.run import RUNS, Run, check_new_run
from scdiffkit.team import gather, helpers, launcher, leave, started_outside

FEW_CELLS = 50
MIN_CELLS_FOR_AUC, MAX_CELLS_FOR_AUC = 50, 1000
AUC_DRAWS = 3
CODEC_SHARE_OF_TIME, CHECK_SHARE_OF_TIME = 0.5, 0.25  # at most, of what is left of --max-time at their beginning
SECONDS_OF_A_DRAW = 5.0  # that checking the codec takes on two cores
log = logging.getLogger("scdiffkit")


def train(
    data: CellsLike,
    *,
    arch: str | None = None,
    preset: str | None = None,
    label: str | None = None,
    conditions: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    max_time: float | None = None,
    holdout: float | None = None,
    holdout_by: str | None = None,
    backed: bool | None = None,
    max_memory: float | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_status: Callable[[TrainStatus], None] | None = None,
) -> Run:
    """Train a model on raw or prepared cells and return its run.

    data: AnnData or a file that `read` takes, raw counts (prepared with the defaults) or prepared cells; a folder of
    files, or several, raw counts, which train as one set of cells ("preprocess.join": their genes).
    backed: leave the cells in their files (h5ad, zarr), True or False; None: where memory, or max_memory bytes of it,
    does not hold them. "train.devices" processes share the work, also those that torchrun or srun started.
    label, conditions: categorical obs columns to condition on. out: the run's folder; default a new one in
    `scdiff-runs/`. holdout: share of the cells, of each combination of the conditions, that is left out of everything,
    for `evaluate` to judge by; holdout_by: obs column of which whole groups (donors) are left out instead, a share of
    0.2 of these unless told. config: values as in a YAML file; overrides: dotted keys ("train.lr"), which win.
    max_time: seconds, after which training saves and stops. resume: go on with the run in `out` (default: the
    latest) from its newest checkpoint.

    Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt; a codec that is still being fitted is not
    saved, and a run that `out` names stays as it was. Raises DataError for unusable cells,
    ConfigError for unusable options, RunError when `resume` does not fit the run, FileError when `out` exists.
    """
    started = time.monotonic()
    if resume and force:
        raise ConfigError("--resume goes on with a run and --force replaces it: give one of them.")
    overrides = dict(overrides or {}) | training_overrides(holdout=holdout, holdout_by=holdout_by)
    existing = Run.open(out) if resume else None
    if existing:
        run_config = _resumed_config(existing, arch, preset, label, conditions, config, overrides)
    else:
        columns = tuple(dict.fromkeys([c for c in (label, *conditions) if c]))
        given = {"conditions": columns} if columns else {}
        run_config = build_run_config(preset, arch, dict(config or {}), {**given, **dict(overrides or {})})
        if LIBRARY_SIZE in run_config.conditions:
            raise ConfigError(
                f"obs column {LIBRARY_SIZE!r} is where library sizes go, so it cannot be a condition: rename it."
            )
    c = run_config.train
    team = None
    others = started_outside(c.devices, c.num_nodes)
    if not others:
        devices_of(c.device, c.devices)  # refused now rather than later
    processes = others or c.devices
    if c.batch_size < processes:
        raise ConfigError(f"--batch-size {c.batch_size} cannot be shared by {processes} processes: give a larger one.")
    if others:
        team = gather(c.device, c.precision, c.devices, c.num_nodes)
        if not team.first:
            try:
                return follow(team)
            finally:
                leave()
    if not existing and out is not None:
        check_new_run(Path(out), force=force)
    source, loaded = open_cells(data, backed=backed, max_memory=max_memory)
    files = source.split(", ") if source else []
    explicit = {key for key in (overrides or {}) if key.startswith("preprocess.")}
    explicit |= {f"preprocess.{key}" for key in (config or {}).get("preprocess", {})}
    prepared, run_config, training_data = _prepare(loaded, run_config, explicit)
    del loaded  # and with it the names of all cells
    of_genes = run_config.codec.name == "gene"
    known_conditions = Conditions.of(prepared.obs, run_config.conditions, prepared.uns)
    cells = Cells.of(prepared, known_conditions, highly_variable=of_genes)
    chosen = prepared.var["highly_variable"].to_numpy(dtype=bool) if of_genes else slice(None)
    genes = [str(g) for g in prepared.var.index[chosen]]
    settings = f"{run_config.preprocess} {known_conditions.categories}"
    data_id = fingerprint("\n".join(genes), settings, repr(training_data))
    train_rows, val_rows = split(cells.codes, c.val_fraction, run_config.seed)
    cut_short: dict[str, int] | None = None
    if existing:
        run = existing
        of_run = run.provenance()["data"]
        same = data_id == of_run["fingerprint"]
        if "split" not in of_run:
            same = of_run["fingerprint"] in _older_ids(genes, settings, cells)
        if not same:
            raise RunError(
                f"{run.path} was trained on other cells ({run.provenance()['data']['source']}), with other "
                "preprocessing, or by an older version. Resume with the same data, or start anew with another --out."
            )
        run.update_config(run_config)
    else:
        _warn_of_few_cells(known_conditions, cells.codes[train_rows], len(val_rows))
        codec = codecs.build(
            run_config.codec,
            num_genes=len(genes),
            target_sum=run_config.preprocess.target_sum,
            num_categories=known_conditions.num_categories,
        )
        deadline = math.inf if max_time is None else started + max_time
        cut_short = _fit_codec(codec, cells, train_rows, val_rows, run_config, started, deadline, on_status)
        ceiling = None
        if isinstance(codec, CountCodec) and not cut_short:
            now = time.monotonic()
            until = now + CHECK_SHARE_OF_TIME * (deadline - now)
            ceiling = _codec_auc(codec, cells, train_rows, val_rows, run_config.seed, until)
        provenance = {
            "run_id": fingerprint(run_config.to_yaml(), data_id),
            "data": {
                "source": source or "memory",
                "fingerprint": data_id,
                "cells": len(cells),
                "genes": len(genes),
                "files": [str(Path(file).resolve()) for file in files],
                "split": training_data.to_dict(),
            },
            "versions": versions(),
            **({"codec_auc": ceiling} if ceiling else {}),
            **({"codec_cut_short": cut_short} if cut_short else {}),
        }
        path = Path(out) if out is not None else _new_path(source, run_config.model.arch)
        run = Run.create(
            path, run_config, provenance, genes, known_conditions.to_dict(), codec,
            var=prepared.var[chosen], force=force,
        )  # fmt: skip
    with run.logging(), contextlib.ExitStack() as stack:
        stack.callback(leave)
        if cut_short:
            log.warning(
                "half of --max-time was up: the codec stopped early, at step %d of %d. --resume trains the diffusion "
                "on, not the codec; for a better one start again with a longer --max-time.",
                cut_short["steps"], cut_short["planned"],
            )  # fmt: skip
        left_out = training_data.cells - len(prepared.obs) if c.holdout else 0
        log.info(
            "run %s: %d cells to train, %d for validation%s", run.path, len(train_rows), len(val_rows),
            f", {left_out} left out" if c.holdout else "",
        )  # fmt: skip
        _log_codec(run.provenance().get("codec_auc"))
        if run.steps() and run.steps()[-1] >= steps_planned(c, len(train_rows)):
            log.info("the run is complete; give a larger --max-steps to train on")
            if team is not None:
                team.share((str(run.path), True))
            return run
        in_files = cells.on_disk or team is not None or c.devices > 1
        if in_files and not vectors.are_written(run.vectors):
            vectors.write(run.codec(), cells, train_rows, run.vectors, device_of(c.device))
        if team is None:
            if c.devices > 1:
                # Measured once, here: processes that differ would not train as one.
                command = ["-m", "scdiffkit.fit", c.device, precision_of(c.device, c.precision), str(c.devices)]
                stack.enter_context(helpers(command, c.devices))
            team = gather(c.device, c.precision, c.devices)
        codec, device = run.codec(), team.fabric.device
        validation = Validation(cells, codec, val_rows, run_config, team.fabric)
        team.share((str(run.path.resolve()), False))  # from here on the others wait for no longer than a step
        x0 = vectors.open_written(codec, run.vectors, device) if in_files else None
        complete = fit(
            run, team, x0 or vectors.in_memory(codec, cells, train_rows, device), validation,
            started=started, max_time=max_time, on_status=on_status,
        )  # fmt: skip
        if complete:
            vectors.remove(run.vectors)
        for remark in run.remarks():
            log.warning(remark)
    return run


def versions() -> dict[str, str]:
    """Of this package and those that the result depends on."""
    return {
        "scdiffkit": scdiffkit.__version__,
        "torch": str(torch.__version__),
        "anndata": metadata.version("anndata"),
        "numpy": np.__version__,
    }


def _warn_of_few_cells(conditions: Conditions, codes: np.ndarray, held_out: int) -> None:
    """ScdiffWarning that names what there are few training cells of; codes (n, K) of those cells."""
    few = [f"{len(codes)} in all"] if len(codes) < FEW_CELLS else []
    for k, (column, categories) in enumerate(conditions.categories.items()):
        counts = np.bincount(codes[:, k], minlength=len(categories) + 1)[1:]
        few += [f"{n} of {column}={name}" for name, n in zip(categories, counts, strict=True) if n < FEW_OF_A_CATEGORY]
    if few:
        also = f", or hold none out (--val-fraction 0; now {held_out})" if held_out else ""
        warnings.warn(
            f"There are few training cells: {listed_briefly(few)}. What the model draws from so few is not to be "
            f"relied on. Give more cells, or merge rare categories{also}.",
            ScdiffWarning,
            stacklevel=3,
        )


def _fit_codec(
    codec: Codec,
    cells: Cells,
    rows: np.ndarray,
    val_rows: np.ndarray,
    run_config: RunConfig,
    started: float,
    deadline: float,
    on_status: Callable[[TrainStatus], None] | None,
) -> dict[str, int] | None:
    """Fit the codec, in at most its share of the time left; steps done and planned where that ended it early."""
    if not isinstance(codec, CountCodec):
        codec.fit(cells, rows)
        return None
    batch_size, begun = codec.config.batch_size, time.monotonic()
    until = begun + CODEC_SHARE_OF_TIME * (deadline - begun)
    cut_short: dict[str, int] | None = None

    def on_step(step: int, steps: int, loss: float, val_loss: float | None) -> bool:
        nonlocal cut_short
        now = time.monotonic()
        if on_status:
            rate = step * batch_size / max(now - begun, 1e-9)
            on_status(TrainStatus("codec", step, steps, loss, val_loss, rate, now - started))
        out_of_time = now >= until
        cut_short = {"steps": step, "planned": steps} if out_of_time and step < steps else None
        return out_of_time

    device = make_fabric(run_config.train.device, "32").device
    codec.fit(cells, rows, val_rows, seed=run_config.seed, device=device, on_step=on_step)
    return cut_short


def _codec_auc(
    codec: CountCodec, cells: Cells, rows: np.ndarray, val_rows: np.ndarray, seed: int, until: float = math.inf
) -> dict[str, float] | None:
    """AUC of a random forest that tells decoded from other real cells: what diffusion can hope to reach.

    held_out and training: held-out and training cells encoded and decoded; floor: held-out cells as they are. All
    against the same further training cells, mean over AUC_DRAWS choices of these. standard_error: of the figures, by
    chance alone. until: when to be done, on the monotonic clock, with fewer draws or none. None with too few cells
    held out for the figures to mean anything.
    """
    if len(val_rows) < MIN_CELLS_FOR_AUC or time.monotonic() + SECONDS_OF_A_DRAW > until:
        return None
    n = min(len(val_rows), MAX_CELLS_FOR_AUC, len(rows) // 2)
    generator = torch.Generator().manual_seed(seed)
    draws = []
    for draw in range(AUC_DRAWS):
        rng = np.random.default_rng([seed, 4, draw])
        places = rng.choice(len(rows), 2 * n, replace=False)
        held_out, seen = np.sort(rng.choice(val_rows, n, replace=False)), np.sort(places[:n])
        draws.append((held_out, rows[seen], fold_of(len(rows))[seen], rows[places[n:]]))
    known = np.unique(np.concatenate([at for held_out, seen, _, other in draws for at in (held_out, seen, other)]))
    cells = cells.take(known)  # once, and in order: a file gives cells here and there but slowly

    def decoded(at: np.ndarray, fold: np.ndarray | None = None) -> sparse.csr_matrix:
        counts, size, codes = cells.batch(np.searchsorted(known, at))
        folds = None if fold is None else torch.from_numpy(fold)
        x0 = codec.encode(counts, size, codes, generator=generator, fold=folds)
        counts, size = codec.decode(x0, codes, size, generator)
        return lognormalise(sparse.csr_matrix(counts.numpy()), codec.target_sum, size.numpy())

    def real(at: np.ndarray) -> sparse.csr_matrix:
        here = np.searchsorted(known, at)
        return lognormalise(cells.counts[here], codec.target_sum, cells.library_size[here])

    aucs: dict[str, list[float]] = {}
    for held_out, seen, fold, other in draws:
        if time.monotonic() + SECONDS_OF_A_DRAW > until:
            break
        sides = {"held_out": decoded(held_out), "training": decoded(seen, fold), "floor": real(held_out)}
        for name, side in sides.items():
            aucs.setdefault(name, []).append(rf_auc(*in_space("pca", real(other), side)))
    standard_error = math.sqrt((2 * n + 1) / (12 * n * n))  # of one AUC of like cells (Mann & Whitney 1947)
    return {name: round(float(np.mean(values)), 4) for name, values in aucs.items()} | {
        "standard_error": round(standard_error, 4)
    }


def _log_codec(auc: Mapping[str, float] | None) -> None:
    if auc:
        log.info(
            "count codec alone: held-out cells encoded and decoded are told from other real cells with AUC %.2f, "
            "training cells %.2f, real cells %.2f (0.5: not at all; chance alone: +- %.2f). Diffusion can hardly do "
            "better than the codec.",
            auc["held_out"], auc["training"], auc["floor"], auc.get("standard_error", math.nan),
        )  # fmt: skip


def _resumed_config(
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


def _prepare(
    cells: AnnData | Backed | Mapping[str, AnnData | Backed], run_config: RunConfig, explicit: set[str]
) -> tuple[Prepared, RunConfig, TrainingData]:
    """The cells to train and to validate with: prepared ones as they are, raw ones prepared with the configuration;
    those to be held out are left out before. And what identifies all of them.

    explicit: the preprocessing options that were asked for; prepared cells must have been prepared so.
    """
    c = run_config.train
    wanted = [*run_config.conditions, run_config.preprocess.batch_key, c.holdout_by]
    if isinstance(cells, Mapping):
        named, first = dict(cells), 0
        for name, part in cells.items():
            named[name] = with_columns(part, [column for column in wanted if column != FILE], first)
            first += part.n_obs
        cells = named
    else:
        cells = with_columns(cells, wanted)

    def training_data(of: RawCells | Prepared, config: PreprocessConfig) -> TrainingData:
        """To be asked of all cells."""
        if c.holdout_by is not None and c.holdout_by not in of.obs:
            raise DataError(
                f"--holdout-by: there is no obs column {c.holdout_by!r}; {nearest(c.holdout_by, of.obs.columns)}"
            )
        columns = [*run_config.conditions, *([c.holdout_by] if c.holdout_by else [])]
        return TrainingData(
            fingerprint=data_fingerprint(of, columns),
            cells=len(of.obs),
            columns=run_config.conditions,
            label=run_config.conditions[0] if run_config.conditions else None,
            holdout=c.holdout,
            holdout_by=c.holdout_by,
            val_fraction=c.val_fraction,
            seed=run_config.seed,
            prepared=isinstance(of, Prepared),
            filters={name: getattr(config, name) for name in FILTERS},
        )

    if isinstance(cells, Mapping) or not is_prepared(cells):
        log.info("raw counts: preparing them (scdiff preprocess does this step on its own)")
        choose = run_config.codec.name == "gene"
        raw = raw_cells(cells, run_config.preprocess, run_config.conditions)
        for column in run_config.conditions:
            check_label(raw, column)
        of_all = training_data(raw, run_config.preprocess)
        raw = raw.take(_left_to_train_on(raw.obs, of_all))
        prepared = prepare(raw, run_config.preprocess, label=run_config.conditions, choose_genes=choose)
        return prepared, run_config, of_all
    stored = prepared_config(cells)
    for key in sorted(explicit):
        name = key.removeprefix("preprocess.")
        was, asked = getattr(stored, name), getattr(run_config.preprocess, name)
        if asked != was:
            raise ConfigError(
                f"The data were prepared with {name} = {was!r}, not {asked!r}: leave the option out, or train on "
                "the raw counts."
            )
    for column in run_config.conditions:
        check_label(cells, column)
    prepared = Prepared.of(cells)
    of_all = training_data(prepared, stored)
    prepared = prepared.take(_left_to_train_on(prepared.obs, of_all))
    return prepared, run_config.model_copy(update={"preprocess": stored}), of_all


def _left_to_train_on(obs: pd.DataFrame, of_all: TrainingData) -> np.ndarray:
    """The rows of obs that are not held out.

    Raises DataError where whole groups are held out (`holdout_by`) and a condition has one value left.
    """
    held = of_all.held_out(obs)
    rows = np.flatnonzero(~held)
    if of_all.holdout_by is None:
        return rows
    groups = ", ".join(sorted(set(obs[of_all.holdout_by][held].astype(str)))[:5])
    for column in of_all.columns:
        values = obs[column].astype(str)
        left = set(values[~held])
        lost = ", ".join(sorted(set(values) - left))
        if not lost:
            continue
        said = f"With {of_all.holdout_by} {groups} held out, no training cell has {column} {lost}"
        if len(left) == 1:
            raise DataError(
                f"{said}, so {column!r} cannot be learnt: hold out groups that have cells of each {column} "
                "(--holdout-by, or another --seed), or single cells (--holdout without --holdout-by)."
            )
        warnings.warn(f"{said}: the model cannot generate such cells.", ScdiffWarning, stacklevel=2)
    return rows


def _older_ids(genes: list[str], settings: str, cells: Cells) -> list[str]:
    """The fingerprints that older versions gave runs: before cells could be held out, and before they could stay in
    files."""
    found = [fingerprint("\n".join(genes), settings, cells.digest())]
    if cells.on_disk:
        return found
    counts = sparse.csr_matrix(cells.counts[0 : len(cells)])
    counts.sort_indices()
    arrays = (counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64))
    settings = settings.replace(" join='inner'", "")
    return [*found, fingerprint("\n".join(genes), settings, *arrays, cells.library_size, cells.codes)]


def _new_path(source: str | None, arch: str) -> Path:
    stem = Path(source.split(", ")[0]).name.split(".")[0] if source else "cells"
    base = f"{stem}-{arch}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = RUNS / base, 1
    while path.exists():
        path, n = RUNS / f"{base}-{n}", n + 1
    return path
