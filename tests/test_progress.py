"""Progress in Python: a bar on a terminal, unless a callback follows the work or it is switched off."""

import os
import pty
import re
import subprocess
import sys
import textwrap

import pytest

import scdiffkit
from scdiffkit.runtime import progress

QUICK = {
    "model.patch_size": 4, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2, "codec.name": "gene",
    "train.max_steps": 4, "train.batch_size": 32,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    return scdiffkit.train(
        tiny, label="cell_type", out=tmp_path_factory.mktemp("runs") / "run", overrides=QUICK, progress=False
    )


def test_a_file_or_pipe_gets_nothing_unless_asked(run, capfd, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    scdiffkit.sample(run, 100, batch_size=40, steps=2)
    assert capfd.readouterr().err == ""
    seen = []
    scdiffkit.sample(run, 100, batch_size=40, steps=2, progress=True, on_progress=lambda *now: seen.append(now))
    lines = capfd.readouterr().err.splitlines()
    assert len(seen) > 1
    assert seen[-1] == (100, 100)
    assert lines[0] == f"sampling: {seen[0][0]} of 100"
    assert re.fullmatch(rf"sampling: {seen[1][0]} of 100, \d+ s left", lines[1])


@pytest.mark.slow
def test_every_long_verb_has_a_bar(tiny, demo, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    scdiffkit.train(tiny, label="cell_type", out=tmp_path / "run", overrides=QUICK, progress=True)
    assert "training: " in capfd.readouterr().err
    real, cells = demo[::2].copy(), demo[1::2].copy()
    scdiffkit.evaluate(real, cells, metrics="minimal", resamples=1, max_cells=50, progress=True)
    assert "evaluating: " in capfd.readouterr().err
    sets = {"a": cells, "b": cells}
    scdiffkit.compare(real, sets, metrics="minimal", resamples=1, max_cells=50, progress=True)
    assert re.search(r"comparing: \d+ of \d+.*, b: ", capfd.readouterr().err)


def on_terminal(code: str) -> str:
    """What a script writes to a terminal."""
    parent, child = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=child, stdout=child) as process:
        os.close(child)
        written = b""
        while True:
            try:
                part = os.read(parent, 4096)
            except OSError:  # Linux's end of a terminal
                break
            if not part:
                break
            written += part
    os.close(parent)
    assert process.returncode == 0, written.decode()
    return written.decode()


def test_a_terminal_shows_a_bar_that_can_be_switched_off():
    code = """
        import time
        from scdiffkit.runtime.progress import shown_progress
        with shown_progress("sampling", {shown}, {callback}, lambda done, n: (done, "quick", n)) as report:
            for i in range(3):
                if report:
                    report(i, 3)
                time.sleep(0.2)
    """
    assert "sampling" in on_terminal(code.format(shown=None, callback=None))
    assert on_terminal(code.format(shown=False, callback=None)) == ""
    assert on_terminal(code.format(shown=None, callback="lambda done, n: None")) == ""
    assert "sampling" in on_terminal(code.format(shown=True, callback="lambda done, n: None"))


def test_progress_was_the_name_of_the_callback(demo):
    seen = []
    with pytest.warns(DeprecationWarning, match=r"evaluate\(progress=\.\.\.\) is now on_progress="):
        scdiffkit.evaluate(
            demo[::2].copy(), demo[1::2].copy(), metrics="minimal", resamples=1, max_cells=50,
            progress=lambda name, i, n: seen.append(i),
        )  # fmt: skip
    assert seen
