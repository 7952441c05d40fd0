"""Console output and options shared by all commands: results go to stdout, log and progress to stderr."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any

import typer

from scdiffkit.errors import ConfigError, ScdiffWarning
from scdiffkit.runtime.progress import Update, plain_lines, progress_bar

INPUT = "Input and output"
MACHINE = "Computation"


def choices(*values: str) -> dict[str, Any]:
    """Return arguments of typer.Option that list values in the help and complete them in a shell.

    The values are checked by the config classes, not here.
    """
    return {"metavar": f"[{'|'.join(values)}]", "autocompletion": lambda: list(values)}


# Options of commands that read cells
Memory = Annotated[
    str,
    typer.Option(
        help="Where the cells of files (h5ad, zarr) are kept: on disk, in memory (ram), or on disk only if they "
        "do not fit into free memory (auto) or into an amount such as 8G.",
        rich_help_panel=INPUT,
        **choices("auto", "disk", "ram", "8G"),
    ),
]
Join = Annotated[
    str | None,
    typer.Option(
        help="Genes of several files: their intersection or their union.",
        show_default="inner",
        rich_help_panel=INPUT,
        **choices("inner", "outer"),
    ),
]
# Options of commands that compute with a model
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to compute on.",
        show_default="auto",
        rich_help_panel=MACHINE,
        **choices("auto", "cpu", "cuda", "cuda:N", "mps"),
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="Floating-point precision; auto uses bf16 where it is faster.",
        show_default="auto",
        rich_help_panel=MACHINE,
        **choices("auto", "32", "bf16"),
    ),
]
log = logging.getLogger("scdiffkit")


class _Stderr(logging.Handler):
    """Write to the current sys.stderr, which a progress bar replaces while it is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        sys.stderr.write(self.format(record) + "\n")


def setup_logging(*, verbose: bool = False, quiet: bool = False) -> None:
    """Show the package's log and warnings as plain lines on stderr."""

    class Formatter(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
            return prefix + record.getMessage()

    handler = _Stderr(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    handler.setFormatter(Formatter())
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel(logging.DEBUG if verbose else logging.INFO)  # --quiet does not shorten a run's train.log
    if not verbose:
        warnings.simplefilter("ignore")  # hide warnings of libraries
        warnings.simplefilter("always", ScdiffWarning)

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        log.warning(str(message))

    warnings.showwarning = show


def complain(message: str) -> None:
    log.error(message)


def result(text: str) -> None:
    """Print a line of the result to stdout."""
    sys.stdout.write(text + "\n")


def result_json(values: Any) -> None:
    sys.stdout.write(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print rows to stdout at full width; numbers are right-aligned, missing values are dashes."""
    from rich.console import Console
    from rich.table import Table

    rows = list(rows)
    shown = [["-" if x is None else f"{x:.4g}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        numbers = any(isinstance(row[i], int | float) for row in rows)
        table.add_column(column, justify="right" if numbers else "left", no_wrap=True)
    for row in shown:
        table.add_row(*row)
    width = sum(max(map(len, [name, *(row[i] for row in shown)])) + 2 for i, name in enumerate(columns))
    Console(soft_wrap=True, width=max(Console().width, width), highlight=False, markup=False).print(table)


@contextlib.contextmanager
def progress(what: str, total: float | None = None) -> Iterator[Update]:
    """Show a progress bar on a terminal, plain lines every few seconds elsewhere, and nothing with --quiet."""
    if all(handler.level > logging.INFO for handler in log.handlers):
        yield lambda done, note="", total=None: None
    elif not sys.stderr.isatty():
        yield plain_lines(what, log.info, total)
    else:
        with progress_bar(what, total) as update:
            yield update


def seconds_since_start() -> float:
    """Return the age of this process in seconds, which includes the time to import libraries."""
    import psutil

    return time.time() - psutil.Process().create_time()


def parse_settings(pairs: list[str] | None, option: str) -> dict[str, Any]:
    """Parse KEY=VALUE pairs with YAML values: ["train.lr=1e-4", ...] -> {"train.lr": 1e-4}."""
    import yaml

    values = {}
    for pair in pairs or []:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} takes KEY=VALUE, not {pair!r}.")
        try:
            values[key.strip()] = _number_or(yaml.safe_load(value))
        except yaml.YAMLError as e:
            raise ConfigError(f"{option} {pair!r}: {value!r} is not valid YAML.") from e
    return values


def _number_or(value: Any) -> Any:
    """Convert numeric strings to float, because YAML reads 1e-4 as a string."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def parse_cfg_scale(values: list[str] | None) -> float | dict[str, float] | None:
    """Parse guidance scales: ["2"] -> 2.0, for all conditions together; ["donor=1.5"] -> {"donor": 1.5}."""
    scales: dict[str, float] = {}
    for value in values or []:
        column, equals, number = value.rpartition("=")
        try:
            scale = float(number)
        except ValueError:
            scale = None
        if scale is None or (equals and not column):
            raise ConfigError(f"--cfg-scale takes a number or COLUMN=NUMBER, not {value!r}.")
        if column in scales:
            raise ConfigError(f"--cfg-scale {value} contradicts {column + equals}{scales[column]:g}: give one of them.")
        scales[column] = scale
    if "" in scales and len(scales) > 1:
        raise ConfigError("Give --cfg-scale one number for all conditions together, or COLUMN=NUMBER, not both.")
    return scales.get("", scales or None)


def parse_where(pairs: list[str] | None) -> dict[str, list[str]]:
    """Parse COLUMN=VALUE pairs: ["cell_type=B", "cell_type=NK"] -> {"cell_type": ["B", "NK"]}."""
    where: dict[str, list[str]] = {}
    for pair in pairs or []:
        column, equals, value = pair.partition("=")
        if not equals or not column or not value:
            raise ConfigError(f"--where takes COLUMN=VALUE, not {pair!r}.")
        where.setdefault(column, []).append(value)
    return where
