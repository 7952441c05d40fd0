"""The sampling pipeline: a run in, labelled cells out."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scdiffkit.config import SampleConfig
from scdiffkit.data.conditions import Conditions
from scdiffkit.errors import ConfigError
from scdiffkit.io import CellWriter, check_output, open_rows
from scdiffkit.run import Run
from scdiffkit.runtime.device import accelerator_of, devices_of, precision_of
from scdiffkit.runtime.signals import deferred_interrupts
from scdiffkit.runtime.versions import OF_CELLS, versions
from scdiffkit.sampling.composition import composition_of, library_sizes_of
from scdiffkit.sampling.plan import SLOTS_OF_GPU, Request, batches_at_once, default_batch_size, guidance_of, steps_of
from scdiffkit.sampling.pool import Process, Threads, Worker, map_ordered
from scdiffkit.sampling.worker import BLOCK_OF_CELLS, BLOCK_OF_DEPTHS, Batch, BatchRequest, BatchSampler

log = logging.getLogger("scdiffkit")
SAMPLERS = {"ddim": "DDIM", "dpm": "DPM-Solver++(2M)", "ddpm": "DDPM"}


def sample(
    run: Run | str | Path | None = None,
    n: int | None = None,
    *,
    where: Mapping[str, str | Sequence[str]] | None = None,
    like: AnnData | str | Path | None = None,
    out: str | Path | None = None,
    config: SampleConfig | None = None,
    force: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> AnnData | Path:
    """Draw n labelled cells from a run; AnnData, or with `out` the path of the file they were streamed to.

    run: a Run, its folder, or None for the latest. where: condition column -> value(s) wanted, also together as no
    training cell had them (with a ScdiffWarning; see Conditions.compose). like: cells whose composition is copied
    (and whose number, when n is None), and with the count codec their library sizes too, unless
    config.library_size says otherwise. Without either: the training composition.
    on_progress(done, n) is called after each batch of cells.

    X holds log1p values normalised as in training, `layers["counts"]` integers, obs the condition columns.
    config.devices: processes that share the batches, on GPUs of their own or the cores of the CPU; the cells are the
    same whatever their number.
    Raises RunError for a run that cannot be used, and when memory or a process gives out, DataError for conditions it
    has never seen, ConfigError for guidance or a library size that the run cannot give, or for devices that are not
    there, FileError when `out` exists or cannot be written.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = config or SampleConfig()
    steps_of(config, run.config().diffusion.num_train_timesteps)  # refused before anything is written
    devices_of(config.device, config.devices)
    if out is not None:
        check_output(Path(out), force=force)
    conditions, codec = Conditions.from_dict(run.conditions()), run.codec()
    guidance_of(run, conditions, config)
    if config.library_size != "like" and not codec.takes_library_size:
        raise ConfigError(
            f"--library-size {config.library_size}: the {codec.name} codec reads each cell's library size off the "
            "values drawn and cannot honour another. Leave it out, or train a run with --codec count."
        )
    if isinstance(like, str | Path):
        like = open_rows(like)
    codes = composition_of(conditions, n, where, like, depth_too=codec.takes_library_size)
    sizes = None
    if codec.takes_library_size:
        sizes = library_sizes_of(codec, run.genes(), conditions, codes, like, config)
    request = Request.of(run, codes, sizes, config)
    order = request.rng().permutation(len(codes))
    codes, sizes = codes[order], None if sizes is None else sizes[order]  # any first cells are a fair sample
    remarks = [*run.remarks(), *conditions.remarks(codes)]
    for remark in run.remarks():
        log.warning(remark)
    present = conditions.present(codes)
    var = run.var()
    uns = {"scdiffkit": _provenance(run, config, len(codes), remarks), "log1p": {}, **present.uns()}
    done = 0
    with contextlib.ExitStack() as stack:
        interrupted = stack.enter_context(deferred_interrupts())
        batches = stack.enter_context(contextlib.closing(_batches(run, request, codes, sizes, config, interrupted)))
        writer = None
        if out is not None:
            writer = stack.enter_context(
                CellWriter(out, run.genes(), var=var, uns=uns, layers=("counts",), force=force)
            )
        kept = []
        for batch in batches:
            present.drop_absent(batch.obs)
            if writer:
                writer.append(batch.X, {"counts": batch.counts}, batch.obs)
            else:
                kept.append(batch)
            done += len(batch.obs)
            if on_progress:
                on_progress(done, len(codes))
    if out is not None:
        return Path(out)
    return AnnData(
        X=sparse.vstack([b.X for b in kept], format="csr"),
        layers={"counts": sparse.vstack([b.counts for b in kept], format="csr")},
        obs=pd.concat([b.obs for b in kept]),
        var=var,
        uns=uns,
    )


