"""The count codec: known cells recovered, what is kept, and a run from end to end."""

import json

import numpy as np
import pytest
import torch
from scipy import sparse
from typer.testing import CliRunner

import scdiffkit
from scdiffkit import codecs
from scdiffkit.cli import app
from scdiffkit.codecs import count
from scdiffkit.codecs.components import assign_folds
from scdiffkit.config import CountCodecConfig, SampleConfig, make
from scdiffkit.data.cells import TrainingCells
from scdiffkit.errors import DataError, ScdiffWarning

TARGET = 1e4
QUICK = {"hidden_size": 16, "max_steps": 40, "tails_steps": 20}
THETAS = np.array([1.5, 5.0, 30.0])


def cells_of(counts, codes=None):
    counts = np.asarray(counts, dtype=np.float32)
    codes = np.zeros((len(counts), 0), dtype=np.int64) if codes is None else np.asarray(codes, dtype=np.int64)
    return TrainingCells(sparse.csr_matrix(counts), counts.sum(1), codes)


def fitted(cells, rows=None, val_rows=(), seed=0, **options):
    codec = codecs.build(
        make(CountCodecConfig, **{**QUICK, **options}),
        num_genes=cells.counts.shape[1],
        target_sum=TARGET,
        num_categories=[int(column.max()) for column in cells.codes.T],
    )
    rows = np.arange(len(cells)) if rows is None else np.asarray(rows)
    codec.fit(cells, rows, np.asarray(val_rows, dtype=np.int64), seed=seed)
    return codec


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(n, genes, seed=0, size=400):
    rng = np.random.default_rng(seed)
    return rng.multinomial(size, rng.dirichlet(np.full(genes, 3.0)), n)


@pytest.fixture(scope="module")
def known():
    """700 cells, three types; every gene's share in each type and every gene's theta are known."""
    rng = np.random.default_rng(0)
    genes, kind = 150, np.arange(700) % 3
    rates = np.exp(rng.normal(0, 0.7, genes) + rng.normal(0, 0.6, (3, genes)))
    shares = rates / rates.sum(1, keepdims=True)
    theta = THETAS[np.arange(genes) % 3]
    means = rng.lognormal(np.log(1500), 0.35, (700, 1)) * shares[kind]
    counts = rng.negative_binomial(theta, theta / (theta + means))
    return cells_of(counts, kind[:, None] + 1), shares, theta, means


@pytest.fixture(scope="module")
def recovered(known):
    """The codec after fitting 600 of the known cells, and all 700 encoded and decoded."""
    cells = known[0]
    codec = fitted(cells, np.arange(600), np.arange(600, 700), hidden_size=32, max_steps=450, tails_steps=150)
    counts, sizes, codes = cells.batch(np.arange(700))
    x0 = codec.encode(counts, sizes, codes, generator=generator())
    return codec, x0, codec.decode(x0, codes, sizes, generator())[0].numpy()


# known cells


def effective_theta(codec, rates):
    """Theta of the negative binomial that has the variance which the codec's dispersion and tails give at rates."""
    dispersion, tails = codec.net.dispersion(), codec.net.tails()
    square = torch.ones(rates.shape[1])  # mean squared factor
    square[tails.genes] = (tails.log_weights + 2 * tails.log_factors).exp().sum(1)
    theta = dispersion.at(torch.from_numpy(rates).float())
    return (1 / (square * (1 + 1 / theta) - 1)).numpy()


def test_dispersions_are_recovered(known, recovered):
    theta = effective_theta(recovered[0], known[3])
    for true, tolerance in zip(THETAS, (0.12, 0.12, 0.35), strict=True):  # 30 is almost Poisson: hard to tell from 40
        assert np.median(theta[:, known[2] == true]) == pytest.approx(true, rel=tolerance)


@pytest.mark.slow
def test_a_power_with_which_dispersion_follows_the_mean_is_recovered():
    rng = np.random.default_rng(0)
    kind, usual = np.arange(500) % 3, np.exp(rng.normal(1, 0.4, 80))
    means = (usual * np.exp(rng.normal(0, 0.8, (3, 80))))[kind]
    true = 3 * (means / usual) ** 0.7
    counts = rng.negative_binomial(true, true / (true + means))
    codec = fitted(cells_of(counts, kind[:, None] + 1), max_steps=250, latent_dim=2, tails_steps=150)
    theta = effective_theta(codec, means)
    slope = np.polyfit(np.log(means / usual).ravel(), np.log(theta).ravel(), 1)[0]
    assert slope == pytest.approx(0.7, abs=0.3)  # it comes out at 0.95 whatever the seed, and near 0 without a power
    assert np.median(theta / true) == pytest.approx(1, rel=0.15)


