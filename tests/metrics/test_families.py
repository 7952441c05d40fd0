"""Each figure against a closed form, a naive computation, or scipy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from scdiffkit.metrics import METRICS, as_csr, in_space, principal_components
from scdiffkit.metrics.biology import contrasts
from scdiffkit.metrics.coverage import precision_recall
from scdiffkit.metrics.joint import lisi_of_cells, squared_distances
from scdiffkit.metrics.marginals import ks_per_gene
from scdiffkit.metrics.privacy import log_density, true_positive_rate

RNG = np.random.default_rng(0)


def zero_inflated(n: int, genes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.exponential(1.0, (n, genes)) * (rng.random((n, genes)) < 0.4)


def naive_kernels(d2: float, bandwidths: list[float]) -> float:
    return sum(np.exp(-d2 / b) for b in bandwidths)


# marginals


def test_marginals_by_hand() -> None:
    real, synthetic = as_csr([[0, 2.0], [4, 2]]), as_csr([[0, 0.0], [1, 2]])
    values = {name: m(real, synthetic) for name, m in METRICS.items() if m.family == "per gene" and m.space == "genes"}
    assert values["zeros_difference"] == 2 / 4 - 1 / 4
    assert values["zeros_mae"] == (0 + 0.5) / 2
    assert values["mean_mae"] == (abs(2 - 0.5) + abs(2 - 1)) / 2
    assert values["variance_mae"] == (abs(4 - 0.25) + abs(0 - 1)) / 2
    assert values["cv_mae"] == (abs(1 - 1) + abs(0 - 1)) / 2
    assert values["variance_correlation"] == pytest.approx(-1)  # (4, 0) against (0.25, 1)
    assert values["cv_correlation"] == 0  # constant on one side


def test_marginals_against_numpy_and_scipy() -> None:
    a, b = zero_inflated(50, 40, 0), zero_inflated(60, 40, 1)
    pairs = {
        "mean": (a.mean(0), b.mean(0)),
        "variance": (a.var(0), b.var(0)),
        "cv": (stats.variation(a), stats.variation(b)),
    }
    for name, (x, y) in pairs.items():
        assert METRICS[f"{name}_mae"](as_csr(a), as_csr(b)) == pytest.approx(np.abs(x - y).mean())
        assert METRICS[f"{name}_correlation"](as_csr(a), as_csr(b)) == pytest.approx(stats.pearsonr(x, y)[0])


def test_distributions_of_genes_against_scipy() -> None:
    real, synthetic = zero_inflated(40, 12, 20), zero_inflated(55, 12, 21)
    real[:, 0] = 0
    synthetic[:, 1] = 0
    synthetic[:, 2] += 1
    pairs = [(real[:, g], synthetic[:, g]) for g in range(12)]
    expected = np.mean([stats.wasserstein_distance(*pair) for pair in pairs])
    assert METRICS["wasserstein_genes"](real, synthetic) == pytest.approx(expected)
    expected = np.mean([stats.ks_2samp(*pair).statistic for pair in pairs])
    assert METRICS["ks_genes"](real, synthetic) == pytest.approx(expected)


def test_ks_of_sparse_genes_against_scipy() -> None:
    real, synthetic = zero_inflated(40, 12, 20).round(1), zero_inflated(55, 12, 21).round(1)  # with ties
    real[:, 0] = 0
    synthetic[:, 1] = 0
    real[:, 2] = synthetic[:, 2] = 0
    synthetic[:, 3] += 1
    expected = [stats.ks_2samp(real[:, g], synthetic[:, g]).statistic for g in range(12)]
    np.testing.assert_allclose(ks_per_gene(as_csr(real), as_csr(synthetic)), expected, atol=1e-12)


def test_kl_of_genes_against_two_bernoullis() -> None:
    """Genes that are 0 or 1: one bin of zeros and one of ones, half a cell added to each."""
    real, synthetic = np.zeros((100, 1)), np.zeros((50, 1))
    real[:30], synthetic[:25] = 1, 1
    p, q = np.array([70.5, 30.5]) / 101, np.array([25.5, 25.5]) / 51
    expected = stats.entropy(p, q)
    assert METRICS["kl_genes"](real, synthetic) == pytest.approx(expected)
    assert METRICS["kl_genes"](real, np.tile(real, (3, 1))) < 1e-3


def test_kl_of_genes_comes_near_that_of_two_exponentials() -> None:
    rng = np.random.default_rng(22)
    real, synthetic = rng.exponential(1.0, (20000, 1)), rng.exponential(2.0, (20000, 1))
    kl = METRICS["kl_genes"].function(real, synthetic)
    assert kl == pytest.approx(np.log(2) + 1 / 2 - 1, abs=0.02)


def test_trends_of_poisson_genes_and_of_genes_that_vary_twice_as_much() -> None:
    """Counts with mean m: variance m and zeros exp(-m); doubled counts of half the mean have twice the variance."""
    rng = np.random.default_rng(28)
    means = np.geomspace(0.05, 5, 400)
    poisson, other = rng.poisson(means, (3000, 400)), rng.poisson(means, (3000, 400))
    doubled = 2 * rng.poisson(means / 2, (3000, 400))
    trends = ("mean_variance_trend", "mean_zeros_trend")
    assert all(METRICS[name](as_csr(poisson), as_csr(other)) < 0.02 for name in trends)
    assert METRICS["mean_variance_trend"](as_csr(poisson), as_csr(doubled)) == pytest.approx(np.log10(2), abs=0.05)
    expected = np.mean(np.exp(-means / 2) - np.exp(-means))
    assert METRICS["mean_zeros_trend"](as_csr(poisson), as_csr(doubled)) == pytest.approx(expected, abs=0.02)


def test_genes_never_seen_have_cv_zero() -> None:
    assert METRICS["cv_mae"](as_csr([[0, 1.0], [0, 3]]), as_csr([[2.0, 1], [2, 3]])) == 0


# other papers' protocols


def test_cfgen_by_its_formulae() -> None:
    """One type; components of as many dimensions as genes only turn the cells, so distances are those of the genes."""
    import ot
    from scipy.spatial.distance import cdist

    rng = np.random.default_rng(30)
    real, synthetic, types = rng.exponential(1, (40, 5)), rng.exponential(1, (40, 5)), np.full(40, "B")
    shift = real.mean(axis=0)
    for suffix, moved in (("_centred", synthetic), ("", synthetic + shift)):  # not centred: off by the real mean
        d2 = cdist(real, moved, "sqeuclidean")
        pair = {"types": (types, types)}
        assert METRICS[f"cfgen_w2{suffix}"](as_csr(real), as_csr(synthetic), **pair) == pytest.approx(
            np.sqrt(ot.emd2([], [], d2))
        )
        within = [cdist(side, side, "sqeuclidean") for side in (real, synthetic)]
        expected = sum(
            sign * np.exp(-d / (2 * s * s)).mean() for d, sign in ((within[0], 1), (within[1], 1), (d2, -2))
            for s in (0.01, 0.1, 1, 10, 100)
        )  # fmt: skip
        assert METRICS[f"cfgen_mmd{suffix}"](as_csr(real), as_csr(synthetic), **pair) == pytest.approx(expected)


def test_cfgen_is_the_mean_over_types_and_uncentred_cells_score_badly() -> None:
    rng = np.random.default_rng(31)
    real, synthetic = rng.exponential(1, (2, 80, 6))
    types = np.repeat(["a", "b"], 40)
    real[40:, 0] += 3
    synthetic[40:, 0] += 3
    cells = as_csr(real), as_csr(synthetic)
    values = {name: METRICS[name](*cells, types=(types, types)) for name in ("cfgen_w2", "cfgen_w2_centred")}
    assert values["cfgen_w2"] > 1.5 * values["cfgen_w2_centred"]


@pytest.mark.slow
def test_scdiffusion_of_one_distribution_and_of_another() -> None:
    rng = np.random.default_rng(32)
    real, fresh = rng.exponential(1, (2, 200, 30)) * np.linspace(0.2, 2, 30)
    others = real * rng.permutation(np.linspace(0.2, 2, 30))
    good, bad = (
        {n: METRICS[f"scdiffusion_{n}"](as_csr(real), as_csr(x)) for n in ("spearman", "pearson", "mmd", "lisi", "auc")}
        for x in (fresh, others)
    )
    means = [np.mean(x, axis=0) for x in (real, others)]
    assert bad["spearman"] == pytest.approx(stats.spearmanr(*means).statistic)
    assert bad["pearson"] == pytest.approx(stats.pearsonr(*means).statistic)
    assert good["auc"] == pytest.approx(0.5, abs=0.12)
    assert bad["auc"] > 0.9
    assert good["lisi"] > 0.8 > bad["lisi"]
    assert 0 < good["mmd"] < bad["mmd"]


# papers


def test_kl_of_equal_cells_is_zero() -> None:
    cells = as_csr(np.tile([0.0, 1, 3], (5, 1)))
    assert METRICS["kl_paper"](cells, cells) == pytest.approx(0, abs=1e-12)


def test_kl_of_two_genes_by_hand() -> None:
    real, synthetic = as_csr([[np.log(3), 0]]), as_csr([[0.0, 0]])  # softmax: (3/4, 1/4) and (1/2, 1/2)
    assert METRICS["kl_paper"](real, synthetic) == pytest.approx(0.75 * np.log(1.5) + 0.25 * np.log(0.5))


def test_kl_is_what_an_arbitrary_pairing_gives_on_average() -> None:
    a, b = zero_inflated(600, 5, 2), zero_inflated(550, 5, 3)  # more cells than a block
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    every_pair = stats.entropy(p[:, None, :], q[None, :, :], axis=-1)
    assert METRICS["kl_paper"](as_csr(a), as_csr(b)) == pytest.approx(every_pair.mean())


@settings(max_examples=25, deadline=None)
@given(st.floats(0.1, 5), st.integers(0, 100))
def test_wasserstein_of_shifted_values_is_the_shift(shift: float, seed: int) -> None:
    cells = 1 + zero_inflated(20, 6, seed)
    for name in ("wasserstein_paper_means", "wasserstein_paper_entries"):
        assert METRICS[name](as_csr(cells), as_csr(cells + shift)) == pytest.approx(shift)


def test_wasserstein_of_entries_counts_the_zeros() -> None:
    a, b = zero_inflated(30, 10, 4), zero_inflated(40, 10, 5) * 2
    expected = stats.wasserstein_distance(a.ravel(), b.ravel())
    assert METRICS["wasserstein_paper_entries"](as_csr(a), as_csr(b)) == pytest.approx(expected)


def naive_paper_mmd(a: np.ndarray, b: np.ndarray) -> float:
    both = np.vstack([a, b])
    n = len(both)
    d2 = [[float(((x - y) ** 2).sum()) for y in both] for x in both]
    bandwidths = [np.sum(d2) / (n * n - n) / 4 * factor for factor in (1, 2, 4, 8, 16)]
    k = np.array([[naive_kernels(d, bandwidths) for d in row] for row in d2])
    m = len(a)
    return float(k[:m, :m].mean() + k[m:, m:].mean() - 2 * k[:m, m:].mean())


def test_paper_mmd_against_a_double_loop() -> None:
    a, b = zero_inflated(15, 30, 6), zero_inflated(12, 30, 7) + 0.3
    assert METRICS["mmd_paper"](as_csr(a), as_csr(b)) == pytest.approx(naive_paper_mmd(a, b), rel=1e-6)
    blocks = np.mean([naive_paper_mmd(a[:, :20], b[:, :20]), naive_paper_mmd(a[:, 20:], b[:, 20:])])
    assert METRICS["mmd_paper_blocks"](as_csr(a), as_csr(b)) == pytest.approx(blocks, rel=1e-6)


# joint


def test_unbiased_mmd_against_a_double_loop() -> None:
    a, b = RNG.normal(size=(14, 3)), RNG.normal(0.5, 1, size=(11, 3))
    d2 = [((x - y) ** 2).sum() for i, x in enumerate(a) for y in a[:i]]
    bandwidths = [np.median(d2) * s for s in (0.25, 0.5, 1, 2, 4)]

    def mean(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return float(np.mean([naive_kernels(((x[i] - y[j]) ** 2).sum(), bandwidths) / 5 for i, j in pairs]))

    expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
    assert METRICS["mmd_pca"](a, b) == pytest.approx(expected, rel=1e-9)


def test_unbiased_mmd_is_zero_on_average_for_equal_distributions() -> None:
    rng = np.random.default_rng(1)
    values = [METRICS["mmd_pca"](rng.normal(size=(40, 4)), rng.normal(size=(40, 4))) for _ in range(60)]
    standard_error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * standard_error
    assert min(values) < 0
    shifted = METRICS["mmd_pca"](rng.normal(size=(40, 4)), rng.normal(1.0, 1, size=(40, 4)))
    assert shifted > 5 * np.std(values)


def test_wasserstein_of_shifted_cells_is_the_shift() -> None:
    cells = np.random.default_rng(23).normal(size=(80, 3))
    assert METRICS["wasserstein_pca"](cells, cells[::-1] + np.array([3.0, 4.0, 0.0])) == pytest.approx(5.0)


def test_wasserstein_in_one_dimension_pairs_cells_in_their_order() -> None:
    x, y = np.random.default_rng(24).normal(size=(2, 60))
    expected = np.sqrt(np.mean((np.sort(x) - np.sort(y)) ** 2))
    assert METRICS["wasserstein_pca"](x[:, None], y[:, None]) == pytest.approx(expected)


def test_correlation_structure_against_pandas() -> None:
    import pandas as pd

    rng = np.random.default_rng(25)
    real, synthetic = rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8)), rng.normal(size=(70, 8))
    upper = np.triu_indices(8, 1)
    flat = [pd.DataFrame(side).corr().to_numpy()[upper] for side in (real, synthetic)]
    value = METRICS["correlation_structure"](real, synthetic)
    assert value == pytest.approx(np.corrcoef(*flat)[0, 1])
    assert METRICS["correlation_structure"](real, 2 * real + 1) == pytest.approx(1)


def test_lisi_against_its_authors() -> None:
    import pandas as pd
    from harmonypy import compute_lisi

    rng = np.random.default_rng(26)
    cells = np.vstack([rng.normal(size=(150, 4)), rng.normal(0.7, 1, size=(150, 4))])
    side = np.repeat([False, True], 150)
    expected = compute_lisi(cells, pd.DataFrame({"side": side.astype(str)}), ["side"], perplexity=30).ravel()
    np.testing.assert_allclose(lisi_of_cells(cells, side), expected, atol=0.01)


def test_lisi_of_mixed_and_of_separate_cells() -> None:
    rng = np.random.default_rng(27)
    real, others = rng.normal(size=(2, 300, 4))
    assert METRICS["lisi"](real, others) > 0.85  # of 30 neighbours, hardly ever exactly half
    assert METRICS["lisi"](real, others + 20) == pytest.approx(0, abs=1e-6)


def test_squared_distances_against_scipy() -> None:
    from scipy.spatial.distance import cdist

    a, b = zero_inflated(9, 70, 8), zero_inflated(5, 70, 9)
    for share_kept in (1, 0.1):  # dense and sparse enough for either product
        a, b = (x * (RNG.random(x.shape) < share_kept) for x in (a, b))
        for x, y in ((a, b), (as_csr(a), as_csr(b))):
            np.testing.assert_allclose(squared_distances(x, y), cdist(a, b, "sqeuclidean"), atol=1e-12)


# biology


def test_augmentation_helps_with_cells_that_are_right_and_harms_with_wrong_ones() -> None:
    gain, harm = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        centres = 0.8 * rng.normal(size=(4, 10))

        def cells(
            *n: int, rng: np.random.Generator = rng, centres: np.ndarray = centres
        ) -> tuple[np.ndarray, np.ndarray]:
            types = np.repeat([0, 1, 2, 3], n)
            return rng.normal(size=(len(types), 10)) + centres[types], types.astype(str)

        (real, types), (made, made_types) = cells(300, 300, 30, 30), cells(100, 100, 100, 100)
        score = METRICS["augmentation_gain"]
        gain.append(score(real, made, types=(types, made_types)))
        harm.append(score(real, made, types=(types, rng.permutation(made_types))))
    assert np.mean(gain) > 0.02
    assert np.mean(harm) < -0.1


# privacy


def test_copies_with_noise_are_near_duplicates_and_average_cells_are_not() -> None:
    rng = np.random.default_rng(35)
    known, others, fresh = rng.normal(size=(3, 400, 10))
    real, member = np.vstack([others, known]), np.repeat([0.0, 1.0], 400)

    def share(made: np.ndarray) -> float:
        return METRICS["near_duplicates"](real, made, member=(member, np.zeros(len(made))))

    assert share(known + rng.normal(0, 0.1, known.shape)) > 0.8
    assert share(np.vstack([known[:40] + 0.01, fresh[:360]])) == pytest.approx(0.1, abs=0.02)
    assert share(fresh) < 0.02
    assert share(0.5 * fresh) < 0.02  # too average, but nobody's copies


def test_an_attacker_tells_members_where_the_model_copied_with_noise() -> None:
    rng = np.random.default_rng(34)
    members, others, fresh = rng.normal(size=(3, 150, 6))
    real, member = np.vstack([others, members]), np.repeat([0.0, 1.0], 150)
    copies = members + rng.normal(0, 0.2, members.shape)
    attack = METRICS["membership_auc"]
    assert attack(real, copies, member=(member, np.zeros(150))) > 0.9
    assert attack(real, fresh, member=(member, np.zeros(150))) == pytest.approx(0.5, abs=0.1)
    assert attack(real, fresh, member=(np.zeros(300), np.zeros(150))) == 0.5


def test_scldm_by_its_formulae() -> None:
    """Components of as many dimensions as genes, all but one, only turn the cells; of normal ones all is known."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(60)
    real, synthetic = rng.normal(5, 1, (400, 4)), rng.normal(6, 2, (300, 4))
    for side in (real, synthetic):
        side[:, 3] = 1.0  # which does not vary
    a, b = np.cov(real.T), np.cov(synthetic.T)
    fd = ((real.mean(0) - synthetic.mean(0)) ** 2).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    pair = as_csr(real), as_csr(synthetic)
    assert METRICS["scldm_fd"](*pair) == pytest.approx(fd, rel=1e-6)
    assert fd == pytest.approx(3 * (1 + (2 - 1) ** 2), rel=0.15)  # of the distributions themselves
    assert METRICS["scldm_w2"](*pair) == pytest.approx(np.sqrt(fd), rel=0.15)
    same = as_csr(rng.normal(5, 1, (400, 4)))
    assert METRICS["scldm_mmd"](as_csr(rng.normal(5, 1, (400, 4))), same) < 0.02 < METRICS["scldm_mmd"](*pair)


