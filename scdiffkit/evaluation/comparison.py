"""Comparison of several sets of synthetic cells: all are scored in the same way, with the same number of cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import numpy as np
from anndata import AnnData

from scdiffkit._deprecated import MEMORY, renamed_keywords
from scdiffkit.data.split import SplitRows
from scdiffkit.errors import ConfigError, warn
from scdiffkit.evaluation.cell_sets import MIN_CELLS
from scdiffkit.evaluation.loading import sha256
from scdiffkit.evaluation.options import FAST_CELLS, MAX_CELLS, RESAMPLES
from scdiffkit.evaluation.output import COMPARISON_FILES, check_folder, write_comparison
from scdiffkit.evaluation.pipeline import RESAMPLE_SHARE, evaluate, evaluation_progress
from scdiffkit.evaluation.provenance import unseen_among
from scdiffkit.evaluation.ranking import Comparison, ranked
from scdiffkit.evaluation.result import Evaluation
from scdiffkit.io import Backed, open_cells
from scdiffkit.metrics.profiles import FULL, ONE_RESAMPLE, asked_for, chosen_metrics
from scdiffkit.preprocessing.columns import with_columns
from scdiffkit.runtime.progress import shown_progress


@renamed_keywords(conditions="condition", progress="on_progress", **MEMORY)
def compare(
    real: AnnData | str | Path,
    synthetic: dict[str, AnnData | str | Path] | Sequence[str | Path],
    *,
    train: AnnData | str | Path | None = None,
    label: str | None = None,
    condition: str | Sequence[str] = (),
    metrics: str | Sequence[str] = FULL,
    out: str | Path | None = None,
    seed: int = 0,
    max_cells: int = MAX_CELLS,
    resamples: int = RESAMPLES,
    fast: bool = False,
    memory: str | float = "auto",
    force: bool = False,
    progress: bool | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Rank several sets of synthetic cells by the same scores, with the same number of cells of each.

    Sets are ranked by their mean distance from real cells over the families of metrics that all sets have; copied sets
    come last. Each set is compared in the genes that it shares with the real cells; ScdiffWarning if these differ.

    Parameters
    ----------
    real, train, label, condition, metrics, seed, max_cells, resamples, fast, memory
        As in `evaluate`.
    synthetic
        Sets by name, or files; a file's name then names its set.
    out
        Folder for compare.html, compare.json and compare.csv.
    force
        Replace an earlier comparison in `out`.
    progress
        Show a progress bar; by default on a terminal and in a notebook, unless `on_progress` is given.
    on_progress
        Called as on_progress(name, i, n) before each of n steps.

    Returns
    -------
    The comparison, best set first.

    Raises
    ------
    ConfigError
        For fewer than two sets, or two sets with the same name. Also raises what `evaluate` raises.

    Examples
    --------
    >>> scdiffkit.compare("data.h5ad", {"dit": a, "whitebox": b}, label="cell_type").ranking()
    """
    conditions = (condition,) if isinstance(condition, str) else tuple(condition)
    fast = fast or any(name in ONE_RESAMPLE for name in asked_for(metrics))
    chosen_metrics(asked_for(metrics))  # raises for unknown names before any file is read
    if fast:
        resamples, max_cells = 1, min(max_cells, FAST_CELLS)
    given = synthetic if isinstance(synthetic, dict) else _by_name(synthetic)
    if len(given) < 2:
        raise ConfigError("compare needs at least two sets of synthetic cells; use evaluate for one.")
    if out is not None:
        check_folder(Path(out), COMPARISON_FILES, force)
    named = {f"synthetic {name}": c for name, c in given.items()} | {"real": real}
    _, opened = open_cells(named if train is None else named | {"train": train}, memory)
    assert isinstance(opened, dict)
    unseen, known = (None, set[str]()) if train is not None else _unseen_by_all(opened)
    opened = {name: with_columns(c, [label, *conditions]) for name, c in opened.items()}
    real_cells, train_cells = opened["real"], opened.get("train")
    cells = {name: opened[f"synthetic {name}"] for name in given}
    hashes = {str(c): sha256(Path(c)) for c in (real, train, *given.values()) if isinstance(c, (str, Path))}
    n_real = real_cells.n_obs if train_cells is not None else real_cells.n_obs // 2
    available = [
        n_real if unseen is None or unseen.kind == "none" else min(len(unseen.unseen), len(unseen.trained)),
        *(c.n_obs for c in cells.values()),
    ]
    share = RESAMPLE_SHARE if resamples > 1 else 1.0
    max_cells = min([max_cells, *(max(5, int(share * n)) for n in available)])  # the same number for every set
    found: dict[str, Evaluation] = {}
    with shown_progress("comparing", progress, on_progress, evaluation_progress) as report:
        for name, c in cells.items():

            def of_set(said: str, i: int, n: int, name: str = name) -> None:
                if report:
                    report(f"{name}: {said}", len(found) * n + i, len(cells) * n)

            found[name] = evaluate(
                real_cells, c, train=train_cells, label=label, condition=conditions, metrics=metrics, seed=seed,
                max_cells=max_cells, resamples=resamples, unseen=unseen, on_progress=of_set,
            )  # fmt: skip
            if unseen is not None and name not in known:  # from another tool, whose model may have seen them
                found[name] = replace(found[name], basis="unknown")
            for side, source in (("real", real), ("synthetic", given[name]), ("train", train)):
                if isinstance(source, (str, Path)):
                    found[name].inputs[side] |= {"source": str(source), "sha256": hashes[str(source)]}
    _warn_of_differences(found)
    comparison = ranked(found)
    if out is not None:
        write_comparison(comparison, Path(out))
    return comparison


