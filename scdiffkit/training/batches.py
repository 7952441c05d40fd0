"""The batches of training: encoded cells, conditions, timesteps and noise, prefetched by a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from scdiffkit.config import RunConfig
from scdiffkit.data.cells import rows_of_step
from scdiffkit.diffusion.denoiser import Denoiser, drop_conditions
from scdiffkit.training.distributed import ProcessGroup
from scdiffkit.training.encoded import EncodedCells
from scdiffkit.training.step import Batch


def batches(
    steps: Iterable[int], vectors: EncodedCells, denoiser: Denoiser, run_config: RunConfig, group: ProcessGroup
) -> Iterator[tuple[int, Batch]]:
    """Yield each step with its batch. torch gets one thread here, so that there are no more threads than cores."""
    torch.set_num_threads(1)
    for step in steps:
        yield step, one_batch(step, vectors, denoiser, run_config, group)


@contextlib.contextmanager
def torch_threads_restored() -> Iterator[None]:
    """Restore torch's number of threads for new threads after the block, in which `batches` sets it to 1."""
    try:
        yield
    finally:
        torch.set_num_threads(torch.get_num_threads())


def one_batch(
    step: int, vectors: EncodedCells, denoiser: Denoiser, run_config: RunConfig, group: ProcessGroup
) -> Batch:
    """Return x0 (b, D), conditions (b, K), t (b,) and eps (b, D) of this process's share of a step's batch.

    All random numbers depend only on (seed, step) and the whole batch. A resumed run therefore equals an uninterrupted
    one, and training in several processes equals training in one.
    """
    c, device = run_config.train, group.fabric.device
    generator = torch.Generator(device=device)
    generator.manual_seed(_seed(run_config.seed, step))
    places = rows_of_step(step - 1, c.batch_size, len(vectors), run_config.seed)
    mine = slice(group.rank, None, group.size)
    x0, codes = vectors.batch(places, mine, generator)
    t = torch.randint(denoiser.schedule.num_train_timesteps, (len(places),), generator=generator, device=device)
    eps = torch.randn((len(places), x0.shape[1]), generator=generator, device=device)
    conditions = drop_conditions(codes, c.condition_dropout, generator)
    return x0, conditions[mine], t[mine], eps[mine]


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)
