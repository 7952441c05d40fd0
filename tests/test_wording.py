"""Messages are written for the shell, and name what the user of each interface can give."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.config import PreprocessConfig
from scdiffkit.errors import ConfigError, in_python, wording

PACKAGE = Path(scdiffkit.__file__).parent
OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
OF_LAUNCHERS = {  # torchrun's and srun's
    "nnodes", "nproc-per-node", "rdzv-backend", "rdzv-endpoint", "nodes", "ntasks-per-node", "gpus-per-node",
    "gpus-per-task",
}  # fmt: skip
OF_PYTHON_BY_ANOTHER_WAY = {"set", "ddim", "ddpm", "config", "num-nodes"}  # overrides=, steps=, a mapping


@pytest.mark.parametrize(
    ("shell", "python"),
    [
        ("Choose another --out, or replace it with --force.", "Choose another `out`, or replace it with `force=True`."),
        ("No such column (--label).", "No such column (`label`)."),
        ("Train with --holdout 0.2.", "Train with `holdout=0.2`."),
        ("is read only with --codec gene: leave", "is read only with `codec='gene'`: leave"),
        ("--run takes the real cells", "`run` takes the real cells"),
        ("or give --set train.compile=false.", "or give `overrides={'train.compile': False}`."),
        ("smaller codec.lr (--set codec.lr=0.0005).", "smaller codec.lr (`overrides={'codec.lr': 0.0005}`)."),
        ("give -n instead of --like.", "give `n` instead of `like`."),
        (
            "Continue with `scdiff train DATA --resume --out runs/a`.",
            "Continue with `scdiffkit.train(data, out='runs/a', resume=True)`.",
        ),
        ("run `scdiff preprocess` on their raw counts", "run `scdiffkit.preprocess(...)` on their raw counts"),
        ("torchrun started 2 processes, but --devices 4", "torchrun started 2 processes, but --devices 4"),
        ("at most 5-- or so, a-n", "at most 5-- or so, a-n"),
    ],
)
def test_what_the_shell_calls_an_option_is_a_keyword_in_python(shell, python):
    assert in_python(shell) == python
    assert in_python(python) == python


def test_each_interface_has_its_words(tmp_path):
    error = ConfigError("give a smaller --batch-size.")
    assert str(error) == "give a smaller `batch_size`."
    with wording(str):
        assert str(error) == "give a smaller --batch-size."
    with pytest.raises(ConfigError, match="There is no `protocol` 'x'"):
        scdiffkit.evaluate("a.h5ad", "b.h5ad", protocol="x", out=tmp_path / "report")
    asked = ["evaluate", "a.h5ad", "b.h5ad", "--protocol", "x", "--out", str(tmp_path / "report")]
    assert "There is no --protocol 'x'" in CliRunner().invoke(app, asked).output


def options_in_messages() -> set[str]:
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name == "cli" or path.name == "_deprecated.py":  # which names old options
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(OPTION.findall(node.value))
    return found - OF_LAUNCHERS


def test_every_option_that_a_message_names_exists_in_the_shell_and_in_python():
    named = options_in_messages()
    assert len(named) > 30
    commands = typer.main.get_command(app).commands.values()
    in_shell = {name.lstrip("-") for c in commands for p in c.params for name in (*p.opts, *p.secondary_opts)}
    assert named <= in_shell
    functions = [getattr(scdiffkit, name) for name in scdiffkit.__all__ if name.islower() and name[0] != "_"]
    keywords = {name for function in functions for name in inspect.signature(function).parameters}
    keywords |= set(PreprocessConfig.model_fields)
    assert {name.replace("-", "_") for name in named - OF_PYTHON_BY_ANOTHER_WAY} <= keywords
