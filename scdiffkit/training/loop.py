"""The diffusion training loop: it trains a new or resumed run to its last checkpoint, in one process or several."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable

import torch

from scdiffkit.config import TrainConfig
from scdiffkit.errors import RunError, ScdiffError
from scdiffkit.run import Run, TrainedModel
from scdiffkit.runtime.prefetch import prefetch
from scdiffkit.runtime.signals import deferred_interrupts
from scdiffkit.training.batches import batches, torch_threads_restored
from scdiffkit.training.distributed import READY, ProcessGroup, failing_together, init_process_group, shutdown
from scdiffkit.training.encoded import EncodedCells, is_cached, open_written
from scdiffkit.training.state import TrainState
from scdiffkit.training.status import Best, LossMeter, Stopper, TrainStatus
from scdiffkit.training.step import TrainStep, clip, compile_in_place, pays_to_compile
from scdiffkit.training.validation import Validation

log = logging.getLogger("scdiffkit")
GPU_SYNC_EVERY = 20  # steps between synchronisations of GPU processes at most; more often would slow them down


def fit(
    run: Run,
    group: ProcessGroup,
    vectors: EncodedCells,
    validation: Validation | None = None,
    *,
    started: float | None = None,
    max_time: float | None = None,
    on_progress: Callable[[TrainStatus], None] | None = None,
) -> bool:
    """Train the run's denoiser from its newest checkpoint. Every process of the group calls this.

    Rank 0 alone computes the held-out loss, logs, saves checkpoints and decides when to stop: `max_time` seconds after
    `started`, on Ctrl-C or SIGTERM, or when the held-out loss stops improving. Returns whether training is finished;
    other ranks return False. Raises RunError if weights are no longer finite or another process is lost.

    The function is long because it keeps the hot path and the maintenance after each step in order, in one place.
    """
    torch.manual_seed(run.config().seed)  # also for the codec's network, which `load` initialises first
    trained = run.load()
    c, fabric = trained.config.train, group.fabric
    started = time.monotonic() if started is None else started
    max_steps = steps_planned(c, len(vectors))
    state, train_step, first = _set_up(run, trained, group, max_steps)
    denoiser = state.denoiser
    n_ahead = 2 if fabric.device.type == "cuda" else 1  # a GPU computes one batch while the next is launched
    steps = prefetch(batches(range(first + 1, max_steps + 1), vectors, denoiser, trained.config, group), n_ahead)
    watched = validation or None  # None if there are no held-out cells
    best, meter = Best(run, first), LossMeter(fabric.device, started)
    last_save, val_loss = time.monotonic(), None
    deadline = math.inf if max_time is None else started + max_time

    with deferred_interrupts() as interrupted, torch_threads_restored(), contextlib.closing(steps), failing_together():
        stopper = Stopper(c, max_steps, deadline, interrupted, validated=watched is not None)
        for step, batch in steps:
            state.set_learning_rate(step, max_steps)
            meter.add(train_step(batch))
            if c.grad_clip is not None:
                clip(denoiser, c.grad_clip)
            state.optimizer.step()
            state.average(step)
            at_set_step = step % c.val_every_steps == 0 or step == max_steps
            by_step = bool(c.checkpoint_every_steps) and step % (c.checkpoint_every_steps or 1) == 0
            # The ranks synchronise at these steps, where rank 0 may validate and save.
            meet = at_set_step or by_step or _synchronises(step, group)
            if not group.is_main:
                if meet and group.any_stop(False):
                    return False
                continue

            # Validation is at set steps only: an interrupt must not decide which weights are the best.
            stop = stopper.ends(step) and meet
            validated, improved = validation is not None and bool(validation) and at_set_step, False
            if validated and validation is not None:
                val_loss = round(
                    train_step.without_graph_on_oom(lambda: validation(state.trained)), 6
                )  # rounded as it is logged
                improved = best.improved(step, val_loss)
            stop = stop or (meet and stopper.converged(step, best))
            # Status
            to_log = step % c.val_every_steps == 0 or stop
            if to_log or time.monotonic() - meter.last > 1:
                status = meter.status(step, max_steps, val_loss, c.batch_size)
                if on_progress:
                    on_progress(status)
                if to_log:
                    run.log_metrics(**status.figures())
            # Checkpoint
            minutes = (time.monotonic() - last_save) / 60
            by_time = meet and minutes >= (c.checkpoint_every_minutes or math.inf)
            if stop or improved or by_step or by_time:
                state.save(run, step, val_loss if validated else None)
                last_save = time.monotonic()
            # End
            if meet:
                group.any_stop(stop)
            if stop and interrupted.is_set():
                log.warning("interrupted at step %d: saved in %s", step, run.path)
                log.warning("continue with: scdiff train DATA --resume --out %s", shlex.quote(str(run.path)))
                raise KeyboardInterrupt
            if stop and step < max_steps:
                log.info("%s: stopped at step %d of %d and saved", stopper.reason(best), step, max_steps)
                break
    if group.is_main and best.loss is not None:
        log.info("lowest held-out loss %.4f at step %d: samples are drawn from this checkpoint", best.loss, best.step)
    return not stopper.out_of_time


def _set_up(run: Run, trained: TrainedModel, group: ProcessGroup, max_steps: int) -> tuple[TrainState, TrainStep, int]:
    """Return the state (of the newest checkpoint, if any), the training step, and the number of steps already done."""
    c, fabric = trained.config.train, group.fabric
    denoiser = trained.new_denoiser()
    state = TrainState(denoiser, c, average=group.is_main)
    compile_by_default = c.compile is None and group.size == 1  # several processes could decide differently
    steps_left = max_steps - (run.steps() or [0])[-1]
    compile_by_default = compile_by_default and pays_to_compile(denoiser.network, fabric.device, steps_left)
    compiled = compile_in_place(denoiser) if c.compile or compile_by_default else []
    with failing_together():
        model, state.optimizer = fabric.setup(denoiser, state.optimizer)
    state.to(fabric.device)
    if group.is_main:
        n_parameters = sum(p.numel() for p in denoiser.parameters())
        log.info("%s: %d trainable parameters, D = %d", trained.config.model.arch, n_parameters, trained.codec.dim)
    first = _resume(run, state, max_steps, is_main=group.is_main)
    may_fail = compiled if compile_by_default else ()
    return state, TrainStep(fabric, group.size, model, state.optimizer, c.batch_size, may_fail), first


def _resume(run: Run, state: TrainState, max_steps: int, *, is_main: bool) -> int:
    """Load the newest checkpoint, if any, return its step, and drop the metrics that were logged after it."""
    first = state.restore(run) if run.steps() else 0
    if is_main and (first or run.metrics()):  # metrics without a checkpoint: the run was killed early
        run.forget_metrics_after(first)
        if first:
            log.info("resumed at step %d of %d", first, max_steps)
    return first


def _synchronises(step: int, group: ProcessGroup) -> bool:
    return group.size == 1 or group.fabric.device.type == "cpu" or step % GPU_SYNC_EVERY == 0


def steps_planned(c: TrainConfig, cells: int) -> int:
    """Return the number of steps of a complete training on `cells` cells."""
    return c.max_steps or math.ceil((c.max_epochs or 1) * cells / c.batch_size)


def run_rank(group: ProcessGroup) -> Run:
    """Train in a rank other than 0, after rank 0 has prepared the run."""
    path, complete = group.broadcast(None)
    run = Run(path)
    if complete:
        return run
    if not is_cached(run.vectors):
        raise RunError(
            f"This machine cannot access the run {run.path}: training on several machines needs a shared folder. "
            "Name one with --out."
        )
    fit(run, group, open_written(run.codec(), run.vectors, group.fabric.device))
    return run


if __name__ == "__main__":  # a rank started by rank 0; arguments: device, precision, number of devices
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    os.dup2(2, 1)  # nobody reads stdout after READY
    try:
        run_rank(init_process_group(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except ScdiffError as e:
        sys.exit(f"process {os.environ['RANK']}: {e.text}")
    finally:
        shutdown()
