"""The pages of the report, from what an evaluation or a comparison found."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from scdiffkit.evaluation.render import families, render
from scdiffkit.evaluation.report.figures import Picture
from scdiffkit.metrics.score import BASELINES

if TYPE_CHECKING:
    from scdiffkit.evaluation.ranking import Comparison
    from scdiffkit.evaluation.result import Evaluation


def html(evaluation: Evaluation, pictures: dict[str, Picture]) -> str:
    """The report as a page, with its pictures."""
    return render(
        "report.html.j2",
        about=evaluation,
        found=evaluation.verdict,
        data=evaluation.to_dict(),
        pictures=pictures,
        families=families(evaluation.scores),
        bad_models=BASELINES,
        type_rows=_type_rows(evaluation),
        type_metrics=list(dict.fromkeys(s.metric for scores in evaluation.of_types.values() for s in scores)),
        donor_rows=evaluation.of_donors,
    )  # fmt: skip


def comparison_html(comparison: Comparison) -> str:
    """Several synthetic sets beside one another, as a page."""
    return render("compare.html.j2", about=comparison, families=families(comparison.scores_of_first()))


def _type_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Of each type: cells on both sides, and its scores or why there are none; the worst first."""
    rows = []
    for name, counts in (evaluation.types or {}).items():
        scores = evaluation.of_types.get(name, [])
        missing = next((side for side in ("synthetic", "real") if not counts[side]), None)
        why = "" if scores else f"missing: no {missing} cells" if missing else "too few cells to be scored"
        worst = (
            float(np.mean([0.0 if score.at_real_reference else score.position for score in scores])) if scores else -1.0
        )
        by_metric = {score.metric: score for score in scores}
        rows.append({"name": name, **counts, "scores": by_metric, "why": why, "worst": np.inf if missing else worst})
    return sorted(rows, key=lambda row: (-row["worst"], row["name"]))
