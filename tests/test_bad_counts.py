"""Counts that are not quite counts, cells that are hardly there, options that are not read: what the user is told."""

import logging
import warnings

import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse
from typer.testing import CliRunner

import scdiffkit
from scdiffkit.cli import app
from scdiffkit.config import SampleConfig, build_run_config, make
from scdiffkit.errors import ConfigError, DataError, ScdiffWarning
from scdiffkit.preprocessing.counts import find_counts

TINY = {
    "model.patch_size": 4, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2,
    "train.max_steps": 5, "train.batch_size": 16, "codec.max_steps": 20,
    "codec.tails_steps": 10, "codec.hidden_size": 16,
}  # fmt: skip


def with_x(tiny, X):
    return AnnData(X=X, obs=tiny.obs.copy(), var=tiny.var.copy())


def fit(adata, out, **overrides):
    return scdiffkit.train(adata, label="cell_type", out=out, overrides={**TINY, **overrides})


def draw(run, n=9, config=None, **kwargs):
    return scdiffkit.sample(run, n, config=make(SampleConfig, steps=5, **(config or {})), **kwargs)


def assert_usable(run, cells):
    assert all(tensor.isfinite().all() for tensor in run.codec().state().values())
    counts = cells.layers["counts"].toarray()
    assert np.isfinite(cells.X.data).all()
    assert (counts.sum(1) > 0).all()
    np.testing.assert_array_equal(counts.sum(1), cells.obs["total_counts"])


@pytest.fixture
def scdiff(monkeypatch):
    """A command in this process, that leaves the process's logging as it is."""
    monkeypatch.setattr("scdiffkit.cli.setup_logging", lambda **_: None)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


# almost integers


@pytest.mark.parametrize("off", [9e-7, -9e-7])
def test_values_within_a_millionth_are_rounded_and_that_is_said(tiny, caplog, off):
    X = tiny.X.toarray().astype(np.float64) + off  # also the zeros, which stay undetected
    with caplog.at_level(logging.INFO, "scdiffkit"):
        counts, _ = find_counts(with_x(tiny, X))
    assert "within 1e-06 of integers and were rounded" in caplog.text
    np.testing.assert_array_equal(counts.toarray(), tiny.X.toarray())
    assert counts.nnz == (tiny.X.toarray() > 0).sum()
    prepared = scdiffkit.preprocess(with_x(tiny, X), min_genes=35, min_cells=0)
    assert prepared.n_obs == ((tiny.X.toarray() > 0).sum(1) >= 35).sum()


@pytest.mark.parametrize("off", [2e-6, -2e-6])
def test_values_further_off_are_refused(tiny, off):
    X = tiny.X.astype(np.float64)
    X.data[X.data == 1] += off
    with pytest.raises(DataError, match="fractions"):
        find_counts(with_x(tiny, X))


def test_layers_that_hold_integers_are_named(tiny):
    adata = with_x(tiny, tiny.X.log1p())
    adata.layers["scaled"] = tiny.X.toarray() / 3 - 1
    with pytest.raises(DataError) as none:
        find_counts(adata)
    assert "layers" not in str(none.value).replace("adata.layers['counts']", "")
    adata.layers["raw_counts"], adata.layers["umi"] = tiny.X.copy(), tiny.X.toarray()
    with pytest.raises(DataError) as found:
        find_counts(adata)
    assert "layers['raw_counts'], layers['umi'] hold whole numbers" in str(found.value)
    assert "scaled" not in str(found.value)
    remedy = "adata.layers['counts'] = adata.layers['raw_counts']"
    assert remedy in str(found.value)
    exec(remedy, {"adata": adata})  # the remedy is one
    assert find_counts(adata)[1] == 'layers["counts"]'


def test_places_that_hold_integers_beside_a_spoilt_layer_are_named(tiny):
    adata = tiny.copy()
    adata.layers["counts"] = tiny.X.log1p()
    adata.layers["umi"] = tiny.X.copy()
    with pytest.raises(DataError, match=r"but X holds raw counts \(layers\['umi'\] holds whole numbers, too\).*use X"):
        find_counts(adata)
    adata.raw = tiny
    with pytest.raises(DataError, match=r"but raw, X hold raw counts.*to use raw"):
        find_counts(adata)
    del adata.layers["counts"]
    assert find_counts(adata)[1] == "raw"


