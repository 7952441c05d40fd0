"""Errors and warnings. Each message states what is wrong, where, and what the user can do about it."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar

PYTHON = {"true": "True", "false": "False"}
FLAGS = ("resume", "force")
VALUES = "auto|count|disk|gene|median|outer|seurat|small"  # option values, besides numbers, that occur in messages


def in_python(text: str) -> str:
    """Replace command-line options in a message by Python keywords: `--n-top-genes 500` becomes `n_top_genes=500`."""
    if re.search(r"\b(torchrun|srun)\b", text):  # such commands are always run in a shell
        return text
    text = re.sub(r"scdiff train DATA --resume --out ([^\s`]+)", r"scdiffkit.train(data, out='\1', resume=True)", text)
    text = re.sub(r"\bscdiff ([a-z]+)\b( DATA)?", r"scdiffkit.\1(...)", text)
    text = re.sub(r"--set ([\w.]+)=([\w.]*\w)", lambda m: f"`overrides={{{m[1]!r}: {PYTHON.get(m[2], m[2])}}}`", text)

    def keyword(found: re.Match[str]) -> str:
        name, value = found[1].replace("-", "_"), found[2]
        if value is None:
            return f"`{name}=True`" if name in FLAGS else f"`{name}`"
        return f"`{name}={value}`" if value[0].isdigit() else f"`{name}='{value}'`"

    text = re.sub(rf"(?<![\w-])--([a-z][a-z-]*)(?: (\d+(?:\.\d+)?|{VALUES})\b)?", keyword, text)
    return re.sub(r"(?<![\w-])-n\b", "`n`", text)


_wording: ContextVar[Callable[[str], str]] = ContextVar("wording", default=in_python)


@contextlib.contextmanager
def wording(words: Callable[[str], str]) -> Iterator[None]:
    """Convert messages, which are written for the shell, with the function `words` within the block."""
    token = _wording.set(words)
    try:
        yield
    finally:
        _wording.reset(token)


def worded(text: str) -> str:
    """Return a message in the wording of the current interface, the command line or Python."""
    return _wording.get()(text)


class ScdiffError(Exception):
    """Base class of all errors of this package; the command line prints the message and exits with `exit_code`."""

    exit_code = 1

    @property
    def text(self) -> str:
        """The original message, written for the shell."""
        return super().__str__()

    def __str__(self) -> str:
        return worded(self.text)


class DataError(ScdiffError):
    """The cells cannot be used: for example, values or columns are wrong, or filters leave no cells."""


class FileError(ScdiffError):
    """A file or folder is missing or damaged, exists already, or cannot be written."""


class RunError(ScdiffError):
    """A run directory is incomplete, or does not support the requested operation."""


class ConfigError(ScdiffError):
    """An option or a configuration file has an invalid value."""

    exit_code = 2


class ScdiffWarning(UserWarning):
    """A problem that the user should know about, but that does not stop the operation."""


def did_you_mean(name: str, names: Iterable[str], n: int = 3) -> str:
    """Return the end of a message with the names closest to `name`, such as "did you mean 'a' or 'b'?".

    If none is close, up to 10 of all names are listed.
    """
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
    """Issue a ScdiffWarning that points to the line of the user's code that caused it."""
    level, frame = 1, sys._getframe(0)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "scdiffkit":
        level, frame = level + 1, frame.f_back
    warnings.warn(worded(message), ScdiffWarning, stacklevel=level)