def _warn_of_differences(found: Mapping[str, Evaluation]) -> None:
    """Warn if the sets are not compared in the same genes and by the same metrics."""
    genes = {name: evaluation.n_genes for name, evaluation in found.items()}
    if len(set(genes.values())) > 1:
        warn(
            "The sets are compared on different numbers of genes "
            f"({', '.join(f'{name} {n}' for name, n in genes.items())}), so their scores per gene do not cover the "
            "same genes."
        )
    scored = {score.metric for evaluation in found.values() for score in evaluation.scores}
    for name, evaluation in found.items():
        missing = sorted(scored & evaluation.skipped.keys())
        if missing:
            warn(
                f"{name} cannot be scored by {', '.join(missing)} ({evaluation.skipped[missing[0]]}), so the "
                "ranking leaves these scores out."
            )


def _unseen_by_all(opened: Mapping[str, AnnData | Backed]) -> tuple[SplitRows | None, set[str]]:
    """Find the real cells that none of the models has seen, so that all sets are judged by the same cells.

    Returns these, or None if no model is known to have been trained on the real cells, and the names of the sets whose
    models are known to have been.
    """
    of_sets = {name: unseen_among(opened["real"], cells) for name, cells in opened.items() if name != "real"}
    found = {name.removeprefix("synthetic "): of for name, of in of_sets.items() if of is not None}
    if not found:
        return None, set()
    unseen = reduce(np.intersect1d, [of.unseen for of in found.values()])
    trained = reduce(np.intersect1d, [of.trained for of in found.values()])
    kinds = {of.kind for of in found.values()}
    kind = next(kind for kind in ("none", "validation", "holdout") if kind in kinds)
    enough = min(len(unseen), len(trained)) >= MIN_CELLS
    return SplitRows(kind if enough else "none", unseen, trained), set(found)


def _by_name(paths: Sequence[str | Path]) -> dict[str, AnnData | str | Path]:
    """Name each file by its stem, or by its path if the stems are not unique. Raises ConfigError for duplicates."""
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(Path(path).with_suffix("")) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two sets are the same file: {', '.join(map(str, paths))}.")
    return dict(zip(names, paths))
