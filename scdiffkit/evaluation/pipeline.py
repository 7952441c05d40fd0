"""Can these cells be trusted? Scores of synthetic cells beside what real cells score, a verdict, and a report.

Every metric is computed several times over, each time between two sets of as many cells, drawn again:
value     one half of the real cells against synthetic cells
reference the same half against the other half: what perfect synthetic cells would score
baselines  the same half against bad models made from the other half: "shuffled", every gene shuffled between cells of
          one type (right genes, no relations between them), and "pooled", all cells their mean; where the question is
          whether cells were copied, "copies" of the other half
Given the training cells, the real cells are all in the first set, and training cells in the second. Cells that this
tool made know which cells their run was trained on: of such real cells, those it has not seen are the real ones then.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from anndata import AnnData

from scdiffkit._deprecated import MEMORY, renamed_keywords
from scdiffkit.data.split import TrainingData, Unseen
from scdiffkit.errors import ConfigError, RunError
from scdiffkit.evaluation.cell_sets import MIN_CELLS, CellSet
from scdiffkit.evaluation.draws import cells_a_side, draw_order_of, draws_donors
from scdiffkit.evaluation.facts import CONFIDENCE, FEW_CELLS, MARGIN, Basis, auc_error
from scdiffkit.evaluation.loading import load
from scdiffkit.evaluation.matching import (
    Notes,
    count_types,
    drop_trained_on,
    gather,
    match_genes,
    note_scales,
    of_known_kinds,
    separate,
)
from scdiffkit.evaluation.options import CELLS_OF_RESAMPLE, RESAMPLES, EvaluateConfig
from scdiffkit.evaluation.output import FILES, REPORT, check_folder, write_evaluation
from scdiffkit.evaluation.provenance import check_made_by, trained_on_others, training_cells, unseen_among
from scdiffkit.evaluation.report.layouts import LAYOUTS
from scdiffkit.evaluation.report.pictures import Drawing
from scdiffkit.evaluation.resample import (
    MOST_KNOWN,
)
from scdiffkit.evaluation.result import HELD_OUT, Evaluation
from scdiffkit.evaluation.scoring import Scorer, metrics_pool, scores_by_name, scores_of
from scdiffkit.io import Backed, open_cells
from scdiffkit.io.atomic import writing
from scdiffkit.metrics import in_space
from scdiffkit.metrics.classifier import rf_auc
from scdiffkit.metrics.profiles import FULL
from scdiffkit.run import Run
from scdiffkit.runtime.progress import shown_progress
from scdiffkit.sampling.pipeline import sample

log = logging.getLogger("scdiffkit")
CELLS = "cells.h5ad"
SHARE_OF_RESAMPLE = 0.8  # of the cells there are, where they are fewer
MAX_PICTURE_CELLS = 2000  # a side
HALVES = (
    "One half of the real cells is compared with the other half (disjoint, drawn at random within types). Perfect "
    "synthetic cells would have this score."
)


@renamed_keywords(conditions="condition", progress="on_progress", **MEMORY)
def evaluate(
    real: AnnData | Backed | str | Path | None = None,
    synthetic: AnnData | Backed | str | Path | None = None,
    *,
    run: Run | str | Path | None = None,
    train: AnnData | Backed | str | Path | None = None,
    label: str | None = None,
    condition: str | Sequence[str] = (),
    donor: str | None = None,
    batch: str | None = None,
    protocol: str | None = None,
    metrics: str | Sequence[str] = FULL,
    out: str | Path | None = None,
    seed: int = 0,
    max_cells: int = CELLS_OF_RESAMPLE,
    resamples: int = RESAMPLES,
    fast: bool = False,
    memory: str | float = "auto",
    force: bool = False,
    unseen: Unseen | None = None,
    progress: bool | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Compare synthetic cells with real ones: scores beside those of real cells and of bad models, and a verdict.

    Parameters
    ----------
    real, synthetic, train
        AnnData or files that `read` takes, with raw counts or log1p-normalised X; genes are matched by name. `train`:
        the training cells of the model, if `real` holds others (cells that are in both are removed from `real`); the
        reference is then `real` against `train`. If the model was trained on `real`, the cells that it has not seen
        (held out, or else its validation cells) take the place of `real`, and the training cells that of `train`.
    run
        Take `real`, `label` and `condition` from this run. Without `synthetic`, as many cells as were held out, and at
        least 1000, are drawn from it, into cells.h5ad in `out`.
    label, condition, donor, batch
        obs columns with the types; with what differs between cells of a type (a treatment); with the donors, for each
        of whom copies are looked for; and with the batches.
    protocol
        "scrdit", "cfgen", "scdiffusion", "scldm" or "cell-eval": add the scores of that paper (see PROTOCOLS).
    metrics
        Names of metrics, or a profile: "full", "fast" (as `fast`) or "minimal" (some of each family, a few seconds).
        Those that the verdict rests on are always computed.
    out
        Folder for report.html, metrics.json (see Evaluation.to_dict), metrics.csv, genes.csv and cells.png.
    seed
        The same seed gives the same scores.
    max_cells, resamples, fast
        Maximum number of cells per group in a resample; number of resamples; one resample of at most 400 cells, without
        UMAP.
    memory
        Where the cells of files (h5ad, zarr) are kept: "ram", "disk", or "auto", which leaves them in their files if
        free memory does not hold them; an amount such as "8G" sets the limit.
        compared; exact copies, and cells in both `real` and `train`, are looked for among all.
    force
        Replace an earlier report in `out`.
    unseen
        Which of the real cells the model has not seen, if the caller knows.
    progress
        Show a progress bar; by default on a terminal and in a notebook, unless `on_progress` is given.
    on_progress
        Called as on_progress(name, i, n) before each of n steps.

    Returns
    -------
    The evaluation: scores, verdict, tables. ScdiffWarning where the scores need care.

    Raises
    ------
    DataError
        For cells that cannot be compared: no common genes, NaN, negative values, too few cells, no such label.
    ConfigError
        For max_cells below 5, resamples below 1, or a metric or protocol that does not exist.
    RunError
        If the cells of `run` cannot be read any more.
    FileError
        If `out` exists (without `force`) or cannot be written.

    Examples
    --------
    >>> found = scdiffkit.evaluate("data.h5ad", cells, label="cell_type", out="report")
    >>> found.verdict.word, found["rf_auc"].value
    """
    conditions = (condition,) if isinstance(condition, str) else tuple(condition)
    config = EvaluateConfig.of(
        label=label, conditions=conditions, donor=donor, batch=batch, protocol=protocol, metrics=metrics, seed=seed,
        max_cells=max_cells, resamples=resamples, fast=fast,
    )  # fmt: skip
    if out is not None:
        check_folder(Path(out), FILES, force)
    data: TrainingData | None = None
    if run is not None:
        if real is not None or train is not None:
            raise ConfigError("--run takes the real cells from the run: leave REAL and --train out.")
        run = run if isinstance(run, Run) else Run.open(run)
        real, data = training_cells(run)
        config = replace(config, label=label or data.label, conditions=conditions or data.columns[1:])
        if synthetic is None:
            synthetic = _drawn_from(run, None if out is None else Path(out) / CELLS, seed, force)
    config.check_conditions()
    if real is None or synthetic is None:
        raise ConfigError("evaluate takes real and synthetic cells, or a run.")
    given = {"real": real, "synthetic": synthetic} | ({} if train is None else {"train": train})
    _, opened = open_cells(given, memory)
    assert isinstance(opened, dict)
    if isinstance(run, Run) and data is not None:  # whoever made the synthetic cells
        unseen = data.find_in(opened["real"])
        if unseen is None:
            raise RunError(
                f"The cells that {run.path} was trained on have changed since then. Give the original cells: "
                "evaluate DATA CELLS."
            )
        check_made_by(run, opened["synthetic"])
    elif train is None and unseen is None:
        unseen = unseen_among(opened["real"], opened["synthetic"])
    contradicted = train is not None and trained_on_others(opened["synthetic"], opened["train"])
    basis: Basis = "unknown" if contradicted else _basis_of(unseen, training_cells_given=train is not None)
    sources = {name: "memory" if given[name] is cells else str(given[name]) for name, cells in opened.items()}
    sides = load(opened, sources, config.label, config.conditions, config.donor, config.batch)
    del opened
    cells = _compared(sides, unseen, basis, config)
    with shown_progress("evaluating", progress, on_progress, evaluation_progress) as report:
        evaluation = _evaluated(cells, config, None if out is None else Path(out), report)
    if isinstance(run, Run):
        auc = next((score for score in evaluation.scores if score.metric == "rf_auc"), None)
        run.log_evaluation(
            date=time.strftime("%Y-%m-%d %H:%M"), verdict=evaluation.verdict.word, basis=evaluation.verdict.basis,
            synthetic=sources["synthetic"], cells=evaluation.n_cells, seed=seed,
            rf_auc=auc and round(auc.value, 4), rf_auc_reference=auc and round(auc.real_reference, 4),
        )  # fmt: skip
    return evaluation


