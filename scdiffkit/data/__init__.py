"""Training cells and their conditions in the form that models use, and how cells are split."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name in ("cells", "conditions", "split"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scdiffkit._deprecated import look_up

    return look_up("data", name)
