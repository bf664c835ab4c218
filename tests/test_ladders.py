"""Noise ladders as data: the same levels for training times, labels and sampling; and what is sampled on them."""

import numpy as np
import pytest
import torch

from scorefield.grids import Ladder as LadderGrid
from scorefield.grids import LogRatio
from scorefield.kernels import Ancestral, Consistent, Langevin, SigmaStep
from scorefield.models import LadderIndex, MixtureModel
from scorefield.noise import StreamNoise
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VE, VP, Constant, Tabulated
from scorefield.times import Ladder, Stratified
from tests.conftest import MIXTURE


def test_a_geometric_ladder_is_ncsns():
    """The ten levels of the code, exp(linspace(log 20, log 1, 10)), at the times 1 - i / (L - 1)."""
    schedule = VE(1.0, 20.0, t_min=0.0)
    times = schedule.ladder(10)
    assert np.allclose(schedule.sigma(times), np.exp(np.linspace(np.log(20), 0, 10)), rtol=1e-13)
    assert torch.allclose(times, 1 - torch.arange(10) / 9, atol=1e-15)


@pytest.mark.parametrize("schedule", [VP(), EDM()], ids=repr)
def test_a_ladder_of_a_continuous_schedule_has_equal_ratios(schedule):
    times = schedule.ladder(12)
    steps = schedule.ratio(times).log().diff()
    assert times[[0, -1]].tolist() == [schedule.t_max, schedule.t_min]
    assert torch.allclose(steps, steps.mean().expand(11), rtol=1e-9)


def test_a_table_has_its_own_levels():
    """Of DDPM's chain: the levels are the table's, whatever their ratios; fewer are equal steps of the index."""
    betas = np.linspace(1e-4, 0.02, 1000)
    chain = Tabulated.linear()
    alpha_bar = np.cumprod(1 - betas)
    every = chain.ladder(1000)
    assert np.allclose(chain.alpha(every).flip(0) ** 2, alpha_bar, rtol=1e-10)
    assert np.allclose(chain.sigma(every).flip(0) ** 2, 1 - alpha_bar, rtol=1e-9)
    fewer = (chain.ladder(10) * 1000).round().long().tolist()
    assert fewer == [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]
    with pytest.raises(ValueError, match="levels=1001 must be between 2 and the 1000"):
        chain.ladder(1001)


def test_discrete_chains_are_the_papers():
    """SMLD's levels in equal ratios; DDPM's forward step with the beta of its index."""
    smld = Tabulated.geometric(0.01, 50.0, 1000)
    levels = smld.sigma(smld.ladder(1000)).flip(0)
    assert np.allclose(levels, np.geomspace(0.01, 50.0, 1000), rtol=1e-12)
    chain = Tabulated.linear()
    i = torch.tensor([1, 250, 999])  # from level i to level i + 1
    gain, variance = chain.transition(i / 1000, (i + 1) / 1000)
    betas = torch.from_numpy(np.linspace(1e-4, 0.02, 1000))[i]
    assert torch.allclose(variance, betas, rtol=1e-9)
    assert torch.allclose(gain, (1 - betas).sqrt(), rtol=1e-12)


def test_training_takes_every_level_equally_often():
    schedule, levels, n = VE(0.1, 10.0, t_min=0.0), 6, 60_000
    t, weight = Ladder(levels).sample(n, schedule, StreamNoise(0))
    counts = torch.stack([(t == level).sum() for level in schedule.ladder(levels)])
    assert int(counts.sum()) == n  # nothing between the levels
    # Each count is binomial with standard deviation sqrt(n p (1 - p)): four of them.
    assert (counts - n / levels).abs().max() < 4 * (n / levels * (1 - 1 / levels)) ** 0.5
    assert (weight == 1).all()
    strata, _ = Stratified(Ladder(levels)).sample(12, schedule, StreamNoise(1))
    assert sorted(strata.tolist()) == sorted(schedule.ladder(levels).repeat(2).tolist())


@pytest.mark.parametrize("ladder", [VE(0.01, 50.0, t_min=0.0), VP(), Tabulated.linear(40, 0.1 / 40, 20 / 40)], ids=repr)
def test_the_label_is_the_index_of_the_level(ladder):
    times = ladder.ladder(20)
    label = LadderIndex(20)(ladder, times)
    assert label.tolist() == list(range(20))
    # Rounding, as through float32, does not move a time to another level; between two the nearer one counts.
    assert LadderIndex(20)(ladder, times.float().double()).tolist() == list(range(20))
    between = 0.6 * times[3] + 0.4 * times[4]
    assert LadderIndex(20)(ladder, between[None]).tolist() == [3.0]


def test_a_ladder_of_one_level_has_no_times():
    with pytest.raises(ValueError, match=r"levels=1 .* Constant"):
        VE().ladder(1)
    with pytest.raises(ValueError, match="one noise level"):
        Constant(0.3).ladder(4)


