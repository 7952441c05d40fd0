"""The HTML pages of an evaluation and of a comparison."""

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
    """Render the report of an evaluation as an HTML page with its pictures."""
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
    """Render a comparison of several synthetic sets as an HTML page."""
    return render("compare.html.j2", about=comparison, families=families(comparison.scores_of_first()))


def _type_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return one row per type, worst first: cells in each set, and scores or the reason why there are none."""
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
