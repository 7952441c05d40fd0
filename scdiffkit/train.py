"""The training pipeline: cells in, a run out."""

from __future__ import annotations

import contextlib
import logging
import math
import shlex
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from anndata import AnnData
from lightning_fabric import Fabric
from scipy import sparse
from torch import Tensor, nn

import scdiffkit
from scdiffkit import codecs
from scdiffkit.codecs import Codec, CountCodec
from scdiffkit.codecs.count import fold_of
from scdiffkit.codecs.source import batches
from scdiffkit.config import RunConfig, TrainConfig, build_run_config
from scdiffkit.data import LIBRARY_SIZE, Cells, Conditions, rows_of_step, split
from scdiffkit.denoiser import Denoiser, drop_conditions
from scdiffkit.device import make_fabric
from scdiffkit.errors import ConfigError, RunError, ScdiffWarning
from scdiffkit.io import read
from scdiffkit.metrics import in_space
from scdiffkit.metrics.classifier import rf_auc
from scdiffkit.preprocess import check_label, find_counts, is_prepared, lognormalise, prepared_config, preprocess
from scdiffkit.run import RUNS, Run, check_new_run, fingerprint

FEW_CELLS, FEW_OF_A_CATEGORY = 50, 5
MIN_CELLS_FOR_AUC, MAX_CELLS_FOR_AUC = 50, 1000
AUC_DRAWS = 3
UNTRAINED = 0.05  # of the steps planned
CODEC_SHARE_OF_TIME = 0.5  # of --max-time at most
MAX_VAL_CELLS = 1024  # enough to see a trend, cheap enough to look often
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


def train(
    data: AnnData | str | Path,
    *,
    arch: str | None = None,
    preset: str | None = None,
    label: str | None = None,
    conditions: Sequence[str] = (),
    out: str | Path | None = None,
    resume: bool = False,
    force: bool = False,
    max_time: float | None = None,
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, Any] | None = None,
    on_status: Callable[[TrainStatus], None] | None = None,
) -> Run:
    """Train a model on raw or prepared cells and return its run.

    data: AnnData or a file that `read` takes, raw counts (prepared with the defaults) or prepared cells.
    label, conditions: categorical obs columns to condition on. out: the run's folder; default a new one in
    `scdiff-runs/`. config: values as in a YAML file; overrides: dotted keys ("train.lr"), which win.
    max_time: seconds, after which training saves and stops. resume: go on with the run in `out` (default: the
    latest) from its newest checkpoint.

    Ctrl-C and SIGTERM save a checkpoint and raise KeyboardInterrupt; a codec that is still being fitted is not
    saved, and a run that `out` names stays as it was. Raises DataError for unusable cells,
    ConfigError for unusable options, RunError when `resume` does not fit the run, FileError when `out` exists.
    """
    started = time.monotonic()
    if resume and force:
        raise ConfigError("--resume goes on with a run and --force replaces it: give one of them.")
    existing = Run.open(out) if resume else None
    if existing:
        run_config = _resumed_config(existing, arch, preset, label, conditions, config, overrides)
    else:
        columns = tuple(dict.fromkeys([c for c in (label, *conditions) if c]))
        given = {"conditions": columns} if columns else {}
        run_config = build_run_config(preset, arch, dict(config or {}), {**given, **dict(overrides or {})})
        if out is not None:
            check_new_run(Path(out), force=force)
    source = None if isinstance(data, AnnData) else Path(data)
    adata = data if isinstance(data, AnnData) else read(data)
    for column in run_config.conditions:
        if column == LIBRARY_SIZE:
            raise ConfigError(
                f"obs column {column!r} is where library sizes go, so it cannot be a condition: rename it in the data."
            )
        check_label(adata, column)
    explicit = {key for key in (overrides or {}) if key.startswith("preprocess.")}
    explicit |= {f"preprocess.{key}" for key in (config or {}).get("preprocess", {})}
    prepared, run_config = _prepare(adata, run_config, explicit)
    chosen = prepared.var["highly_variable"].to_numpy(dtype=bool) if run_config.codec.name == "gene" else slice(None)
    genes = [str(g) for g in prepared.var_names[chosen]]
    known_conditions = Conditions.of(prepared.obs, run_config.conditions)
    cells = Cells.of(prepared, genes, known_conditions)
    if run_config.codec.name == "count":
        cells = cells.over_these_genes()
    settings = f"{run_config.preprocess} {known_conditions.categories}"
    data_id = fingerprint("\n".join(genes), settings, *_arrays(cells))
    train_rows, val_rows = split(cells.codes, run_config.train.val_fraction, run_config.seed)
    if existing:
        run = existing
        if run.provenance()["data"]["fingerprint"] != data_id:
            raise RunError(
                f"{run.path} was trained on other cells ({run.provenance()['data']['source']}), or with other "
                "preprocessing. Resume with the same data, or start a new run with another --out."
            )
        run.update_config(run_config)
    else:
        _warn_of_few_cells(known_conditions, cells.codes[train_rows], len(val_rows))
        codec = codecs.build(
            run_config.codec,
            num_genes=len(genes),
            target_sum=run_config.preprocess.target_sum,
            num_categories=known_conditions.num_categories,
        )
        cut_at = _fit_codec(codec, cells, train_rows, val_rows, run_config, started, max_time, on_status)
        ceiling = None
        if isinstance(codec, CountCodec) and not cut_at:
            ceiling = _codec_auc(codec, cells, train_rows, val_rows, run_config.seed)
        provenance = {
            "run_id": fingerprint(run_config.to_yaml(), data_id),
            "data": {
                "source": str(source) if source else "memory",
                "fingerprint": data_id,
                "cells": len(cells),
                "genes": len(genes),
            },
            "versions": versions(),
            **({"codec_auc": ceiling} if ceiling else {}),
        }
        path = Path(out) if out is not None else _new_path(source, run_config.model.arch)
        run = Run.create(path, run_config, provenance, genes, known_conditions.to_dict(), codec, force=force)
    with run.logging():
        if not existing and cut_at:
            log.warning(
                "half of --max-time was up: the codec stopped early, at step %d. --resume trains the diffusion on, not "
                "the codec; for a better one start again with a longer --max-time.",
                cut_at,
            )
        log.info("run %s: %d cells to train, %d held out", run.path, len(train_rows), len(val_rows))
        _log_codec(run.provenance().get("codec_auc"))
        _fit(run, run_config, cells, train_rows, val_rows, started, max_time, on_status)
    return run


