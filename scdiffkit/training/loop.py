"""The training loop of diffusion: from a run as it was made to its last checkpoint, in one process or several."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from scdiffkit.config import TrainConfig
from scdiffkit.errors import RunError, ScdiffError
from scdiffkit.run import Run
from scdiffkit.runtime.prefetch import prefetch
from scdiffkit.runtime.signals import deferred_interrupts
from scdiffkit.training.batches import batches, threads_for_all
from scdiffkit.training.distributed import READY, ProcessGroup, failing_together, init_process_group, shutdown
from scdiffkit.training.encoded import EncodedCells, is_cached, open_written
from scdiffkit.training.state import learning_rate, optimizer_of, restore_state, save_state
from scdiffkit.training.status import TrainStatus
from scdiffkit.training.step import TrainStep, clip, compile_in_place, pays_to_compile
from scdiffkit.training.validation import Validation

log = logging.getLogger("scdiffkit")
MEET_SELDOM = 20  # steps after which processes on GPUs wait for one another at least: it holds them up


def fit(
    run: Run,
    group: ProcessGroup,
    vectors: EncodedCells,
    validation: Validation | None = None,
    *,
    started: float | None = None,
    max_time: float | None = None,
    on_status: Callable[[TrainStatus], None] | None = None,
) -> bool:
    """Train the run's denoiser from its newest checkpoint on, in every process of the group alike; whether to its end.

    What follows is of the first process alone: the held-out loss, what is said and saved, and when to stop (max_time
    seconds after `started`, on Ctrl-C or SIGTERM, or where the held-out loss falls no longer).
    Raises RunError when weights are no longer finite, or when another process is lost.
    """
    torch.manual_seed(run.config().seed)  # the codec's network is the first to be initialised from it
    trained = run.load()
    run_config = trained.config
    c, fabric = run_config.train, group.fabric
    started = time.monotonic() if started is None else started
    denoiser = trained.new_denoiser()
    ema = copy.deepcopy(denoiser).requires_grad_(False).eval() if c.ema_decay and group.is_main else None
    optimizer = optimizer_of(denoiser, c)
    max_steps, first = steps_planned(c, len(vectors)), 0
    compile_by_default = c.compile is None and group.size == 1  # machines could decide otherwise, each for itself
    compile_by_default = compile_by_default and pays_to_compile(
        denoiser.network, fabric.device, max_steps - (run.steps() or [0])[-1]
    )
    compiled = compile_in_place(denoiser) if c.compile or compile_by_default else []
    with failing_together():
        model, optimizer = fabric.setup(denoiser, optimizer)
    if ema:
        ema.to(fabric.device)
    weights = [p.detach() for p in denoiser.parameters()]  # share memory with the parameters
    averages: list[Tensor] = list(ema.parameters()) if ema else []
    if group.is_main:
        n_parameters = sum(p.numel() for p in denoiser.parameters())
        log.info("%s: %d trainable parameters, D = %d", run_config.model.arch, n_parameters, trained.codec.dim)
    if run.steps():
        first = restore_state(run, denoiser, ema, optimizer)
        if group.is_main:
            run.forget_metrics_after(first)
            log.info("resumed at step %d of %d", first, max_steps)
    elif group.is_main and run.metrics():
        run.forget_metrics_after(0)  # killed before its first checkpoint
    out_of_time = False
    loss_sum, steps_since = torch.zeros((), device=fabric.device), 0
    last_report = last_save = time.monotonic()
    val_loss: float | None = None
    best_step = run.best_step() or first
    best = next((m["val_loss"] for m in reversed(run.metrics()) if m["step"] == best_step), None)
    gradients = TrainStep(fabric, group.size, model, optimizer, c.batch_size, compiled if compile_by_default else ())
    n_ahead = 2 if fabric.device.type == "cuda" else 1  # a GPU works on one while the next is launched
    steps = prefetch(batches(range(first + 1, max_steps + 1), vectors, denoiser, run_config, group), n_ahead)

    with deferred_interrupts() as interrupted, threads_for_all(), contextlib.closing(steps), failing_together():
        for step, batch in steps:
            for parameters in optimizer.param_groups:
                parameters["lr"] = learning_rate(c, step, max_steps)
            loss_sum += gradients(batch)
            if c.grad_clip is not None:
                clip(denoiser, c.grad_clip)
            optimizer.step()
            if ema and c.ema_decay:
                # Early on a shorter memory, which would otherwise hold the initial weights.
                decay = min(c.ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(averages, weights, 1 - decay)
            steps_since += 1
            now = time.monotonic()
            by_step = bool(c.checkpoint_every_steps) and step % cast(int, c.checkpoint_every_steps) == 0
            # The steps at which the others wait for the first, which may validate and save there.
            meet = by_step or step % c.val_every_steps == 0 or step == max_steps
            meet = meet or group.size == 1 or fabric.device.type == "cpu" or step % MEET_SELDOM == 0
            if not group.is_main:
                if meet and group.any_stop(False):
                    return False
                continue
            out_of_time = max_time is not None and now - started >= max_time
            stop = meet and (interrupted.is_set() or out_of_time or step == max_steps)
            # At set steps only: where an interrupt falls must not decide which weights are the best.
            validated = bool(validation) and (step % c.val_every_steps == 0 or step == max_steps)
            if validated:
                loss = gradients.without_graph_on_oom(lambda: cast(Validation, validation)(ema or denoiser))
                val_loss = round(loss, 6)  # as metrics.jsonl holds it
            improved = validated and (best is None or cast(float, val_loss) < best)
            if improved:
                best, best_step = val_loss, step
            patience = c.patience * c.val_every_steps if c.patience and validation else math.inf
            stop = stop or (meet and step - best_step >= patience)
            if step % c.val_every_steps == 0 or stop or now - last_report > 1:
                status = TrainStatus(
                    "diffusion",
                    step,
                    max_steps,
                    loss_sum.item() / steps_since,
                    val_loss,
                    steps_since * c.batch_size / max(now - last_report, 1e-9),
                    now - started,
                )
                if on_status:
                    on_status(status)
                if step % c.val_every_steps == 0 or stop:
                    run.log_metrics(
                        **{
                            key: round(value, 6) if isinstance(value, float) else value
                            for key, value in vars(status).items()
                            if key != "stage"
                        }
                    )
                loss_sum.zero_()
                steps_since, last_report = 0, now
            minutes = (now - last_save) / 60
            by_time = meet and bool(c.checkpoint_every_minutes) and minutes >= cast(float, c.checkpoint_every_minutes)
            if stop or improved or by_step or by_time:
                if not torch.stack([p.isfinite().all() for p in weights]).all():
                    raise RunError(
                        f"The weights are no longer finite at step {step}; they were not saved. Start a new run with a "
                        "smaller --lr, or with --precision 32."
                    )
                save_state(run, step, denoiser, ema, optimizer, val_loss if validated else None, c.keep_checkpoints)
                last_save = time.monotonic()
            if meet:
                group.any_stop(stop)
            if stop and interrupted.is_set():
                log.warning("interrupted at step %d: saved in %s", step, run.path)
                log.warning("go on with: scdiff train DATA --resume --out %s", shlex.quote(str(run.path)))
                raise KeyboardInterrupt
            if stop and step < max_steps:
                why = (
                    "time is up (--resume goes on)" if out_of_time else f"no lower held-out loss since step {best_step}"
                )
                log.info("%s: stopped at step %d of %d and saved", why, step, max_steps)
                break
    if group.is_main and best is not None:
        log.info("lowest held-out loss %.4f at step %d: samples are drawn from there", best, best_step)
    return not out_of_time


def steps_planned(c: TrainConfig, cells: int) -> int:
    """Steps of a whole training on so many cells."""
    return c.max_steps or math.ceil((c.max_epochs or 1) * cells / c.batch_size)


def run_rank(group: ProcessGroup) -> Run:
    """Train as another rank than the first, once that has prepared everything."""
    path, complete = group.broadcast(None)
    run = Run(path)
    if complete:
        return run
    if not is_cached(run.vectors):
        raise RunError(
            f"This machine does not see the run {run.path}: several machines need a folder that all share; name one "
            "with --out."
        )
    fit(run, group, open_written(run.codec(), run.vectors, group.fabric.device))
    return run


if __name__ == "__main__":  # a rank that the first process started: device, precision, number of devices
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    os.dup2(2, 1)  # nobody reads what is printed from here on
    try:
        run_rank(init_process_group(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except ScdiffError as e:
        sys.exit(f"process {os.environ['RANK']}: {e}")
    finally:
        shutdown()