def _batches(
    run: Run,
    request: Request,
    codes: np.ndarray,
    sizes: np.ndarray | None,
    config: SampleConfig,
    interrupted: threading.Event,
) -> Generator[Batch]:
    """The cells with the given codes (n, K), a batch at a time, so that memory does not grow with n.

    sizes: their library sizes (n,), or None where the model draws them. Several batches are drawn at once, on threads
    and, where config says so, on several devices. A batch is made of whole blocks, each with random numbers of its
    own: what a cell holds depends on none of that.
    """
    devices, kind = devices_of(config.device, config.devices), accelerator_of(config.device)
    run_config, dim = run.config(), run.codec().dim
    T = run_config.diffusion.num_train_timesteps
    steps = steps_of(config, T)
    log.info(
        "%s: %d network calls a cell (T = %d, speedup %.3g), %sguidance %s, seed %d",
        SAMPLERS[config.sampler], steps, T, T / steps, f"eta {config.eta:g}, " if config.sampler == "ddim" else "",
        _in_words(config.cfg_scale), config.seed,
    )  # fmt: skip
    block = BLOCK_OF_CELLS["cpu" if kind == "cpu" else "gpu"]
    if sizes is not None and np.ptp(sizes) > 0:
        block = BLOCK_OF_DEPTHS
    batch_size = config.batch_size
    if batch_size is None:  # equal ones, so that threads and devices end together
        batch_size = math.ceil(len(codes) / math.ceil(len(codes) / default_batch_size(run_config.model, dim, kind)))
        batch_size = block * math.ceil(batch_size / block)
    starts = range(0, len(codes), block * max(1, batch_size // block))
    jobs = (
        BatchRequest(
            start,
            block,
            codes[start : start + starts.step],
            None if sizes is None else sizes[start : start + starts.step],
        )
        for start in starts
    )
    slots, threads = SLOTS_OF_GPU, None
    if kind == "cpu":
        at_once, threads = batches_at_once(len(starts))
        slots = math.ceil(at_once / len(devices))
    # Measured once, here: processes that differ would draw other cells.
    config = config.model_copy(
        update={"precision": precision_of(config.device, config.precision), "batch_size": batch_size}
    )
    with contextlib.ExitStack() as stack:
        members: list[Worker] = []
        if len(devices) == 1:
            drawer = BatchSampler(run, request, config, devices[0])
            members = [Threads(drawer, slots, threads, drawer.network.stopped.set)]
            stack.callback(members[0].close)
        else:
            log.info("%d worker processes, each on %s", len(devices), "its own GPU" if kind == "cuda" else "the CPU")
            for k, device in enumerate(devices[: len(starts)], start=1):
                name = f"Worker process {k} of {len(devices)}"
                members.append(Process(name, BatchSampler, (run, request, config, device), slots, threads))
                stack.callback(members[-1].close)
        yield from map_ordered(members, jobs, interrupted)


def _in_words(cfg_scale: float | dict[str, float]) -> str:
    if not isinstance(cfg_scale, dict):
        return f"{cfg_scale:g}"
    return " ".join(f"{column}={scale:g}" for column, scale in cfg_scale.items()) or "1"


def _provenance(run: Run, config: SampleConfig, n: int, remarks: list[str]) -> dict[str, Any]:
    """`uns["scdiffkit"]` of the output: how the cells were drawn; their labels are in obs.

    remarks: what makes these cells less trustworthy, in sentences; evaluate and info repeat them.
    """
    run_config, provenance = run.config(), run.provenance()
    T = run_config.diffusion.num_train_timesteps
    return {
        "synthetic": True,
        "run_id": provenance["run_id"],
        "arch": run_config.model.arch,
        "codec": run_config.codec.name,
        "checkpoint_step": run.best_step() or 0,
        "training": run.training(),
        **({"trained_on": provenance["data"]["split"]} if "split" in provenance["data"] else {}),
        "remarks": remarks,
        "cells": n,
        "seed": config.seed,
        "sampler": config.sampler,
        "steps": steps_of(config, T),
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
