"""Cells for all tests: `demo` are real, `tiny` are synthetic. Copy them before changing them."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Generator

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scdiffkit  # noqa: F401  before any torch: it sets how torch's threads wait


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """With SCDIFF_TIME_GUARD, in seconds of a processor, a test that takes longer says so by a mark."""
    with contextlib.ExitStack() as stack:
        compiling = None
        if "numba" in sys.modules:  # it compiles for whichever test comes first in a new environment
            from numba.core import event

            compiling = stack.enter_context(event.install_timer("numba:compile", lambda _: None))
        started = sum(os.times()[:4])  # with child processes; not of the clock, as machines are busy with other things
        result = yield
        used = sum(os.times()[:4]) - started
        if compiling is not None and compiling.done:
            used -= compiling.duration
    marked = item.get_closest_marker("slow") or item.get_closest_marker("process")
    if used > float(os.environ.get("SCDIFF_TIME_GUARD", "inf")) and not marked:
        pytest.fail(f"took {used:.1f} s of a processor: make it quicker, or mark it slow")
    return result


LOG = logging.getLogger("scdiffkit")
AS_IT_WAS = LOG.handlers[:], LOG.propagate, LOG.level


@pytest.fixture(autouse=True)
def _log_as_it_was() -> Generator[None]:
    """Undo what a command sets for its process, in a test or in a fixture of a module: where the log goes."""
    LOG.handlers[:], LOG.propagate = AS_IT_WAS[0][:], AS_IT_WAS[1]
    LOG.setLevel(AS_IT_WAS[2])
    yield
    LOG.handlers[:], LOG.propagate = AS_IT_WAS[0][:], AS_IT_WAS[1]
    LOG.setLevel(AS_IT_WAS[2])


@pytest.fixture(scope="module")
def few_trees() -> Generator[None]:
    """Random forests of 40 trees, for tests that do not depend on the forest's size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("scdiffkit.metrics.classifier.N_TREES", 40)
        yield


@pytest.fixture
def blank_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports whose pictures hold a single pixel: drawing them takes most of the time of a small evaluation."""
    import base64

    from scdiffkit.evaluation.report import figures

    pixel = base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    monkeypatch.setattr(figures, "picture", lambda _, alt, size: figures.Picture(pixel, pixel, alt, 1, 1))


@pytest.fixture(scope="session")
def wide() -> AnnData:
    """`tiny` with 120 genes: with fewer than 100, cells are not compared."""
    return typed_cells(120)


@pytest.fixture(scope="session")
def demo() -> AnnData:
    """700 real cells x 765 genes, 10 types in obs["cell_type"], X raw counts."""
    from scdiffkit.datasets import demo_cells

    return demo_cells()


@pytest.fixture(scope="session")
def tiny() -> AnnData:
    """240 cells x 60 genes: negative-binomial counts, 3 clearly different types (120/80/40), 2 donors."""
    return typed_cells(60)


def typed_cells(n_genes: int) -> AnnData:
    """Cells as `tiny`, with so many genes, the last four of them mitochondrial."""
    rng = np.random.default_rng(0)
    types = np.repeat(["B", "Mono", "T"], [120, 80, 40])
    rates = rng.gamma(1.0, 1.0, size=n_genes)
    profiles = {name: rates.copy() for name in ("B", "Mono", "T")}
    for i, name in enumerate(profiles):
        profiles[name][15 * i : 15 * (i + 1)] *= 8  # 15 marker genes each
    means = np.stack([profiles[name] for name in types]) * rng.lognormal(0, 0.3, size=(240, 1))
    counts = rng.negative_binomial(5, 5 / (5 + means)).astype(np.float32)
    order = rng.permutation(240)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(types[order], categories=["B", "Mono", "T"]),
            "donor": pd.Categorical(rng.choice(["d1", "d2"], size=240), categories=["d1", "d2"]),
        },
        index=[f"cell{i:03d}" for i in range(240)],
    )
    names = [f"gene{i:02d}" for i in range(n_genes - 4)] + ["MT-CO1", "MT-CO2", "MT-ND1", "MT-ND4"]
    return AnnData(X=sparse.csr_matrix(counts[order]), obs=obs, var=pd.DataFrame(index=names))
