"""The training loop of diffusion: from a run as it was made to its last checkpoint, in one process or several."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from scdiffkit.codecs import Codec, CountCodec
from scdiffkit.config import RunConfig, TrainConfig
from scdiffkit.data.cells import Cells, rows_of_step
from scdiffkit.diffusion.denoiser import Denoiser, drop_conditions
from scdiffkit.errors import RunError, ScdiffError
from scdiffkit.io import ahead, interruption
from scdiffkit.run import Run
from scdiffkit.training.distributed import READY, Team, failing_together, gather, leave
from scdiffkit.training.encoded import Vectors, are_written, open_written
from scdiffkit.training.step import Batch, Gradients, clip, compile_in_place, pays_to_compile

MAX_VAL_CELLS = 1024  # enough to see a trend, cheap enough to look often
MEET_SELDOM = 20  # steps after which processes on GPUs wait for one another at least: it holds them up
log = logging.getLogger("scdiffkit")


@dataclass(frozen=True)
class TrainStatus:
    """Where training stands. Losses: of the codec in nats a cell, of diffusion the prediction's mean squared error."""

    stage: Literal["codec", "diffusion"]
    step: int
    max_steps: int
    loss: float
    val_loss: float | None
    cells_per_s: float
    seconds: float


def fit(
    run: Run,
    team: Team,
    vectors: Vectors,
    validation: Validation | None = None,
    *,
    started: float | None = None,
    max_time: float | None = None,
    on_status: Callable[[TrainStatus], None] | None = None,
) -> bool:
    """Train the run's denoiser from its newest checkpoint on, every process of the team alike; whether to its end.

    What follows is of the first process alone: the held-out loss, what is said and saved, and when to stop (max_time
    seconds after `started`, on Ctrl-C or SIGTERM, or where the held-out loss falls no longer).
    Raises RunError when weights are no longer finite, or when another process is lost.
    """
    run_config = run.config()
    c, fabric = run_config.train, team.fabric
    started = time.monotonic() if started is None else started
    torch.manual_seed(run_config.seed)
    denoiser = run.new_denoiser()
    ema = run.new_denoiser().requires_grad_(False).eval() if c.ema_decay and team.first else None
    optimizer = _optimizer(denoiser, c)
    max_steps, first = steps_planned(c, len(vectors)), 0
    unasked = c.compile is None and team.size == 1  # machines could decide otherwise, each for itself
    unasked = unasked and pays_to_compile(denoiser.network, fabric.device, max_steps - (run.steps() or [0])[-1])
    compiled = compile_in_place(denoiser) if c.compile or unasked else []
    with failing_together():
        model, optimizer = fabric.setup(denoiser, optimizer)
    if ema:
        ema.load_state_dict(denoiser.state_dict())
        ema.to(fabric.device)
    weights = [p.detach() for p in denoiser.parameters()]  # share memory with the parameters
    averages: list[Tensor] = list(ema.parameters()) if ema else []
    if team.first:
        n_parameters = sum(p.numel() for p in denoiser.parameters())
        log.info("%s: %d trainable parameters, D = %d", run_config.model.arch, n_parameters, run.codec().dim)
    if run.steps():
        first = _restore(run, denoiser, ema, optimizer)
        if team.first:
            run.forget_metrics_after(first)
            log.info("resumed at step %d of %d", first, max_steps)
    elif team.first and run.metrics():
        run.forget_metrics_after(0)  # killed before its first checkpoint
    out_of_time = False
    loss_sum, steps_since = torch.zeros((), device=fabric.device), 0
    last_report = last_save = time.monotonic()
    val_loss: float | None = None
    best_step = run.best_step() or first
    best = next((m["val_loss"] for m in reversed(run.metrics()) if m["step"] == best_step), None)
    gradients = Gradients(fabric, team.size, model, optimizer, c.batch_size, compiled if unasked else ())
    n_ahead = 2 if fabric.device.type == "cuda" else 1  # a GPU works on one while the next is launched
    steps = ahead(_batches(range(first + 1, max_steps + 1), vectors, denoiser, run_config, team), n_ahead)

    with interruption() as interrupted, _threads_for_all(), contextlib.closing(steps), failing_together():
        for step, batch in steps:
            for group in optimizer.param_groups:
                group["lr"] = _lr(c, step, max_steps)
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
            meet = meet or team.size == 1 or fabric.device.type == "cpu" or step % MEET_SELDOM == 0
            if not team.first:
                if meet and team.any_stop(False):
                    return False
                continue
            out_of_time = max_time is not None and now - started >= max_time
            stop = meet and (interrupted.is_set() or out_of_time or step == max_steps)
            # At set steps only: where an interrupt falls must not decide which weights are the best.
            validated = bool(validation) and (step % c.val_every_steps == 0 or step == max_steps)
            if validated:
                loss = gradients.making_room(lambda: cast(Validation, validation)(ema or denoiser))
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
                _save(run, step, denoiser, ema, optimizer, val_loss if validated else None, c.keep_checkpoints)
                last_save = time.monotonic()
            if meet:
                team.any_stop(stop)
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
    if team.first and best is not None:
        log.info("lowest held-out loss %.4f at step %d: samples are drawn from there", best, best_step)
    return not out_of_time


def steps_planned(c: TrainConfig, cells: int) -> int:
    """Steps of a whole training on so many cells."""
    return c.max_steps or math.ceil((c.max_epochs or 1) * cells / c.batch_size)


