"""Sampling through the public surface: the contract of the output, exact labels, determinism, bounded batches."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import scdiffkit
from scdiffkit.codecs import CODECS, GeneCodec
from scdiffkit.config import SampleConfig, make
from scdiffkit.diffusion.denoiser import Denoiser
from scdiffkit.errors import ConfigError, DataError, FileError, RunError, ScdiffWarning
from scdiffkit.io import OnDisk
from scdiffkit.models import ARCHITECTURES
from scdiffkit.run import Run
from scdiffkit.sampling.plan import steps_of
from scdiffkit.sampling.worker import _match_ranks

SMALL = {
    "codec.name": "gene",
    "model.patch_size": 20, "model.hidden_size": 32, "model.depth": 1, "model.num_heads": 2,
    "train.max_steps": 30, "train.batch_size": 16, "preprocess.n_top_genes": 40, "preprocess.hvg_flavor": "seurat",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory):
    """A run on 40 genes, conditioned on type and donor."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return scdiffkit.train(tiny, arch="dit", label="cell_type", condition=["donor"], out=out, overrides=SMALL)


def draw(run, n=30, **kwargs):
    config = {"steps": 5, **kwargs.pop("config", {})}
    return scdiffkit.sample(run, n, config=make(SampleConfig, **config), **kwargs)


def test_the_output_is_what_the_contract_says(run, tiny, tmp_path):
    path = draw(run, 50, out=tmp_path / "cells.h5ad")
    cells = ad.read_h5ad(path)
    prepared = scdiffkit.preprocess(tiny, n_top_genes=40, hvg_flavor="seurat")
    assert list(cells.var_names) == list(prepared.var_names[prepared.var["highly_variable"]])
    assert cells.shape == (50, 40)
    assert cells.obs_names.is_unique
    counts = cells.layers["counts"].toarray()
    assert (counts == counts.round()).all()
    assert counts.min() >= 0
    assert counts.max() > 0
    expected = np.log1p(counts / cells.obs["total_counts"].to_numpy()[:, None] * 1e4)
    np.testing.assert_allclose(cells.X.toarray(), expected, rtol=1e-5)
    for column in ("cell_type", "donor"):
        assert list(cells.obs[column].cat.categories) == sorted(tiny.obs[column].unique())
    uns = cells.uns["scdiffkit"]
    assert uns["run_id"] == run.provenance()["run_id"]
    assert (uns["sampler"], uns["steps"], uns["seed"], uns["cfg_scale"]) == ("ddim", 5, 0, 1)
    assert uns["versions"]["scdiffkit"] == scdiffkit.__version__


def test_file_and_memory_hold_the_same_cells(run, tmp_path):
    memory = draw(run, 33, config={"batch_size": 10})
    for name in ("cells.h5ad", "cells.loom", "folder"):
        cells = scdiffkit.read(draw(run, 33, out=tmp_path / name, config={"batch_size": 10}))
        counts = cells.layers.get("counts", cells.X)  # the 10x matrix is the counts
        np.testing.assert_array_equal(counts.toarray(), memory.layers["counts"].toarray())
        assert cells.obs["cell_type"].astype(str).tolist() == memory.obs["cell_type"].astype(str).tolist()
        assert list(cells.obs_names) == list(memory.obs_names)
        assert list(cells.var_names) == list(memory.var_names)


def test_same_seed_same_file_other_seed_other_cells(run, tmp_path):
    a, b, c = (draw(run, out=tmp_path / f"{i}.h5ad", config={"seed": s, "eta": 0.5}) for i, s in enumerate((0, 0, 1)))
    assert a.read_bytes() == b.read_bytes()
    a, c = ad.read_h5ad(a), ad.read_h5ad(c)
    assert (a.layers["counts"] != c.layers["counts"]).nnz > 0
    assert not set(a.obs_names) & set(c.obs_names)  # files of one run can be put together


def test_composition_is_exact(run, tiny):
    wanted = draw(run, 240).obs["cell_type"].value_counts().to_dict()
    assert wanted == tiny.obs["cell_type"].value_counts().to_dict()
    kind, other = tiny.obs["cell_type"].unique()[:2]
    assert set(draw(run, 20, where={"cell_type": kind}).obs["cell_type"]) == {kind}
    assert set(draw(run, 40, where={"cell_type": [kind, other]}).obs["cell_type"]) == {kind, other}
    few = tiny[tiny.obs["cell_type"] == other][:11].copy()
    like = draw(run, None, like=few)
    assert like.n_obs == 11
    assert (
        like.obs["donor"].astype(str).value_counts().to_dict() == few.obs["donor"].astype(str).value_counts().to_dict()
    )


