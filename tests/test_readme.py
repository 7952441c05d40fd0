"""What the README says is run as it stands, on the bundled cells, with short training."""

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import scanpy
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


SHORT = {"train.max_steps": 5, "codec.max_steps": 30, "codec.tails_steps": 10}


@pytest.fixture
def folder(demo, tmp_path):
    """The current folder, with data.h5ad in it as the README assumes it."""
    scdiffkit.write(demo, tmp_path / "data.h5ad")
    with contextlib.chdir(tmp_path):
        yield tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_the_quick_start_in_the_shell(folder):
    said = {}
    for line in blocks("bash")[0].splitlines():
        words = shlex.split(line)[1:]
        if words[0] == "train":
            words += [word for key, value in SHORT.items() for word in ("--set", f"{key}={value}")]
        done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
        assert done.exit_code == 0, line + done.output
        said[words[0]] = done
    assert said["sample"].stdout.strip() == "cells.h5ad"
    assert "(the latest)" in said["sample"].stderr
    assert "20 network calls per cell (T = 1000, speedup 50)" in said["sample"].stderr
    assert said["evaluate"].stdout.startswith(
        "The synthetic cells are compared with cells that were held out from training."
    )
    assert "report: report/report.html" in said["evaluate"].stdout
    assert "scdiff evaluate data.h5ad cells.h5ad --label cell_type" in (folder / "report" / "report.html").read_text()
    assert (folder / "report" / "cells.png").read_bytes().startswith(b"\x89PNG")
    scores = json.loads((folder / "report" / "metrics.json").read_text())["scores"]
    assert all(np.isfinite([s["value"], s["real_reference"]]).all() for s in scores)
    cells = scanpy.read_h5ad(folder / "cells.h5ad")
    assert cells.n_obs == 2000
    scanpy.pp.pca(cells[::2].copy())  # by scanpy's own reader, as a user would go on


@pytest.mark.slow
@pytest.mark.usefixtures("few_trees")
def test_the_quick_start_in_python(folder):
    code = blocks("python")[0].replace("holdout=0.2)", f"holdout=0.2, overrides={SHORT!r})", 1)
    code = code.replace('"B"', '"CD19+ B"')  # the bundled cells' name for them
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    assert "rf_auc" in out.getvalue()


def test_the_two_commands_are_those_of_the_script():
    script = (README.parent / "dev").read_text()
    for command in re.findall(r"^\./dev (\w+)", blocks("console")[0], flags=re.MULTILINE):
        assert re.search(rf"^{command}\)", script, flags=re.MULTILINE)


def test_every_option_named_exists():
    help_of = {}
    for command in ("train", "sample", "evaluate", "compare", "preprocess", "split", "info", "runs"):
        done = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "250", "TERM": "dumb"})
        assert done.exit_code == 0
        help_of[command] = done.stdout
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES if page.name != "metrics.md")
    lines = [
        line
        for line in text.splitlines()
        if not any(other in line for other in ("torchrun", "python benchmarks", "./dev"))
    ]
    options = set(re.findall(r"(?<!\w)--[a-z][a-z-]+", "\n".join(lines))) - {"--help", "--nproc-per-node"}
    assert len(options) > 30
    missing = [o for o in options if not any(o in text for text in help_of.values())]
    assert missing == []


def test_the_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#][^)]*)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), (page.name, target)


def test_the_readme_is_short():
    assert len(TEXT.splitlines()) <= 130