def _batches(
    steps: Iterable[int], vectors: Vectors, denoiser: Denoiser, run_config: RunConfig, team: Team
) -> Iterator[tuple[int, Batch]]:
    """Each step with its batch, made by one thread alone: more than there are cores would all wait asleep."""
    torch.set_num_threads(1)
    for step in steps:
        yield step, _batch_of(step, vectors, denoiser, run_config, team)


@contextlib.contextmanager
def _threads_for_all() -> Iterator[None]:
    """After the block, threads to come have as many of torch's as this one has, whatever others were told within."""
    try:
        yield
    finally:
        torch.set_num_threads(torch.get_num_threads())


def _batch_of(step: int, vectors: Vectors, denoiser: Denoiser, run_config: RunConfig, team: Team) -> Batch:
    """x0 (b, D), conditions (b, K), t (b,) and eps (b, D) of this process's cells of a step.

    Every random number follows from (seed, step) and the whole batch: a resumed run repeats an uninterrupted one, and
    several processes train as one.
    """
    c, device = run_config.train, team.fabric.device
    generator = torch.Generator(device=device)
    generator.manual_seed(_seed(run_config.seed, step))
    places = rows_of_step(step - 1, c.batch_size, len(vectors), run_config.seed)
    mine = slice(team.rank, None, team.size)
    x0, codes = vectors.batch(places, mine, generator)
    t = torch.randint(denoiser.schedule.num_train_timesteps, (len(places),), generator=generator, device=device)
    eps = torch.randn((len(places), x0.shape[1]), generator=generator, device=device)
    conditions = drop_conditions(codes, c.condition_dropout, generator)
    return x0, conditions[mine], t[mine], eps[mine]


def follow(team: Team) -> Run:
    """What the other processes of a team do: train with the first, once it has prepared everything."""
    path, complete = team.share(None)
    run = Run(path)
    if complete:
        return run
    if not are_written(run.vectors):
        raise RunError(
            f"This machine does not see the run {run.path}: several machines need a folder that all share; name one "
            "with --out."
        )
    fit(run, team, open_written(run.codec(), run.vectors, team.fabric.device))
    return run


class Validation:
    """Loss on held-out cells with the same noise and steps every time, so that it can be compared over time."""

    def __init__(
        self,
        cells: Cells,
        codec: Codec,
        rows: np.ndarray,
        run_config: RunConfig,
        fabric: Fabric,
    ) -> None:
        self.fabric, self.batches = fabric, []
        rows = rows[:: max(1, math.ceil(len(rows) / MAX_VAL_CELLS))]
        generator = torch.Generator().manual_seed(run_config.seed)
        last = run_config.diffusion.num_train_timesteps - 1
        t = torch.linspace(0, last, max(len(rows), 1)).round().long()
        t = t[torch.randperm(len(t), generator=generator)]
        held_out = cells.take(rows)
        for start in range(0, len(rows), run_config.train.batch_size):
            part = slice(start, start + run_config.train.batch_size)
            counts, library_size, codes = held_out.batch(np.arange(len(rows))[part])
            if isinstance(codec, CountCodec):
                x0 = codec.encode(counts, library_size, codes, generator=generator)
            else:
                x0 = codec.encode(counts, library_size)
            eps = torch.randn(x0.shape, generator=generator)
            self.batches.append(tuple(a.to(fabric.device) for a in (x0, codes, t[part], eps)))

    def __bool__(self) -> bool:
        return bool(self.batches)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser) -> float:
        with self.fabric.autocast():
            losses = [denoiser(*batch) for batch in self.batches]
        return torch.cat(losses).mean().item()


def _optimizer(denoiser: nn.Module, c: TrainConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(denoiser.parameters(), lr=c.lr, betas=c.betas, weight_decay=c.weight_decay, fused=True)


def _lr(c: TrainConfig, step: int, max_steps: int) -> float:
    """Linear warm-up, then constant or a half cosine down to 1% of the peak."""
    warmup = min(1.0, step / max(1, c.warmup_steps))
    if c.lr_schedule == "constant":
        return c.lr * warmup
    progress = max(0, step - c.warmup_steps) / max(1, max_steps - c.warmup_steps)
    return c.lr * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def _seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


def _save(
    run: Run,
    step: int,
    denoiser: Denoiser,
    ema: Denoiser | None,
    optimizer: Any,
    val_loss: float | None,
    keep: int,
) -> None:
    weights = {k: v.contiguous() for k, v in denoiser.state_dict().items()}
    average = {k: v.contiguous() for k, v in ema.state_dict().items()} if ema else None
    moments = {
        f"{i}.{name}": value.contiguous()
        for i, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }
    run.save_checkpoint(step, weights, average, moments, val_loss, keep)


def _restore(run: Run, denoiser: Denoiser, ema: Denoiser | None, optimizer: Any) -> int:
    saved = run.load_checkpoint()
    denoiser.load_state_dict(saved["weights"])
    if ema:
        ema.load_state_dict(saved["ema"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in saved["optimizer"].items():
        index, name = key.split(".")
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return saved["state"]["step"]


if __name__ == "__main__":  # a process that the first one of a team started: device, precision, number of devices
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    sys.stdout.buffer.write(READY)
    sys.stdout.flush()
    os.dup2(2, 1)  # nobody reads what is printed from here on
    try:
        follow(gather(sys.argv[1], sys.argv[2], int(sys.argv[3])))
    except ScdiffError as e:
        sys.exit(f"process {os.environ['RANK']}: {e}")
    finally:
        leave()
