"""The batches of training: cells, noise and steps of diffusion, made ahead of their use."""

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
    """Each step with its batch, made by one thread alone: more than there are cores would all wait asleep."""
    torch.set_num_threads(1)
    for step in steps:
        yield step, one_batch(step, vectors, denoiser, run_config, group)


@contextlib.contextmanager
def threads_for_all() -> Iterator[None]:
    """After the block, threads to come have as many of torch's as this one has, whatever others were told within."""
    try:
        yield
    finally:
        torch.set_num_threads(torch.get_num_threads())


def one_batch(
    step: int, vectors: EncodedCells, denoiser: Denoiser, run_config: RunConfig, group: ProcessGroup
) -> Batch:
    """x0 (b, D), conditions (b, K), t (b,) and eps (b, D) of this process's cells of a step.

    Every random number follows from (seed, step) and the whole batch: a resumed run repeats an uninterrupted one, and
    several processes train as one.
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
