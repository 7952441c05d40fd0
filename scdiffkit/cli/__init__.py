"""The command line: commands parse options, call the API and print results.

There is one file per command. Heavy imports are delayed until a command runs.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from typing import Any

import typer
import typer.core

from scdiffkit._deprecated import renamed_options
from scdiffkit.cli.compare import compare
from scdiffkit.cli.console import complain, log, setup_logging
from scdiffkit.cli.demo import demo
from scdiffkit.cli.evaluate import evaluate
from scdiffkit.cli.info import info
from scdiffkit.cli.preprocess import preprocess
from scdiffkit.cli.runs import runs
from scdiffkit.cli.sample import sample
from scdiffkit.cli.split import split
from scdiffkit.cli.train import train
from scdiffkit.errors import ScdiffError, wording

INTERRUPTED = 130  # exit code that shells expect after Ctrl-C


class Commands(typer.core.TyperGroup):
    """The group of all commands; it also accepts the former names of renamed options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args, ctx.meta["renamed"] = renamed_options(args)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="scdiff",
    cls=Commands,
    help="Learn from your own single-cell RNA-seq data and generate new, labelled, realistic cells.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        import scdiffkit

        print(scdiffkit.__version__)  # noqa: T201
        raise typer.Exit


@app.callback()
def _options(
    ctx: typer.Context,
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log more, and show full tracebacks."),
    quiet: bool = typer.Option(False, "--quiet", "-q", help="Show only warnings, errors and results."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    setup_logging(verbose=verbose, quiet=quiet)
    for message in ctx.meta["renamed"]:
        log.warning(message)


def _guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Convert errors that a user can fix to a message and an exit code: 1 failure, 2 usage, 130 interrupted."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        def stop(number: int, frame: Any) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)  # like Ctrl-C, so that partial files are removed
        try:
            with wording(str):
                command(*args, **kwargs)
        except ScdiffError as e:
            complain(e.text)
            raise typer.Exit(e.exit_code) from e
        except KeyboardInterrupt as e:
            raise typer.Exit(INTERRUPTED) from e
        except MemoryError as e:
            complain("Out of memory. Try fewer genes (--n-top-genes), a smaller --batch-size, or fewer cells.")
            raise typer.Exit(1) from e
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


EXAMPLES: dict[Callable[..., None], str] = {  # the help lists commands in this order
    demo: "scdiff demo -o demo",
    preprocess: "scdiff preprocess raw.h5ad -o prepared.h5ad --label cell_type --max-mito 0.1",
    split: "scdiff split data.h5ad -o train.h5ad test.h5ad --label cell_type",
    train: "scdiff train data.h5ad --label cell_type --holdout 0.2",
    sample: "scdiff sample -n 500 --where cell_type=B -o cells.h5ad",
    evaluate: "scdiff evaluate data.h5ad cells.h5ad --label cell_type",
    compare: "scdiff compare data.h5ad a.h5ad b.h5ad --label cell_type",
    info: "scdiff info data.h5ad",
    runs: "scdiff runs",
}
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: {example}")(_guarded(command))


def main() -> None:
    """Run the command line; this is the entry point of `scdiff`."""
    app()