def test_the_first_cells_are_a_fair_sample(run):
    first = draw(run, 200).obs["cell_type"][:60].nunique()
    assert first == 3


def test_conditions_steer_the_cells(run, tiny, tmp_path):
    """After some training, cells of a type look like that type: nearest mean of the real types."""
    overrides = {**SMALL, "train.max_steps": 400, "train.lr": 3e-3}
    trained = scdiffkit.train(tiny, arch="dit", label="cell_type", out=tmp_path / "run", overrides=overrides)
    cells = scdiffkit.sample(trained, 120, config=make(SampleConfig, steps=25))
    real = scdiffkit.preprocess(tiny, n_top_genes=40, hvg_flavor="seurat")[:, cells.var_names]
    kinds = list(cells.obs["cell_type"].cat.categories)
    means = np.stack([np.asarray(real[real.obs["cell_type"] == k].X.mean(axis=0)).ravel() for k in kinds])
    distance = ((cells.X.toarray()[:, None] - means) ** 2).sum(axis=2)
    right = distance.argmin(axis=1) == cells.obs["cell_type"].cat.codes.to_numpy()
    assert right.mean() > 0.8


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"steps": 20}, 20),
        ({"speedup": 20}, 50),
        ({"speedup": 3}, 334),
        ({}, 50),
        ({"sampler": "ddpm"}, 1000),
        ({"sampler": "dpm++"}, 20),
        ({"sampler": "dpm", "steps": 7}, 7),
        ({"sampler": "dpm", "speedup": 50}, 20),
    ],
)
def test_steps_and_the_papers_speedup(values, expected):
    assert steps_of(make(SampleConfig, **values), 1000) == expected


def test_samplers_and_guidance_change_the_cells(run):
    plain = draw(run).layers["counts"]
    for config in (
        {"eta": 1.0}, {"steps": 6}, {"cfg_scale": 3.0}, {"sampler": "dpm"}, {"steps": None, "sampler": "ddpm"},
    ):  # fmt: skip
        assert (plain != draw(run, config=config).layers["counts"]).nnz > 0


def test_dpm_is_recorded_logged_and_takes_steps_and_speedup(run, tmp_path, caplog):
    by_steps, by_speedup = {"sampler": "dpm", "steps": 5}, {"sampler": "dpm", "steps": None, "speedup": 200}
    with caplog.at_level("INFO", logger="scdiffkit"):
        files = [draw(run, out=tmp_path / f"{i}.h5ad", config=c) for i, c in enumerate((by_steps, by_speedup))]
    assert caplog.text.count("DPM-Solver++(2M): 5 network calls per cell (T = 1000, speedup 200), guidance 1") == 2
    cells, other = map(ad.read_h5ad, files)
    assert (cells.uns["scdiffkit"]["sampler"], cells.uns["scdiffkit"]["steps"]) == ("dpm++", 5)
    assert (cells.layers["counts"] != other.layers["counts"]).nnz == 0
    assert draw(run, out=tmp_path / "again.h5ad", config=by_steps).read_bytes() == files[0].read_bytes()
    guided = draw(run, config={**by_steps, "cfg_scale": 30})
    assert (cells.layers["counts"] != guided.layers["counts"]).nnz > 0


def test_a_run_without_conditions(tiny, tmp_path):
    run = scdiffkit.train(tiny, arch="dit", out=tmp_path / "run", overrides=SMALL)
    assert list(draw(run).obs) == ["total_counts"]
    with pytest.raises(DataError, match="not trained with the condition 'cell_type'"):
        draw(run, where={"cell_type": "B"})
    with pytest.raises(DataError, match="no conditions"):
        draw(run, like=tiny)
    with pytest.raises(ConfigError, match="`cfg_scale` needs a run with conditions"):
        draw(run, config={"cfg_scale": 2.0})
    with pytest.raises(DataError, match="not trained with the condition 'cell_type'"):
        draw(run, config={"cfg_scale": {"cell_type": 1.0}})


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"where": {"cell_type": "Bcell"}}, DataError, "never seen cell_type='Bcell'"),
        ({"where": {"celltype": "B"}}, DataError, "did you mean 'cell_type'"),
        ({"where": {"cell_type": ["B", "B"]}}, ConfigError, "more than once"),
        ({"config": {"cfg_scale": {"celltype": 2}}}, DataError, "did you mean 'cell_type'"),
        ({"config": {"library_size": 500}}, ConfigError, "`codec='count'`"),
        ({"config": {"library_size": "median"}}, ConfigError, "the gene codec .* `codec='count'`"),
        ({"n": 0}, ConfigError, "at least 1"),
        ({"config": {"steps": 1001}}, ConfigError, r"1\.\.1000"),
        ({"config": {"steps": None, "speedup": 2000}}, ConfigError, "more than the run's T"),
        ({"config": {"device": "cuda:77"}}, ConfigError, "no device"),
        ({"config": {"devices": 9999, "device": "cpu"}}, ConfigError, r"`devices=9999` is more than the \d+ processor"),
        ({"config": {"devices": 2, "device": "cuda:77"}}, ConfigError, "no device"),
    ],
)
def test_what_cannot_be_drawn_leaves_no_file(run, tmp_path, kwargs, error, message):
    with pytest.raises(error, match=message):
        draw(run, out=tmp_path / "cells.h5ad", **kwargs)
    assert list(tmp_path.iterdir()) == []