@pytest.mark.slow
def test_tails_are_recovered():
    """Every gene has six times the usual level in one cell of 25; a negative binomial alone cannot tell of it."""
    rng = np.random.default_rng(0)
    kind, rates = np.arange(400) % 2, np.exp(rng.normal(0, 0.5, (2, 60)))
    means = (300 * rates / rates.sum(1, keepdims=True))[kind]
    level = np.where(rng.random(means.shape) < 0.04, 6, 1) / 1.2
    cells = cells_of(rng.negative_binomial(8, 8 / (8 + means * level)), kind[:, None] + 1)

    def zeros_and_far(fewest):
        codec = fitted(cells, max_steps=150, latent_dim=2, tails_min_counts=fewest, tails_steps=150)
        tails = codec.net.tails()
        np.testing.assert_allclose((tails.log_weights + tails.log_factors).exp().sum(1), 1, rtol=1e-5)  # mean factor
        counts, sizes, codes = cells.batch(np.arange(400))
        x0 = codec.encode(counts, sizes, codes, generator=generator())
        return of(codec.decode(x0, codes, sizes, generator())[0].numpy())

    def of(counts):
        return np.array([(counts == 0).mean(), (counts > np.maximum(4 * means, 5)).mean()])

    real = of(cells.counts.toarray())
    with_tails, without = zeros_and_far(0.2), zeros_and_far(1e9)
    np.testing.assert_allclose(with_tails, real, rtol=0.12)
    assert (np.abs(without / real - 1) > 0.2).all()
    assert without[0] > real[0]
    assert without[1] < real[1]


def test_without_steps_there_are_no_tails(known):
    cells = known[0]
    assert fitted(cells, max_steps=5, tails_steps=0).net.tails() is None
    assert fitted(cells, max_steps=5, tails_steps=1).net.tails() is not None


def test_means_of_the_types_are_recovered(known, recovered):
    cells, shares, *_ = known
    for kind in range(3):
        counts = recovered[2][cells.codes[:, 0] == kind + 1].sum(0)
        error = np.log(counts / counts.sum() / shares[kind])
        assert np.abs(error).mean() < 0.07  # of which sampling alone makes 0.05; types differ by 0.6


def test_variances_and_zeros_are_recovered(known, recovered):
    cells, _, theta, means = known
    real = cells.counts.toarray()
    for true in THETAS:
        genes = theta == true
        variance = ((recovered[2] - means)[:, genes] ** 2).mean()
        expected = (means + means**2 / theta)[:, genes].mean()
        assert variance == pytest.approx(expected, rel=0.25)
        assert variance > 1.2 * means[:, genes].mean()  # more than Poisson
    for rows in (slice(0, 600), slice(600, 700)):
        zeros = (real[rows] == 0).mean()
        assert (recovered[2][rows] == 0).mean() == pytest.approx(zeros, rel=0.06)


# library sizes and the shape of x0


def test_x0_of_training_cells_is_standardised(known, recovered):
    codec, x0, _ = recovered
    counts, sizes, codes = known[0].batch(np.arange(600))
    fold = torch.from_numpy(assign_folds(600, 5))
    draws = [codec.encode(counts, sizes, codes, fold=fold, generator=generator(i)) for i in range(20)]
    encoded = torch.stack(draws).flatten(0, 1)
    assert encoded.shape == (20 * 600, codec.dim)
    np.testing.assert_allclose(encoded.mean(0), 0, atol=4 / np.sqrt(600))  # `fit` saw one draw of each cell
    np.testing.assert_allclose(encoded.std(0), 1, atol=4 / np.sqrt(2 * 600))
    low, high = codec.bounds
    assert low < draws[0].min()
    assert high > draws[0].max()
    logs = np.log(known[0].library_size)
    expected = (logs - logs[:600].mean()) / logs[:600].std(ddof=1)
    np.testing.assert_allclose(x0[:, -1], expected, atol=1e-3)


def test_library_sizes_are_honoured_exactly(known, recovered):
    codec, x0, _ = recovered
    asked = torch.arange(1, 701, dtype=torch.float32) * 3
    counts, sizes = codec.decode(x0, None, asked, generator())
    assert torch.equal(counts.sum(1), asked)
    assert torch.equal(sizes, asked)
    median, largest = codec.library_sizes()
    in_training = known[0].library_size[:600]
    assert median == pytest.approx(np.sort(in_training)[299], rel=1e-4)
    assert largest == pytest.approx(in_training.max(), rel=1e-4)


