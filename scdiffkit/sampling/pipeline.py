"""The sampling pipeline: a run in, labelled cells out."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import warnings
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from anndata import AnnData
from scipy import sparse
from torch import Tensor, nn

from scdiffkit.codecs import CountCodec
from scdiffkit.config import DiTConfig, SampleConfig, UNetConfig, WhiteBoxConfig
from scdiffkit.data.cells import LIBRARY_SIZE, Conditions, fingerprint
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.diffusion.samplers import ddim, ddpm, dpm
from scdiffkit.errors import ConfigError, DataError, RunError, ScdiffWarning
from scdiffkit.io import Backed, CellWriter, Rows, blocks, check_output, interruption, open_rows
from scdiffkit.preprocessing.counts import counts_of
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.run import Run
from scdiffkit.runtime.device import accelerator_of, devices_of, is_out_of_memory, make_fabric, precision_of
from scdiffkit.runtime.versions import OF_CELLS, versions
from scdiffkit.sampling.pool import Member, Process, Threads, in_order

DEFAULT_CELLS = 1000
SAMPLERS = {"ddim": "DDIM", "dpm": "DPM-Solver++(2M)", "ddpm": "DDPM"}
DEFAULT_STEPS = {"ddim": 50, "dpm": 20}
BLOCK_OF_CELLS = {"cpu": 32, "gpu": 256}  # share a stream of random numbers and are decoded together: fewer is slower
BLOCK_OF_DEPTHS = 256  # where library sizes are dealt among the cells of a block
MOST_AT_ONCE = 16  # batches in memory on a CPU; with more cores each has several
SLOTS_OF_GPU = 2  # what is drawn on the processor, and turned sparse, overlaps with the next batch's diffusion
FAR_DEEPER = 10  # times the deepest training cell: a library size beyond that is asked of the model with a warning
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
    _guidance(run, conditions, config)
    if config.library_size != "like" and not codec.takes_library_size:
        raise ConfigError(
            f"--library-size {config.library_size}: the {codec.name} codec reads each cell's library size off the "
            "values drawn and cannot honour another. Leave it out, or train a run with --codec count."
        )
    if isinstance(like, str | Path):
        like = open_rows(like)
    codes = _composition(conditions, n, where, like, depth_too=codec.takes_library_size)
    sizes = None
    if codec.takes_library_size:
        sizes = _library_sizes(codec, run.genes(), conditions, codes, like, config)
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
        interrupted = stack.enter_context(interruption())
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


@dataclass(frozen=True)
class Request:
    """What one call of `sample` asks for, as far as it decides about the cells.

    The key enters the cells' names and all random numbers, so that calls that differ give cells that are independent
    of one another and can be put together, and the same call gives the same cells.
    """

    run_id: str
    key: str  # hexadecimal

    @classmethod
    def of(cls, run: Run, codes: np.ndarray, sizes: np.ndarray | None, config: SampleConfig) -> Request:
        """codes (n, K), sizes (n,): of the cells to draw, in the order of the composition."""
        run_id = run.provenance()["run_id"]
        steps = steps_of(config, run.config().diffusion.num_train_timesteps)
        guidance = _guidance(run, Conditions.from_dict(run.conditions()), config)
        if isinstance(guidance, list) and set(guidance) <= {1.0}:
            guidance = 1.0
        settings = (config.seed, config.sampler, steps, config.eta, guidance, config.library_size)
        parts = (run_id, str(run.best_step()), repr(settings), codes, np.empty(0) if sizes is None else sizes)
        return cls(run_id, fingerprint(*parts, str(codes.shape)))

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([*self._words(), 0])

    def seed_of_block(self, number: int) -> int:
        """Of the random numbers of one block of cells."""
        words = np.random.SeedSequence([*self._words(), 1, number]).generate_state(1, np.uint64)
        return int(words[0] >> 1)

    def names(self, start: int, n: int) -> pd.Index:
        """Of n cells, of which the first is number `start`."""
        return pd.Index([f"{self.run_id[:6]}-{self.key[:8]}-{i}" for i in range(start, start + n)])

    def _words(self) -> tuple[int, int]:
        return int(self.key[:8], 16), int(self.key[8:], 16)


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
    return config.steps or min(DEFAULT_STEPS[config.sampler], num_train_timesteps)


def _composition(
    conditions: Conditions,
    n: int | None,
    where: Mapping[str, str | Sequence[str]] | None,
    like: AnnData | Backed | None,
    depth_too: bool,
) -> np.ndarray:
    """Codes (n, K) of the cells to draw; depth_too: whether `like` tells more than the composition."""
    if n is not None and n < 1:
        raise ConfigError(f"The number of cells must be at least 1, not {n}.")
    if like is not None:
        if where:
            raise ConfigError("Give --where or --like, not both: --like copies the whole composition.")
        if not (conditions.columns or depth_too):
            raise DataError("The run has no conditions, so there is no composition to copy; give -n instead of --like.")
        return conditions.composition_of(like.obs, n)
    wanted = {
        column: [str(v) for v in ([values] if isinstance(values, str) or np.ndim(values) == 0 else values)]
        for column, values in (where or {}).items()
    }
    return conditions.compose(n or DEFAULT_CELLS, wanted)


def _guidance(run: Run, conditions: Conditions, config: SampleConfig) -> float | list[float]:
    """The guidance scale of all columns together, or of each of the K columns."""
    scales = config.cfg_scale if isinstance(config.cfg_scale, dict) else {"": config.cfg_scale}
    guided = any(scale != 1 for scale in scales.values())
    if guided and not (run.config().conditions and run.config().train.condition_dropout):
        raise ConfigError(
            "--cfg-scale needs a run with conditions (--label) that training hid at times "
            "(train.condition_dropout > 0): guidance goes from the unknown condition to the given one. Leave it out."
        )
    if not isinstance(config.cfg_scale, dict):
        return config.cfg_scale
    for column in scales:
        conditions.check_column(column)
    return [scales.get(column, 1.0) for column in conditions.columns]


def _library_sizes(
    codec: Any,
    genes: list[str],
    conditions: Conditions,
    codes: np.ndarray,
    like: AnnData | Backed | None,
    config: SampleConfig,
) -> np.ndarray | None:
    """The library size (n,) at which each cell of codes (n, K) is decoded; None: as the model draws it."""
    median, largest = codec.library_sizes()
    if config.library_size == "like":
        depths = None if like is None else _depths(like, genes)
        if like is None or depths is None:
            return None
        sizes = _dealt(depths, conditions.encode(like.obs), codes, config.seed)
    else:
        sizes = np.full(len(codes), median if config.library_size == "median" else config.library_size, np.float32)
    if sizes.max() > FAR_DEEPER * largest:
        warnings.warn(
            f"A library size of {sizes.max():.0f} is more than {FAR_DEEPER} times that of the deepest training cell "
            f"({largest:.0f}): the model extrapolates.",
            ScdiffWarning,
            stacklevel=3,
        )
    return sizes


def _depths(cells: AnnData | Backed, genes: list[str]) -> np.ndarray | None:
    """Library sizes (m,) of cells over the run's genes; None, with a ScdiffWarning, where they have no raw counts."""
    if "scdiffkit" in cells.uns and LIBRARY_SIZE in cells.obs:  # over all genes, also where few were kept
        depths = pd.to_numeric(cells.obs[LIBRARY_SIZE], errors="coerce").to_numpy(dtype=np.float32)
    else:
        try:
            counts, place = counts_of(cells)
            if isinstance(cells, Backed):
                names = cells.var_of(place).index
            else:
                names = cells.raw.var_names if place == "raw" else cells.var_names
            there = names.isin(genes)
            depths = _sums(counts, there)
        except DataError as e:
            warnings.warn(
                f"The cells of --like tell no library sizes, so only their composition is copied. {e}",
                ScdiffWarning,
                stacklevel=4,
            )
            return None
        if there.sum() < len(genes):
            warnings.warn(
                f"The cells of --like have {there.sum()} of the run's {len(genes)} genes: the library sizes copied are "
                "sums over these alone. --library-size median or like, without --like, gives whole ones.",
                ScdiffWarning,
                stacklevel=4,
            )
    if not (depths > 0).all():  # NaN included
        raise DataError(
            f"{int((~(depths > 0)).sum())} cells of --like have no counts, so there is no library size to copy: drop "
            "them, or give --library-size median."
        )
    return depths


