"""The plan of a call of `sample`: random numbers, steps, guidance and batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from scdiffkit.config import ModelConfig, SampleConfig
from scdiffkit.data.cells import fingerprint
from scdiffkit.errors import ConfigError
from scdiffkit.run import TrainedModel
from scdiffkit.runtime.device import accelerator_of, precision_of

BLOCK_OF_CELLS = {"cpu": 32, "gpu": 256}  # cells that share a random stream and are decoded together; smaller is slower
LIBRARY_SIZE_BLOCK = 256  # block size if given library sizes are assigned within a block
DEFAULT_STEPS = {"ddim": 50, "dpm++": 20}
MOST_AT_ONCE = 16  # batches in memory on a CPU; with more cores, each batch uses several threads
SLOTS_OF_GPU = 2  # overlaps sparse conversion on the CPU with the next batch's diffusion


@dataclass(frozen=True)
class Request:
    """The identity of a call of `sample`: a hash (`key`) of everything that determines the cells.

    The key enters the names of the cells and all random numbers. Equal calls therefore give equal cells, and different
    calls give independent cells with distinct names, which can be concatenated.
    """

    run_id: str
    key: str  # hexadecimal

    def rng(self) -> np.random.Generator:
        return np.random.default_rng([*self._words(), 0])

    def seed_of_block(self, number: int) -> int:
        """Return the seed of the random numbers of block `number`."""
        words = np.random.SeedSequence([*self._words(), 1, number]).generate_state(1, np.uint64)
        return int(words[0] >> 1)

    def names(self, start: int, n: int) -> pd.Index:
        """Return the names of n cells, the first of which has number `start`."""
        return pd.Index([f"{self.run_id[:6]}-{self.key[:8]}-{i}" for i in range(start, start + n)])

    def _words(self) -> tuple[int, int]:
        return int(self.key[:8], 16), int(self.key[8:], 16)


@dataclass(frozen=True)
class BatchRequest:
    """A batch of cells to draw: codes (B, K), and library sizes (B,) unless the model draws them.

    `start` is the number of the first cell among all cells of the call, `block` the number of cells per block.
    """

    start: int
    block: int
    codes: np.ndarray
    sizes: np.ndarray | None

    @property
    def blocks(self) -> list[tuple[int, slice]]:
        """Return the number of each block and the slice of its cells."""
        return [
            ((self.start + at) // self.block, slice(at, at + self.block))
            for at in range(0, len(self.codes), self.block)
        ]


@dataclass(frozen=True)
class SamplingPlan:
    """How to draw the cells of one call, identical in every process.

    `config` has its precision and batch_size resolved. `steps` is the number of network calls per cell. `guidance` is
    one scale for all condition columns together, or one for each. `block` is the number of cells that share a stream
    of random numbers; batches consist of whole blocks.
    """

    request: Request
    config: SampleConfig
    steps: int
    guidance: float | list[float]
    block: int

    @classmethod
    def of(cls, model: TrainedModel, codes: np.ndarray, sizes: np.ndarray | None, config: SampleConfig) -> SamplingPlan:
        """Make the plan. `codes` (n, K) and `sizes` (n,) are of the cells to draw, in the order of the composition."""
        steps = steps_of(config, model.config.diffusion.num_train_timesteps)
        guidance = guidance_of(model, config)
        scales = 1.0 if isinstance(guidance, list) and set(guidance) <= {1.0} else guidance
        sampler = config.sampler.removesuffix("++")  # the name in older versions, so that the same calls keep their key
        settings = (config.seed, sampler, steps, config.eta, scales, config.library_size)
        run_id = model.provenance["run_id"]
        parts = (run_id, str(model.best_step), repr(settings), codes, np.empty(0) if sizes is None else sizes)
        request = Request(run_id, fingerprint(*parts, str(codes.shape)))
        kind = accelerator_of(config.device)
        block = BLOCK_OF_CELLS["cpu" if kind == "cpu" else "gpu"]
        if sizes is not None and np.ptp(sizes) > 0:
            block = LIBRARY_SIZE_BLOCK
        batch_size = config.batch_size
        if batch_size is None:  # equal batches, so that threads and devices finish together
            most = default_batch_size(model.config.model, model.codec.dim, kind)
            batch_size = math.ceil(len(codes) / math.ceil(len(codes) / most))
            batch_size = block * math.ceil(batch_size / block)
        settled = {"precision": precision_of(config.device, config.precision), "batch_size": batch_size}
        return cls(request, config.model_copy(update=settled), steps, guidance, block)

    def requests(self, codes: np.ndarray, sizes: np.ndarray | None) -> list[BatchRequest]:
        """Split cells, in the order of drawing, into batches. `codes` (n, K) and `sizes` (n,) are theirs."""
        assert self.config.batch_size is not None
        step = self.block * max(1, self.config.batch_size // self.block)
        parts = [slice(start, start + step) for start in range(0, len(codes), step)]
        return [
            BatchRequest(part.start, self.block, codes[part], None if sizes is None else sizes[part]) for part in parts
        ]


def steps_of(config: SampleConfig, num_train_timesteps: int) -> int:
    """Return the number of network calls per cell for a run with T = `num_train_timesteps`."""
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
    """Return the guidance scale of all columns together, or of each of the K columns.

    Raises ConfigError if the run does not support guidance, and DataError for a column that the run does not have.
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
    """Return how many batches to draw at the same time on a CPU, and the number of threads of each.

    With enough batches, one thread per batch is up to twice as fast as all threads on one batch after another, because
    threads wait for one another. The result must not depend on the number of processes: the last bits of sums depend
    on the number of threads.
    """
    cores = torch.get_num_threads()
    at_once = min(batches, cores, MOST_AT_ONCE)
    return at_once, cores // at_once


def default_batch_size(model: ModelConfig, dim: int, accelerator: str) -> int:
    """Return the batch size at which the activations of a layer stay within a fixed amount of memory."""
    budget = 2**21 if accelerator == "cpu" else 2**28
    return max(8, min(4096, budget // (8 * model.layer_size(dim))))
