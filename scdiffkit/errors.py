"""What can go wrong, in words a user can act on: what was wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable


class ScdiffError(Exception):
    """Anything this tool refuses to do; the command line prints it and exits with `exit_code`."""

    exit_code = 1


class DataError(ScdiffError):
    """The cells cannot be used as they are: wrong values, wrong columns, nothing left."""


class FileError(ScdiffError):
    """A file or folder is missing, damaged, in the way, or cannot be written."""


class RunError(ScdiffError):
    """A run directory is incomplete, or does not fit what is asked of it."""


class ConfigError(ScdiffError):
    """An option or a configuration file holds a value that cannot be used."""

    exit_code = 2


class ScdiffWarning(UserWarning):
    """Something a user should know of, but that does not stop the work."""


def did_you_mean(name: str, names: Iterable[str], n: int = 3) -> str:
    """The names most like `name`, as the tail of a message: "did you mean 'a' or 'b'?"; else all (up to 10)."""
    known = [str(x) for x in names]
    folded = {x.casefold(): x for x in known}
    close = [folded[x] for x in difflib.get_close_matches(name.casefold(), list(folded), n=n, cutoff=0.5)]
    if close:
        return "did you mean " + " or ".join(repr(x) for x in close) + "?"
    if not known:
        return "there are none."
    listed = ", ".join(repr(x) for x in known[:10])
    return f"there are: {listed}{', ...' if len(known) > 10 else '.'}"


def warn(message: str) -> None:
    """ScdiffWarning, shown at the line of the user's code that led to it."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "scdiffkit":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ScdiffWarning, stacklevel=level)
