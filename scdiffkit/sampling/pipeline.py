"""The sampling pipeline: it takes a run and returns labelled cells."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scdiffkit.config import SampleConfig, Sampler, make
from scdiffkit.errors import ConfigError
from scdiffkit.io import CellWriter, check_output, open_rows
from scdiffkit.run import Run, TrainedModel
from scdiffkit.runtime.device import accelerator_of, devices_of
from scdiffkit.runtime.progress import shown_progress
from scdiffkit.runtime.signals import deferred_interrupts
from scdiffkit.runtime.versions import OF_CELLS, versions
from scdiffkit.sampling.composition import composition_of, library_sizes_of
from scdiffkit.sampling.plan import SLOTS_OF_GPU, SamplingPlan, batches_at_once, guidance_of, steps_of
from scdiffkit.sampling.pool import Process, Threads, Worker, map_ordered
from scdiffkit.sampling.worker import Batch, BatchSampler

log = logging.getLogger("scdiffkit")
SAMPLERS = {"ddim": "DDIM", "dpm++": "DPM-Solver++(2M)", "ddpm": "DDPM"}


def sample(
    run: Run | str | Path | None = None,
    n: int | None = None,
    *,
    where: Mapping[str, str | Sequence[str]] | None = None,
    like: AnnData | str | Path | None = None,
    seed: int | None = None,
    sampler: Sampler | None = None,
    steps: int | None = None,
    speedup: int | None = None,
    eta: float | None = None,
    cfg_scale: float | Mapping[str, float] | None = None,
    library_size: Literal["like", "median"] | int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
    devices: int | None = None,
    precision: Literal["auto", "32", "bf16"] | None = None,
    config: SampleConfig | None = None,
    out: str | Path | None = None,
    force: bool = False,
    progress: bool | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnData | Path:
    """Draw new, labelled cells from a trained run.

    Parameters
    ----------
    run
        A Run, its folder, or None for the latest run.
    n
        Number of cells. Default: the number of cells in `like`, else 1000.
    where
        Mapping from condition column to the value(s) to draw. Combinations that no training cell had are extrapolated,
        with a ScdiffWarning. Without `where` and `like`, the composition is that of the training cells.
    like
        Cells whose composition and, with the count codec, library sizes are copied.
    seed
        Random seed, by default 0. Equal calls give equal cells.
    sampler, steps, speedup, eta
        Sampler: "ddim" (default, 50 steps), "dpm++" (DPM-Solver++, 20 steps) or "ddpm" (all T steps of training).
        Number of steps, or `speedup` for T/speedup steps. `eta`, 0 to 1, is the noise of ddim.
    cfg_scale
        Scale of classifier-free guidance; 1 means no guidance. A number applies to all conditions together, a mapping
        gives the scale of each condition column.
    library_size
        Counts per cell: "like" the training cells (or `like`), the "median" of the training cells, or a number. The
        last two need the count codec.
    batch_size, device, devices, precision
        Cells per batch, device ("auto", "cpu", "cuda", "cuda:1", "mps"), number of worker processes, and precision.
        The cells do not depend on the number of processes; the batch size affects them only through rounding.
    config
        The options from `seed` to `precision` as an object. Options given separately take precedence.
    out
        File to which the cells are streamed. Its suffix selects the format: h5ad, loom or a 10x format.
    force
        Replace `out` if it exists.
    progress
        Show a progress bar. Default: on a terminal and in a notebook, unless `on_progress` is given.
    on_progress
        Callback that is called as on_progress(done, n) after each batch.

    Returns
    -------
    AnnData, or the path if `out` is given. `X` holds log1p values normalised as in training, `layers["counts"]` holds
    integer counts, and `obs` holds the condition columns and `total_counts`.

    Raises
    ------
    RunError
        If the run cannot be used, if memory runs out, or if a worker process fails.
    DataError
        If a condition has a value that the run was not trained on.
    ConfigError
        If the run or the machine does not support an option.
    FileError
        If `out` exists or cannot be written.

    Examples
    --------
    >>> cells = scdiffkit.sample(run, 500, where={"cell_type": "B"}, steps=20)
    """
    run = run if isinstance(run, Run) else Run.open(run)
    given = {
        "seed": seed, "sampler": sampler, "steps": steps, "speedup": speedup, "eta": eta, "cfg_scale": cfg_scale,
        "library_size": library_size, "batch_size": batch_size, "device": device, "devices": devices,
        "precision": precision,
    }  # fmt: skip
    asked = {name: value for name, value in given.items() if value is not None}
    config = make(SampleConfig, **(config.model_dump() if config else {}) | asked)
    model = run.load()
    conditions, codec = model.conditions, model.codec
    steps_of(config, model.config.diffusion.num_train_timesteps)  # raises before anything is written
    devices_of(config.device, config.devices)
    if out is not None:
        check_output(Path(out), force=force)
    guidance_of(model, config)
    if config.library_size != "like" and not codec.takes_library_size:
        raise ConfigError(
            f"--library-size {config.library_size}: the {codec.name} codec derives each cell's library size from "
            "the values drawn and cannot use another. Leave it out, or train a run with --codec count."
        )
    if isinstance(like, str | Path):
        like = open_rows(like)
    codes = composition_of(conditions, n, where, like, copies_library_size=codec.takes_library_size)
    sizes = None
    if codec.takes_library_size:
        sizes = library_sizes_of(codec, model.genes, conditions, codes, like, config)
    plan = SamplingPlan.of(model, codes, sizes, config)
    order = plan.request.rng().permutation(len(codes))
    codes, sizes = codes[order], None if sizes is None else sizes[order]  # so that the first cells are a fair sample
    of_run = run.remarks()
    remarks = [*of_run, *conditions.remarks(codes)]
    for remark in of_run:
        log.warning(remark)
    present = conditions.present(codes)
    var = run.var()
    uns = {"scdiffkit": _provenance(model, config, plan.steps, len(codes), remarks), "log1p": {}, **present.uns()}
    done = 0
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(deferred_interrupts())
        batches = stack.enter_context(contextlib.closing(_batches(model, plan, codes, sizes, interrupted)))
        report = stack.enter_context(shown_progress("sampling", progress, on_progress, lambda done, n: (done, "", n)))
        writer = None
        if out is not None:
            writer = stack.enter_context(
                CellWriter(out, model.genes, var=var, uns=uns, layers=("counts",), force=force)
            )
        kept = []
        for batch in batches:
            present.drop_absent(batch.obs)
            if writer:
                writer.append(batch.X, {"counts": batch.counts}, batch.obs)
            else:
                kept.append(batch)
            done += len(batch.obs)
            if report:
                report(done, len(codes))
    return _in_memory(kept, var, uns) if out is None else Path(out)


def _in_memory(batches: Sequence[Batch], var: pd.DataFrame, uns: dict[str, Any]) -> AnnData:
    return AnnData(
        X=sparse.vstack([batch.X for batch in batches], format="csr"),
        layers={"counts": sparse.vstack([batch.counts for batch in batches], format="csr")},
        obs=pd.concat([batch.obs for batch in batches]),
        var=var,
        uns=uns,
    )


def _batches(
    model: TrainedModel,
    plan: SamplingPlan,
    codes: np.ndarray,
    sizes: np.ndarray | None,
    interrupted: threading.Event,
) -> Generator[Batch]:
    """Yield the cells with the given codes (n, K) in batches, so that memory does not grow with n.

    `sizes` are their library sizes (n,), or None if the model draws them. Several batches are drawn at the same time,
    on threads and, if the plan asks for it, on several devices. The cells do not depend on how the work is shared.
    """
    config, T = plan.config, model.config.diffusion.num_train_timesteps
    devices, kind = devices_of(config.device, config.devices), accelerator_of(config.device)
    log.info(
        "%s: %d network calls per cell (T = %d, speedup %.3g), %sguidance %s, seed %d",
        SAMPLERS[config.sampler], plan.steps, T, T / plan.steps,
        f"eta {config.eta:g}, " if config.sampler == "ddim" else "", _in_words(config.cfg_scale), config.seed,
    )  # fmt: skip
    requests = plan.requests(codes, sizes)
    slots, threads = SLOTS_OF_GPU, None
    if kind == "cpu":
        at_once, threads = batches_at_once(len(requests))
        slots = math.ceil(at_once / len(devices))
    with contextlib.ExitStack() as stack:
        workers: list[Worker] = []
        if len(devices) == 1:
            sampler = BatchSampler(model, plan, devices[0])
            workers = [Threads(sampler, slots, threads, sampler.network.stopped.set)]
            stack.callback(workers[0].close)
        else:
            log.info("%d worker processes, each on %s", len(devices), "its own GPU" if kind == "cuda" else "the CPU")
            for k, device in enumerate(devices[: len(requests)], start=1):
                name = f"Worker process {k} of {len(devices)}"
                workers.append(Process(name, BatchSampler, (model.run, plan, device), slots, threads))
                stack.callback(workers[-1].close)
        yield from map_ordered(workers, requests, interrupted)


def _in_words(cfg_scale: float | dict[str, float]) -> str:
    if not isinstance(cfg_scale, dict):
        return f"{cfg_scale:g}"
    return " ".join(f"{column}={scale:g}" for column, scale in cfg_scale.items()) or "1"


def _provenance(model: TrainedModel, config: SampleConfig, steps: int, n: int, remarks: list[str]) -> dict[str, Any]:
    """Return `uns["scdiffkit"]` of the output, which records how the cells were drawn.

    `remarks` are sentences on what makes these cells less reliable; `evaluate` and `info` show them again.
    """
    run_config, provenance = model.config, model.provenance
    return {
        "synthetic": True,
        "run_id": provenance["run_id"],
        "arch": run_config.model.arch,
        "codec": run_config.codec.name,
        "checkpoint_step": model.best_step or 0,
        "training": model.run.training(),
        **({"trained_on": provenance["data"]["split"]} if "split" in provenance["data"] else {}),
        "remarks": remarks,
        "cells": n,
        "seed": config.seed,
        "sampler": config.sampler,
        "steps": steps,
        "eta": config.eta,
        "cfg_scale": config.cfg_scale,
        "library_size": config.library_size,
        "precision": config.precision,
        "device": config.device,
        "conditions": list(run_config.conditions),
        "target_sum": run_config.preprocess.target_sum,
        **({"codec_auc": provenance["codec_auc"]} if provenance.get("codec_auc") else {}),
        "versions": versions(OF_CELLS),
    }
