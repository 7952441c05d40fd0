"""What can go wrong, in words a user can act on: what was wrong, where, and what to do about it."""

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
VALUES = "auto|count|disk|gene|median|outer|seurat|small"  # that messages give to options, beside numbers


def in_python(text: str) -> str:
    """A message as written for the shell, with the keywords of Python: `--n-top-genes 500` is `n_top_genes=500`."""
    if re.search(r"\b(torchrun|srun)\b", text):  # a command for a shell in any case
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
    """Within the block, messages, which are written for the shell, are shown through `words`."""
    token = _wording.set(words)
    try:
        yield
    finally:
        _wording.reset(token)


def worded(text: str) -> str:
    """A message in the words of the interface that is in use."""
    return _wording.get()(text)


class ScdiffError(Exception):
    """Anything this tool refuses to do; the command line prints it and exits with `exit_code`."""

    exit_code = 1

    @property
    def text(self) -> str:
        """The message as written, for the shell."""
        return super().__str__()

    def __str__(self) -> str:
        return worded(self.text)


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
    warnings.warn(worded(message), ScdiffWarning, stacklevel=level)
