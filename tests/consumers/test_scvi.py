"""scvi-tools on the cells; where the extra `benchmark` is installed."""

from __future__ import annotations

import numpy as np
import pytest

scvi = pytest.importorskip("scvi", reason="scvi-tools, of the extra `benchmark`")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("codec", ["count", "gene"])
@pytest.mark.parametrize("where", [None, {"cell_type": ["B", "T"]}], ids=["all", "two types"])
def test_scvi_trains_on_the_counts(draw, tmp_path, codec, where):
    import anndata as ad

    cells = ad.read_h5ad(draw(codec, where=where, out=tmp_path / "cells.h5ad"))
    scvi.model.SCVI.setup_anndata(cells, layer="counts", labels_key="cell_type", batch_key="donor")
    model = scvi.model.SCVI(cells, n_latent=4, n_hidden=16)
    assert model.summary_stats["n_labels"] == cells.obs["cell_type"].nunique() == (3 if where is None else 2)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False, logger=False, enable_checkpointing=False)
    latent = model.get_latent_representation()
    assert latent.shape == (cells.n_obs, 4)
    assert np.isfinite(latent).all()
