"""One short training per codec, and what the tool writes from it in every format, for others' readers to read."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scdiffkit

FORMATS = {"h5ad": "cells.h5ad", "loom": "cells.loom", "10x": "folder", "10x-h5": "cells.h5"}
CODECS = ("count", "gene")
N = 90  # cells in every file
STEPS = 10

MODEL = {
    "model.hidden_size": 32, "model.depth": 1, "model.num_heads": 2,
    "train.max_steps": 120, "train.batch_size": 32, "train.lr": 3e-3,
}  # fmt: skip
CODEC_SETTINGS = {
    "count": {"model.patch_size": 4, "codec.max_steps": 80},
    "gene": {"model.patch_size": 15, "preprocess.n_top_genes": 45, "preprocess.hvg_flavor": "seurat"},
}


@pytest.fixture(scope="session")
def real(tiny) -> AnnData:
    """The tiny cells as an analyst has them: ids and types of genes, types in an order of their own, with colours."""
    cells = tiny.copy()
    cells.layers["counts"] = cells.X.copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.reorder_categories(["T", "B", "Mono"])
    cells.uns["cell_type_colors"] = np.array(["#1f77b4", "#ff7f0e", "#2ca02c"], dtype=object)
    cells.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    cells.var["feature_types"] = "Gene Expression"
    cells.var["mt"] = cells.var_names.str.startswith("MT-")
    cells.var["chromosome"] = pd.Categorical(np.where(cells.var["mt"], "chrM", "chr1"), categories=["chr1", "chrM"])
    cells.var["length"] = np.arange(500, 500 + cells.n_vars)
    return cells


@pytest.fixture(scope="session")
def markers() -> dict[str, set[str]]:
    """The genes that each type of the tiny cells expresses eight times as much as the others."""
    return {kind: {f"gene{j:02d}" for j in range(15 * i, 15 * i + 15)} for i, kind in enumerate(["B", "Mono", "T"])}


@pytest.fixture(scope="session")
def work(real, tmp_path_factory):
    """The folder in which everything is written; real.h5ad is there as anndata writes it."""
    folder = tmp_path_factory.mktemp("consumers")
    real.write_h5ad(folder / "real.h5ad")
    return folder


@pytest.fixture(scope="session")
def runs(real, work):
    """A trained run by codec."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small gain nothing from more, and lose much on a busy machine
    try:
        return {
            codec: scdiffkit.train(
                real.copy(), arch="dit", label="cell_type", condition=["donor"], out=work / f"run-{codec}",
                overrides={"codec.name": codec, **MODEL, **CODEC_SETTINGS[codec]},
            )
            for codec in CODECS
        }  # fmt: skip
    finally:
        torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def draw(runs):
    """Cells as `scdiffkit.sample` returns them."""
    from scdiffkit.config import SampleConfig

    def sample(codec="count", n=N, seed=0, **kwargs):
        return scdiffkit.sample(runs[codec], n, config=SampleConfig(steps=STEPS, seed=seed), **kwargs)

    return sample


@pytest.fixture(scope="session")
def drawn(draw):
    """The cells that every file of `written` holds, in memory, by codec; not to be changed."""
    return {codec: draw(codec) for codec in CODECS}


@pytest.fixture(scope="session")
def scdiff(work):
    """Runs a command in this process, which saves the imports, and returns what it printed."""
    from typer.testing import CliRunner

    from scdiffkit.cli import app

    log = logging.getLogger("scdiffkit")

    def run(*args):
        before = log.handlers[:], log.propagate, log.level, warnings.showwarning
        with warnings.catch_warnings():
            done = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": "200"})
        log.handlers[:], log.propagate, level, warnings.showwarning = before
        log.setLevel(level)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture(scope="session")
def written(runs, draw, drawn, scdiff, work):
    """Paths of the same cells by (codec, format, how they were written)."""
    paths = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scdiffkit.errors.ScdiffWarning)  # what 10x formats cannot store
        for codec in CODECS:
            for format, name in FORMATS.items():
                for how in ("command", "out", "write"):
                    path = work / codec / how / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if how == "command":
                        scdiff("sample", runs[codec].path, "-n", N, "--ddim", STEPS, "-o", path)
                    elif how == "out":
                        draw(codec, out=path)
                    else:
                        scdiffkit.write(drawn[codec], path)
                    paths[codec, format, how] = path
    return paths


@pytest.fixture(scope="session")
def prepared(scdiff, work):
    """The real cells after `scdiff preprocess`, by format."""
    paths = {format: work / f"prepared.{format}" for format in ("h5ad", "loom")}
    for path in paths.values():
        scdiff("preprocess", work / "real.h5ad", "-o", path, "--n-top-genes", 30, "--hvg-flavor", "seurat",
               "--label", "cell_type")  # fmt: skip
    return paths