def versions() -> dict[str, str]:
    """Of this package and those that the result depends on."""
    return {
        "scdiffkit": scdiffkit.__version__,
        "torch": str(torch.__version__),
        "anndata": metadata.version("anndata"),
        "numpy": np.__version__,
    }


def _warn_of_few_cells(conditions: Conditions, codes: np.ndarray, held_out: int) -> None:
    """ScdiffWarning that names what there are few training cells of; codes (n, K) of those cells."""
    few = [f"{len(codes)} in all"] if len(codes) < FEW_CELLS else []
    for k, (column, categories) in enumerate(conditions.categories.items()):
        counts = np.bincount(codes[:, k], minlength=len(categories) + 1)[1:]
        few += [f"{n} of {column}={name}" for name, n in zip(categories, counts, strict=True) if n < FEW_OF_A_CATEGORY]
    if few:
        more = f", and {len(few) - 10} more" if len(few) > 10 else ""
        also = f", or hold none out (--val-fraction 0; now {held_out})" if held_out else ""
        warnings.warn(
            f"There are few training cells: {', '.join(few[:10])}{more}. What the model draws from so few is not to be "
            f"relied on. Give more cells, or merge rare categories{also}.",
            ScdiffWarning,
            stacklevel=3,
        )


def _fit_codec(
    codec: Codec,
    cells: Cells,
    rows: np.ndarray,
    val_rows: np.ndarray,
    run_config: RunConfig,
    started: float,
    max_time: float | None,
    on_status: Callable[[TrainStatus], None] | None,
) -> int:
    """Fit the codec, in at most its share of max_time; the step at which that ended it early, or 0."""
    if not isinstance(codec, CountCodec):
        codec.fit(cells, rows)
        return 0
    batch_size, begun = codec.config.batch_size, time.monotonic()
    cut_at = 0

    def on_step(step: int, steps: int, loss: float, val_loss: float | None) -> bool:
        nonlocal cut_at
        now = time.monotonic()
        if on_status:
            rate = step * batch_size / max(now - begun, 1e-9)
            on_status(TrainStatus("codec", step, steps, loss, val_loss, rate, now - started))
        out_of_time = max_time is not None and now - started >= CODEC_SHARE_OF_TIME * max_time
        cut_at = step if out_of_time and step < steps else 0
        return out_of_time

    device = make_fabric(run_config.train.device, "32").device
    codec.fit(cells, rows, val_rows, seed=run_config.seed, device=device, on_step=on_step)
    return cut_at