def annealed(levels: int, corrections: int, **more) -> Sampler:
    step = SigmaStep.ncsn(0.05, 1.0)
    return Sampler(LadderGrid(), levels, corrector=Langevin(step), corrections=corrections, **more)


def test_annealed_langevin_corrects_each_level_and_ends_at_the_last():
    schedule, seen = VE(1.0, 20.0, t_min=0.0), []
    sampler = annealed(10, 3, denoise_last=True)
    model = MixtureModel(schedule, [1.0], [[0.0, 0.0]], [1.0])
    forward = model.forward
    model.forward = lambda x, t, cond=None: (seen.append(float(t[0])), forward(x, t, cond))[1]
    samples = sampler(model, torch.zeros(2, 2), noise=StreamNoise(0))
    expected = [*schedule.ladder(10).repeat_interleave(3).tolist(), 0.0]
    assert seen == expected
    assert samples.nfe == 31


def test_annealed_langevin_has_the_variance_of_its_recursion():
    """For N(0, v): v' = (1 - eps / w)^2 v + 2 eps, with w the variance at the level, through all the levels."""
    n, schedule, data = 40_000, VE(0.5, 4.0, t_min=0.0), 1.0
    sampler = Sampler(LadderGrid(), 5, corrector=Langevin(SigmaStep.ncsn(0.1, 0.5)), corrections=4)
    model = MixtureModel(schedule, [1.0], [[0.0]], [data])
    x = sampler(model, 4 * StreamNoise(0).normal_like(torch.empty(n, 1)), noise=StreamNoise(1)).x
    variance = 16.0
    for sigma in np.geomspace(4.0, 0.5, 5):
        epsilon, marginal = 0.1 * sigma**2 / 0.25, data + sigma**2
        for _ in range(4):
            variance = (1 - epsilon / marginal) ** 2 * variance + 2 * epsilon
    # CLT: the standard error of a variance is sqrt(2 / n) of it, four of them.
    assert float(x.var()) == pytest.approx(variance, rel=4 * (2 / n) ** 0.5)


@pytest.mark.parametrize("schedule", [VE(0.05, 20.0), VP(t_min=1e-3)], ids=repr)
def test_consistent_sampling_keeps_a_point_at_the_noise_of_its_level(schedule):
    """Data at one point: x_t stays N(alpha mu, sigma^2), where Langevin dynamics leaves too much noise."""
    n, steps = 20_000, 60
    model = MixtureModel(schedule, [1.0], [[0.3]], [[0.0]])
    t = torch.full((n,), schedule.t_max)
    start = model.sample_like(torch.empty(n, 1), t, StreamNoise(0))
    x = Sampler(LogRatio(), steps, Consistent(eta=0.3))(model, start, noise=StreamNoise(1)).x
    mean, covariance = model.moments(schedule.t_min)
    # CLT, four standard errors.
    assert float(x.mean()) == pytest.approx(float(mean), abs=4 * float(covariance.sqrt()) / n**0.5)
    assert float(x.var()) == pytest.approx(float(covariance), rel=4 * (2 / n) ** 0.5)


def test_consistent_sampling_with_the_least_step_is_ddim():
    schedule, steps = VP(t_min=1e-3), 50
    model, x = MixtureModel(schedule, **MIXTURE), torch.randn(5, 2)
    u = schedule.ratio(LogRatio()(schedule, steps))
    least = float(1 - (u[1:] / u[:-1]).min())
    ours, ddim = (Sampler(LogRatio(), steps, k)(model, x).x for k in (Consistent(least), Ancestral(eta=0.0)))
    # What rounding leaves of the noise's variance is at most 1e-9 of sigma^2, see the kernel.
    assert torch.allclose(ours, ddim, atol=1e-4)
    with pytest.raises(ValueError, match=r"eta=0\.01 removes less noise"):
        Sampler(LogRatio(), steps, Consistent(0.01))(model, x)


def test_one_density_under_three_names():
    """q_sigma of one noise level, p_{sigma_i} of a ladder and p_t of an SDE have the same score (docs/names.md)."""
    ladder = VE(0.5, 20.0, t_min=0.0)
    x = 3 * torch.randn(50, 2)
    for t in ladder.ladder(7):
        sigma = float(ladder.sigma(t))
        of_level = MixtureModel(ladder, **MIXTURE)(x, t.expand(50)).score
        alone = MixtureModel(Constant(sigma), **MIXTURE)(x, torch.zeros(50)).score
        edm = MixtureModel(EDM(0.1, 80.0), **MIXTURE)(x, torch.full((50,), sigma)).score
        scale = float(alone.abs().max())
        assert float((of_level - alone).abs().max()) < 1e-12 * scale
        assert float((edm - alone).abs().max()) < 1e-12 * scale