def _sums(counts: Rows, there: np.ndarray) -> np.ndarray:
    """Sums (m,) of each cell's counts over the genes that are `there`, (genes,) bool; from a file a block at a time."""
    sums = np.empty(counts.shape[0], dtype=np.float32)
    for part, block in blocks(counts):
        sums[part] = block @ there.astype(np.float64)
    return sums


def _dealt(depths: np.ndarray, of_cells: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Depths (m,) of cells with codes of_cells (m, K), each to a row of codes (n, K) with the same codes -> (n,).

    As many rows as cells with some codes: each depth once. More or fewer: as equally often as can be, which ones
    by chance.
    """
    rng = np.random.default_rng([seed, 0, 1])
    sizes = np.empty(len(codes), dtype=np.float32)
    for combination in np.unique(codes, axis=0):
        rows = (codes == combination).all(axis=1)
        sizes[rows] = np.resize(rng.permutation(depths[(of_cells == combination).all(axis=1)]), rows.sum())
    return sizes


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
        batch_size = math.ceil(len(codes) / math.ceil(len(codes) / _batch_size(run_config.model, dim, kind)))
        batch_size = block * math.ceil(batch_size / block)
    starts = range(0, len(codes), block * max(1, batch_size // block))
    jobs = (
        Job(
            start,
            block,
            codes[start : start + starts.step],
            None if sizes is None else sizes[start : start + starts.step],
        )
        for start in starts
    )
    slots, threads = SLOTS_OF_GPU, None
    if kind == "cpu":
        at_once, threads = _at_once(len(starts))
        slots = math.ceil(at_once / len(devices))
    # Measured once, here: processes that differ would draw other cells.
    config = config.model_copy(
        update={"precision": precision_of(config.device, config.precision), "batch_size": batch_size}
    )
    with contextlib.ExitStack() as stack:
        members: list[Member] = []
        if len(devices) == 1:
            drawer = _Drawer(run, request, config, devices[0])
            members = [Threads(drawer, slots, threads, drawer.network.stopped.set)]
            stack.callback(members[0].close)
        else:
            log.info("%d worker processes, each on %s", len(devices), "its own GPU" if kind == "cuda" else "the CPU")
            for k, device in enumerate(devices[: len(starts)], start=1):
                name = f"Worker process {k} of {len(devices)}"
                members.append(Process(name, _Drawer, (run, request, config, device), slots, threads))
                stack.callback(members[-1].close)
        yield from in_order(members, jobs, interrupted)


@dataclass(frozen=True)
class Job:
    """Cells to draw together: codes (B, K), and library sizes (B,) unless the model draws them.

    start: number of the first cell, among all; block: cells in a block.
    """

    start: int
    block: int
    codes: np.ndarray
    sizes: np.ndarray | None

    @property
    def blocks(self) -> list[tuple[int, slice]]:
        """Number and cells of each block."""
        return [
            ((self.start + at) // self.block, slice(at, at + self.block))
            for at in range(0, len(self.codes), self.block)
        ]


class _Drawer:
    """Draws batches of a run's cells on one device, from several threads."""

    def __init__(self, run: Run, request: Request, config: SampleConfig, device: str) -> None:
        self.request, self.config = request, config
        self.fabric = make_fabric(device, config.precision)
        self.denoiser, self.codec = run.denoiser().to(self.fabric.device), run.codec()
        self.network = self.denoiser.network = _Network(self.denoiser.network, config.batch_size)
        self.conditions = Conditions.from_dict(run.conditions())
        self.guidance = _guidance(run, self.conditions, config)
        self.steps = steps_of(config, self.denoiser.schedule.num_train_timesteps)

    def __call__(self, job: Job) -> Batch:
        try:
            with torch.inference_mode(), self.fabric.autocast():
                raw, size = self._drawn(job)
            X = lognormalise(raw, self.codec.target_sum, size)
        except (MemoryError, RuntimeError) as e:
            if not is_out_of_memory(e):
                raise
            fewer = " or fewer --devices" if self.config.devices > 1 else ""
            raise RunError(
                f"Memory does not hold a batch of {len(job.codes)} cells: give a --batch-size below that{fewer}."
            ) from e
        obs = self.conditions.decode(job.codes)
        obs[LIBRARY_SIZE] = size
        obs.index = self.request.names(job.start, len(job.codes))
        return Batch(X, raw.astype(np.int32), obs)

    def _drawn(self, job: Job) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Raw counts (B, G) and library sizes (B,)."""
        device = self.fabric.device
        generators = [torch.Generator(device).manual_seed(self.request.seed_of_block(i)) for i, _ in job.blocks]
        codes = torch.from_numpy(job.codes).to(device)

        def noise(x: Tensor) -> Tensor:
            parts = [
                torch.randn(part.shape, generator=generator, device=device, dtype=x.dtype)
                for part, generator in zip(x.split(job.block), generators, strict=True)
            ]
            return torch.cat(parts)

        x0 = _diffuse(self.denoiser, codes, self.codec.dim, self.config, self.guidance, self.steps, noise)
        parts, sizes = [], []
        for generator, (_, cells) in zip(generators, job.blocks, strict=True):
            size = None if job.sizes is None else torch.from_numpy(job.sizes[cells]).to(device)
            if size is not None and isinstance(self.codec, CountCodec):
                size = _in_order_of(size, self.codec.library_size(x0[cells]), codes[cells])
            counts, library_size = self.codec.decode(x0[cells], codes[cells], size, generator)
            parts.append(_csr(counts.cpu()))
            sizes.append(library_size.cpu().numpy())
        return sparse.vstack(parts, format="csr"), np.concatenate(sizes)


class _Network(nn.Module):
    """A network as sampling calls it: at most so many cells at once, fewer where memory does not hold them, and no
    longer once stopped."""

    def __init__(self, network: nn.Module, most: int | None = None) -> None:
        super().__init__()
        self.network = network
        self.most = most
        self.stopped = threading.Event()

    def forward(self, x_t: Tensor, t: Tensor, conditions: Tensor | None = None) -> Tensor:
        while True:
            if self.stopped.is_set():
                raise CancelledError
            most = min(self.most or len(x_t), len(x_t))
            parts = (a.split(most) for a in (x_t, t, *(() if conditions is None else (conditions,))))
            try:
                return torch.cat([self.network(*part) for part in zip(*parts, strict=True)])
            except torch.OutOfMemoryError:
                if most == 1:
                    raise
            # The noise was drawn for the whole batch, so that the cells are the same.
            self.most = most // 2
            log.info("memory does not hold %d cells at once: the network goes over %d at a time", most, self.most)
            if x_t.is_cuda:
                torch.cuda.empty_cache()


def _at_once(batches: int) -> tuple[int, int]:
    """How many batches to draw at once on a CPU, and with how many threads each.

    One thread a batch, where there are batches enough, is up to twice as fast as all threads for each batch in turn,
    which wait for one another. The numbers do not depend on the number of processes: sums differ in their last bits
    with the number of threads.
    """
    cores = torch.get_num_threads()
    at_once = min(batches, cores, MOST_AT_ONCE)
    return at_once, cores // at_once


def _csr(counts: torch.Tensor) -> sparse.csr_matrix:
    """Dense counts (B, G) on the CPU as CSR; torch finds what is not zero several times as fast as scipy."""
    row, column = counts.nonzero(as_tuple=True)
    starts = F.pad(torch.bincount(row, minlength=len(counts)).cumsum(0), (1, 0))
    arrays = (counts[row, column], column.to(torch.int32), starts.to(torch.int32))
    return sparse.csr_matrix(tuple(a.numpy() for a in arrays), shape=counts.shape)


def _in_order_of(sizes: torch.Tensor, drawn: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Library sizes (B,) dealt anew among cells with the same codes (B, K): the deepest to the deepest as drawn (B,).

    What a cell holds goes with its depth: a small cell given a large one's depth would be no real cell.
    """
    _, combination = torch.unique(F.pad(codes, (0, 1)), dim=0, return_inverse=True)  # torch refuses K = 0
    by_size, by_drawn = (_sorted_within(values, combination) for values in (sizes, drawn))
    return torch.empty_like(sizes).index_copy_(0, by_drawn, sizes[by_size])


def _sorted_within(values: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
    """Places of values (B,) in order of their group (B,), and within a group of their size."""
    by_value = values.argsort(stable=True)
    return by_value[group[by_value].argsort(stable=True)]


def _diffuse(
    denoiser: Denoiser,
    codes: torch.Tensor,
    dim: int,
    config: SampleConfig,
    guidance: float | list[float],
    steps: int,
    noise: Callable[[Tensor], Tensor],
) -> torch.Tensor:
    """x0 (B, D) for codes (B, K), from fresh noise."""
    x = noise(torch.empty(len(codes), dim, device=codes.device))
    conditions = codes if codes.shape[1] else None
    if config.sampler == "ddpm":
        path = ddpm(denoiser, x, conditions=conditions, cfg_scale=guidance, noise=noise)
    elif config.sampler == "dpm":
        timesteps = denoiser.schedule.timesteps(steps, "trailing")
        path = dpm(denoiser, x, timesteps, conditions=conditions, cfg_scale=guidance)
    else:
        path = ddim(
            denoiser, x, denoiser.schedule.timesteps(steps),
            conditions=conditions, eta=config.eta, cfg_scale=guidance, noise=noise,
        )  # fmt: skip
    for _, x in path:  # noqa: B007
        pass
    return x


def _batch_size(model: DiTConfig | WhiteBoxConfig | UNetConfig, dim: int, accelerator: str) -> int:
    """Cells at once so that a layer's activations stay within a fixed share of memory."""
    width = model.channels if isinstance(model, UNetConfig) else model.hidden_size
    floats_a_cell = 8 * width * math.ceil(dim / model.patch_size)
    budget = 2**21 if accelerator == "cpu" else 2**28
    return max(8, min(4096, budget // floats_a_cell))


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