def _codec_auc(
    codec: CountCodec, cells: Cells, rows: np.ndarray, val_rows: np.ndarray, seed: int
) -> dict[str, float] | None:
    """AUC of a random forest that tells decoded from other real cells: what diffusion can hope to reach.

    held_out and training: held-out and training cells encoded and decoded; floor: held-out cells as they are. All
    against the same further training cells, mean over AUC_DRAWS choices of these. standard_error: of the figures, by
    chance alone. None with too few cells held out for the figures to mean anything.
    """
    if len(val_rows) < MIN_CELLS_FOR_AUC:
        return None
    n = min(len(val_rows), MAX_CELLS_FOR_AUC, len(rows) // 2)
    generator = torch.Generator().manual_seed(seed)

    def decoded(at: np.ndarray, fold: Tensor | None) -> sparse.csr_matrix:
        counts, size, codes = cells.batch(at)
        x0 = codec.encode(counts, size, codes, generator=generator, fold=fold)
        counts, size = codec.decode(x0, codes, size, generator)
        return lognormalise(sparse.csr_matrix(counts.numpy()), codec.target_sum, size.numpy())

    def real(at: np.ndarray) -> sparse.csr_matrix:
        return lognormalise(cells.counts[at], codec.target_sum, cells.library_size[at])

    aucs: dict[str, list[float]] = {}
    for draw in range(AUC_DRAWS):
        rng = np.random.default_rng([seed, 4, draw])
        places = rng.choice(len(rows), 2 * n, replace=False)
        held_out, seen, other = np.sort(rng.choice(val_rows, n, replace=False)), np.sort(places[:n]), rows[places[n:]]
        sides = {
            "held_out": decoded(held_out, None),
            "training": decoded(rows[seen], torch.from_numpy(fold_of(len(rows))[seen])),
            "floor": real(held_out),
        }
        for name, side in sides.items():
            aucs.setdefault(name, []).append(rf_auc(*in_space("pca", real(other), side)))
    standard_error = math.sqrt((2 * n + 1) / (12 * n * n))  # of one AUC of like cells (Mann & Whitney 1947)
    return {name: round(float(np.mean(values)), 4) for name, values in aucs.items()} | {
        "standard_error": round(standard_error, 4)
    }


def _log_codec(auc: Mapping[str, float] | None) -> None:
    if auc:
        log.info(
            "count codec alone: held-out cells encoded and decoded are told from other real cells with AUC %.2f, "
            "training cells %.2f, real cells %.2f (0.5: not at all; chance alone: +- %.2f). Diffusion can hardly do "
            "better than the codec.",
            auc["held_out"], auc["training"], auc["floor"], auc.get("standard_error", math.nan),
        )  # fmt: skip


def _resumed_config(
    run: Run,
    arch: str | None,
    preset: str | None,
    label: str | None,
    conditions: Sequence[str],
    config: Mapping[str, Any] | None,
    overrides: Mapping[str, Any] | None,
) -> RunConfig:
    """The run's own configuration; what is asked for may differ in its length, device and checkpoints only."""
    stored = run.config()
    if config:
        raise RunError("--resume goes on with the run's own configuration; leave --config out.")
    asked: dict[str, Any] = {"model.arch": arch, "preset": preset}
    columns = tuple(dict.fromkeys(c for c in (label, *conditions) if c))
    if columns:
        asked["conditions"] = columns
    asked |= dict(overrides or {})
    values = stored.to_dict()
    free = {f"train.{f}" for f in ("max_steps", "max_epochs", "device", "keep_checkpoints")}
    free |= {"train.checkpoint_every_steps", "train.checkpoint_every_minutes"}
    for key, value in asked.items():
        if value is None:
            continue
        section: Any = values
        *parents, leaf = key.split(".")
        for part in parents:
            section = section.get(part, {})
        was = section.get(leaf)
        if key in free:
            section[leaf] = value
            if leaf in ("max_steps", "max_epochs"):
                section["max_epochs" if leaf == "max_steps" else "max_steps"] = None
        elif (list(value) if isinstance(value, tuple) else value) != was:
            raise RunError(
                f"{run.path} was trained with {key} = {was!r}, not {value!r}. Leave the option out to resume, or "
                "start a new run with another --out."
            )
    return RunConfig.from_dict(values)


def _prepare(adata: AnnData, run_config: RunConfig, explicit: set[str]) -> tuple[AnnData, RunConfig]:
    """Prepared cells as they are; raw ones prepared with the configuration.

    explicit: the preprocessing options that were asked for; prepared cells must have been prepared so.
    """
    if is_prepared(adata):
        stored = prepared_config(adata)
        for key in sorted(explicit):
            name = key.removeprefix("preprocess.")
            was, asked = getattr(stored, name), getattr(run_config.preprocess, name)
            if asked != was:
                raise ConfigError(
                    f"The data were prepared with {name} = {was!r}, not {asked!r}: leave the option out, or train on "
                    "the raw counts."
                )
        find_counts(adata)  # they may have been changed since
        return adata, run_config.model_copy(update={"preprocess": stored})
    log.info("raw counts: preparing them (scdiff preprocess does this step on its own)")
    return preprocess(adata, run_config.preprocess, label=run_config.conditions), run_config


def _arrays(cells: Cells) -> list[np.ndarray]:
    counts = cells.counts.sorted_indices()
    index = np.int64  # scipy chooses the width by size and version
    return [
        counts.data,
        counts.indices.astype(index),
        counts.indptr.astype(index),
        cells.library_size,
        cells.codes,
    ]


def _new_path(source: Path | None, arch: str) -> Path:
    stem = source.name.split(".")[0] if source else "cells"
    base = f"{stem}-{arch}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, n = RUNS / base, 1
    while path.exists():
        path, n = RUNS / f"{base}-{n}", n + 1
    return path


def _fit(
    run: Run,
    run_config: RunConfig,
    cells: Cells,
    train_rows: np.ndarray,
    val_rows: np.ndarray,
    started: float,
    max_time: float | None,
    on_status: Callable[[TrainStatus], None] | None,
) -> None:
    c = run_config.train
    fabric = make_fabric(c.device, c.precision)
    codec = run.codec()
    torch.manual_seed(run_config.seed)
    denoiser = run.new_denoiser()
    ema = run.new_denoiser().requires_grad_(False).eval() if c.ema_decay else None
    optimizer = _optimizer(denoiser, c)
    model, optimizer = fabric.setup(denoiser, optimizer)
    n_parameters = sum(p.numel() for p in denoiser.parameters())
    log.info("%s: %d trainable parameters, D = %d", run_config.model.arch, n_parameters, codec.dim)
    if ema:
        ema.load_state_dict(denoiser.state_dict())
        ema.to(fabric.device)
    weights = [p.detach() for p in denoiser.parameters()]  # share memory with the parameters
    averages: list[Tensor] = list(ema.parameters()) if ema else []
    max_steps = c.max_steps or math.ceil((c.max_epochs or 1) * len(train_rows) / c.batch_size)
    first = 0
    if run.steps():
        first = _restore(run, denoiser, ema, optimizer)
        run.forget_metrics_after(first)
        log.info("resumed at step %d of %d", first, max_steps)
        if first >= max_steps:
            log.info("the run is complete; give a larger --max-steps to train on")
            return
    elif run.metrics():
        run.forget_metrics_after(0)  # killed before its first checkpoint
    encoded = _Encoded(codec, cells, train_rows, fabric.device)
    validation = _Validation(cells, codec, val_rows, run_config, fabric)
    generator = torch.Generator(device=fabric.device)
    loss_sum, steps_since, last_report, last_save = (
        torch.zeros((), device=fabric.device),
        0,
        time.monotonic(),
        time.monotonic(),
    )
    val_loss: float | None = None
    step = first

    best_step = run.best_step() or first
    best = next((m["val_loss"] for m in reversed(run.metrics()) if m["step"] == best_step), None)

    with _interruption() as interrupted:
        for step in range(first + 1, max_steps + 1):
            # Every random number follows from (seed, step): a resumed run repeats an uninterrupted one.
            generator.manual_seed(_seed(run_config.seed, step))
            places = rows_of_step(step - 1, c.batch_size, len(train_rows), run_config.seed)
            x0, codes = encoded(places, generator)
            t = torch.randint(denoiser.schedule.num_train_timesteps, (len(x0),), generator=generator, device=x0.device)
            eps = torch.randn(x0.shape, generator=generator, device=x0.device)
            conditions = drop_conditions(codes, c.condition_dropout, generator)
            for group in optimizer.param_groups:
                group["lr"] = _lr(c, step, max_steps)
            optimizer.zero_grad()
            loss = model(x0, conditions, t, eps).mean()
            fabric.backward(loss)
            if c.grad_clip is not None:
                fabric.clip_gradients(model, optimizer, max_norm=c.grad_clip, error_if_nonfinite=False)
            optimizer.step()
            if ema and c.ema_decay:
                # Early on a shorter memory, which would otherwise hold the initial weights.
                decay = min(c.ema_decay, (1 + step) / (10 + step))
                torch._foreach_lerp_(averages, weights, 1 - decay)
            loss_sum += loss.detach()
            steps_since += 1
            now = time.monotonic()
            out_of_time = max_time is not None and now - started >= max_time
            stop = interrupted.is_set() or out_of_time or step == max_steps
            # At set steps only: where an interrupt falls must not decide which weights are the best.
            validated = bool(validation) and (step % c.val_every_steps == 0 or step == max_steps)
            if validated:
                val_loss = round(validation(ema or denoiser), 6)  # as metrics.jsonl holds it
            improved = validated and (best is None or cast(float, val_loss) < best)
            if improved:
                best, best_step = val_loss, step
            out_of_patience = (
                bool(c.patience and validation) and step - best_step >= cast(int, c.patience) * c.val_every_steps
            )
            stop = stop or (validated and out_of_patience)
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
            by_step = c.checkpoint_every_steps and step % c.checkpoint_every_steps == 0
            if stop or improved or by_step or (c.checkpoint_every_minutes and minutes >= c.checkpoint_every_minutes):
                if not torch.stack([p.isfinite().all() for p in weights]).all():
                    raise RunError(
                        f"The weights are no longer finite at step {step}; they were not saved. Start a new run with a "
                        "smaller --lr, or with --precision 32."
                    )
                _save(run, step, denoiser, ema, optimizer, val_loss if validated else None, c.keep_checkpoints)
                last_save = time.monotonic()
            if interrupted.is_set():
                log.warning("interrupted at step %d: saved in %s", step, run.path)
                log.warning("go on with: scdiff train DATA --resume --out %s", shlex.quote(str(run.path)))
                raise KeyboardInterrupt
            if stop and step < max_steps:
                why = (
                    "time is up (--resume goes on)" if out_of_time else f"no lower held-out loss since step {best_step}"
                )
                log.info("%s: stopped at step %d of %d and saved", why, step, max_steps)
                if step < UNTRAINED * max_steps:
                    log.warning("so few steps hardly train: cells drawn from here are noise. Go on with --resume")
                break
    if best is not None:
        log.info("lowest held-out loss %.4f at step %d: samples are drawn from there", best, best_step)


class _Encoded:
    """x0 of training cells. A compact codec's posteriors are computed once, and every step draws from them anew."""

    def __init__(self, codec: Codec, cells: Cells, rows: np.ndarray, device: torch.device) -> None:
        self.codec, self.cells, self.rows, self.device = codec, cells, rows, device
        if isinstance(codec, CountCodec):
            folds = torch.from_numpy(fold_of(len(rows))).to(device).split(1024)
            parts = [
                codec.posterior(*batch, fold=fold)
                for batch, fold in zip(batches(cells, rows, 1024, device), folds, strict=True)
            ]
            self.mean, self.deviation = (torch.cat(part) for part in zip(*parts, strict=True))
            self.codes = torch.from_numpy(cells.codes[rows]).to(device)

    def __call__(self, places: np.ndarray, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x0 (B, D) and condition codes (B, K) of the training cells at the positions `places`."""
        if not isinstance(self.codec, CountCodec):
            counts, library_size, codes = self.cells.batch(self.rows[places], self.device)
            return self.codec.encode(counts, library_size), codes
        at = torch.from_numpy(places).to(self.device)
        mean, deviation = self.mean[at], self.deviation[at]
        noise = torch.randn(mean.shape, generator=generator, device=self.device)
        return mean + noise * deviation, self.codes[at]


class _Validation:
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
        for start in range(0, len(rows), run_config.train.batch_size):
            part = slice(start, start + run_config.train.batch_size)
            counts, library_size, codes = cells.batch(rows[part])
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


@contextlib.contextmanager
def _interruption() -> Iterator[threading.Event]:
    """Within the block, Ctrl-C and SIGTERM set the event, so that a step is never cut in half; again: at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # signals reach the main thread only
        return

    def ask_to_stop(number: int, frame: Any) -> None:
        if event.is_set():
            raise KeyboardInterrupt
        event.set()

    before = {number: signal.signal(number, ask_to_stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
