"""Oracle: diffusers' schedulers, whose betas and alphas_cumprod ours must equal."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from scdiffkit.config import DiffusionConfig, make
from scdiffkit.diffusion.schedule import Schedule
from scdiffkit.errors import ConfigError

THEIRS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


@pytest.mark.parametrize("name", ["linear", "cosine"])
@pytest.mark.parametrize("T", [10, 1000])
def test_betas_and_alphas_cumprod_equal_diffusers(name, T):
    ours = Schedule.from_config(make(DiffusionConfig, schedule=name, num_train_timesteps=T))
    theirs = DDIMScheduler(num_train_timesteps=T, beta_start=1e-4, beta_end=0.02, beta_schedule=THEIRS[name])
    np.testing.assert_allclose(ours.betas, theirs.betas, rtol=1e-5)
    np.testing.assert_allclose(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)


def test_add_noise_has_the_variance_it_promises():
    schedule = Schedule.linear(1000)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.zeros(4, 50_000)
    t = torch.tensor([0, 100, 500, 999])
    x_t = schedule.add_noise(x0, torch.randn(x0.shape, generator=generator), t)
    np.testing.assert_allclose(x_t.var(dim=1), 1 - schedule.alphas_cumprod[t], rtol=0.03)


def test_signal_to_noise_falls_all_the_way():
    for schedule in (Schedule.linear(1000), Schedule.cosine(1000)):
        assert (schedule.snr(torch.arange(1000)).diff() < 0).all()


@pytest.mark.parametrize("n", [1, 2, 7, 20, 50, 1000])
def test_timesteps_visit_the_first_and_the_last(n):
    steps = Schedule.linear(1000).timesteps(n)
    assert len(steps) == len(set(steps)) == n
    assert steps == sorted(steps, reverse=True)
    assert steps[0] == 999
    assert n == 1 or steps[-1] == 0


@pytest.mark.parametrize("n", [1, 2, 7, 20, 50, 300, 1000])
def test_trailing_timesteps_equal_diffusers(n):
    theirs = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    theirs.set_timesteps(n)
    steps = Schedule.linear(1000).timesteps(n, "trailing")
    assert len(set(steps)) == n
    assert steps[0] == 999
    np.testing.assert_allclose(steps, theirs.timesteps, atol=1)  # they round T - i * T/n by another rule


def test_trailing_steps_are_all_of_one_length():
    assert Schedule.linear(1000).timesteps(5, "trailing") == [999, 799, 599, 399, 199]


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
@pytest.mark.parametrize("n", [0, -1, 1001])
def test_an_impossible_number_of_steps_is_refused(n, spacing):
    with pytest.raises(ConfigError, match=r"1\.\.1000"):
        Schedule.linear(1000).timesteps(n, spacing)