def test_prepared_cells_whose_counts_were_changed(tiny, tmp_path):
    prepared = scdiffkit.preprocess(tiny, label="cell_type")
    prepared.layers["counts"] = prepared.layers["counts"] * 0.3
    with pytest.raises(DataError, match=r"layers\[\"counts\"\] has fractions"):
        fit(prepared, tmp_path / "run")


# cells without counts


def test_cells_without_counts_are_dropped(tiny, tmp_path, caplog):
    X = tiny.X.toarray()
    X[3] = 0  # from the start
    X[:, 0] = 0
    X[7] = 0
    X[7, 0] = 9  # and once its only gene, found in no other cell, has gone
    with caplog.at_level(logging.INFO, "scdiffkit"):
        run = fit(with_x(tiny, sparse.csr_matrix(X)), tmp_path / "run")
    assert "Cells: 240 -> 239 (min_counts 1)" in caplog.text
    assert "Cells: 239 -> 238 (no counts in the genes kept)" in caplog.text
    assert run.provenance()["data"]["cells"] == 238
    assert_usable(run, draw(run))


def test_cells_without_counts_that_a_filter_was_told_to_keep(tiny, tmp_path):
    X = tiny.X.toarray()
    X[3] = 0
    keep = {"preprocess.min_counts": 0, "preprocess.min_genes": 0}
    with pytest.raises(DataError, match=r"1 cells have no counts at all: drop them \(`min_counts=1`"):
        fit(with_x(tiny, X), tmp_path / "run", **keep)
    assert not (tmp_path / "run").exists()


def test_genes_left_out_after_the_cells_were_prepared(tiny, tmp_path, caplog):
    """The library sizes that count are those over the genes there are; empty cells are refused."""
    prepared = scdiffkit.preprocess(tiny, label="cell_type", min_cells=0)
    some = prepared[:, 15:40].copy()
    left = np.asarray(some.layers["counts"].sum(axis=1)).ravel()
    assert left.max() < prepared.obs["total_counts"].max()
    with caplog.at_level(logging.INFO, "scdiffkit"):
        run = fit(some, tmp_path / "run", **{"train.val_fraction": 0.0})
    assert "Library sizes are sums over the 25 genes" in caplog.text
    median, largest = run.codec().library_sizes()
    assert median == pytest.approx(np.sort(left)[119], rel=1e-5)
    assert largest == pytest.approx(left.max(), rel=1e-5)
    assert_usable(run, draw(run))
    X = some.layers["counts"].tolil()
    X[[2, 5]] = 0
    some.layers["counts"] = X.tocsr()
    with pytest.raises(DataError, match="2 cells have no counts in the 25 genes of the data: drop them"):
        fit(some, tmp_path / "other")


# few cells


@pytest.mark.parametrize(("val_fraction", "held_out"), [(0.0, 0), (0.03, 0), (0.1, 2)])
def test_hardly_any_cells(tiny, tmp_path, val_fraction, held_out):
    few = tiny[
        np.r_[np.flatnonzero(tiny.obs["cell_type"] == "B")[:12], np.flatnonzero(tiny.obs["cell_type"] == "T")[:3]]
    ]
    with pytest.warns(ScdiffWarning, match=rf"{15 - held_out} in all, .*\d of cell_type=T") as said:
        run = fit(few.copy(), tmp_path / "run", **{"train.val_fraction": val_fraction})
    [message] = [str(w.message) for w in said if "few training cells" in str(w.message)]
    assert "cell_type=B" not in message
    assert ("`val_fraction=0`" in message) == bool(held_out)
    assert_usable(run, draw(run))
    drawn = draw(run, where={"cell_type": "T"}, config={"library_size": 77})
    assert (drawn.obs["total_counts"] == 77).all()


def test_few_cells_of_one_type_among_many(tiny, tmp_path):
    t_cells = np.flatnonzero(tiny.obs["cell_type"] == "T")
    rare = np.r_[np.flatnonzero(tiny.obs["cell_type"] != "T"), t_cells[:2]]
    with pytest.warns(ScdiffWarning, match=r"few training cells: [012] of cell_type=T\. .*merge rare categories"):
        run = fit(tiny[np.sort(rare)].copy(), tmp_path / "run")
    assert_usable(run, draw(run, where={"cell_type": "T"}))