def test_cell_eval_by_its_formulae() -> None:
    rng = np.random.default_rng(61)
    conditions = np.resize(["a", "b", "c", "d"], 200)
    change = {c: rng.normal(0, 3, 50) * (rng.random(50) < 0.3) for c in "abcd"}
    real = 20 + rng.normal(size=(200, 50)) + np.array([change[c] for c in conditions])
    synthetic = 20 + rng.normal(size=(200, 50)) + np.array([0.5 * change[c] for c in conditions])
    pair = {"conditions": (conditions, conditions)}
    deltas = [
        np.array([x[conditions == c].mean(0) - x[conditions != c].mean(0) for c in "abcd"]) for x in (real, synthetic)
    ]
    expected = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(*deltas)])
    sides = as_csr(real), as_csr(synthetic)
    assert METRICS["cell_eval_pearson_delta"](*sides, **pair) == pytest.approx(expected)
    assert METRICS["cell_eval_direction_match"](*sides, **pair) > 0.95
    assert METRICS["cell_eval_discrimination"](*sides, **pair) == 1
    turned = {"conditions": (conditions, np.array([dict(zip("abcd", "bcda"))[c] for c in conditions]))}
    deltas[1] = np.roll(deltas[1], 1, axis=0)
    ranks = [
        (np.abs(deltas[0] - y).sum(axis=1) < np.abs(deltas[0][i] - y).sum()).sum() for i, y in enumerate(deltas[1])
    ]
    assert METRICS["cell_eval_discrimination"](*sides, **turned) == pytest.approx(1 - np.mean(ranks) / 4)
    assert METRICS["cell_eval_discrimination"](*sides, **turned) < 0.8
    other = {"conditions": (conditions, np.full(200, "e"))}
    assert METRICS["cell_eval_pearson_delta"](*sides, **other) == 0


