"""Oracles: the exact denoiser of a Gaussian, whose samples must have its mean and spread, and diffusers."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from torch import nn

from scdiffkit.diffusion.denoiser import Denoiser, SpikeSlab, drop_conditions
from scdiffkit.diffusion.samplers import ddim, ddpm, dpm
from scdiffkit.diffusion.schedule import Schedule

MU, SD = 3.0, 0.5
TYPES = ["eps", "v", "x0"]


class ExactGaussian(nn.Module):
    """What a perfect network predicts when x0 ~ N(MU, SD^2)."""

    def __init__(self, schedule, prediction_type):
        super().__init__()
        self.schedule, self.prediction_type = schedule, prediction_type

    def forward(self, x_t, t, conditions=None):
        a = self.schedule.alphas_cumprod[t][:, None].to(x_t)
        x0 = MU + SD**2 * a.sqrt() / (a * SD**2 + 1 - a) * (x_t - a.sqrt() * MU)
        eps = (x_t - a.sqrt() * x0) / (1 - a).sqrt()
        return {"x0": x0, "eps": eps, "v": a.sqrt() * eps - (1 - a).sqrt() * x0}[self.prediction_type]


def exact(prediction_type, schedule):
    return Denoiser(ExactGaussian(schedule, prediction_type), schedule, prediction_type)


def last(path):
    return list(path)[-1][1]


def normal(generator):
    """What draws a sampler's noise from one generator."""
    return lambda x: torch.randn(x.shape, generator=generator, dtype=x.dtype)


@pytest.mark.parametrize("schedule", [Schedule.linear(1000), Schedule.cosine(1000)], ids=["linear", "cosine"])
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "ddim-eta-1", "dpm"])
def test_a_perfect_network_gives_back_mean_and_spread(sampler, prediction_type, schedule):
    denoiser = exact(prediction_type, schedule)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8000, 1, generator=generator, dtype=torch.float64)
    if sampler == "ddpm":
        x = last(ddpm(denoiser, x, noise=normal(generator)))
    elif sampler == "dpm":
        x = last(dpm(denoiser, x, schedule.timesteps(50, "trailing")))
    else:
        eta = 1.0 if sampler.endswith("1") else 0.0
        x = last(ddim(denoiser, x, schedule.timesteps(1000), eta=eta, noise=normal(generator)))
    assert x.mean().item() == pytest.approx(MU, abs=0.02)
    assert x.std().item() == pytest.approx(SD, rel=0.03)


def error_of_sd(sampler, schedule, timesteps, prediction_type="v"):
    """Relative error of the standard deviation, after noise whose mean is 0 and sd 1 exactly."""
    x = torch.linspace(-1, 1, 101, dtype=torch.float64)[:, None]
    x = last(sampler(exact(prediction_type, schedule), x / x.std(), timesteps))
    return abs(x.std().item() / SD - 1)


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("n", [10, 15, 20])
def test_few_steps_of_dpm_keep_the_spread_better_than_ddim(n, prediction_type):
    schedule = Schedule.cosine(1000)
    theirs = min(
        error_of_sd(ddim, schedule, schedule.timesteps(n, spacing), prediction_type)
        for spacing in ("linspace", "trailing")
    )
    ours = error_of_sd(dpm, schedule, schedule.timesteps(n, "trailing"), prediction_type)
    assert ours < theirs / 2
    assert ours < 0.05


