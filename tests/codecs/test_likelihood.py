"""The count likelihoods and the draws against closed forms."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from scdiffkit.codecs import likelihood
from scdiffkit.codecs.likelihood import (
    Dispersion,
    Tails,
    draw_counts,
    mixture_negative_log_likelihood,
    negative_log_likelihood,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def dispersion_of(theta, slope=0.0, usual=0.0, genes=None):
    """Of the given genes, or all; theta where the log rate is `usual`."""
    theta = torch.as_tensor(theta)
    genes = torch.arange(len(theta)) if genes is None else torch.as_tensor(genes)
    slope, usual = (torch.as_tensor(value, dtype=theta.dtype).expand_as(theta) for value in (slope, usual))
    return Dispersion(genes, theta.log(), slope, usual)


def tails_of(genes, weights, levels):
    """Weights and levels (3,), or one row a gene; the mean factor is made 1."""
    weights, levels = (torch.as_tensor(values).expand(len(genes), 3) for values in (weights, levels))
    return Tails(torch.as_tensor(genes), weights.log(), (levels / (weights * levels).sum(1, keepdim=True)).log())


# the likelihoods


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 30), (20, 30)])
@pytest.mark.parametrize("mean", [0.05, 2.0, 300.0])
@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_the_likelihood_is_scipys(shape, mean, slope):
    rng = np.random.default_rng(0)
    rates, theta = rng.gamma(1.0, mean, shape) + 1e-3, rng.lognormal(0, 1.5, shape[1]).clip(0.2, 100)
    usual = rng.normal(0, 1, shape[1])
    counts = rng.poisson(rates)
    counts[0, 0] = 0
    given, r, t = (torch.tensor(a, dtype=torch.float64) for a in (counts, rates, theta))
    poisson = -scipy.stats.poisson.logpmf(counts, rates)
    np.testing.assert_allclose(negative_log_likelihood(given, r, None), poisson.sum(1), rtol=1e-9)
    at = np.clip(theta * np.exp(slope * (np.log(rates) - usual)), *np.exp(likelihood.LOG_THETA))
    negative_binomial = -scipy.stats.nbinom.logpmf(counts, at, at / (at + rates))
    found = negative_log_likelihood(given, r, dispersion_of(t, slope, usual))
    np.testing.assert_allclose(found, negative_binomial.sum(1), rtol=1e-9)
    single = negative_log_likelihood(given.float(), r.float(), dispersion_of(t.float(), slope, usual))
    np.testing.assert_allclose(single, negative_binomial.sum(1), rtol=1e-3, atol=1e-3)
    for some in (np.arange(1, shape[1], 3), np.arange(0)):  # the others are Poisson
        expected = poisson.copy()
        expected[:, some] = negative_binomial[:, some]
        found = negative_log_likelihood(given, r, dispersion_of(t[some], slope, usual[some], some))
        np.testing.assert_allclose(found, expected.sum(1), rtol=1e-9)


@pytest.mark.parametrize("slope", [0.0, 0.4])
def test_the_likelihood_of_a_mixture_is_scipys(slope):
    rng = np.random.default_rng(0)
    rates, usual = rng.gamma(1.0, 3.0, (20, 12)) + 1e-3, rng.normal(0, 1, 8)
    genes, theta = np.array([0, 1, 3, 4, 6, 8, 9, 11]), rng.lognormal(0, 1, 8)
    named = np.array([1, 3, 8, 11])
    weights, levels = rng.dirichlet([2, 9, 2], 4), np.exp(rng.normal([-1, 0, 1], 0.3, (4, 3)))
    factors = levels / (weights * levels).sum(1, keepdims=True)
    counts = rng.negative_binomial(1, 1 / (1 + rates))
    place = np.searchsorted(genes, named)
    at = theta[place] * np.exp(slope * (np.log(rates[:, named]) - usual[place]))
    at = np.clip(at, *np.exp(likelihood.LOG_THETA))[..., None]
    level = rates[:, named, None] * factors
    logs = np.log(weights) + scipy.stats.nbinom.logpmf(counts[:, named, None], at, at / (at + level))
    dispersion = dispersion_of(theta, slope, usual, genes)
    found = mixture_negative_log_likelihood(
        torch.tensor(counts).double(), torch.tensor(rates), dispersion, tails_of(named, weights, levels)
    )
    np.testing.assert_allclose(found, -scipy.special.logsumexp(logs, axis=2).sum(1), rtol=1e-9)


def test_a_cell_of_zeros_has_a_likelihood():
    rates, theta = np.array([[0.5, 3.0]]), np.array([2.0, 0.1])
    found = negative_log_likelihood(
        torch.zeros(1, 2), torch.tensor(rates).float(), dispersion_of(torch.tensor(theta).float())
    )
    expected = -scipy.stats.nbinom.logpmf(0, theta, theta / (theta + rates)).sum()
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("slope", [0.0, -3.0, 3.0])
@pytest.mark.parametrize("theta", [1e-3, 1.0, 1e8])
def test_gradients_are_finite_at_the_extremes(theta, slope):
    counts = torch.tensor([[0.0, 0.0, 5.0, 1e5, 3.0, 1.0]])
    rates = torch.tensor([[0.0, 1e-20, 1e-20, 1e5, 2.0, 0.0]], requires_grad=True)
    log_theta, slopes = (torch.full((6,), value, requires_grad=True) for value in (np.log(theta), slope))
    odds, levels = (torch.zeros(6, 3, requires_grad=True) for _ in range(2))
    dispersion = Dispersion(torch.arange(6), log_theta, slopes, torch.zeros(6))
    tails = Tails(torch.arange(6), odds.log_softmax(1), levels + torch.tensor([-5.0, 0.0, 5.0]))
    for loss in (
        negative_log_likelihood(counts, rates, None),
        negative_log_likelihood(counts, rates, dispersion),
        mixture_negative_log_likelihood(counts, rates, dispersion, tails),
    ):
        assert torch.isfinite(loss).all()
        loss.sum().backward()
    for given in (rates, log_theta, slopes, odds, levels):
        assert torch.isfinite(given.grad).all()


def test_theta_keeps_within_its_range():
    theta = dispersion_of(torch.ones(2), torch.tensor([5.0, -5.0])).at(torch.tensor([[0.0, 0.0], [1e6, 1e6]]))
    low, high = np.exp(likelihood.LOG_THETA)
    np.testing.assert_allclose(theta, [[low, high], [high, low]], rtol=1e-5)


# draws


@pytest.mark.parametrize("at_once", [likelihood.MAX_CHUNK, 50 * 7])  # the second draws 7 counts a cell at a time
def test_draws_are_integers_that_add_up(at_once, monkeypatch):
    monkeypatch.setattr(likelihood, "MAX_CHUNK", at_once)
    shares = torch.rand(50, 40, generator=generator())
    shares[:, [0, 7, 39]] = 0
    shares /= shares.sum(1, keepdim=True)
    sizes = torch.arange(1.0, 51) ** 2
    tails = tails_of(list(range(5, 20)), [0.1, 0.8, 0.1], [0.1, 1.0, 9.0])
    wild = dispersion_of(torch.full((40,), 1e-4))  # as wild as it gets: rates of 1e-38
    for how in ((None,), (dispersion_of(torch.full((40,), 0.3)),), (wild,), (wild, tails)):

        def draw(seed, how=how):
            return draw_counts(shares, sizes, how[0], generator(seed), *how[1:])

        counts = draw(0)
        assert (counts == counts.round()).all()
        assert counts.min() == 0
        assert (counts.sum(1) == sizes).all()
        assert (counts[:, [0, 7, 39]] == 0).all()
        assert torch.equal(counts, draw(0))
        assert not torch.equal(counts, draw(1))


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_the_smallest_and_the_largest_random_number_draw_a_gene_with_a_share(u, monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, u, dtype=torch.float64))
    shares = torch.tensor([[0.0, 0.3, 0.7, 0.0], [0.0, 0.1, 0.2, 0.0]])
    assert draw_counts(shares, torch.tensor([5.0, 5.0]), None, None)[:, [0, 3]].sum() == 0


def assert_moments(draws, mean, variance):
    """Of draws (n, genes), within 5 standard errors."""
    n = len(draws)
    assert (np.abs(draws.mean(0) - mean) < 5 * np.sqrt(variance / n)).all()
    squares = (draws - mean) ** 2  # about the true mean: their own spread is 0 for a count of 0 or 1 with p = 1/2
    assert (np.abs(squares.mean(0) - variance) < 5 * squares.std(0) / np.sqrt(n) + 1e-6).all()


P = np.array([0.5, 0.3, 0.15, 0.05])


@pytest.fixture(params=["as it is", "too many", "in parts"])
def poisson(request, monkeypatch):
    """`torch.poisson` as it is, or giving more than the total in about every cell; or few counts at once after it."""
    given = torch.poisson
    if request.param == "too many":
        monkeypatch.setattr(torch, "poisson", lambda rates, generator: given(1.5 * rates, generator))
    if request.param == "in parts":
        monkeypatch.setattr(likelihood, "MAX_CHUNK", 3 * 6000)
    return request.param


def test_draws_are_multinomial(poisson):
    """Cells of different totals in one batch, each with the marginals and covariance of its own."""
    sizes = torch.tensor([1.0, 5.0, 300.0]).repeat(2000)
    counts = draw_counts(torch.tensor(P).float().expand(6000, 4), sizes, None, generator()).double().numpy()
    assert counts.min() >= 0
    assert (counts == counts.round()).all()
    np.testing.assert_array_equal(counts.sum(1), sizes)
    for k, n in enumerate((1, 5, 300)):
        of_size = counts[k::3]
        assert_moments(of_size, n * P, n * P * (1 - P))
        products = (of_size[:, 0] - n * P[0]) * (of_size[:, 1] - n * P[1])
        error = products.std() / np.sqrt(len(products))
        assert products.mean() == pytest.approx(-n * P[0] * P[1], abs=5 * error)


def test_a_genes_count_is_binomial(poisson):
    """Every probability, where a Poisson draw makes a part of a small total."""
    n, cells = 30, 6000
    counts = draw_counts(torch.tensor(P).float().expand(cells, 4), torch.full((cells,), float(n)), None, generator())
    assert (counts.sum(1) == n).all()
    for gene in range(4):
        expected = cells * scipy.stats.binom.pmf(np.arange(n + 1), n, P[gene])
        seen = np.bincount(counts[:, gene].int().numpy(), minlength=n + 1)
        often = expected > 5
        observed, expected = (np.append(a[often], a[~often].sum() + 1e-9) for a in (seen, expected))
        chi2 = ((observed - expected) ** 2 / expected).sum()
        assert scipy.stats.chi2.sf(chi2, often.sum()) > 1e-4


def test_moments_of_a_dirichlet_multinomial():
    """With theta proportional to the shares, shares of gamma rates are Dirichlet: exact for any number of genes."""
    size, concentration = 200, 20.0
    counts = draw_counts(
        torch.tensor(P).float().expand(20_000, 4), torch.full((20_000,), float(size)),
        dispersion_of(torch.tensor(concentration * P).float()), generator(),
    )  # fmt: skip
    variance = size * P * (1 - P) * (size + concentration) / (1 + concentration)
    assert_moments(counts.numpy(), size * P, variance)


def test_moments_of_a_negative_binomial():
    """Among many genes the total says next to nothing of one gene's rate. The last 500 genes are Poisson."""
    genes, size, some = 1500, 3000, 1000
    shares = torch.full((800, genes), 1 / genes)
    dispersion = dispersion_of(torch.full((some,), 0.25), slope=1.0, genes=torch.arange(some))  # 0.5 at a rate of 2
    counts = draw_counts(shares, torch.full((800,), float(size)), dispersion, generator()).numpy()
    mean = size / genes
    noisy, others = counts[:, :some], counts[:, some:]
    assert noisy.mean() == pytest.approx(mean, rel=0.01)
    assert noisy.var() == pytest.approx(mean + mean**2 / 0.5, rel=0.02)
    assert others.var() == pytest.approx(mean, rel=0.02)
    zeros = scipy.stats.nbinom.pmf(0, 0.5, 0.5 / (0.5 + mean))
    assert (noisy == 0).mean() == pytest.approx(zeros, rel=0.01)