# classifier


def test_auc_of_one_distribution_is_a_half_and_of_two_far_ones_is_one() -> None:
    rng = np.random.default_rng(2)
    real = rng.normal(size=(300, 5))
    assert METRICS["rf_auc"](real, rng.normal(size=(300, 5))) == pytest.approx(0.5, abs=0.07)
    assert METRICS["rf_auc"](real, rng.normal(6, 1, size=(300, 5))) > 0.999


def test_auc_agrees_with_cross_validation() -> None:
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score

    rng = np.random.default_rng(3)
    real, synthetic = rng.normal(size=(300, 5)), rng.normal(0.5, 1, size=(300, 5))
    forest = RandomForestClassifier(100, random_state=1)
    y = np.repeat([0, 1], 300)
    expected = cross_val_score(forest, np.vstack([real, synthetic]), y, cv=5, scoring="roc_auc").mean()
    assert METRICS["rf_auc"](real, synthetic) == pytest.approx(expected, abs=0.03)


def test_auc_of_copies_is_far_below_a_half() -> None:
    cells = np.random.default_rng(4).normal(size=(200, 5))
    assert METRICS["rf_auc"](cells, cells) < 0.2


def test_logistic_auc_sees_shifts_only() -> None:
    rng = np.random.default_rng(28)
    real, others = rng.normal(size=(2, 400, 4))
    expected = stats.norm.cdf(1 / np.sqrt(2))  # of the best rule for two normals, a standard deviation apart
    assert METRICS["logistic_auc"](real, others + np.eye(4)[0]) == pytest.approx(expected, abs=0.04)
    assert METRICS["logistic_auc"](real, 3 * others) == pytest.approx(0.5, abs=0.07)
    assert METRICS["rf_auc"](real, 3 * others) > 0.8