@pytest.mark.parametrize(("sampler", "order"), [(ddim, 1), (dpm, 2)])
def test_the_error_falls_with_the_order_of_the_sampler(sampler, order):
    """Twice the steps, even in log-SNR: half the error of DDIM, a quarter of DPM-Solver++(2M)'s."""
    alphas_cumprod = torch.linspace(14, -14, 961, dtype=torch.float64).sigmoid()
    schedule = Schedule(1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]]))
    coarse, middle, fine = (error_of_sd(sampler, schedule, range(960, -1, -960 // n)) for n in (40, 80, 160))
    assert coarse / middle == pytest.approx(2**order, rel=0.15)
    assert middle / fine == pytest.approx(2**order, rel=0.15)


class Wiggly(nn.Module):
    """Any fixed function of x and t."""

    def forward(self, x, t, conditions=None):
        return torch.sin(3 * x + t[:, None] / 100) * 0.7


@pytest.mark.parametrize(("ours", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_a_ddim_trajectory_equals_diffusers(ours, theirs, eta):
    schedule = Schedule.linear(1000)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False,
        set_alpha_to_one=True, prediction_type=theirs, timestep_spacing="leading",
    )  # fmt: skip
    scheduler.set_timesteps(20)
    steps = scheduler.timesteps.tolist()  # evenly spaced by 50, as its own update assumes
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = x
    noise = torch.Generator().manual_seed(2)
    network = Wiggly()
    for t in steps:
        output = network(expected, torch.full((5,), t))
        expected = scheduler.step(output, t, expected, eta=eta, generator=noise).prev_sample
    path = ddim(Denoiser(network, schedule, ours), x, steps, eta=eta, noise=normal(torch.Generator().manual_seed(2)))
    np.testing.assert_allclose(last(path), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("ours", "theirs"), [("eps", "epsilon"), ("v", "v_prediction"), ("x0", "sample")])
@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("n", [1, 2, 3, 8, 20])
def test_a_dpm_trajectory_equals_diffusers(n, name, ours, theirs):
    schedule = {"linear": Schedule.linear, "cosine": Schedule.cosine}[name](1000)
    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02,
        beta_schedule={"linear": "linear", "cosine": "squaredcos_cap_v2"}[name], prediction_type=theirs,
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint",
    )  # fmt: skip
    steps = [999, *np.linspace(980, 12, n - 1).round().astype(int).tolist()]
    scheduler.set_timesteps(timesteps=steps)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    expected, network, trajectory = x, Wiggly(), []
    for t in scheduler.timesteps:
        expected = scheduler.step(network(expected, t.repeat(5)), t, expected).prev_sample
        trajectory.append(expected)
    path = list(dpm(Denoiser(network, schedule, ours), x, steps))
    assert [t for t, _ in path] == steps
    for (_, sample), other in zip(path, trajectory, strict=True):
        np.testing.assert_allclose(sample, other, rtol=2e-3, atol=2e-3 * float(other.abs().max()))


def test_dpm_is_deterministic_and_uses_the_predictions_within_bounds():
    """The same noise gives the same x, bit by bit; the last x is the last x0, clamped as for the other samplers."""
    schedule = Schedule.cosine(1000)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(Wiggly(), schedule, "eps", bounds=(-0.5, 0.25))
    once, again = (list(dpm(denoiser, x, schedule.timesteps(10, "trailing"))) for _ in range(2))
    for (_, a), (_, b) in zip(once, again, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert once[-1][1].min() >= -0.5
    assert once[-1][1].max() <= 0.25
    free = last(dpm(Denoiser(Wiggly(), schedule, "eps"), x, schedule.timesteps(10, "trailing")))
    assert free.abs().max() > 0.5


def test_a_ddpm_step_equals_diffusers():
    scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(1000)
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network, expected, noise = Wiggly(), x, torch.Generator().manual_seed(2)
    path = ddpm(Denoiser(network, Schedule.linear(1000), "eps"), x, noise=normal(torch.Generator().manual_seed(2)))
    for t, sample in path:  # noqa: B007 the last one is looked at
        output = network(expected, torch.full((5,), t))
        expected = scheduler.step(output, t, expected, generator=noise).prev_sample
        if t < 700:
            break
    np.testing.assert_allclose(sample, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_target_and_reading_are_inverse(prediction_type):
    denoiser = Denoiser(nn.Identity(), Schedule.cosine(1000), prediction_type)
    x0, eps = torch.randn(2, 6, 4, dtype=torch.float64)
    t = torch.tensor([0, 1, 10, 500, 900, 990])
    x_t = denoiser.schedule.add_noise(x0, eps, t)
    read_x0, read_eps = denoiser.to_x0_and_eps(denoiser.target(x0, eps, t), x_t, t)
    np.testing.assert_allclose(read_x0, x0, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read_eps, eps, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("prediction_type", TYPES)
def test_min_snr_is_the_same_loss_on_x0_whatever_is_predicted(prediction_type):
    """A wrong x0 by d costs min(SNR, gamma) * d^2, in each of the three units (Hang et al. 2023)."""
    schedule = Schedule.linear(1000)
    x0, eps = torch.zeros(5, 3, dtype=torch.float64), torch.ones(5, 3, dtype=torch.float64)
    t = torch.tensor([1, 100, 300, 600, 900])
    signal, noise = schedule.signal_and_noise(t, x0)
    wrong_x0 = x0 + 0.1
    x_t = schedule.add_noise(x0, eps, t)
    wrong_eps = (x_t - signal * wrong_x0) / noise
    output = {"x0": wrong_x0, "eps": wrong_eps, "v": signal * wrong_eps - noise * wrong_x0}[prediction_type]

    class Fixed(nn.Module):
        def forward(self, *_):
            return output

    loss = Denoiser(Fixed(), schedule, prediction_type, min_snr_gamma=5.0)(x0, None, t, eps)
    np.testing.assert_allclose(loss, schedule.snr(t).clamp(max=5.0) * 0.01, rtol=1e-4)


class FromConditions(nn.Module):
    """Predicts the code of the first condition; records the size of its batches."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, x, t, conditions):
        self.sizes.append(len(x))
        return conditions[:, :1].float().expand_as(x)


@pytest.mark.parametrize(("scale", "expected"), [(0.0, 0.0), (1.0, 4.0), (2.5, 10.0)])
def test_guidance_goes_from_unknown_through_the_condition(scale, expected):
    network = FromConditions()
    denoiser = Denoiser(network, Schedule.linear(10), "x0")
    x0, _ = denoiser.predict(torch.zeros(3, 2), torch.tensor([5, 5, 5]), torch.full((3, 1), 4), cfg_scale=scale)
    assert x0.unique().tolist() == [expected]
    assert network.sizes == [3 if scale == 1.0 else 6]  # no guidance costs no second evaluation


class AdditiveGaussian(nn.Module):
    """A perfect network for x0 ~ N(SHIFTS of both codes and their interaction, SD^2); records its batches."""

    def __init__(self, schedule, prediction_type):
        super().__init__()
        self.exact = ExactGaussian(schedule, prediction_type)
        self.sizes = []

    def forward(self, x_t, t, conditions):
        self.sizes.append(len(x_t))
        first, second = conditions[:, :1], conditions[:, 1:2]
        mean = BASE + FIRST[first] + SECOND[second] + INTERACTION * ((first > 0) & (second > 0))
        a = self.exact.schedule.alphas_cumprod[t][:, None].to(x_t)
        shifted = x_t - a.sqrt() * (mean - MU)  # a cell of mean MU at the same noise
        output, shift = self.exact(shifted, t), mean - MU
        return output + {"x0": 1.0, "eps": 0.0, "v": -(1 - a).sqrt()}[self.exact.prediction_type] * shift


BASE, INTERACTION = 1.0, 0.3
FIRST, SECOND = torch.tensor([0.0, 0.7, -0.4]), torch.tensor([0.0, -1.1])  # of unknown, of category 1, ...


@pytest.mark.parametrize(
    ("sampler", "prediction_type", "scales"),
    [
        ("ddim", "x0", (2.0, 1.5)),
        ("ddim", "eps", (3.0, 1.0)),
        ("ddim", "v", (0.0, 2.0)),
        ("ddim", "v", (1.0, 1.0)),
        ("ddpm", "v", (2.0, 1.5)),
        ("dpm", "v", (2.0, 1.5)),
    ],
)
def test_guidance_per_column_samples_the_composed_distribution(sampler, prediction_type, scales):
    """p(x | c1, c2) [p(x | c1) / p(x)]^(w1 - 1) [p(x | c2) / p(x)]^(w2 - 1): a Gaussian like all these, of SD too."""
    schedule = Schedule.linear(1000)
    denoiser = Denoiser(AdditiveGaussian(schedule, prediction_type), schedule, prediction_type)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    conditions = torch.tensor([[1, 1], [2, 1]]).repeat_interleave(2000, dim=0)
    if sampler == "ddpm":
        x = last(ddpm(denoiser, x, conditions=conditions, cfg_scale=scales, noise=normal(generator)))
    elif sampler == "dpm":
        timesteps = schedule.timesteps(50, "trailing")
        x = last(dpm(denoiser, x, timesteps, conditions=conditions, cfg_scale=scales))
    else:
        x = last(ddim(denoiser, x, schedule.timesteps(1000), conditions=conditions, cfg_scale=scales))
    for kind, part in zip((1, 2), x.split(2000), strict=True):
        expected = BASE + INTERACTION + scales[0] * FIRST[kind] + scales[1] * SECOND[1]
        assert part.mean().item() == pytest.approx(expected.item(), abs=0.04)
        assert part.std().item() == pytest.approx(SD, rel=0.06)


@pytest.mark.parametrize(
    ("scales", "rows"),
    [(1.0, 1), (2.0, 2), ((1.0, 1.0), 1), ((2.0, 1.0), 3), ((1.0, 0.0), 3), ((2.0, 1.5), 4)],
)
def test_only_guided_columns_cost_a_network_call_and_all_are_made_at_once(scales, rows):
    network = AdditiveGaussian(Schedule.linear(10), "x0")
    denoiser = Denoiser(network, Schedule.linear(10), "x0")
    denoiser.predict(torch.zeros(5, 1), torch.full((5,), 4), torch.ones(5, 2, dtype=torch.long), scales)
    assert network.sizes == [5 * rows]


@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_of_the_only_column_is_joint_guidance(prediction_type, scale):
    network = FromConditions()
    denoiser = Denoiser(network, Schedule.linear(10), prediction_type)
    x, t, conditions = torch.randn(3, 2), torch.tensor([5, 5, 5]), torch.tensor([[1], [2], [0]])
    alone, together = (denoiser.predict(x, t, conditions, w) for w in ([scale], scale))
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert network.sizes[0] == network.sizes[1]


def test_columns_with_scale_1_leave_the_plain_prediction():
    schedule = Schedule.linear(10)
    denoiser = Denoiser(AdditiveGaussian(schedule, "v"), schedule, "v")
    x, t, conditions = torch.randn(4, 1), torch.full((4,), 6), torch.tensor([[1, 1], [2, 1], [0, 1], [2, 0]])
    for a, b in zip(denoiser.predict(x, t, conditions, [1.0, 1.0]), denoiser.predict(x, t, conditions), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    with pytest.raises(ValueError, match="1 guidance scales for 2 columns"):
        denoiser.predict(x, t, conditions, [2.0])


def test_predictions_stay_within_bounds():
    schedule = Schedule.linear(1000)
    denoiser = Denoiser(Wiggly(), schedule, "eps", bounds=(-0.5, 0.25))
    x_t, t = torch.randn(64, 4) * 3, torch.randint(1000, (64,))
    x0, eps = denoiser.predict(x_t, t)
    assert x0.min() >= -0.5
    assert x0.max() <= 0.25
    torch.testing.assert_close(schedule.add_noise(x0, eps, t), x_t, rtol=1e-3, atol=1e-4)  # still explains x_t


def test_dropout_hides_each_column_on_its_own():
    codes = torch.tensor([[1, 2]]).repeat(20_000, 1)
    dropped = drop_conditions(codes, 0.25, torch.Generator().manual_seed(0))
    hidden = dropped == 0
    np.testing.assert_allclose(hidden.float().mean(0), [0.25, 0.25], atol=0.015)
    assert hidden.all(dim=1).float().mean().item() == pytest.approx(0.0625, abs=0.01)
    assert ((dropped == codes) | hidden).all()
    assert drop_conditions(codes, 0.0, torch.Generator()) is codes


def test_spike_and_slab_is_bayes_rule():
    """The posterior mean of x0 against a numerical integral over the mixture prior."""
    log_odds, mean, std = torch.tensor([0.4]), torch.tensor([2.0]), torch.tensor([0.5])
    head = SpikeSlab(-1.0, log_odds, mean, std).double()
    schedule = Schedule.cosine(1000)
    x_t = torch.linspace(-3, 4, 15, dtype=torch.float64)[:, None]
    grid = torch.linspace(-4, 8, 200_001, dtype=torch.float64)
    prior = torch.sigmoid(torch.tensor(0.4, dtype=torch.float64))
    for step in (50, 400, 900):
        t = torch.full((15,), step)
        signal, noise = schedule.signal_and_noise(t, x_t)
        got = head(torch.zeros(15, 2, 1, dtype=torch.float64), x_t, signal, noise)
        a, b = signal[0, 0], noise[0, 0]
        slab = torch.exp(-0.5 * ((grid - 2) / 0.5) ** 2) / (0.5 * (2 * torch.pi) ** 0.5) * (grid[1] - grid[0])
        at_grid = torch.exp(-0.5 * ((x_t - a * grid) / b) ** 2) * slab * prior
        at_spike = torch.exp(-0.5 * ((x_t + a) / b) ** 2) * (1 - prior)
        expected = ((at_grid * grid).sum(1, keepdim=True) - at_spike) / (at_grid.sum(1, keepdim=True) + at_spike)
        np.testing.assert_allclose(got.detach(), expected, rtol=1e-4, atol=1e-5)


def test_an_untrained_spike_and_slab_samples_independent_genes():
    """Detection rates and levels come out as they went in, before the network has learnt anything."""
    rates, levels = torch.tensor([0.1, 0.5, 0.9]), torch.tensor([1.0, 2.0, 3.0])
    head = SpikeSlab(-2.0, (rates / (1 - rates)).log(), levels, torch.full((3,), 0.2))
    network = FromNothing(outputs=2)
    denoiser = Denoiser(network, Schedule.cosine(1000), "v", head=head, bounds=(-2.0, 5.0))
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        x = last(ddim(denoiser, x, denoiser.schedule.timesteps(200)))
    detected = x > -0.5
    np.testing.assert_allclose(detected.float().mean(0), rates, atol=0.02)
    means = [x[detected[:, i], i].mean().item() for i in range(3)]
    np.testing.assert_allclose(means, levels, atol=0.05)


class FromNothing(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, x, t, conditions=None):
        return x.new_zeros(len(x), self.outputs, x.shape[1])


@pytest.mark.parametrize("prediction_type", TYPES)
def test_the_loss_of_a_head_is_in_the_unit_of_the_prediction(prediction_type):
    """The same x0 costs the same whether a head gave it or the network predicted it directly."""
    schedule = Schedule.cosine(1000)
    head = SpikeSlab(-1.0, torch.zeros(4), torch.ones(4), torch.full((4,), 0.3)).double()
    x0, eps = torch.randn(2, 6, 4, dtype=torch.float64)
    t = torch.tensor([5, 100, 300, 500, 700, 900])
    with_head = Denoiser(FromNothing(2), schedule, prediction_type, head=head)
    x_t = schedule.add_noise(x0, eps, t)
    predicted = with_head.to_x0_and_eps(FromNothing(2)(x_t, t), x_t, t)
    direct = with_head.target(*predicted, t)

    class Fixed(nn.Module):
        def forward(self, *_):
            return direct

    plain = Denoiser(Fixed(), schedule, prediction_type)
    torch.testing.assert_close(
        with_head(x0, None, t, eps).detach(), plain(x0, None, t, eps).detach(), rtol=1e-4, atol=1e-6
    )
