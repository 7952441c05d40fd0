"""The first stage of training: fit the codec and measure how much it loses by itself."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import sparse

from scdiffkit._deprecated import migrate_codec_auc
from scdiffkit.codecs import Codec
from scdiffkit.config import RunConfig
from scdiffkit.data.cells import TrainingCells
from scdiffkit.metrics import in_space
from scdiffkit.metrics.classifier import rf_auc
from scdiffkit.preprocessing.normalise import lognormalise
from scdiffkit.runtime.device import device_of
from scdiffkit.training.status import TrainStatus

log = logging.getLogger("scdiffkit")
MIN_CELLS_FOR_AUC = 50
MAX_CELLS_FOR_AUC = 1000
AUC_DRAWS = 3
# Upper limits, as shares of the time that --max-time leaves when fitting or checking the codec begins.
CODEC_SHARE_OF_TIME = 0.5
CHECK_SHARE_OF_TIME = 0.25
SECONDS_OF_A_DRAW = 5.0  # time of one draw of the codec check on two cores


def fit_codec(
    codec: Codec,
    cells: TrainingCells,
    rows: np.ndarray,
    val_rows: np.ndarray,
    run_config: RunConfig,
    started: float,
    deadline: float,
    on_progress: Callable[[TrainStatus], None] | None,
) -> dict[str, int] | None:
    """Fit the codec within its share of the time left. Returns the steps done and planned if time ran out."""
    begun = time.monotonic()
    until = begun + CODEC_SHARE_OF_TIME * (deadline - begun)
    cut_short: dict[str, int] | None = None

    def on_step(step: int, steps: int, loss: float, val_loss: float | None, seen: int) -> bool:
        nonlocal cut_short
        now = time.monotonic()
        if on_progress:
            rate = seen / max(now - begun, 1e-9)
            on_progress(TrainStatus("codec", step, steps, loss, val_loss, rate, now - started))
        out_of_time = now >= until
        cut_short = {"steps": step, "planned": steps} if out_of_time and step < steps else None
        return out_of_time

    device = device_of(run_config.train.device)
    codec.fit(cells, rows, val_rows, seed=run_config.seed, device=device, on_step=on_step)
    return cut_short


def codec_auc(
    codec: Codec, cells: TrainingCells, rows: np.ndarray, val_rows: np.ndarray, seed: int, until: float = math.inf
) -> dict[str, float] | None:
    """Measure how well a random forest separates decoded cells from real ones (AUC).

    Diffusion can hardly do better than the codec. The result has the keys `held_out` and `training` (held-out and
    training cells, encoded and decoded), `real_reference` (held-out cells unchanged) and `standard_error` (of each AUC,
    by chance alone). All three AUCs are against the same further training cells, averaged over AUC_DRAWS choices of
    these. `until` is a deadline on the monotonic clock, which may leave fewer draws or none. Returns None without a
    draw, or with too few held-out cells for a meaningful AUC.
    """
    if len(val_rows) < MIN_CELLS_FOR_AUC or time.monotonic() + SECONDS_OF_A_DRAW > until:
        return None
    n = min(len(val_rows), MAX_CELLS_FOR_AUC, len(rows) // 2)
    generator = torch.Generator().manual_seed(seed)
    draws, folds = [], codec.folds(len(rows))
    for draw in range(AUC_DRAWS):
        rng = np.random.default_rng([seed, 4, draw])
        places = rng.choice(len(rows), 2 * n, replace=False)
        held_out, seen = np.sort(rng.choice(val_rows, n, replace=False)), np.sort(places[:n])
        draws.append((held_out, rows[seen], None if folds is None else folds[seen], rows[places[n:]]))
    known = np.unique(np.concatenate([at for held_out, seen, _, other in draws for at in (held_out, seen, other)]))
    cells = cells.take(known)  # one ordered read: random access to a file is slow

    def decoded(at: np.ndarray, fold: np.ndarray | None = None) -> sparse.csr_matrix:
        counts, size, codes = cells.batch(np.searchsorted(known, at))
        folds = None if fold is None else torch.from_numpy(fold)
        x0 = codec.encode(counts, size, codes, generator=generator, fold=folds)
        counts, size = codec.decode(x0, codes, size, generator)
        return lognormalise(sparse.csr_matrix(counts.numpy()), codec.target_sum, size.numpy())

    def real(at: np.ndarray) -> sparse.csr_matrix:
        here = np.searchsorted(known, at)
        return lognormalise(cells.counts[here], codec.target_sum, cells.library_size[here])

    aucs: dict[str, list[float]] = {}
    for held_out, seen, fold, other in draws:
        if time.monotonic() + SECONDS_OF_A_DRAW > until:
            break
        sides = {"held_out": decoded(held_out), "training": decoded(seen, fold), "real_reference": real(held_out)}
        for name, side in sides.items():
            aucs.setdefault(name, []).append(rf_auc(*in_space("pca", real(other), side)))
    standard_error = math.sqrt((2 * n + 1) / (12 * n * n))  # if nothing differs (Mann & Whitney 1947)
    return {name: round(float(np.mean(values)), 4) for name, values in aucs.items()} | {
        "standard_error": round(standard_error, 4)
    }


def log_codec(auc: Mapping[str, float] | None) -> None:
    if auc:
        auc = migrate_codec_auc(auc)
        log.info(
            "count codec alone: a classifier distinguishes encoded and decoded cells from real cells with AUC "
            "%.2f (held-out cells) and %.2f (training cells), and real cells from one another with AUC %.2f (0.5: "
            "guessing; by chance: +- %.2f). Diffusion can hardly do better than the codec.",
            auc["held_out"], auc["training"], auc["real_reference"], auc.get("standard_error", math.nan),
        )  # fmt: skip
