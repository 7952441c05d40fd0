"""Progress of long tasks: a bar on a terminal or in a notebook, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

PLAIN_EVERY = 10.0  # seconds between lines


class Update(Protocol):
    """Callback for progress. The total may be given later than the first call."""

    def __call__(self, done: float, note: str = "", total: float | None = None) -> None: ...


@contextlib.contextmanager
def shown_progress(
    what: str,
    shown: bool | None,
    on_progress: Callable[..., None] | None,
    step: Callable[..., tuple[float, str, float | None]],
) -> Iterator[Callable[..., None] | None]:
    """Yield the callback to call with progress: `on_progress`, plus a progress bar if `shown`.

    With `shown` None, there is a bar if no `on_progress` is given and stderr is a terminal or a notebook. `step`
    converts the arguments of `on_progress` to those of Update.
    """
    if not (on_progress is None and is_watched() if shown is None else shown):
        yield on_progress
        return
    with progress_bar(what) if is_watched() else contextlib.nullcontext(plain_lines(what, _to_stderr)) as update:

        def report(*args: Any) -> None:
            update(*step(*args))
            if on_progress:
                on_progress(*args)

        yield report


def is_watched() -> bool:
    """Return whether a bar can be shown: on a terminal, or in a notebook with ipywidgets."""
    if sys.stderr.isatty():
        return True
    if "ipykernel" not in sys.modules or importlib.util.find_spec("ipywidgets") is None:
        return False
    from rich.console import Console

    return Console(stderr=True).is_jupyter


@contextlib.contextmanager
def progress_bar(what: str, total: float | None = None) -> Iterator[Update]:
    """Show a progress bar with the time left on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, redirect_stderr=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def update(done: float, note: str = "", total: float | None = None) -> None:
            bar.update(task, completed=done, note=note, total=total)  # None keeps the total

        yield update


def plain_lines(what: str, write: Callable[[str], None], total: float | None = None) -> Update:
    """Return a callback that writes a line with the time left every few seconds."""
    started = last = time.monotonic()
    first: float | None = None
    before = 0.0

    def update(done: float, note: str = "", total: float | None = total) -> None:
        nonlocal started, last, first, before
        now = time.monotonic()
        if first is None or done < before:  # a resumed run starts above 0; diffusion starts over after the codec
            started, first = now, done
        before = done
        if now - last < PLAIN_EVERY:
            return
        last = now
        line = f"{what}: {done:g}" + (f" of {total:g}" if total else "")
        if total and done > first:
            line += f", {seconds((now - started) * (total - done) / (done - first))} left"
        write(f"{line}, {note}" if note else line)

    return update


def seconds(value: float) -> str:
    """Format seconds: 12.3 -> "12 s", 90 -> "1 min 30 s"."""
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
