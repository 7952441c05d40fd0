"""What a call of `sample` asks for: its random numbers, steps, guidance and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from scdiffkit.config import DiTConfig, SampleConfig, UNetConfig, WhiteBoxConfig
from scdiffkit.data.cells import fingerprint
from scdiffkit.errors import ConfigError
from scdiffkit.run import TrainedModel
from scdiffkit.runtime.device import accelerator_of, precision_of

BLOCK_OF_CELLS = {"cpu": 32, "gpu": 256}  # share a stream of random numbers and are decoded together: fewer is slower
BLOCK_OF_DEPTHS = 256  # where library sizes are dealt among the cells of a block
DEFAULT_STEPS = {"ddim": 50, "dpm++": 20}
MOST_AT_ONCE = 16  # batches in memory on a CPU; with more cores each has several
SLOTS_OF_GPU = 2  # what is drawn on the processor, and turned sparse, overlaps with the next batch's diffusion


@dataclass(frozen=True)
class Request:
    """What one call of `sample` asks for, as far as it decides about the cells.

    The key enters the cells' names and all random numbers, so that calls that differ give cells that are independent
    of one another and can be put together, and the same call gives the same cells.
    """

    run_id: str
    key: str  # hexadecimal

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


@dataclass(frozen=True)
class BatchRequest:
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


@dataclass(frozen=True)
class SamplingPlan:
    """How the cells of one call are drawn, the same in every process.

    config: its precision and batch_size are settled. steps: network calls a cell. guidance: the scale of all condition
    columns together, or of each. block: cells that share a stream of random numbers; batches are of whole blocks.
    """

    request: Request
    config: SampleConfig
    steps: int
    guidance: float | list[float]
    block: int

    @classmethod
    def of(cls, model: TrainedModel, codes: np.ndarray, sizes: np.ndarray | None, config: SampleConfig) -> SamplingPlan:
        """codes (n, K), sizes (n,): of the cells to draw, in the order of the composition."""
        steps = steps_of(config, model.config.diffusion.num_train_timesteps)
        guidance = guidance_of(model, config)
        scales = 1.0 if isinstance(guidance, list) and set(guidance) <= {1.0} else guidance
        sampler = config.sampler.removesuffix("++")  # as it was called when the first cells were drawn
        settings = (config.seed, sampler, steps, config.eta, scales, config.library_size)
        run_id = model.provenance["run_id"]
        parts = (run_id, str(model.best_step), repr(settings), codes, np.empty(0) if sizes is None else sizes)
        request = Request(run_id, fingerprint(*parts, str(codes.shape)))
        kind = accelerator_of(config.device)
        block = BLOCK_OF_CELLS["cpu" if kind == "cpu" else "gpu"]
        if sizes is not None and np.ptp(sizes) > 0:
            block = BLOCK_OF_DEPTHS
        batch_size = config.batch_size
        if batch_size is None:  # equal ones, so that threads and devices end together
            most = default_batch_size(model.config.model, model.codec.dim, kind)
            batch_size = math.ceil(len(codes) / math.ceil(len(codes) / most))
            batch_size = block * math.ceil(batch_size / block)
        settled = {"precision": precision_of(config.device, config.precision), "batch_size": batch_size}
        return cls(request, config.model_copy(update=settled), steps, guidance, block)

    def requests(self, codes: np.ndarray, sizes: np.ndarray | None) -> list[BatchRequest]:
        """A batch each, of cells with codes (n, K) and library sizes (n,), in the order in which they are drawn."""
        assert self.config.batch_size is not None
        step = self.block * max(1, self.config.batch_size // self.block)
        parts = [slice(start, start + step) for start in range(0, len(codes), step)]
        return [
            BatchRequest(part.start, self.block, codes[part], None if sizes is None else sizes[part]) for part in parts
        ]


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


def guidance_of(model: TrainedModel, config: SampleConfig) -> float | list[float]:
    """The guidance scale of all columns together, or of each of the K columns.

    Raises ConfigError for a run that cannot be guided, DataError for a column that it does not have.
    """
    scales = config.cfg_scale if isinstance(config.cfg_scale, dict) else {"": config.cfg_scale}
    guided = any(scale != 1 for scale in scales.values())
    if guided and not (model.config.conditions and model.config.train.condition_dropout):
        raise ConfigError(
            "--cfg-scale needs a run with conditions (--label) that was trained with train.condition_dropout > 0, "
            "because guidance compares predictions with and without the condition. Leave it out."
        )
    if not isinstance(config.cfg_scale, dict):
        return config.cfg_scale
    for column in scales:
        model.conditions.check_column(column)
    return [scales.get(column, 1.0) for column in model.conditions.columns]


def batches_at_once(batches: int) -> tuple[int, int]:
    """How many batches to draw at once on a CPU, and with how many threads each.

    One thread a batch, where there are batches enough, is up to twice as fast as all threads for each batch in turn,
    which wait for one another. The numbers do not depend on the number of processes: sums differ in their last bits
    with the number of threads.
    """
    cores = torch.get_num_threads()
    at_once = min(batches, cores, MOST_AT_ONCE)
    return at_once, cores // at_once


def default_batch_size(model: DiTConfig | WhiteBoxConfig | UNetConfig, dim: int, accelerator: str) -> int:
    """Cells at once so that a layer's activations stay within a fixed share of memory."""
    width = model.channels if isinstance(model, UNetConfig) else model.hidden_size
    floats_a_cell = 8 * width * math.ceil(dim / model.patch_size)
    budget = 2**21 if accelerator == "cpu" else 2**28
    return max(8, min(4096, budget // floats_a_cell))