def test_nearest_neighbours_of_one_distribution_of_two_and_of_copies() -> None:
    rng = np.random.default_rng(29)
    real, others = rng.normal(size=(2, 400, 4))
    assert METRICS["nn_accuracy"](real, others) == pytest.approx(0.5, abs=0.07)
    assert METRICS["nn_accuracy"](real, others + 20) == 1
    assert METRICS["nn_accuracy"](real, real + 1e-9) == 0
    assert METRICS["nn_accuracy"](real, others[:40]) == pytest.approx(0.5, abs=0.1)  # sides of unequal size


def test_auc_on_genes_sees_what_components_do_not() -> None:
    """One gene of small variance is shifted: lost in the components of forty large ones."""
    rng = np.random.default_rng(5)
    real, synthetic = (np.exp(rng.normal(0, [1.0] * 40 + [0.1], size=(200, 41))) for _ in range(2))
    synthetic[:, -1] += 0.3
    values = {
        name: METRICS[name](*in_space(METRICS[name].space, real, synthetic)) for name in ("rf_auc", "rf_auc_genes")
    }
    assert values["rf_auc"] < 0.7
    assert values["rf_auc_genes"] > 0.9


# neighbours


def test_precision_recall_of_known_sets() -> None:
    """Points on a line, a unit apart: each ball with k = 2 reaches over its neighbours, but not to them (strictly)."""
    real, k = np.arange(10.0)[:, None], 2
    same = precision_recall(real, real + 0.1, k)
    assert same["precision"] == same["recall"] == same["coverage"] == 1
    assert precision_recall(real, real + 100, k) == dict.fromkeys(same, 0.0)
    half = precision_recall(real, real[:5], k)  # the last 5 have nothing near but at their edge
    assert half["precision"] == 1
    assert half["recall"] == 0.6  # 0 to 4, and 5 in the ball of 4, of radius 2
    assert half["coverage"] == 0.5
    collapsed = precision_recall(real, np.full((10, 1), 4.0), k)
    assert collapsed["precision"] == 1
    assert collapsed["recall"] == 0  # its balls have no radius
    assert collapsed["density"] == 0.5  # only the ball of 4 itself, radius 1, holds it strictly, over k = 2


