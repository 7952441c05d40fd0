"""The sampling pipeline: a run in, labelled cells out."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

import scdiffkit
from scdiffkit.config import DiTConfig, SampleConfig, UNetConfig, WhiteBoxConfig
from scdiffkit.data import LIBRARY_SIZE, Conditions
from scdiffkit.denoiser import Denoiser
from scdiffkit.device import make_fabric
from scdiffkit.errors import ConfigError, DataError
from scdiffkit.io import CellWriter, check_output, read
from scdiffkit.preprocess import lognormalise
from scdiffkit.run import Run
from scdiffkit.sampling import ddim, ddpm

DEFAULT_CELLS = 1000
DEFAULT_STEPS = 50
log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class Batch:
    """Cells as they leave the codec: X log-normalised, counts raw integers, both CSR (B, G); obs (B rows)."""

    X: sparse.csr_matrix
    counts: sparse.csr_matrix
    obs: pd.DataFrame


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

    run: a Run, its folder, or None for the latest. where: condition column -> value(s) wanted. like: cells whose
    composition is copied (and whose number, when n is None). Without either: the training composition.
    on_progress(done, n) is called after each batch of cells.

    X holds log1p values normalised as in training, `layers["counts"]` integers, obs the condition columns.
    Raises RunError for a run that cannot be used, DataError for conditions it has never seen, FileError when
    `out` exists or cannot be written.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    config = config or SampleConfig()
    steps_of(config, run.config().diffusion.num_train_timesteps)  # refused before anything is written
    if out is not None:
        check_output(Path(out), force=force)
    if config.cfg_scale != 1 and not (run.config().conditions and run.config().train.condition_dropout):
        raise ConfigError(
            "--cfg-scale needs a run with conditions (--label) that training hid at times "
            "(train.condition_dropout > 0): guidance goes from the unknown condition to the given one. Leave it out."
        )
    codes = _composition(Conditions.from_dict(run.conditions()), n, where, like)
    np.random.default_rng([config.seed, 0]).shuffle(codes)  # any first cells of the file are a fair sample
    batches = _batches(run, codes, config)
    var = pd.DataFrame(index=pd.Index(run.genes(), name=None))
    uns = {"scdiffkit": _provenance(run, config, len(codes))}
    done = 0
    with contextlib.ExitStack() as stack:
        writer = None
        if out is not None:
            writer = stack.enter_context(
                CellWriter(out, run.genes(), var=var, uns=uns, layers=("counts",), force=force)
            )
        kept = []
        for batch in batches:
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


def steps_of(config: SampleConfig, num_train_timesteps: int) -> int:
    """Network calls per cell that the configuration comes to for a run with T steps."""
    if config.sampler == "ddpm":
        return num_train_timesteps
    if config.speedup:
        if config.speedup > num_train_timesteps:
            raise ConfigError(f"--speedup {config.speedup} is more than the run's T = {num_train_timesteps} steps.")
        return math.ceil(num_train_timesteps / config.speedup)
    if config.steps and config.steps > num_train_timesteps:
        raise ConfigError(f"The number of sampling steps must be in 1..{num_train_timesteps}, not {config.steps}.")
    return config.steps or min(DEFAULT_STEPS, num_train_timesteps)


def _composition(
    conditions: Conditions,
    n: int | None,
    where: Mapping[str, str | Sequence[str]] | None,
    like: AnnData | str | Path | None,
) -> np.ndarray:
    """Codes (n, K) of the cells to draw."""
    if n is not None and n < 1:
        raise ConfigError(f"The number of cells must be at least 1, not {n}.")
    if like is not None:
        if where:
            raise ConfigError("Give --where or --like, not both: --like copies the whole composition.")
        if not conditions.columns:
            raise DataError("The run has no conditions, so there is no composition to copy; give -n instead of --like.")
        return conditions.composition_of((like if isinstance(like, AnnData) else read(like)).obs, n)
    wanted = {column: [v] if isinstance(v, str) else list(v) for column, v in (where or {}).items()}
    return conditions.compose(n or DEFAULT_CELLS, wanted)


def _batches(run: Run, codes: np.ndarray, config: SampleConfig) -> Iterator[Batch]:
    """The cells with the given codes (n, K), a batch at a time, so that memory does not grow with n."""
    fabric = make_fabric(config.device, config.precision)
    denoiser, codec = run.denoiser().to(fabric.device), run.codec()
    run_config, provenance = run.config(), run.provenance()
    conditions = Conditions.from_dict(run.conditions())
    T = denoiser.schedule.num_train_timesteps
    steps = steps_of(config, T)
    log.info(
        "%s: %d network calls a cell (T = %d, speedup %.3g), eta %g, guidance %g, seed %d",
        config.sampler.upper(), steps, T, T / steps, config.eta, config.cfg_scale, config.seed,
    )  # fmt: skip
    batch_size = config.batch_size or _batch_size(run_config.model, codec.dim, fabric.device)
    prefix = f"{provenance['run_id'][:6]}-{config.seed}"
    for i, start in enumerate(range(0, len(codes), batch_size)):
        part = codes[start : start + batch_size]
        generator = torch.Generator(fabric.device)
        generator.manual_seed(int(np.random.SeedSequence([config.seed, i]).generate_state(1, np.uint64)[0] >> 1))
        with torch.inference_mode(), fabric.autocast():
            x0 = _diffuse(denoiser, torch.from_numpy(part).to(fabric.device), codec.dim, config, steps, generator)
            counts, library_size = codec.decode(x0, generator)
        raw = sparse.csr_matrix(counts.cpu().numpy())
        size = library_size.cpu().numpy()
        X = lognormalise(raw, codec.target_sum, size)
        obs = conditions.decode(part)
        obs[LIBRARY_SIZE] = size
        obs.index = pd.Index([f"{prefix}-{start + j}" for j in range(len(part))])
        yield Batch(X, raw.astype(np.int32), obs)


def _diffuse(
    denoiser: Denoiser,
    codes: torch.Tensor,
    dim: int,
    config: SampleConfig,
    steps: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """x0 (B, D) for codes (B, K), from fresh noise."""
    x = torch.randn(len(codes), dim, generator=generator, device=codes.device)
    conditions = codes if codes.shape[1] else None
    if config.sampler == "ddpm":
        path = ddpm(denoiser, x, conditions=conditions, cfg_scale=config.cfg_scale, generator=generator)
    else:
        path = ddim(
            denoiser, x, denoiser.schedule.timesteps(steps),
            conditions=conditions, eta=config.eta, cfg_scale=config.cfg_scale, generator=generator,
        )  # fmt: skip
    for _, x in path:  # noqa: B007
        pass
    return x


def _batch_size(model: DiTConfig | WhiteBoxConfig | UNetConfig, dim: int, device: torch.device) -> int:
    """Cells at once so that a layer's activations stay within a fixed share of memory."""
    width = model.channels if isinstance(model, UNetConfig) else model.hidden_size
    floats_a_cell = 8 * width * math.ceil(dim / model.patch_size)
    budget = 2**24 if device.type == "cpu" else 2**28
    return max(8, min(4096, budget // floats_a_cell))


def _provenance(run: Run, config: SampleConfig, n: int) -> dict[str, Any]:
    """`uns["scdiffkit"]` of the output: how the cells were drawn; their labels are in obs."""
    run_config, provenance = run.config(), run.provenance()
    T = run_config.diffusion.num_train_timesteps
    return {
        "synthetic": True,
        "run_id": provenance["run_id"],
        "arch": run_config.model.arch,
        "codec": run_config.codec.name,
        "checkpoint_step": run.best_step() or 0,
        "cells": n,
        "seed": config.seed,
        "sampler": config.sampler,
        "steps": steps_of(config, T),
        "eta": config.eta,
        "cfg_scale": config.cfg_scale,
        "batch_size": config.batch_size or "auto",
        "precision": config.precision,
        "device": config.device,
        "conditions": list(run_config.conditions),
        "target_sum": run_config.preprocess.target_sum,
        "versions": {
            "scdiffkit": scdiffkit.__version__,
            "torch": str(torch.__version__),
            "anndata": metadata.version("anndata"),
        },
    }
