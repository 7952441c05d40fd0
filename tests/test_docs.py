"""docs/metrics.md lists what the evaluation computes: `python tests/test_docs.py` writes it anew."""

from __future__ import annotations

import re
from inspect import getdoc, signature
from pathlib import Path
from typing import get_args

import pytest

import scdiffkit
from scdiffkit.evaluation.result import Evaluation
from scdiffkit.metrics import METRICS, PROTOCOLS
from scdiffkit.metrics.registry import Family
from scdiffkit.metrics.score import Score

SCORE = Score("", "", (0.0,), (0.0,), {"pooled": (1.0,)}, "closest to 0", 0.0, "", "")
PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"


def rendered() -> str:
    lines = [
        "# What `scdiff evaluate` computes",
        "",
        "All metrics by family, with direction, definition and source. Each is reported beside the scores of real",
        "cells and of bad models ([how to read them](evaluation.md)). The fields of `metrics.json` come last.",
    ]
    of_protocol = {name: key for key, protocol in PROTOCOLS.items() for name in protocol.metrics}
    for family in (family for family in get_args(Family) if any(m.family == family for m in METRICS.values())):
        lines += ["", f"## {family[0].upper()}{family[1:]}", ""]
        lines += [_item(name) for name, m in METRICS.items() if m.family == family and m.default]
    lines += ["", "## Protocols of other papers (`--protocol`)"]
    for key, protocol in PROTOCOLS.items():
        lines += ["", f"### {key}", "", f"{protocol.source}. Known flaws: {protocol.flaws}", ""]
        lines += [_item(name) for name in protocol.metrics if of_protocol[name] == key]
    fields = (getdoc(Evaluation.to_dict) or "").split("\n\n", 1)[1]
    lines += ["", "## `metrics.json`", "", fields, "", "Every score, also those within other fields, has:", ""]
    lines += [f"`{'`, `'.join(SCORE.to_dict())}`. " + (getdoc(Score.to_dict) or "").split("\n\n", 1)[1]]
    return "\n".join(lines) + "\n"


def _item(name: str) -> str:
    m = METRICS[name]
    return f"- **{name}** ({m.direction}): {m.definition} *{m.source}*"


def test_every_metric_is_documented_as_it_is() -> None:
    assert PAGE.read_text() == rendered(), "run python tests/test_docs.py"


@pytest.mark.parametrize("name", [name for name in scdiffkit.__all__ if name not in ("Run", "__version__")])
def test_public_functions_document_every_parameter(name: str) -> None:
    function = getattr(scdiffkit, name)
    text = getdoc(function) or ""
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert f"\n{section}\n{'-' * len(section)}\n" in text
    parameters = text.split("Parameters\n----------\n")[1].split("\nReturns\n")[0]
    named = {word for line in parameters.splitlines() if not line.startswith(" ") for word in re.findall(r"\w+", line)}
    assert named == set(signature(function).parameters)


if __name__ == "__main__":
    PAGE.write_text(rendered())
