"""Which of several sets of synthetic cells is the best? All scored alike, in one table, ranked."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from scdiffkit.data.split import Unseen
from scdiffkit.errors import ConfigError, FileError, ScdiffWarning
from scdiffkit.evaluation.cell_sets import MIN_CELLS, sha256
from scdiffkit.evaluation.pipeline import (
    CELLS_OF_RESAMPLE,
    FAST_CELLS,
    RESAMPLES,
    SHARE_OF_RESAMPLE,
    Evaluation,
    evaluate,
    unseen_among,
)
from scdiffkit.evaluation.report import comparison_html
from scdiffkit.io import Backed, atomic_write_text, open_cells
from scdiffkit.io.atomic import writing
from scdiffkit.metrics.profiles import FULL, ONE_RESAMPLE, asked_for, chosen_metrics
from scdiffkit.metrics.score import Score
from scdiffkit.preprocessing.pipeline import with_columns

SCHEMA = 1
REPORT, SCORES, TABLE = "compare.html", "compare.json", "compare.csv"
RANKED_BY = ("per gene", "per cell", "joint", "coverage", "classifier", "biology")  # privacy is no contest
COPIED_LAST = "copied"


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several sets of synthetic cells against the same real ones, by name, the best first."""

    evaluations: dict[str, Evaluation]

    def to_frame(self) -> pd.DataFrame:
        """One row per metric; columns metric, family, real_cells (what those score), bad_model (what the worst of
        these scores), one per set with its value, and best: the name of the set that comes nearest to real cells."""
        rows = []
        for score in self.scores_of_first():
            row: dict[str, Any] = {"metric": score.metric, "family": score.family, "real_cells": score.floor}
            row["bad_model"] = score.ceiling(score.worst_ceiling())
            found = self.of_metric(score.metric)
            rows.append(row | {name: s.value for name, s in found.items()} | {"best": self.best(score.metric)})
        return pd.DataFrame(rows)

    def ranking(self) -> pd.DataFrame:
        """One row per set, the best first: name, verdict, distance (mean position from real cells, 0, to bad models, 1,
        over families that count alike), and one column per family."""
        rows = []
        for name, evaluation in self.evaluations.items():
            by_family = _distances(evaluation, self._telling())
            word = evaluation.verdict.word
            rows.append(
                {"name": name, "verdict": word, "distance": float(np.mean(list(by_family.values()))), **by_family}
            )
        return pd.DataFrame(rows)

    def scores_of_first(self) -> list[Score]:
        """Of the metrics that all sets have, those of the best set."""
        shared = self._shared()
        return [score for score in next(iter(self.evaluations.values())).scores if score.metric in shared]

    def of_metric(self, metric: str) -> dict[str, Score]:
        """The score of each set."""
        return {name: evaluation[metric] for name, evaluation in self.evaluations.items()}

    def best(self, metric: str) -> str:
        """The set nearest to real cells; empty where all are as real cells are."""
        found = self.of_metric(metric)
        fair = {name: s for name, s in found.items() if self.evaluations[name].verdict.word != COPIED_LAST}
        found = fair or found
        if all(score.at_floor for score in found.values()):
            return ""
        return min(found, key=lambda name: found[name].position)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in compare.json: schema 1, ranking (list of rows), sets {name: Evaluation.to_dict()}."""
        sets = {name: evaluation.to_dict() for name, evaluation in self.evaluations.items()}
        return {"schema": SCHEMA, "ranking": self.ranking().to_dict("records"), "sets": sets}

    def _telling(self) -> set[str]:
        """The metrics that tell good from bad models in all sets."""
        return {m for m in self._shared() if all(s.bad_model is not None for s in self.of_metric(m).values())}

    def _shared(self) -> set[str]:
        return set.intersection(*({s.metric for s in e.scores} for e in self.evaluations.values()))


def compare(
    real: AnnData | str | Path,
    synthetic: dict[str, AnnData | str | Path] | Sequence[str | Path],
    *,
    train: AnnData | str | Path | None = None,
    label: str | None = None,
    conditions: Sequence[str] = (),
    metrics: str | Sequence[str] = FULL,
    out: str | Path | None = None,
    seed: int = 0,
    max_cells: int = CELLS_OF_RESAMPLE,
    resamples: int = RESAMPLES,
    fast: bool = False,
    backed: bool | None = None,
    max_memory: float | None = None,
    force: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> Comparison:
    """Score several sets of synthetic cells against the same real ones, with as many cells of each.

    synthetic: sets by name, or files, named after themselves. out: folder for compare.html, compare.json and
    compare.csv, replaced only with `force`. Else as `evaluate`. Sets are ranked by their mean distance from real cells
    over the families of metrics that all of them have; copies come last. Each is compared in the genes that it shares
    with the real cells: where these differ between sets, that is said (ScdiffWarning).

    Raises what `evaluate` raises, and ConfigError for fewer than two sets or two of one name.
    """
    fast = fast or any(name in ONE_RESAMPLE for name in asked_for(metrics))
    chosen_metrics(asked_for(metrics))  # which are wrong before any file is read
    if fast:
        resamples, max_cells = 1, min(max_cells, FAST_CELLS)
    given = synthetic if isinstance(synthetic, dict) else _by_name(synthetic)
    if len(given) < 2:
        raise ConfigError("compare takes two sets of synthetic cells or more; for one, use evaluate.")
    if out is not None:
        _check_out(Path(out), force)
    named = {f"synthetic {name}": c for name, c in given.items()} | {"real": real}
    _, opened = open_cells(named if train is None else named | {"train": train}, backed=backed, max_memory=max_memory)
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
    share = SHARE_OF_RESAMPLE if resamples > 1 else 1.0
    max_cells = min([max_cells, *(max(5, int(share * n)) for n in available)])  # as many of every set
    found: dict[str, Evaluation] = {}
    for name, c in cells.items():

        def of_set(said: str, i: int, n: int, name: str = name) -> None:
            if progress:
                progress(f"{name}: {said}", len(found) * n + i, len(cells) * n)

        found[name] = evaluate(
            real_cells, c, train=train_cells, label=label, conditions=conditions, metrics=metrics, seed=seed,
            max_cells=max_cells, resamples=resamples, unseen=unseen, progress=of_set,
        )  # fmt: skip
        if unseen is not None and name not in known:  # another program's, which may have seen them
            found[name] = replace(found[name], basis="unknown")
        for side, source in (("real", real), ("synthetic", given[name]), ("train", train)):
            if isinstance(source, (str, Path)):
                found[name].inputs[side] |= {"source": str(source), "sha256": hashes[str(source)]}
    genes = {name: evaluation.n_genes for name, evaluation in found.items()}
    if len(set(genes.values())) > 1:
        warnings.warn(
            "The sets are compared in different genes, so their figures per gene are not of the same genes: "
            f"{', '.join(f'{name} {n}' for name, n in genes.items())}.",
            ScdiffWarning,
            stacklevel=2,
        )
    scored = {score.metric for evaluation in found.values() for score in evaluation.scores}
    for name, evaluation in found.items():
        missing = sorted(scored & evaluation.skipped.keys())
        if missing:
            warnings.warn(
                f"{name} cannot be scored by {', '.join(missing)} ({evaluation.skipped[missing[0]]}): no set is ranked "
                "by them.",
                ScdiffWarning,
                stacklevel=2,
            )
    comparison = _ranked(found)
    if out is not None:
        _write(comparison, Path(out))
    return comparison


def _unseen_by_all(opened: Mapping[str, AnnData | Backed]) -> tuple[Unseen | None, set[str]]:
    """Which of the real cells none of the models has seen that were trained on these, so that all sets are judged by
    the same cells; None where no model is known to have been. And which sets these models made."""
    of_sets = {name: unseen_among(opened["real"], cells) for name, cells in opened.items() if name != "real"}
    found = {name.removeprefix("synthetic "): of for name, of in of_sets.items() if of is not None}
    if not found:
        return None, set()
    unseen = reduce(np.intersect1d, [of.unseen for of in found.values()])
    trained = reduce(np.intersect1d, [of.trained for of in found.values()])
    kinds = {of.kind for of in found.values()}
    kind = next(kind for kind in ("none", "validation", "holdout") if kind in kinds)
    enough = min(len(unseen), len(trained)) >= MIN_CELLS
    return Unseen(kind if enough else "none", unseen, trained), set(found)


def _ranked(found: dict[str, Evaluation]) -> Comparison:
    ranking = Comparison(found).ranking()
    ranking["copied"] = ranking["verdict"] == COPIED_LAST
    order = ranking.sort_values(["copied", "distance"], kind="stable")["name"]
    return Comparison({name: found[name] for name in order})


def _distances(evaluation: Evaluation, metrics: set[str]) -> dict[str, float]:
    """Mean position, at most 1 each, of the metrics of each family."""
    positions: dict[str, list[float]] = {}
    for score in evaluation.scores:
        if score.family in RANKED_BY and score.metric in metrics:
            positions.setdefault(score.family, []).append(min(score.position, 1.0))
    return {family: float(np.mean(values)) for family, values in positions.items()}


def _by_name(paths: Sequence[str | Path]) -> dict[str, AnnData | str | Path]:
    """Files by the shortest name that tells them apart: their own, else with their folder."""
    names = [Path(path).stem for path in paths]
    if len(set(names)) < len(names):
        names = [str(Path(path).with_suffix("")) for path in paths]
    if len(set(names)) < len(names):
        raise ConfigError(f"Two sets are the same file: {', '.join(map(str, paths))}.")
    return dict(zip(names, paths))


def _check_out(out: Path, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise FileError(f"{out} is a file; the comparison needs a folder. Choose another name.")
    there = [name for name in (REPORT, SCORES, TABLE) if (out / name).exists()]
    if there and not force:
        raise FileError(f"{out} holds {' and '.join(there)} already: choose another folder, or use --force.")


def _write(comparison: Comparison, out: Path) -> None:
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(comparison.to_dict(), indent=2, allow_nan=False, ensure_ascii=False)
    atomic_write_text(out / SCORES, text + "\n")
    atomic_write_text(out / TABLE, comparison.to_frame().to_csv(index=False))
    atomic_write_text(out / REPORT, comparison_html(comparison))