def evaluation_progress(name: str, i: int, n: int) -> tuple[float, str, float]:
    """Steps done, what is computed, and all steps."""
    return i, name, n


@dataclass(frozen=True)
class _Compared:
    """Sets of cells that can be compared: of the same genes, on one scale, none in two of them.

    sets: those that scores are of. n: cells of each in a resample. The others as in Evaluation.
    """

    sides: dict[str, CellSet]
    sets: dict[str, CellSet]
    n: int
    basis: Basis
    alike: bool
    sampled: dict[str, tuple[int, int]]
    types: dict[str, dict[str, int]] | None
    notes: Notes


def _compared(sides: dict[str, CellSet], unseen: Unseen | None, basis: Basis, config: EvaluateConfig) -> _Compared:
    notes = Notes()
    for remark in sides["synthetic"].remarks:
        notes.warn(remark)
    if basis == "unknown" and "train" in sides:
        notes.warn(
            "The synthetic cells record that their model was not trained on the cells of --train, so it may have "
            "seen the real cells. Give the cells that it was trained on, unchanged, or leave --train out."
        )
    note_scales(sides, notes)
    if unseen is not None and basis in ("holdout", "validation"):
        separate(sides, unseen.unseen, unseen.trained, notes)
    if "train" in sides:
        drop_trained_on(sides, notes)
    match_genes(sides, notes)
    most = max(MOST_KNOWN, round(2 * config.max_cells / SHARE_OF_RESAMPLE))  # as many as are ever looked through
    sampled = gather(sides, most, config.seed, notes, counts_of=("real",) if config.needs_counts else ())
    types = None if config.label is None else count_types(sides, config.label, notes)
    alike, sets = _sets_to_score(sides, unseen, config.max_cells, config.seed, notes)
    n = _cells_of_resample(sets, config.max_cells, config.resamples)
    _note_resamples(sides, sets, n, config.resamples, config.seed, notes)
    return _Compared(sides, sets, n, basis, alike, sampled, types, notes)