def test_outputs_are_checked_before_any_work(run, tmp_path):
    (tmp_path / "cells.h5ad").write_text("precious")
    with pytest.raises(FileError, match="`force=True`"):
        draw(run, out=tmp_path / "cells.h5ad")
    assert (tmp_path / "cells.h5ad").read_text() == "precious"
    with pytest.raises(FileError):
        draw(run, out=tmp_path / "cells.h5ad" / "below.h5ad")
    draw(run, out=tmp_path / "cells.h5ad", force=True)
    assert ad.read_h5ad(tmp_path / "cells.h5ad").n_obs == 30


def test_an_interrupted_file_is_not_there(run, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(run, out=tmp_path / "cells.h5ad", on_progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(RunError, match="not a run"):
        draw(tmp_path)
    with pytest.raises(RunError, match="There is no run"):
        draw(tmp_path / "nowhere")


def test_progress_counts_every_cell(run):
    seen = []
    draw(run, 100, config={"batch_size": 40}, on_progress=lambda done, n: seen.append((done, n)))
    assert seen == [(32, 100), (64, 100), (96, 100), (100, 100)]  # whole blocks of 32


def test_guidance_per_column_is_recorded_and_changes_the_cells(run, tmp_path, caplog):
    guided = {"cfg_scale": {"cell_type": 30, "donor": 1}}  # the run has learnt little
    with caplog.at_level("INFO", logger="scdiffkit"):
        paths = [draw(run, out=tmp_path / name, config=guided) for name in ("cells.h5ad", "cells.loom")]
    assert "guidance cell_type=30 donor=1," in caplog.text
    for path in paths:
        assert dict(scdiffkit.read(path).uns["scdiffkit"]["cfg_scale"]) == {"cell_type": 30.0, "donor": 1.0}
    cells = scdiffkit.read(paths[0]).layers["counts"]
    assert (cells != draw(run).layers["counts"]).nnz > 0
    assert (cells != draw(run, config={"cfg_scale": 30.0}).layers["counts"]).nnz > 0
    assert (cells != draw(run, config={"cfg_scale": {"donor": 30.0}}).layers["counts"]).nnz > 0
    assert (draw(run, config={"cfg_scale": {"donor": 1}}).layers["counts"] != draw(run).layers["counts"]).nnz == 0


def test_every_column_gets_its_own_scale(run, monkeypatch):
    seen = []
    predict = Denoiser.predict

    def watched(self, x_t, t, conditions, cfg_scale):
        seen.append(cfg_scale)
        return predict(self, x_t, t, conditions, cfg_scale)

    monkeypatch.setattr(Denoiser, "predict", watched)
    for guided in ({"donor": 2}, {"donor": 3, "cell_type": 2}, 4):
        draw(run, 2, config={"steps": 1, "cfg_scale": guided})
    assert seen == [[1.0, 2.0], [2.0, 3.0], 4.0]  # cell_type, then donor


def test_a_combination_never_seen_is_drawn(tiny, tmp_path):
    apart = tiny[(tiny.obs["cell_type"] != "B") | (tiny.obs["donor"] == "d1")].copy()  # no B of donor d2
    run = scdiffkit.train(
        apart, arch="dit", label="cell_type", condition=["donor"], out=tmp_path / "run", overrides=SMALL
    )
    with pytest.warns(ScdiffWarning, match="No training cell had cell_type=B and donor=d2"):
        cells = draw(run, 12, where={"cell_type": "B", "donor": "d2"})
    assert (cells.obs["cell_type"] == "B").all()
    assert (cells.obs["donor"] == "d2").all()
    with pytest.warns(ScdiffWarning, match="No training cell had cell_type=B and donor=d2"):
        like = draw(run, None, like=tiny)
    assert pd.crosstab(like.obs["cell_type"], like.obs["donor"]).equals(
        pd.crosstab(tiny.obs["cell_type"], tiny.obs["donor"])
    )


class DeepCodec(GeneCodec):
    """A codec that decodes at any depth: gene 0 has all the counts, genes 1 and 2 tell the codes."""

    takes_library_size = True

    def library_size(self, x0):
        return x0[:, 3]  # some order

    def library_sizes(self):
        return 300.0, 1000.0

    def decode(self, x0, codes=None, library_size=None, generator=None):
        size = torch.full((len(x0),), 7.0) if library_size is None else library_size
        counts = torch.zeros_like(x0)
        counts[:, 1 : 1 + codes.shape[1]] = codes.float()
        counts[:, 0] = size - codes.sum(dim=1)
        return counts, size


@pytest.fixture
def deep(run, monkeypatch):
    """The same run, but its codec takes library sizes."""
    monkeypatch.setitem(CODECS, "gene", DeepCodec)
    return run


def depths(cells):
    """Library sizes of each combination of conditions, sorted; the counts must agree with the columns."""
    counts = cells.layers["counts"].toarray()
    np.testing.assert_array_equal(counts.sum(axis=1), cells.obs["total_counts"])
    np.testing.assert_array_equal(counts[:, 1], cells.obs["cell_type"].cat.codes + 1)
    np.testing.assert_array_equal(counts[:, 2], cells.obs["donor"].cat.codes + 1)
    return cells.obs.groupby(["cell_type", "donor"], observed=True)["total_counts"].apply(sorted).to_dict()


def real_depths(tiny, run):
    """The same of real cells, over the run's genes."""
    obs = tiny.obs.assign(total_counts=np.asarray(tiny[:, run.genes()].X.sum(axis=1)).ravel())
    return obs.groupby(["cell_type", "donor"], observed=True)["total_counts"].apply(sorted).to_dict()


def test_like_copies_the_depths_of_each_combination(deep, tiny):
    config = {"batch_size": 50}
    cells = draw(deep, None, like=tiny, config=config)
    assert depths(cells) == real_depths(tiny, deep)
    assert cells.obs["total_counts"].tolist() != sorted(cells.obs["total_counts"])  # among the cells by chance
    made_here = draw(deep, None, like=cells[:, 3:].copy(), config=config)  # their counts are in genes left out here
    assert depths(made_here) == real_depths(tiny, deep)
    again, other = (draw(deep, None, like=tiny, config={**config, "seed": seed}) for seed in (0, 1))
    assert again.obs["total_counts"].equals(cells.obs["total_counts"])
    assert other.obs["total_counts"].tolist() != cells.obs["total_counts"].tolist()


@pytest.mark.parametrize("n", [60, 600])
def test_depths_are_resampled_within_a_combination(deep, tiny, n):
    pools = real_depths(tiny, deep)
    for combination, drawn in depths(draw(deep, n, like=tiny)).items():
        pool = pools[combination]
        assert set(drawn) <= set(pool)
        often = len(drawn) / len(pool)
        assert all(
            np.floor(often) * pool.count(d) <= drawn.count(d) <= np.ceil(often) * pool.count(d) for d in set(pool)
        )


def test_library_sizes_as_asked(deep, tmp_path, recwarn):
    assert set(draw(deep, 20).obs["total_counts"]) == {7}  # "like", without --like: the codec's own
    for asked, expected in (("median", 300), (450, 450), ("10000", 10_000)):
        cells = scdiffkit.read(
            draw(deep, 20, out=tmp_path / "cells.h5ad", force=True, config={"library_size": asked, "batch_size": 6})
        )
        assert set(cells.obs["total_counts"]) == {expected}
        assert str(cells.uns["scdiffkit"]["library_size"]) == str(asked)
    assert not [w for w in recwarn if w.category is ScdiffWarning]
    with pytest.warns(ScdiffWarning, match="10001 is more than 10 times the largest of the training cells"):
        assert set(draw(deep, 20, config={"library_size": 10_001}).obs["total_counts"]) == {10_001}


@given(st.data(), st.integers(0, 2), st.integers(1, 40))
def test_depths_are_dealt_in_the_order_of_those_drawn(data, columns, n):
    """Within each combination of conditions, of which there may be none: the same depths, deepest to the deepest."""

    def values(strategy):
        return data.draw(st.lists(strategy, min_size=n, max_size=n))

    codes = np.array([values(st.integers(0, 2)) for _ in range(columns)], dtype=np.int64).reshape(columns, n).T
    sizes = np.array(values(st.integers(1, 30)), dtype=np.float32)
    drawn = np.array(values(st.floats(1, 1e5, width=32)), dtype=np.float32)
    dealt = _match_ranks(*(torch.from_numpy(a) for a in (sizes, drawn, codes))).numpy()
    for combination in np.unique(codes, axis=0) if columns else [()]:
        here = (codes == combination).all(axis=1)
        np.testing.assert_array_equal(np.sort(dealt[here]), np.sort(sizes[here]))
        deeper = drawn[here][:, None] > drawn[here]
        assert (dealt[here][:, None] >= dealt[here])[deeper].all()


@pytest.mark.parametrize("name", ["a.h5ad", "dense.h5ad", "by_genes.h5ad", "raw.h5ad", "layer.zarr", "a.loom"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of the zarr format to come
def test_like_a_file(name, deep, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("scdiffkit.io.matrices.VALUES_AT_ONCE", 1000)
    like = tiny[::-1].copy()
    if name == "dense.h5ad":
        like.X = like.X.toarray()
    elif name == "by_genes.h5ad":
        like.X = like.X.tocsc()
    elif name == "raw.h5ad":
        like.raw = like
        like = like[:, :20].copy()
        like.X = like.X.log1p()
    elif name == "layer.zarr":
        like.layers["counts"], like.X = like.X, like.X.log1p()
    path = tmp_path / name
    if name.endswith("zarr"):
        like.write_zarr(path)
    else:
        scdiffkit.write(like, path)
    found, expected = draw(deep, None, like=path), draw(deep, None, like=like)
    assert depths(found) == depths(expected) == real_depths(tiny, deep)
    np.testing.assert_array_equal(found.obs["total_counts"], expected.obs["total_counts"])


def test_a_large_file_to_be_like_is_not_loaded(deep, tiny, tmp_path, monkeypatch):
    like = AnnData(sparse.vstack([tiny.X] * 20, format="csr"), pd.concat([tiny.obs] * 20), tiny.var)
    like.obs_names_make_unique()
    scdiffkit.write(like, tmp_path / "a.h5ad")
    most = 0
    read = OnDisk.__getitem__

    def counted(self, at):
        nonlocal most
        rows = read(self, at)
        most = max(most, rows.nnz)
        return rows

    monkeypatch.setattr("scdiffkit.io.matrices.VALUES_AT_ONCE", 20_000)
    monkeypatch.setattr("scdiffkit.preprocessing.counts.FIRST_CELLS", 100)
    monkeypatch.setattr(OnDisk, "__getitem__", counted)
    assert draw(deep, 30, like=tmp_path / "a.h5ad").n_obs == 30
    assert 0 < most < 25_000 < like.X.nnz / 5
    late = like.copy()
    late.X.data[-1] = 0.5
    scdiffkit.write(late, tmp_path / "late.h5ad")
    with pytest.warns(
        ScdiffWarning, match=r"library sizes of the cells of `like` are not known.*late\.h5ad: X has fractions"
    ):
        draw(deep, 30, like=tmp_path / "late.h5ad")


def test_other_library_sizes_than_those_of_like(deep, tiny):
    cells = draw(deep, None, like=tiny, config={"library_size": 450})
    assert set(cells.obs["total_counts"]) == {450}
    assert cells.obs["cell_type"].value_counts().to_dict() == tiny.obs["cell_type"].value_counts().to_dict()


def test_like_without_counts_or_with_empty_cells(deep, tiny):
    labels = AnnData(obs=tiny.obs)
    with pytest.warns(ScdiffWarning, match="only their composition is copied"):
        assert set(draw(deep, None, like=labels).obs["total_counts"]) == {7}
    empty = tiny.copy()
    empty.X = empty.X.toarray()
    empty.X[:2] = 0
    with pytest.raises(DataError, match=r"2 cells of `like` have no counts.*`library_size='median'`"):
        draw(deep, None, like=empty)


def test_depths_are_copied_without_conditions_too(tiny, tmp_path, monkeypatch):
    run = scdiffkit.train(tiny, arch="dit", out=tmp_path / "run", overrides=SMALL)
    monkeypatch.setitem(CODECS, "gene", DeepCodec)
    cells = draw(run, None, like=tiny)
    assert sorted(cells.obs["total_counts"]) == sorted(np.asarray(tiny[:, run.genes()].X.sum(axis=1)).ravel())


def test_depths_over_some_of_the_genes_are_warned_of(deep, tiny):
    known, unknown = tiny[:, deep.genes()[:12]].copy(), tiny[:, deep.genes()[12:]].copy()
    unknown.var_names = [f"other-{i}" for i in range(unknown.n_vars)]
    both = AnnData(sparse.hstack([known.X, unknown.X], format="csr"), obs=tiny.obs)
    both.var_names = [*known.var_names, *unknown.var_names]
    with pytest.warns(ScdiffWarning, match=f"have only 12 of the run's {len(deep.genes())} genes"):
        cells = draw(deep, None, like=both)
    assert sorted(cells.obs["total_counts"]) == sorted(np.asarray(known.X.sum(axis=1)).ravel())


@pytest.fixture(scope="module")
def counted(tiny, tmp_path_factory):
    """A run with the count codec, which draws counts."""
    overrides = {**SMALL, "codec.name": "count", "model.patch_size": 4, "codec.max_steps": 30, "codec.tails_steps": 10}
    del overrides["preprocess.n_top_genes"], overrides["preprocess.hvg_flavor"]
    out = tmp_path_factory.mktemp("counted") / "run"
    return scdiffkit.train(tiny, arch="whitebox", label="cell_type", out=out, overrides=overrides)


@pytest.fixture
def cores(monkeypatch):
    """As if there were so many."""
    monkeypatch.setattr("scdiffkit.runtime.device.cpu_count", lambda: 3)


def children():
    """Process ids of this process's children."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid())], capture_output=True, text=True)
    return {int(pid) for pid in found.stdout.split()}


@pytest.mark.process
def test_any_number_of_devices_gives_the_same_file(counted, cores, tmp_path, caplog):
    files, before = [], children()
    for devices in (1, 3):
        caplog.clear()
        done = []
        config = {"devices": devices, "device": "cpu", "precision": "32", "batch_size": 7, "eta": 0.5}
        with caplog.at_level("INFO", logger="scdiffkit"):
            path = draw(
                counted,
                150,
                out=tmp_path / f"{devices}.h5ad",
                config=config,
                on_progress=lambda n, _, d=done: d.append(n),
            )
        assert done == [32, 64, 96, 128, 150]  # whole blocks of 32
        assert caplog.text.count("computing on cpu") == 1  # whoever says it
        assert caplog.text.count("network calls per cell") == 1
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert ad.read_h5ad(path).layers["counts"].sum() > 0
    assert children() <= before


@pytest.mark.process
def test_what_goes_wrong_in_a_process_is_said_and_leaves_nothing(counted, cores, tmp_path):
    before, made, killed = children(), tmp_path / "made", []
    config = {"devices": 2, "device": "cpu", "precision": "32", "batch_size": 2}

    def kill(done, n):
        if not killed:
            killed.extend(sorted(children() - before)[:1])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(RunError, match=r"of 2 was killed \(SIGKILL\).* `devices`"):
        draw(counted, 20_000, out=made / "cells.h5ad", config=config, on_progress=kill)
    damaged = Path(shutil.copytree(counted.path, tmp_path / "damaged"))
    (weights,) = damaged.glob("checkpoints/*/ema.safetensors")
    os.truncate(weights, 1000)
    with pytest.raises(RunError, match=r"ema\.safetensors is damaged"):
        draw(damaged, out=made / "cells.h5ad", config=config)
    assert children() <= before
    assert list(made.iterdir()) == []


def test_gpus_are_counted(run, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for config, message in (
        ({"devices": 3}, "has 2 cuda devices"),
        ({"devices": 2, "device": "cuda:1"}, "`device` cuda:1 is one device"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw(run, out=tmp_path / "cells.h5ad", config=config)
    with pytest.raises(ConfigError, match="devices"):
        draw(run, config={"devices": 0})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def memory(monkeypatch):
    """Lets the network see so many cells at once, or raises what it is told."""
    forward = ARCHITECTURES["dit"].forward
    seen = []

    def allow(most, error=torch.OutOfMemoryError):
        def limited(self, x_t, t, conditions=None):
            if len(x_t) > most:
                raise error("CUDA out of memory")
            seen.append(len(x_t))
            return forward(self, x_t, t, conditions)

        monkeypatch.setattr(ARCHITECTURES["dit"], "forward", limited)
        return seen

    return allow


@pytest.mark.parametrize("config", [{"eta": 0.5}, {"cfg_scale": 3.0}, {"cfg_scale": {"donor": 2.0}}])
def test_what_does_not_fit_into_memory_is_drawn_in_parts(run, memory, config, caplog):
    config = {"batch_size": 20, **config}
    whole = draw(run, config=config)
    seen = memory(4)
    with caplog.at_level("INFO", logger="scdiffkit"):
        parts = draw(run, config=config)
    assert 1 < max(seen) <= 4
    assert "fit into memory at once: the network processes" in caplog.text
    np.testing.assert_array_equal(parts.layers["counts"].toarray(), whole.layers["counts"].toarray())
    np.testing.assert_allclose(parts.X.toarray(), whole.X.toarray(), rtol=1e-5)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_a_single_cell_that_does_not_fit_into_memory(run, memory, error, tmp_path):
    memory(0, error)
    with pytest.raises(RunError, match=r"A batch of 30 cells does not fit.*`batch_size`"):
        draw(run, out=tmp_path / "cells.h5ad")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_in_a_batch_are_not_taken_for_a_lack_of_memory(run, memory):
    memory(0, ValueError)
    with pytest.raises(ValueError, match="CUDA"):
        draw(run)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_library_swallows_still_stops(run, tmp_path):
    """Exceptions raised in finalizers are printed and lost, and much of an interrupt's time may be spent in these."""

    class Finalizer:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    def show(done, n):
        if done < n:
            Finalizer()

    config = SampleConfig(steps=2, batch_size=10)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    try:
        with pytest.raises(KeyboardInterrupt):
            scdiffkit.sample(run, 100, out=tmp_path / "cells.h5ad", config=config, on_progress=show)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not list(tmp_path.iterdir())


def of_cells(cells):
    """Counts by cell name, whatever the order."""
    return dict(zip(cells.obs_names, map(tuple, cells.layers["counts"].toarray()), strict=True))


@pytest.mark.parametrize("config", [{}, {"eta": 0.5}, {"sampler": "dpm"}])
def test_the_batch_size_does_not_change_the_cells(counted, config, tmp_path):
    files = [
        draw(counted, 90, out=tmp_path / f"{i}.h5ad", config={**config, "batch_size": batch_size})
        for i, batch_size in enumerate((3, 8, 33, 1000, None))
    ]
    first = ad.read_h5ad(files[0])
    for other in map(ad.read_h5ad, files[1:]):
        assert other.obs.equals(first.obs)
        assert (other.layers["counts"] != first.layers["counts"]).nnz == 0


def test_depths_are_dealt_alike_whatever_the_batch_size(deep, tiny):
    whole, parts = (draw(deep, None, like=tiny, config={"batch_size": b}) for b in (None, 20))
    assert parts.obs.equals(whole.obs)
    assert (parts.layers["counts"] != whole.layers["counts"]).nnz == 0


@pytest.mark.parametrize(
    "other",
    [
        {"where": {"cell_type": "B"}},
        {"n": 90},
        {"config": {"eta": 0.1}},
        {"config": {"cfg_scale": 1.5}},
        {"config": {"seed": 1}},
    ],
)
def test_calls_that_differ_share_neither_names_nor_random_numbers(counted, other):
    first, second = draw(counted, 100), draw(counted, **{"n": 100, **other})
    assert not set(first.obs_names) & set(second.obs_names)
    assert not set(of_cells(first).values()) & set(of_cells(second).values())
    n = min(len(first), len(second))
    depths = [cells.obs["total_counts"].to_numpy()[:n] for cells in (first, second)]
    assert abs(np.corrcoef(*depths)[0, 1]) < 0.4  # 100 independent cells: below 0.4 but for one time in 10,000
    again = draw(counted, **{"n": 100, **other})
    assert again.obs.equals(second.obs)
    assert (again.layers["counts"] != second.layers["counts"]).nnz == 0


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.loom", "folder", None])
@pytest.mark.filterwarnings("ignore:.*cannot store:scdiffkit.errors.ScdiffWarning")
def test_only_the_categories_that_cells_have_are_in_the_output_and_colours_stay_theirs(tiny, tmp_path, name):
    cells = tiny.copy()
    cells.obs["cell_type"] = pd.Categorical(cells.obs["cell_type"], ["T", "unused", "B", "Mono"], ordered=True)
    cells.uns["cell_type_colors"] = ["#aa0000", "#000000", "#00bb00", "#0000cc"]
    trained = scdiffkit.train(cells, label="cell_type", condition=["donor"], out=tmp_path / "run", overrides=SMALL)
    where = {"cell_type": ["Mono", "T"]}
    drawn = draw(trained, 40, where=where, **({"out": tmp_path / name} if name else {}))
    drawn = drawn if name is None else scdiffkit.read(drawn)
    assert list(drawn.obs["cell_type"].cat.categories) == ["T", "Mono"]
    assert drawn.obs["cell_type"].cat.ordered
    assert list(drawn.obs["donor"].cat.categories) == ["d1", "d2"]
    if name in (None, "cells.h5ad"):
        assert list(drawn.uns["cell_type_colors"]) == ["#aa0000", "#0000cc"]
        assert "donor_colors" not in drawn.uns
    sc.tl.rank_genes_groups(drawn, "cell_type", method="t-test")
    assert set(drawn.uns["rank_genes_groups"]["names"].dtype.names) == {"T", "Mono"}


@pytest.mark.parametrize("codec", ["gene", "count"])
def test_what_was_known_of_genes_is_known_of_them_in_the_output(tiny, tmp_path, codec):
    cells = tiny.copy()
    cells.var["gene_ids"] = [f"ENSG{i:011d}" for i in range(cells.n_vars)]
    cells.var["feature_types"] = pd.Categorical(["Gene Expression"] * cells.n_vars)
    cells.var["length"] = np.arange(cells.n_vars, dtype=np.int32)
    cells.var["known"] = np.arange(cells.n_vars) % 2 == 0
    of_count = {key: value for key, value in SMALL.items() if not key.startswith("preprocess")}
    overrides = (
        SMALL if codec == "gene" else {**of_count, "codec.name": "count", "codec.max_steps": 5, "codec.tails_steps": 10}
    )
    trained = scdiffkit.train(cells, label="cell_type", out=tmp_path / "run", overrides=overrides)
    drawn = ad.read_h5ad(draw(trained, 10, out=tmp_path / "cells.h5ad"))
    expected = cells.var.loc[drawn.var_names]
    pd.testing.assert_frame_equal(drawn.var[expected.columns], expected, check_names=False)
    with pytest.warns(ScdiffWarning, match="cannot store"):
        folder = draw(trained, 10, out=tmp_path / "folder")
    assert sc.read_10x_mtx(folder).var["gene_ids"].to_dict() == expected["gene_ids"].to_dict()
    assert (folder / "features.tsv.gz").exists()


def test_what_happened_travels_with_the_cells(tiny, tmp_path, caplog):
    rare = tiny[(tiny.obs["cell_type"] != "T") | (np.cumsum(tiny.obs["cell_type"] == "T") <= 4)].copy()
    rare = rare[~((rare.obs["cell_type"] == "Mono") & (rare.obs["donor"] == "d2"))].copy()
    with pytest.warns(ScdiffWarning, match="4 of cell_type=T"):
        trained = scdiffkit.train(
            rare, label="cell_type", condition=["donor"], out=tmp_path / "run", max_time=0.01,
            overrides={**SMALL, "train.max_steps": 1500},
        )  # fmt: skip
    with caplog.at_level("WARNING", logger="scdiffkit"), pytest.warns(ScdiffWarning, match="extrapolates"):
        cells = draw(trained, 20, where={"cell_type": ["Mono"], "donor": ["d2"]})
    assert "undertrained" in caplog.text
    said = " ".join(cells.uns["scdiffkit"]["remarks"])
    assert "Extrapolated: no training cell had cell_type=Mono and donor=d2" in said
    assert "stopped early, after 1 of 1,500 planned steps" in said
    assert cells.uns["scdiffkit"]["training"] == {"steps": 1, "planned": 1500, "ended": "stopped early", "usual": 1500}
    assert any("4 of cell_type=T" in remark for remark in draw(trained, 100).uns["scdiffkit"]["remarks"])
    assert trained.describe()["remarks"] == trained.remarks() != []


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "ended", "undertrained"), [(80, 80, True), (500, 500, False), (1500, 267, True)])
def test_an_undertrained_run_is_called_so_however_it_became_one(tiny, tmp_path, steps, ended, undertrained):
    def stop(status):
        if status.stage == "diffusion" and status.step > ended:
            raise KeyboardInterrupt

    quick = {**SMALL, "model.hidden_size": 8, "model.num_heads": 2, "train.max_steps": steps, "train.batch_size": 2}
    settings = {**quick, "train.patience": None, "train.val_every_steps": ended, "train.checkpoint_every_steps": ended}
    with contextlib.suppress(KeyboardInterrupt):
        scdiffkit.train(tiny, label="cell_type", out=tmp_path / "run", overrides=settings, on_progress=stop)
    trained = Run.open(tmp_path / "run")
    assert trained.training() == {
        "steps": ended, "planned": steps, "ended": "stopped early" if ended < steps else "complete", "usual": 1500,
    }  # fmt: skip
    assert any("undertrained" in remark for remark in trained.remarks()) == undertrained