def test_depth_follows_the_last_coordinate(known, recovered):
    codec, x0, _ = recovered
    counts, sizes = codec.decode(x0, generator=generator())
    assert torch.equal(counts.sum(1), sizes)
    np.testing.assert_allclose(sizes, known[0].library_size, atol=1)
    far = torch.zeros(3, codec.dim)
    far[:, -1] = torch.tensor([-500.0, 0.0, 12.0])
    _, sizes = codec.decode(far, generator=generator())
    logs = np.log(known[0].library_size[:600])
    assert sizes[0] == 1
    assert sizes[1].item() == pytest.approx(np.exp(logs.mean()), rel=1e-3)
    assert sizes[2].item() == pytest.approx(2 * known[0].library_size[:600].max(), rel=1e-3)  # no runaway depths


def test_many_cells_decode_in_parts(known, recovered, monkeypatch):
    codec, x0, _ = recovered
    monkeypatch.setattr(count, "MAX_CHUNK", 150 * 4000)  # a few cells at a time
    sizes = torch.from_numpy(known[0].library_size)
    counts, _ = codec.decode(x0, torch.from_numpy(known[0].codes), sizes, generator())
    assert torch.equal(counts.sum(1), sizes)
    for kind in range(3):
        mean = counts.numpy()[np.arange(700) % 3 == kind].sum(0)
        assert np.abs(np.log(mean / mean.sum() / known[1][kind])).mean() < 0.07


# cross-fitting


@pytest.mark.parametrize("most", [20_000, 150])  # the second: components of a part of the cells
def test_training_cells_are_encoded_like_unseen_ones(most):
    rng = np.random.default_rng(0)
    n, genes = (150 if most > 150 else 300), 300
    shares = rng.dirichlet(np.full(genes, 3.0)) * np.exp(0.1 * rng.normal(size=(2, genes)))  # two types, hardly
    counts = rng.poisson(400 * shares[rng.integers(0, 2, n + 1000)])
    cells = cells_of(counts)
    codec = fitted(cells, np.arange(n), latent_dim=8, max_steps=5, max_pca_cells=most)
    training = cells.batch(np.arange(n))
    fold = torch.from_numpy(assign_folds(n, 5))

    def spread(batch, fold=None):
        return codec.posterior(*batch, fold=fold)[0][:, :-1].std(0).mean().item()

    unseen = spread(cells.batch(np.arange(n, n + 1000)))
    assert spread(training, fold) == pytest.approx(unseen, rel=0.08)
    encoded = codec.encode(*training, fold=fold, generator=generator())
    assert encoded[:, :-1].std(0).mean().item() == pytest.approx(1, abs=0.04)
    assert spread(training) > (1.4 if most > 150 else 1.2) * unseen


def test_moments_of_a_part_of_the_cells_leave_room_for_all():
    counts = noise(2000, 50)
    counts[::400] *= 20  # five cells far deeper than the others
    cells = cells_of(counts)
    rows = np.arange(2000)
    codec = fitted(cells, rows, max_steps=5, max_pca_cells=200)
    x0 = codec.encode(*cells.batch(rows), fold=torch.from_numpy(assign_folds(2000, 5)), generator=generator())
    low, high = codec.bounds
    assert low < x0.min()
    assert high > x0.max()
    assert x0[:, -1].mean().item() == pytest.approx(0, abs=1e-3)
    assert x0[:, -1].std().item() == pytest.approx(1, abs=1e-3)


def test_all_folds_mean_the_same_by_a_coordinate(known):
    cells = known[0]
    codec = fitted(cells, np.arange(600), max_steps=5)
    unseen = cells.batch(np.arange(600, 700))
    everything = codec.posterior(*unseen)[0]
    for k in range(1, codec.config.folds + 1):
        left_out = codec.posterior(*unseen, fold=torch.full((100,), k))[0]
        for axis in range(2):  # three types: two coordinates that matter
            assert np.corrcoef(left_out[:, axis], everything[:, axis])[0, 1] > 0.95
        assert torch.equal(left_out[:, -1], everything[:, -1])


# conditions


