"""Rendering of the HTML templates, and the format of numbers and position strips in them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from scdiffkit.evaluation.verdict import GRADES, MEANING
from scdiffkit.metrics.score import Score

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Render a template of the folder report with these values as HTML."""
    return _environment().get_template(template).render(**values)


def families(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Group scores by family, in their original order."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(score.family, []).append(score)
    return found


def number(value: float | None, spread: tuple[float, float] | None = None) -> str:
    """Format a value with three digits, followed by half the width of its interval; None becomes an empty text."""
    if value is None:
        return ""
    text = f"{value:.3g}" if abs(value) >= 1e-4 or value == 0 else f"{value:.0e}"
    return text if spread is None else f"{text} ± {(spread[1] - spread[0]) / 2:.1g}"


def strip(score: Score) -> dict[str, Any]:
    """Return the position of a score on a strip from real cells to bad models, in percent of its width, and as text.

    band: the part of the strip where real cells score by chance.
    """
    return {
        "at": 100 * min(score.position, 1.0),
        "band": 100 * min(score.real_reference_position, 1.0),
        "words": score.place,
    }


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("scdiffkit.evaluation", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals |= {"meaning": MEANING, "grades": GRADES, "number": number, "strip": strip}
    return found