def _evaluated(
    cells: _Compared, config: EvaluateConfig, out: Path | None, progress: Callable[[str, int, int], None] | None
) -> Evaluation:
    """Score the cells and, with `out`, draw and write the report."""
    with metrics_pool() as pool:
        scorer = Scorer(cells.sides, cells.sets, cells.n, config, pool, draws=out is not None, progress=progress)
        times = "once" if config.resamples == 1 else f"{config.resamples} times"
        log.info("comparing %d cells per set, %s", cells.n, times)
        drawing = None
        if out is not None:
            most = min(MAX_PICTURE_CELLS, config.max_cells * min(2, config.resamples))
            layouts = [name for name in LAYOUTS if not (config.fast and name == "UMAP")]
            drawing = Drawing(cells.sides, most, config.label, config.seed, layouts, pool)
        for r in range(config.resamples):
            scorer.score(r, drawing.draw if drawing and r == config.resamples - 1 else None)
    found = scorer.found
    evaluation = Evaluation(
        scores=scores_of(found.metrics),
        of_types=scores_by_name(found.types),
        of_donors=scores_by_name(found.donors),
        inputs={name: side.describe() for name, side in cells.sides.items()},
        n_cells=cells.n,
        n_genes=len(cells.sides["real"].genes),
        resamples=config.resamples,
        seed=config.seed,
        max_cells=config.max_cells,
        label=config.label,
        conditions=config.conditions,
        donor=config.donor,
        batch=config.batch,
        protocol=config.protocol,
        of_protocol=scores_of(found.protocol),
        reference_definition=HELD_OUT if "train" in cells.sets else HALVES,
        types=cells.types,
        skipped=found.skipped,
        notes=[*cells.notes.notes, *found.notes],
        warnings=cells.notes.warnings,
        html=None if out is None else out / REPORT,
        cells=None if drawing is None else drawing.positions(),
        sampled=cells.sampled,
        basis=cells.basis,
        alike=cells.alike,
        remarks=cells.sides["synthetic"].remarks,
        metrics=config.metrics,
        genes=found.genes,
    )
    if out is not None and drawing is not None:
        write_evaluation(evaluation, drawing.pictures, out)
    return evaluation