def test_neighbours_against_a_double_loop() -> None:
    rng = np.random.default_rng(6)
    real, synthetic, k = rng.normal(size=(40, 3)), rng.normal(0.5, 1, size=(30, 3)), 5

    def ball(cells: np.ndarray, i: int) -> float:
        return sorted(np.linalg.norm(cells[i] - other) for j, other in enumerate(cells) if j != i)[k - 1]

    in_real = np.array([[np.linalg.norm(r - s) < ball(real, i) for s in synthetic] for i, r in enumerate(real)])
    in_synthetic = np.array(
        [[np.linalg.norm(r - s) < ball(synthetic, j) for j, s in enumerate(synthetic)] for r in real]
    )
    expected = {
        "precision": in_real.any(axis=0).mean(),
        "recall": in_synthetic.any(axis=1).mean(),
        "density": in_real.sum() / (k * 30),
        "coverage": in_real.any(axis=1).mean(),
    }
    for name, value in expected.items():
        assert METRICS[name](real, synthetic) == pytest.approx(value), name


def test_nn_ratio_of_copies_of_equals_and_of_far_cells() -> None:
    rng = np.random.default_rng(7)
    known, others = rng.normal(size=(2, 500, 4))
    real, member = np.vstack([known, known[:50] + 50]), np.repeat([1.0, 0.0], [500, 50])

    def ratio(made: np.ndarray) -> float:
        return METRICS["nn_ratio"](real, made, member=(member, np.zeros(len(made))))

    assert ratio(others) == pytest.approx(1, abs=0.1)
    assert ratio(known[:100] + 1e-9) < 1e-3
    assert ratio(10 * others) > 5


