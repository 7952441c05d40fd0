"""Ranking of several sets of synthetic cells that were scored in the same way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scdiffkit.evaluation.result import Evaluation
from scdiffkit.metrics.score import Score

SCHEMA = 1
RANKED_BY = ("per gene", "per cell", "joint", "coverage", "classifier", "biology")  # sets are not ranked by privacy
COPIED_LAST = "copied"


@dataclass(frozen=True)
class Comparison:
    """Evaluations of several sets of synthetic cells against the same real cells, by name, best first."""

    evaluations: dict[str, Evaluation]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric.

        Columns: metric, family, real_reference (score of real cells), baseline (score of the worst bad model), one
        column per set with its value, and best (name of the set nearest to real cells).
        """
        rows = []
        for score in self.scores_of_first():
            row: dict[str, Any] = {
                "metric": score.metric,
                "family": score.family,
                "real_reference": score.real_reference,
            }
            row["baseline"] = score.baseline(score.worst_baseline())
            found = self.of_metric(score.metric)
            rows.append(row | {name: s.value for name, s in found.items()} | {"best": self.best(score.metric)})
        return pd.DataFrame(rows)

    def ranking(self) -> pd.DataFrame:
        """Return one row per set, best first.

        Columns: name, verdict, distance (mean position between real cells, 0, and bad models, 1; families have equal
        weights), and one column per family.
        """
        rows = []
        for name, evaluation in self.evaluations.items():
            by_family = _distances(evaluation, self._telling())
            word = evaluation.verdict.word
            rows.append(
                {"name": name, "verdict": word, "distance": float(np.mean(list(by_family.values()))), **by_family}
            )
        return pd.DataFrame(rows)

    def scores_of_first(self) -> list[Score]:
        """Return the best set's scores of the metrics that all sets have."""
        shared = self._shared()
        return [score for score in next(iter(self.evaluations.values())).scores if score.metric in shared]

    def of_metric(self, metric: str) -> dict[str, Score]:
        """Return each set's score of a metric, by name."""
        return {name: evaluation[metric] for name, evaluation in self.evaluations.items()}

    def best(self, metric: str) -> str:
        """Return the name of the set nearest to real cells; empty if all score as real cells do."""
        found = self.of_metric(metric)
        fair = {name: s for name, s in found.items() if self.evaluations[name].verdict.word != COPIED_LAST}
        found = fair or found
        if all(score.at_real_reference for score in found.values()):
            return ""
        return min(found, key=lambda name: found[name].position)

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as in compare.json: schema 1, ranking (rows), sets {name: Evaluation.to_dict()}."""
        sets = {name: evaluation.to_dict() for name, evaluation in self.evaluations.items()}
        return {"schema": SCHEMA, "ranking": self.ranking().to_dict("records"), "sets": sets}

    def _telling(self) -> set[str]:
        """Return the metrics that separate good from bad models in all sets."""
        return {m for m in self._shared() if all(s.baseline_name is not None for s in self.of_metric(m).values())}

    def _shared(self) -> set[str]:
        return set.intersection(*({s.metric for s in e.scores} for e in self.evaluations.values()))


def ranked(found: dict[str, Evaluation]) -> Comparison:
    ranking = Comparison(found).ranking()
    ranking["copied"] = ranking["verdict"] == COPIED_LAST
    order = ranking.sort_values(["copied", "distance"], kind="stable")["name"]
    return Comparison({name: found[name] for name in order})


def _distances(evaluation: Evaluation, metrics: set[str]) -> dict[str, float]:
    """Return the mean position of each family's metrics; each position is capped at 1."""
    positions: dict[str, list[float]] = {}
    for score in evaluation.scores:
        if score.family in RANKED_BY and score.metric in metrics:
            positions.setdefault(score.family, []).append(min(score.position, 1.0))
    return {family: float(np.mean(values)) for family, values in positions.items()}