def _basis_of(unseen: Unseen | None, *, training_cells_given: bool) -> Basis:
    """Whether the model has seen the real cells."""
    if training_cells_given:
        return "given"
    if unseen is None:
        return "unknown"
    return unseen.kind if len(unseen.unseen) >= MIN_CELLS else "none"


def _sets_to_score(
    sides: dict[str, CellSet], unseen: Unseen | None, max_cells: int, seed: int, notes: Notes
) -> tuple[bool, dict[str, CellSet]]:
    """Whether the real cells are of the kinds that were trained on, and the sets that scores are of: without the
    training cells, where the real ones differ from these."""
    if "train" not in sides:
        return True, sides
    known_kinds, other_groups = of_known_kinds(sides["real"], sides["train"]), donors_held_out(sides, unseen)
    told = told_apart(sides, max_cells, seed)
    alike = known_kinds and not told and not other_groups
    if alike or other_groups or sides["real"].X.shape[0] < 2 * MIN_CELLS:
        return alike, sides
    notes.notes.append(
        "The real cells differ from the training cells, so the real reference is one half of the real cells "
        "against the other half; the training cells are used only to search for copies."
    )
    return alike, {name: side for name, side in sides.items() if name != "train"}


def _cells_of_resample(sets: dict[str, CellSet], max_cells: int, resamples: int) -> int:
    available = cells_a_side(sets)
    if resamples == 1:
        return min(available, max_cells)
    return min(max(MIN_CELLS, int(SHARE_OF_RESAMPLE * available)), max_cells)


def _note_resamples(
    sides: dict[str, CellSet], sets: dict[str, CellSet], n: int, resamples: int, seed: int, notes: Notes
) -> None:
    halves = "the held-out real cells, the training cells" if "train" in sets else "each half of the real cells"
    notes.notes.append(
        f"Each resample compares {n} cells of {halves} and the synthetic cells (resamples: {resamples}, seed: {seed})."
    )
    if sides["real"].donors is not None and resamples > 1:
        notes.notes.append(
            "Each resample draws four fifths of the donors, so the intervals include the differences between donors."
            if draws_donors(sides)
            else "Resamples draw cells, not donors, because the real cells come from too few donors."
        )
    if n < FEW_CELLS:
        notes.warn(
            f"Only {n} cells per set are compared, so scores and real reference are imprecise. Give more cells if "
            "you can."
        )
    codec_auc = sides["synthetic"].codec_auc
    if codec_auc:
        notes.notes.append(
            "When the model was trained, its codec alone (cells encoded and decoded) had an AUC of {held_out:.2f} "
            "on held-out cells and {training:.2f} on training cells; unchanged real cells had "
            "{real_reference:.2f}.".format(**codec_auc)
        )


def told_apart(sides: dict[str, CellSet], max_cells: int, seed: int) -> bool:
    """Whether a classifier tells the real cells from those trained on, though both are real: they differ then."""
    n = min(max_cells, *(sides[name].X.shape[0] for name in ("real", "train")))
    real, train = (sides[name].part(draw_order_of(sides, name, seed, n)[:n]) for name in ("real", "train"))
    return rf_auc(*in_space("pca", real.X, train.X)) - 0.5 > MARGIN + CONFIDENCE * auc_error(n)


def donors_held_out(sides: dict[str, CellSet], unseen: Unseen | None) -> bool:
    """Whether the real cells are of other donors than those trained on, and that on purpose."""
    if unseen is not None and unseen.by is not None:
        return True
    donors = [sides[name].donors for name in ("real", "train")]
    return all(of is not None for of in donors) and set(donors[0]).isdisjoint(donors[1])  # type: ignore[arg-type]


def _drawn_from(run: Run, path: Path | None, seed: int, force: bool) -> AnnData | Path:
    """Cells of a run to be judged: as many as were held out, at least 1000."""
    of_run = run.provenance()["data"]
    n = max(CELLS_OF_RESAMPLE, of_run["split"]["cells"] - of_run["cells"])
    log.info("drawing %d cells from %s", n, run.path)
    if path is not None:
        with writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
    return sample(run, n, out=path, seed=seed, force=force, progress=False)