def test_conditions_add_on_the_log_scale():
    codes = np.stack([np.arange(60) % 2 + 1, np.arange(60) // 2 % 3 + 1], axis=1)
    codes = codes[~((codes[:, 0] == 2) & (codes[:, 1] == 3))]  # never together
    codec = fitted(cells_of(noise(len(codes), 30), codes))
    assert all(shift.abs().max() > 0 for shift in codec.net.shifts)  # learnt
    for shift in codec.net.shifts:
        shift.data = torch.randn(shift.shape, generator=generator(len(shift)))
    z = torch.randn(4, codec.latent_dim, generator=generator())

    def logs(a, b):
        return codec.net.shares(z, torch.tensor([[a, b]] * 4)).double().log()

    def without_constant(x):
        return (x - x.mean(1, keepdim=True)).numpy()  # softmax: known up to a constant a cell

    first, second = (shift.data.double() for shift in codec.net.shifts)
    np.testing.assert_allclose(without_constant(logs(2, 0) - logs(0, 0)), without_constant(first[[1] * 4]), atol=1e-5)
    np.testing.assert_allclose(without_constant(logs(0, 3) - logs(0, 0)), without_constant(second[[2] * 4]), atol=1e-5)
    both = first[[1] * 4] + second[[2] * 4]
    np.testing.assert_allclose(without_constant(logs(2, 3) - logs(0, 0)), without_constant(both), atol=1e-5)
    x0 = torch.randn(4, codec.dim, generator=generator())
    unknown = torch.zeros(4, 2, dtype=torch.long)
    a, b = (codec.decode(x0, codes, generator=generator())[0] for codes in (None, unknown))
    assert torch.equal(a, b)
    assert not torch.equal(a, codec.decode(x0, unknown + 1, generator=generator())[0])


def test_a_decoder_without_conditions():
    codes = np.arange(60)[:, None] % 2 + 1
    codec = fitted(cells_of(noise(60, 30), codes), condition_decoder=False)
    x0 = torch.randn(4, codec.dim)
    a, b = (codec.decode(x0, torch.full((4, 1), c), generator=generator())[0] for c in (0, 2))
    assert torch.equal(a, b)


# what is kept


@pytest.mark.parametrize("options", [{}, {"latent_dim": 3, "likelihood": "poisson"}, {"condition_decoder": False}])
def test_the_state_is_all_there_is(known, options):
    counts = known[0].counts.toarray()
    counts[:, :40] *= np.random.default_rng(0).random((700, 40)) < 0.02  # too rare for tails, or for dispersion too
    cells = cells_of(counts, known[0].codes)
    codec = fitted(cells, np.arange(200), np.arange(200, 230), **options)
    settings = json.loads(json.dumps(codec.settings()))
    state = {name: tensor.clone() for name, tensor in codec.state().items()}
    again = codecs.build(codec.config, **settings)
    again.load_state(state)
    for mine, yours in ((again.net.dispersion(), codec.net.dispersion()), (again.net.tails(), codec.net.tails())):
        assert (mine is None) == (yours is None)
        assert mine is None or torch.equal(mine.genes, yours.genes)
    assert (again.dim, again.bounds, again.library_sizes()) == (codec.dim, codec.bounds, codec.library_sizes())
    counts, sizes, codes = cells.batch(np.arange(230, 260))
    x0 = codec.encode(counts, sizes, codes, generator=generator())
    assert torch.equal(again.encode(counts, sizes, codes, generator=generator()), x0)
    for size in (None, sizes):
        for a, b in zip(again.decode(x0, codes, size, generator()), codec.decode(x0, codes, size, generator())):
            assert torch.equal(a, b)


def test_same_seed_same_fit(known):
    rows, val_rows = np.arange(150), np.arange(150, 180)
    a, c = (fitted(known[0], rows, val_rows, seed=seed).state() for seed in (0, 1))
    torch.rand(3)  # whatever else draws random numbers
    b = fitted(known[0], rows, val_rows, seed=0).state()
    assert a.keys() == b.keys() == c.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["net.output.weight"], c["net.output.weight"])


# odd data

ODD = {
    "fewer cells than a batch": (noise(12, 40), {}),
    "three cells": (noise(3, 40), {}),
    "one cell held out": (noise(20, 40), {"rows": range(19), "val_rows": [19]}),
    "a single type": (noise(40, 40), {"codes": np.ones((40, 1))}),
    "two genes": (noise(40, 2), {}),
    "library sizes that differ": (np.random.default_rng(0).poisson(noise(40, 40) * np.arange(1, 41)[:, None]), {}),
    "a gene without counts": (np.pad(noise(40, 20), ((0, 0), (0, 1))), {}),
    "one very deep cell": (np.concatenate([noise(30, 40), 10**4 * noise(1, 40)]), {}),
    "Poisson": (noise(40, 40), {"likelihood": "poisson"}),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_data_can_be_fitted(name):
    counts, options = ODD[name]
    cells = cells_of(counts, options.get("codes"))
    codec = fitted(cells, **{key: value for key, value in options.items() if key != "codes"})
    assert all(tensor.isfinite().all() for tensor in codec.state().values())
    counts, sizes, codes = cells.batch(np.arange(min(len(cells), 12)))
    x0 = codec.encode(counts, sizes, codes, generator=generator())
    assert x0.isfinite().all()
    decoded, depth = codec.decode(x0, codes, None, generator())
    assert torch.equal(decoded.sum(1), depth)
    np.testing.assert_allclose(depth, sizes, rtol=0.01, atol=1)  # every depth here is constant, or was in training


def test_every_step_has_a_whole_batch():
    cells, seen = cells_of(noise(12, 40)), []

    class Watched(TrainingCells):
        def take(self, rows):
            seen.append(np.bincount(rows, minlength=12))
            return super().take(rows)

    codec = codecs.build(make(CountCodecConfig, **QUICK, batch_size=30), num_genes=40, target_sum=TARGET)
    codec.fit(Watched(cells.counts, cells.library_size, cells.codes), np.arange(12), np.arange(0))
    # Others: none held out, all cells, to look at, and batches to fit tails to.
    steps = [times for times in seen if times.sum() not in (0, 12, codec.config.tails_batch_size)]
    assert len(steps) in (40, 41)  # one more may be under way
    assert all(times.sum() == 30 for times in steps)
    often = np.sum(steps, axis=0)
    assert often.max() - often.min() <= 1  # every epoch has every cell once


def test_too_few_cells_or_genes_and_too_many_coordinates():
    for counts, said in ((noise(2, 40), "2 training cells x 40 genes"), (noise(30, 1), "30 training cells x 1 genes")):
        with pytest.raises(DataError, match=f"{said}.* at least 3 cells and 2 genes.*`val_fraction`"):
            fitted(cells_of(counts))
    with pytest.warns(ScdiffWarning, match=r"latent_dim 30 is more than 40 training cells and 20 genes allow: 19"):
        assert fitted(cells_of(noise(40, 20)), latent_dim=30).dim == 20


def test_identical_cells_are_refused():
    with pytest.raises(DataError, match="nothing to learn"):
        fitted(cells_of(np.tile([7, 0, 0], (40, 1))))


@pytest.mark.parametrize("val_rows", [(), range(30, 40)])
def test_a_loss_that_is_no_longer_finite(val_rows):
    with pytest.raises(DataError, match=r"no longer finite.*codec\.lr"):
        fitted(cells_of(noise(40, 30)), np.arange(30), val_rows, lr=1e30)


def test_a_loss_that_is_no_longer_finite_when_time_is_up():
    cells = cells_of(noise(40, 30))
    codec = codecs.build(make(CountCodecConfig, **QUICK, lr=1e30), num_genes=30, target_sum=TARGET)
    with pytest.raises(DataError, match="no longer finite"):
        codec.fit(cells, np.arange(40), np.arange(0), on_step=lambda *_: True)


def test_fitting_tells_its_progress_and_can_be_stopped():
    cells, seen = cells_of(noise(40, 30)), []

    def on_step(step, steps, loss, val_loss, n_cells):
        seen.append((step, steps, val_loss is not None, n_cells))
        return step == 30

    codec = codecs.build(make(CountCodecConfig, **QUICK, val_every_steps=20), num_genes=30, target_sum=TARGET)
    codec.fit(cells, np.arange(30), np.arange(30, 40), on_step=on_step)
    size = codec.config.batch_size
    assert seen == [(10, 40, False, 10 * size), (20, 40, True, 20 * size), (30, 40, False, 30 * size)]


# from end to end

TINY = {
    "model.patch_size": 4, "model.hidden_size": 16, "model.depth": 1, "model.num_heads": 2,
    "train.max_steps": 30, "train.batch_size": 32, "train.val_fraction": 0.3, "codec.max_steps": 60,
    "codec.tails_steps": 10,
    "codec.hidden_size": 16, "codec.latent_dim": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def apart(tiny):
    """`tiny` without type B of donor d2."""
    return tiny[(tiny.obs["cell_type"] != "B") | (tiny.obs["donor"] == "d1")].copy()


@pytest.fixture(scope="module")
def run(apart, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return scdiffkit.train(apart, label="cell_type", condition=["donor"], out=out, overrides=TINY)


def draw(run, n=20, config=None, **kwargs):
    return scdiffkit.sample(run, n, config=make(SampleConfig, steps=5, **(config or {})), **kwargs)


def totals(adata):
    matrix = adata.layers.get("counts", adata.X)
    return np.asarray(matrix.sum(axis=1)).ravel()


def test_a_run_draws_integer_counts_of_all_genes(run, apart):
    assert run.config().codec.name == "count"
    cells = draw(run, 50)
    prepared = scdiffkit.preprocess(apart)
    assert list(cells.var_names) == list(prepared.var_names)
    counts = cells.layers["counts"].toarray()
    assert counts.dtype.kind == "i"
    assert counts.min() == 0
    assert (counts.sum(0) > 0).mean() > 0.9  # not some genes only
    np.testing.assert_array_equal(cells.obs["total_counts"], counts.sum(1))
    expected = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    np.testing.assert_allclose(cells.X.toarray(), expected, rtol=1e-5)
    low, high = totals(apart).min(), totals(apart).max()
    assert (totals(cells) <= 2 * high).all()
    assert low < np.median(totals(cells)) < high


def test_same_seed_same_counts(run):
    a, b, c = (draw(run, config={"seed": seed}) for seed in (0, 0, 1))
    assert (a.layers["counts"] != b.layers["counts"]).nnz == 0
    assert (a.layers["counts"] != c.layers["counts"]).nnz > 0


@pytest.mark.slow
def test_same_seed_same_run(run, apart, tmp_path):
    again = scdiffkit.train(apart, label="cell_type", condition=["donor"], out=tmp_path / "run", overrides=TINY)
    assert again.provenance()["run_id"] == run.provenance()["run_id"]
    for name, tensor in run.codec().state().items():
        assert torch.equal(again.codec().state()[name], tensor)
    assert (draw(again).layers["counts"] != draw(run).layers["counts"]).nnz == 0


def test_a_combination_never_seen_has_counts(run):
    with pytest.warns(ScdiffWarning, match="No training cell had cell_type=B and donor=d2"):
        cells = draw(run, 10, where={"cell_type": "B", "donor": "d2"}, config={"library_size": 250})
    assert set(zip(cells.obs["cell_type"], cells.obs["donor"])) == {("B", "d2")}
    assert set(totals(cells)) == {250}


def test_library_sizes_as_asked(run, apart):
    median = np.median(totals(apart))
    asked = set(totals(draw(run, config={"library_size": "median"})))
    assert len(asked) == 1
    assert asked.pop() == pytest.approx(median, rel=0.1)  # of the cells that were not held out
    assert set(totals(draw(run, config={"library_size": 123}))) == {123}
    assert len(set(totals(draw(run)))) > 5


def test_depths_of_other_cells_are_copied(run, apart):
    cells = draw(run, None, like=apart)
    for combination, of_type in apart.obs.groupby(["cell_type", "donor"], observed=True):
        drawn = cells[(cells.obs["cell_type"] == combination[0]) & (cells.obs["donor"] == combination[1])]
        assert sorted(totals(drawn)) == sorted(totals(apart[of_type.index, run.genes()]))
        assert sorted(drawn.obs["total_counts"]) == sorted(totals(drawn))


def test_bfloat16_leaves_library_sizes_alone(run):
    np.testing.assert_allclose(
        np.sort(totals(draw(run, config={"precision": "bf16"}))), np.sort(totals(draw(run))), rtol=0.05
    )


@pytest.fixture
def scdiff(monkeypatch):
    """A command in this process, that leaves the process's logging as it is."""
    monkeypatch.setattr("scdiffkit.cli.setup_logging", lambda **_: None)
    return lambda *args: CliRunner().invoke(app, [str(arg) for arg in args])


def test_info_tells_the_codecs_own_auc(run, scdiff):
    shown = scdiff("info", run.path, "--json")
    auc = json.loads(shown.stdout)["codec_auc"]
    assert set(auc) == {"held_out", "training", "real_reference", "standard_error"}
    assert all(0 <= value <= 1 for value in auc.values())
    assert abs(auc["real_reference"] - 0.5) < 0.25
    assert "codec_auc" in scdiff("info", run.path).stdout
    assert "encoded and decoded cells from real cells with AUC" in (run.path / "train.log").read_text()
