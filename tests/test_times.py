"""Laws of training times: distributions against closed forms, importance weights against uniform averages."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from scorefield.noise import StreamNoise
from scorefield.schedules import VE, VP, Constant, Linear, SubVP
from scorefield.times import Importance, Ladder, LogNormal, Stratified, TimeLaw, Uniform

N = 40_000


def test_every_law_is_covered():
    assert set(TimeLaw.__subclasses__()) == {Uniform, LogNormal, Importance, Ladder, Stratified}


@pytest.mark.parametrize("law", [Uniform(), LogNormal(-1.2, 1.2), Importance(), Ladder(7)], ids=str)
def test_times_stay_inside_the_schedule(schedule, law):
    t, weight = law.sample(N, schedule, StreamNoise(0))
    assert t.dtype == torch.float64
    assert (t >= schedule.t_min * (1 - 1e-9)).all()
    assert (t <= schedule.t_max * (1 + 1e-9)).all()
    assert weight.isfinite().all()


def test_uniform_is_uniform(schedule):
    t, weight = Uniform().sample(N, schedule, StreamNoise(1))
    law = stats.uniform(schedule.t_min, schedule.t_max - schedule.t_min)
    assert stats.kstest(t.numpy(), law.cdf).pvalue > 1e-3
    assert (weight == 1).all()


def test_log_normal_is_a_truncated_normal_of_the_log_ratio(schedule):
    t, _ = LogNormal(-1.2, 1.2).sample(N, schedule, StreamNoise(2))
    low, high = schedule.ratio(torch.tensor([schedule.t_min, schedule.t_max])).log().tolist()
    law = stats.truncnorm((low + 1.2) / 1.2, (high + 1.2) / 1.2, loc=-1.2, scale=1.2)
    assert stats.kstest(schedule.ratio(t).log().numpy(), law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("sde", [VE(0.01, 50.0), VP(0.1, 20.0), SubVP(0.1, 20.0), Linear(1e-3, 0.99)], ids=repr)
def test_importance_density_is_g_sq_over_sigma_sq(sde):
    """Against numerical integration of g^2 / sigma^2, not against the logarithm the law is built on."""
    t, _ = Importance().sample(N, sde, StreamNoise(3))
    # Log-spaced abscissae resolve the pole at t -> 0; the trapezium rule on 20001 points is exact to 1e-6 here.
    grid = torch.logspace(math.log10(sde.t_min), math.log10(sde.t_max), 20_001)
    density = sde.diffusion_sq(grid) / sde.sigma(grid).square()
    cumulative = torch.cumulative_trapezoid(density, grid)
    cdf = torch.cat([torch.zeros(1), cumulative]) / cumulative[-1]

    def distribution(value):
        return np.interp(value, grid.numpy(), cdf.numpy())

    assert stats.kstest(t.numpy(), distribution).pvalue > 1e-3


@pytest.mark.parametrize("sde", [VP(0.1, 20.0, t_min=1e-2), VE(0.01, 50.0)], ids=repr)
def test_importance_weights_turn_averages_into_uniform_ones(sde):
    t, weight = Importance().sample(N, sde, StreamNoise(4))
    uniform, _ = Uniform().sample(N, sde, StreamNoise(5))
    values, reference = weight * torch.sin(7 * t), torch.sin(7 * uniform)
    error = math.sqrt(float(values.var() + reference.var()) / N)
    assert abs(float(values.mean() - reference.mean())) < 4 * error  # CLT, four standard errors


def test_stratified_fills_every_slice_and_keeps_the_law():
    schedule, n = VP(), 64
    t, _ = Stratified(Uniform()).sample(n, schedule, StreamNoise(6))
    slices = ((t - schedule.t_min) / (schedule.t_max - schedule.t_min) * n).floor().long()
    assert slices.tolist() == list(range(n))
    plain = torch.stack([Uniform().sample(n, schedule, StreamNoise(7, i))[0].mean() for i in range(200)])
    strata = torch.stack([Stratified(Uniform()).sample(n, schedule, StreamNoise(7, i))[0].mean() for i in range(200)])
    # One draw per slice of width 1/n has 1/n^2 of the variance of a draw from the whole.
    assert float(strata.var() / plain.var()) == pytest.approx(1 / n**2, rel=0.4)
    assert abs(float(strata.mean()) - (schedule.t_min + schedule.t_max) / 2) < 4 * float(strata.std()) / math.sqrt(200)


def test_clean_data_have_no_log_ratio():
    with pytest.raises(ValueError, match="sigma = 0"):
        Importance().sample(3, Constant(0.0), StreamNoise(0))