# cell types


def test_type_f1_of_clear_types_is_one_and_of_swapped_ones_zero() -> None:
    rng = np.random.default_rng(8)
    types = np.repeat(["a", "b"], 50)
    real, synthetic = (np.where(types == "a", -3.0, 3.0)[:, None] + rng.normal(size=(100, 2)) for _ in range(2))
    assert METRICS["type_f1"](real, synthetic, types=(types, types)) == 1
    assert METRICS["type_f1"](real, synthetic, types=(types, types[::-1])) == 0
    with pytest.raises(TypeError, match="types"):
        METRICS["type_f1"](real, synthetic)


def test_type_f1_counts_a_type_that_was_never_made() -> None:
    """Of three types, each well apart, one is missing: its cells pass for a neighbour's."""
    rng = np.random.default_rng(9)
    types = np.repeat(["a", "b", "c"], 40)
    place = np.repeat([0.0, 10.0, 30.0], 40)[:, None]
    real, synthetic = (place + rng.normal(size=(120, 2)) for _ in range(2))
    made = types != "c"
    f1 = METRICS["type_f1"](real, synthetic[made], types=(types, types[made]))
    assert f1 == pytest.approx((1 + 2 / 3 + 0) / 3, abs=0.01)  # b: all found, but half of those called b are c


