"""What the README says is run as it stands, on the bundled cells, with short training."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import scanpy

import scdiffkit

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXT = README.read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(demo, tmp_path):
    """data.h5ad as the README assumes it; the training is made short by a file of settings."""
    scdiffkit.write(demo, tmp_path / "data.h5ad")
    return tmp_path


@pytest.mark.slow
def test_the_quick_start_in_the_shell(folder):
    for line in blocks("bash")[0].splitlines():
        words = shlex.split(line)
        if words[1] == "train":
            words += ["--max-steps", "5"]
        done = subprocess.run(
            [Path(sys.executable).parent / words[0], *words[1:]],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, line + done.stderr
    assert (folder / "report" / "report.html").exists()
    cells = scanpy.read_h5ad(folder / "cells.h5ad")
    scanpy.pp.pca(cells[::2].copy())  # by scanpy's own reader, as a user would go on


@pytest.mark.slow
def test_the_quick_start_in_python(folder):
    code = blocks("python")[0].replace("holdout=0.2)", 'holdout=0.2, overrides={"train.max_steps": 5})', 1)
    code = code.replace('"B"', '"CD19+ B"')  # the bundled cells' name for them
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rf_auc" in done.stdout


def test_the_two_commands_are_those_of_the_script():
    script = (README.parent / "dev").read_text()
    for command in re.findall(r"^\./dev (\w+)", blocks("console")[0], flags=re.MULTILINE):
        assert re.search(rf"^{command}\)", script, flags=re.MULTILINE)


def test_every_option_named_exists():
    help_of = {}
    for command in ("train", "sample", "evaluate", "compare", "preprocess", "split", "info", "runs"):
        done = subprocess.run(
            [Path(sys.executable).parent / "scdiff", command, "--help"],
            capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "250", "TERM": "dumb"},
        )  # fmt: skip
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