def test_enough_cells_are_not_warned_of(tiny, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScdiffWarning)
        fit(tiny, tmp_path / "run")


def test_two_cells_are_refused(tiny, tmp_path):
    with pytest.raises(DataError, match="at least 3 cells"), pytest.warns(ScdiffWarning):
        scdiffkit.train(tiny[:2].copy(), out=tmp_path / "run", overrides={**TINY, "preprocess.min_cells": 0})
    assert not (tmp_path / "run").exists()


# what cannot be drawn, or only with a warning


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return scdiffkit.train(tiny, label="cell_type", condition=["donor"], out=out, overrides=TINY)


@pytest.mark.parametrize("size", ["0", "-5", "nan", "inf", "1e99", "2.5", "", "deep", "16777217"])
def test_library_sizes_that_are_none(run, tmp_path, scdiff, caplog, size):
    out = tmp_path / "cells.h5ad"
    assert scdiff("sample", run.path, "--library-size", size, "-o", out).exit_code == 2
    assert "--library-size must be like, median, or a whole number from 1 to 16777216" in caplog.text
    assert not out.exists()


def test_library_sizes_far_beyond_the_data(run, tiny):
    largest = run.codec().library_sizes()[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScdiffWarning)
        assert set(draw(run, config={"library_size": int(9.9 * largest)}).obs["total_counts"]) == {int(9.9 * largest)}
    with pytest.warns(ScdiffWarning, match="more than 10 times the largest of the training cells"):
        cells = draw(run, config={"library_size": int(10.1 * largest)})
    assert_usable(run, cells)
    with pytest.warns(ScdiffWarning, match="more than 10 times"):
        cells = draw(run, 2, config={"library_size": 2**24})  # the most there can be, exactly
    assert set(np.asarray(cells.layers["counts"].sum(axis=1, dtype=np.int64)).ravel()) == {2**24}


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ({"cell_type": "Mon"}, DataError, "never seen cell_type='Mon'; did you mean 'Mono'"),
        ({"cell_type": "B", "donor": "d3"}, DataError, "never seen donor='d3'"),
        ({"cell_type": "B", "sex": "f"}, DataError, "`condition` sex"),
        ({"cell_type": "B", "donor": []}, ConfigError, "no value of 'donor'"),
    ],
)
def test_combinations_that_cannot_be_formed(run, where, error, said):
    with pytest.raises(error, match=said):
        draw(run, where=where)


# options that are not read


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overrides": {"codec.zero_negation": 1}}, "'zero_negation' is not read by codec 'count'"),
        ({"overrides": {"codec.name": "gene", "codec.latent_dim": 8}}, "'latent_dim' is not read by codec 'gene'"),
        ({"overrides": {"codec.max_epochs": 8}}, "'max_epochs' is not read by codec 'count'; did you mean 'max_steps'"),
        ({"overrides": {"diffusion.output": "spike-slab"}}, "'spike-slab' is read only with `codec='gene'`"),
        (
            {"preset": "scrdit", "overrides": {"codec.name": "count"}},
            "has no values for `codec='count'`.*small",
        ),
        ({"overrides": {"codec.name": "counts"}}, "no codec 'counts'; did you mean 'count'"),
        ({"overrides": {"codec.latent_dim": 0}}, "latent_dim"),
    ],
)
def test_options_that_the_codec_does_not_read(options, said):
    with pytest.raises(ConfigError, match=said):
        build_run_config(**options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--set", "codec.zero_negation=1"], "zero_negation"),
        (["--set", "diffusion.output=spike-slab"], "--codec gene"),
        (["--preset", "scrdit", "--codec", "count"], "--preset small"),
    ],
)
def test_the_command_line_refuses_them_before_any_work(tmp_path, scdiff, caplog, arguments, said):
    assert scdiff("train", tmp_path / "not-read.h5ad", *arguments).exit_code == 2
    assert said in caplog.text


def test_how_long_codec_and_diffusion_are_trained_is_set_apart():
    both = {"codec.max_steps": 50, "train.max_epochs": 3}
    config = build_run_config(overrides=both)
    assert (config.codec.max_steps, config.train.max_steps, config.train.max_epochs) == (50, None, 3)
    config = build_run_config(file_values={"codec": {"max_steps": 50}}, overrides={"train.max_steps": 7})
    assert (config.codec.max_steps, config.train.max_steps, config.train.max_epochs) == (50, 7, None)