def two_types(n: int, genes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells (n, genes), of which every third is of type b and differs in a third of the genes."""
    rng = np.random.default_rng(seed)
    types = np.where(np.arange(n) % 3 == 0, "b", "a")
    cells = rng.poisson(2.0, (n, genes)).astype(float)
    cells[np.ix_(types == "b", np.arange(genes) % 3 == 0)] += rng.poisson(1.0, ((types == "b").sum(), (genes + 2) // 3))
    return cells, types


def test_slope_of_fold_changes_by_least_squares_and_of_weakened_ones() -> None:
    real, types = two_types(90, 30, 40)
    synthetic, _ = two_types(90, 30, 41)
    pair = {"types": (types, types)}
    x, y = (c[types == "b"].mean(0) - c[types == "a"].mean(0) for c in (real, synthetic))
    expected = np.linalg.lstsq(x[:, None], y, rcond=None)[0][0]  # that of the other type is the same, turned round
    assert METRICS["lfc_slope"](as_csr(real), as_csr(synthetic), **pair) == pytest.approx(expected)
    weakened = real - 0.4 * np.where((types == "b")[:, None], x, 0)
    assert METRICS["lfc_slope"](as_csr(real), as_csr(weakened), **pair) == pytest.approx(0.6)
    assert METRICS["lfc_types"](as_csr(real), as_csr(weakened), **pair) > 0.999  # ranks do not see it


def test_slope_between_conditions_within_types() -> None:
    real, states = two_types(120, 30, 42)
    types = np.where(np.arange(120) < 60, "T", "B")
    real[types == "B"] += 5
    x = [
        real[(types == t) & (states == "b")].mean(0) - real[(types == t) & (states == "a")].mean(0) for t in ("B", "T")
    ]
    weakened = real.copy()
    for t, change, share in zip(("B", "T"), x, (0.5, 0.7)):
        weakened[(types == t) & (states == "b")] -= share * change
    pairs = {"types": (types, types), "conditions": (states, states)}
    found = METRICS["lfc_slope_conditions"](as_csr(real), as_csr(weakened), **pairs)
    assert found == pytest.approx(np.mean([0.5, 0.3]))


def test_differentially_expressed_genes_are_those_of_scanpy() -> None:
    import pandas as pd
    import scanpy as sc
    from anndata import AnnData

    real, types = two_types(210, 60, 43)
    synthetic, _ = two_types(120, 60, 44)
    found = []
    for cells in (real, synthetic):
        adata = AnnData(
            cells,
            obs=pd.DataFrame({"t": pd.Categorical(types[: len(cells)])}, index=[str(i) for i in range(len(cells))]),
        )
        sc.tl.rank_genes_groups(adata, "t", method="t-test", rankby_abs=True)
        frames = [sc.get.rank_genes_groups_df(adata, name).set_index("names") for name in ("a", "b")]
        found.append([{(g, r.scores > 0) for g, r in f.iterrows() if r.pvals_adj <= 0.05} for f in frames])
    pairs = {"types": (types, types[:120])}
    recall = np.mean([len(r & s) / len(r) for r, s in zip(*found)])
    precision = np.mean([len(r & s) / len(s) for r, s in zip(*found)])
    assert 0.2 < recall < 0.95  # else there is nothing to be told
    assert METRICS["de_recall"](as_csr(real), as_csr(synthetic), **pairs) == pytest.approx(recall)
    assert METRICS["de_precision"](as_csr(real), as_csr(synthetic), **pairs) == pytest.approx(precision)


def test_differential_expression_where_there_is_none() -> None:
    cells, types = two_types(90, 30, 45)
    flat = np.random.default_rng(46).poisson(2.0, (90, 30)).astype(float)
    same = np.full((90, 30), 2.0)
    pair = {"types": (types, types)}
    assert METRICS["de_recall"](as_csr(same), as_csr(flat), **pair) == 1
    assert METRICS["de_precision"](as_csr(same), as_csr(same), **pair) == 1
    assert METRICS["de_precision"](as_csr(cells), as_csr(same), **pair) == 0
    assert METRICS["de_recall"](as_csr(cells), as_csr(same), **pair) == 0
    other = {"types": (types, np.full(90, "a"))}
    assert METRICS["de_precision"](as_csr(cells), as_csr(cells), **other) == 0  # no cell of type b


def test_welch_against_scipy() -> None:
    cells, types = two_types(50, 20, 47)
    cells[:, 3] = 1
    expected = stats.ttest_ind(cells[types == "b"], cells[types == "a"], equal_var=False)
    ours = contrasts(as_csr(cells), types, ["b"])[0]
    varying = np.arange(20) != 3
    np.testing.assert_allclose(ours.t[varying], expected.statistic[varying])
    np.testing.assert_allclose(ours.df[varying], expected.df[varying])
    assert ours.t[3] == 0


# structure


def test_energy_distance_against_scipy_and_of_one_distribution() -> None:
    rng = np.random.default_rng(50)
    a, b = rng.normal(size=(300, 1)), rng.normal(1, 2, size=(200, 1))
    n, m = len(a), len(b)
    within = [np.abs(x - x.T).mean() for x in (a, b)]  # with each cell's distance to itself, which ours leaves out
    biased = stats.energy_distance(a.ravel(), b.ravel()) ** 2
    expected = biased - within[0] / (n - 1) - within[1] / (m - 1)
    assert METRICS["energy_distance"](a, b) == pytest.approx(expected)
    assert METRICS["energy_distance"](a, rng.normal(size=(300, 1))) == pytest.approx(0, abs=0.02)


def test_silhouette_and_variance_between_groups() -> None:
    """Two types 2 d apart in one of two directions of variance 1: d^2 / (d^2 + 2) of the variance is between them."""
    rng = np.random.default_rng(51)
    types = np.repeat(["a", "b"], 2000)
    sides = []
    for d in (1.0, 3.0):
        cells = rng.normal(size=(4000, 2))
        cells[:, 0] += np.where(types == "a", d, -d)
        sides.append(cells)
    expected = 9 / 11 - 1 / 3
    for need in ("types", "conditions", "donors", "batches"):
        pair = {need: (types, types)}
        assert METRICS[f"variance_{need}"](*sides, **pair) == pytest.approx(expected, abs=0.02)
        assert METRICS[f"variance_{need}"](*sides[::-1], **pair) == pytest.approx(-expected, abs=0.02)
        assert METRICS[f"silhouette_{need}"](*sides, **pair) > 0.3
        assert METRICS[f"silhouette_{need}"](sides[0], sides[0][::-1], **{need: (types, types[::-1])}) == (
            pytest.approx(0, abs=0.03)
        )


def test_variance_within_types_too_narrow_and_too_wide() -> None:
    """Of variances r times as large, J is the symmetric Kullback-Leibler divergence of the two normal distributions."""
    rng = np.random.default_rng(52)
    types = np.repeat(["a", "b"], [3000, 1000])
    real, synthetic = rng.normal(size=(2, 4000, 3))
    for side in (real, synthetic):
        for name in ("a", "b"):
            side[types == name] = stats.zscore(side[types == name], ddof=1)
    shift = np.where(types == "a", 0.0, 50.0)[:, None]  # between types, which is none of their concern
    spread = np.array([0.5, 1.0, 2.0])
    pair = {"types": (types, types)}
    narrow, wide = (
        METRICS[f"variance_too_{which}"](real + shift, synthetic * spread + shift, **pair)
        for which in ("narrow", "wide")
    )

    def divergence(s: float) -> float:
        """KL(N(0, 1) || N(0, s^2)) + KL(N(0, s^2) || N(0, 1))."""
        return (np.log(s) + 1 / (2 * s**2) - 0.5) + (-np.log(s) + s**2 / 2 - 0.5)

    assert narrow == pytest.approx(divergence(0.5))
    assert wide == pytest.approx(divergence(2.0))
    assert METRICS["variance_too_narrow"](real, 0 * real, **pair) > 100  # bounded, so finite


def test_distances_between_cells_of_a_type() -> None:
    rng = np.random.default_rng(53)
    types = np.repeat(["a", "b"], [60, 40])
    real, other = rng.normal(size=(2, 100, 3))
    pair = {"types": (types, types)}
    from scipy.spatial.distance import pdist

    expected = np.mean(
        [stats.ks_2samp(pdist(real[types == t]), pdist(2 * other[types == t])).statistic for t in ("a", "b")]
    )
    assert METRICS["cell_distances"](real, 2 * other, **pair) == pytest.approx(expected)
    assert METRICS["cell_distances"](real, other, types=(types, np.full(100, "a"))) > 0.5  # no cell of b: 1


def test_hubs_are_seen() -> None:
    """Many points around a few centres in many dimensions: the centres are summary's neighbours."""
    rng = np.random.default_rng(54)
    even, other = rng.uniform(size=(2, 500, 2))
    directions = rng.normal(size=(490, 60))
    star = np.vstack([np.zeros((10, 60)), 5 * directions / np.linalg.norm(directions, axis=1, keepdims=True)])
    star[:10] = rng.normal(0, 0.1, (10, 60))
    assert METRICS["hubness"](even, other) < 0.1
    assert METRICS["hubness"](np.pad(even, ((0, 0), (0, 58))), star) > 1


# attacks


def test_true_positives_at_few_false_ones() -> None:
    member = np.repeat([1.0, 0.0], 200)
    scores = np.concatenate([np.repeat([5.0, 0.0], [30, 170]), np.repeat([9.0, 1.0], [1, 199])])
    assert true_positive_rate(member, scores, 0.01) == 30 / 200  # one of the others may lie above
    assert true_positive_rate(member, scores, 0.001) == 0
    assert true_positive_rate(np.ones(10), np.arange(10.0), 0.1) == 0.1


def test_an_attack_that_finds_a_few_cells_shows_at_few_false_positives() -> None:
    rng = np.random.default_rng(55)
    real, synthetic = rng.normal(size=(2000, 5)), rng.normal(size=(1000, 5))
    member = np.repeat([1.0, 0.0], 1000)
    synthetic[:100] = real[:100] + 1e-6  # a tenth of the members were copied
    given = {"member": (member, np.zeros(1000))}
    assert METRICS["membership_tpr_1"](real, synthetic, **given) == pytest.approx(0.1, abs=0.03)
    assert METRICS["membership_auc"](real, synthetic, **given) < 0.6
    fresh = rng.normal(size=(1000, 5))
    assert METRICS["membership_tpr_10"](real, fresh, **given) == pytest.approx(0.1, abs=0.04)


def test_donors_that_were_trained_on_are_found() -> None:
    rng = np.random.default_rng(56)
    donors = np.repeat([f"d{i}" for i in range(10)], 50)
    member = (np.repeat(np.arange(10), 50) < 5).astype(float)
    real = rng.normal(size=(500, 4)) + 3 * rng.normal(size=(10, 4))[np.repeat(np.arange(10), 50)]
    near = real[member == 1] + 0.05 * rng.normal(size=(250, 4))
    given = {"member": (member, np.zeros(250)), "donors": (donors, np.zeros(250))}
    assert METRICS["donor_membership_auc"](real, near, **given) == 1
    assert METRICS["donor_membership_tpr_10"](real, near, **given) == 1
    assert METRICS["donor_membership_auc"](real, real[member == 0][::-1], **given) == 0


def test_density_ratio_finds_where_cells_were_put_too_many() -> None:
    """Members lie where a model has put many more cells than there are: distances to single cells hardly show it."""
    rng = np.random.default_rng(57)
    members, others, reference = rng.normal(size=(300, 4)), rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    members[:, 0] = np.abs(members[:, 0])
    synthetic = rng.normal(size=(1000, 4))
    synthetic[:, 0] = np.abs(synthetic[:, 0])
    real, member = np.vstack([members, others, reference]), np.repeat([1.0, 0.0, 2.0], 300)
    # members are all in the half where synthetic cells are, of the others one half: 0.5 + 0.5 * 0.5
    assert METRICS["domias_auc"](real, synthetic, member=(member, np.zeros(1000))) == pytest.approx(0.75, abs=0.05)
    fresh = rng.normal(size=(1000, 4))
    same = np.vstack([others, rng.normal(size=(300, 4)), reference])
    assert METRICS["domias_auc"](same, fresh, member=(member, np.zeros(1000))) == pytest.approx(0.5, abs=0.06)


def test_log_density_against_scipy() -> None:
    rng = np.random.default_rng(58)
    cells = rng.normal(size=(200, 3))
    white = (cells - cells.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(cells.T))).T  # as scipy whitens them
    at = rng.normal(size=(20, 3))
    expected = stats.gaussian_kde(white.T).logpdf(at.T)
    np.testing.assert_allclose(log_density(white, at) - 1.5 * np.log(2 * np.pi), expected, atol=1e-6)