def test_tails_keep_the_mean_and_widen_the_variance():
    genes, mean, theta = 600, 4.0, 5.0
    weights, levels = np.array([0.1, 0.86, 0.04]), np.array([0.2, 1.0, 5.0])
    some = list(range(3, genes, 20))
    tails = tails_of(some, *(torch.tensor(values).float() for values in (weights, levels)))
    shares, sizes = torch.full((2000, genes), 1 / genes), torch.full((2000,), mean * genes)
    dispersion = dispersion_of(torch.full((len(some),), theta), genes=some)
    counts = draw_counts(shares, sizes, dispersion, generator(), tails).numpy()
    drawn, others = counts[:, some], np.delete(counts, some, axis=1)
    factors = levels / (weights @ levels)
    assert drawn.mean() == pytest.approx(mean, rel=0.02)
    assert drawn.var() == pytest.approx(mean + mean**2 * (weights @ factors**2 * (1 + 1 / theta) - 1), rel=0.06)
    assert others.var() == pytest.approx(mean, rel=0.02)
    for k in (0, 1, 12, 20):
        expected = weights @ scipy.stats.nbinom.sf(k - 1, theta, theta / (theta + mean * factors))
        assert (drawn >= k).mean() == pytest.approx(expected, rel=0.1)
    zeros = weights @ scipy.stats.nbinom.pmf(0, theta, theta / (theta + mean * factors))
    assert (drawn == 0).mean() == pytest.approx(zeros, rel=0.06)