# spaces


def test_principal_components_against_a_full_svd() -> None:
    cells = zero_inflated(60, 30, 10)
    u, s, _ = np.linalg.svd(cells - cells.mean(0), full_matrices=False)
    components = principal_components(as_csr(cells))
    assert components.shape == (60, 20)
    np.testing.assert_allclose(np.abs(components), np.abs(u * s)[:, :20], atol=1e-6)


def test_two_halves_of_one_distribution_are_alike_in_components() -> None:
    """Components fitted on one side alone would tell the halves apart: noise has directions of its own."""
    rng = np.random.default_rng(5)
    real, other = rng.poisson(0.3, (200, 400)), rng.poisson(0.3, (200, 400))
    a, b = in_space("pca", sparse.csr_matrix(real, dtype=float), sparse.csr_matrix(other, dtype=float))
    assert METRICS["rf_auc"](a, b) == pytest.approx(0.5, abs=0.08)
    assert np.var(a) == pytest.approx(np.var(b), rel=0.1)


def test_as_csr_copies_and_drops_stored_zeros() -> None:
    stored = sparse.csr_matrix((np.array([0.0, 2]), np.array([0, 1]), np.array([0, 2])), shape=(1, 2))
    csr = as_csr(stored)
    assert csr.nnz == 1
    assert stored.nnz == 2
    assert csr.dtype == np.float64
