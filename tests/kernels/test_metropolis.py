"""The Metropolis test: exact invariance at any step, a known rate of acceptance, adaptation, independence of mates."""

import math

import pytest
import torch
from scipy import integrate, stats

from scorefield.grids import Uniform
from scorefield.kernels import (
    BatchSignalToNoise,
    EulerMaruyama,
    FixedStep,
    Langevin,
    Mala,
    SignalToNoise,
    acceptance,
    run_chains,
)
from scorefield.metrics.chains import effective_sample_size, r_hat
from scorefield.models import EnergyModel, MixtureModel, NetworkModel, One, Parametrization, Time
from scorefield.nets import MLP, EnergyMLP, Fourier
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.prediction import Score
from scorefield.samplers import Sampler
from scorefield.schedules import VP, Constant
from tests.conftest import MIXTURE


def walk(kernel, model, x, steps, noise, t=0.0):
    state, times = kernel.init(x), torch.full((len(x),), t)
    for _ in range(steps):
        x, state = kernel.step(model, x, times, times, state, noise)
    return x, state


def normal():
    return MixtureModel(Constant(0.0), [1.0], [[0.0]], [[1.0]])


@pytest.mark.parametrize("epsilon", [0.05, 0.5, 1.5])
def test_the_target_is_invariant_at_any_step(epsilon):
    """Without the test the variance at 1.5 would be 1 / (1 - 0.75) = 4."""
    n = 40_000
    x, _ = walk(Mala(FixedStep(epsilon)), normal(), StreamNoise(0).normal_like(torch.empty(n, 1)), 10, StreamNoise(1))
    # Kolmogorov-Smirnov on n independent chains; the seed is fixed, the level 1e-3.
    assert stats.kstest(x[:, 0].numpy(), "norm").pvalue > 1e-3


def test_a_mixture_is_invariant_in_every_coordinate():
    n, t = 20_000, 0.3
    model = MixtureModel(VP(), **MIXTURE)
    start = model.sample_like(torch.empty(n, 2), torch.full((n,), t), StreamNoise(0))
    x, _ = walk(Mala(FixedStep(0.1)), model, start, 20, StreamNoise(1), t)
    fresh = model.sample_like(torch.empty(n, 2), torch.full((n,), t), StreamNoise(2))
    for i in range(2):
        assert stats.ks_2samp(x[:, i].numpy(), fresh[:, i].numpy()).pvalue > 1e-3
    assert float((x - start).norm(dim=1).median()) > 0.1  # it moved


def test_acceptance_is_the_integral_it_estimates():
    """For N(0, 1) and step e, E min(1, ratio) over x ~ N(0, 1) and y | x, by quadrature of the definition."""
    e, n = 0.8, 100_000

    def log_q(to, at):
        return -((to - (1 - e) * at) ** 2) / (4 * e) - 0.5 * math.log(4 * math.pi * e)

    def flow(y, x):  # min(p(x) q(y|x), p(y) q(x|y))
        forth, back = -(x**2) / 2 + log_q(y, x), -(y**2) / 2 + log_q(x, y)
        return math.exp(min(forth, back)) / math.sqrt(2 * math.pi)

    exact, _ = integrate.dblquad(flow, -8, 8, -8, 8, epsabs=1e-5)
    kernel = Mala(FixedStep(e))
    _, state = walk(kernel, normal(), torch.randn(n, 1), 1, StreamNoise(0))
    found = acceptance(kernel, state)
    assert 0.5 < exact < 0.99
    assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / n**0.5 + 1e-4)


@pytest.mark.parametrize("first", [1e-3, 30.0])
def test_adaptation_reaches_the_wanted_rate(first):
    kernel = Mala(FixedStep(first), target=0.574, adapt=400)
    x = torch.randn(500, 10)
    model = MixtureModel(Constant(0.0), [1.0], [[0.0] * 10], [[1.0] * 10])
    _, state = walk(kernel, model, x, 800, StreamNoise(0))
    # The last gains are 400^-0.6 = 0.03: a chain's rate is left that far off, the mean over 500 chains closer.
    assert float(acceptance(kernel, state).mean()) == pytest.approx(0.574, abs=0.03)


def test_adaptation_ends():
    kernel, model = Mala(FixedStep(0.3), adapt=5), normal()
    x, noise, t = torch.randn(3, 1), StreamNoise(0), torch.zeros(3)
    state, factors = kernel.init(x), []
    for _ in range(10):
        x, state = kernel.step(model, x, t, t, state, noise)
        factors.append(state["log_factor"])
    assert all(not torch.equal(factors[i], factors[i + 1]) for i in range(4))
    assert all(torch.equal(factors[4], later) for later in factors[5:])


def test_a_chain_ignores_its_mates():
    model, t = MixtureModel(VP(), **MIXTURE), torch.full((4,), 0.4)
    start, kernel = torch.randn(4, 2), Mala(FixedStep(0.2), adapt=3)

    def run(rows):
        x, state, noise = start[rows], kernel.init(start[rows]), IndexedNoise(0, "chain", rows)
        for _ in range(6):
            x, state = kernel.step(model, x, t[rows], t[rows], state, noise)
        return x

    assert torch.equal(run([0, 1, 2, 3])[1:2], run([1]))


def test_proposals_out_of_this_world_are_refused():
    """An energy that overflows is a density of zero: the chain stays where it is and stays finite."""
    torch.manual_seed(0)
    net = EnergyMLP((2,), 8, 1, Fourier(4), reference_std=1e-160)  # x / std overflows when squared
    model = EnergyModel(net, Constant(0.0), Parametrization(Score(), One(), Time()))
    start = torch.full((3, 2), 1e-150)
    x, state = walk(Mala(FixedStep(1e300)), model, start, 2, StreamNoise(0))
    assert torch.equal(x, start)
    assert float(state["accepted"].sum()) == 0


@pytest.mark.parametrize("kernel", [Langevin(FixedStep(5e-3)), Mala(FixedStep(2e-2))], ids=["langevin", "mala"])
def test_as_a_corrector_it_keeps_the_marginals(kernel):
    n, model = 5000, MixtureModel(VP(), **MIXTURE)
    sampler = Sampler(Uniform(t_min=0.05), 60, EulerMaruyama(), kernel, 1)
    start = model.sample_like(torch.empty(n, 2), torch.ones(n), StreamNoise(0))
    x = sampler(model, start, noise=StreamNoise(1)).x
    mean, covariance = model.moments(0.05)
    # Deviation of a covariance entry, and the first-order error of 60 Euler-Maruyama steps (0.06 measured at 60).
    bound = (4 * (2 / n) ** 0.5 + 0.1) * covariance.diagonal().max()
    assert ((torch.cov(x.T) - covariance).abs() < bound).all()
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt() + 0.05).all()


def test_chains_tell_how_much_they_are_worth():
    """AR(1) chains of coefficient a have n (1 - a) / (1 + a) effective draws; chains in two places a large R-hat."""
    a, n, m = 0.9, 4000, 8
    x, draws = torch.randn(m, 2), []
    for _ in range(n):
        x = a * x + (1 - a**2) ** 0.5 * torch.randn(m, 2)
        draws.append(x)
    chains = torch.stack(draws, 1)
    expected = m * n * (1 - a) / (1 + a)
    # The estimate's own relative deviation is about sqrt(2 (2 M + 1) / N) with M ~ 5 / (1 - a) lags: 8 %.
    assert torch.allclose(effective_sample_size(chains), torch.full((2,), expected), rtol=0.25)
    assert float(r_hat(chains).max()) < 1.01
    apart = chains + 3 * (torch.arange(m) % 2)[:, None, None]
    assert float(r_hat(apart).min()) > 1.5


def test_kept_draws_are_the_states_of_the_walk():
    kernel, model, start = Mala(FixedStep(0.5), adapt=3), normal(), torch.randn(4, 1)
    whole = run_chains(kernel, model, start, torch.zeros(4), 12, noise=StreamNoise(0))
    some = run_chains(kernel, model, start, torch.zeros(4), 3, burn_in=3, thin=3, noise=StreamNoise(0))
    assert torch.equal(some.x, whole.x[:, [5, 8, 11]])
    x, state = walk(kernel, model, start, 12, StreamNoise(0))
    assert torch.equal(whole.x[:, -1], x)
    assert torch.equal(acceptance(kernel, whole.state), acceptance(kernel, state))
    assert (whole.nfe, some.nfe) == (24, 24)
    with pytest.raises(ValueError, match="draws=0"):
        run_chains(kernel, model, start, torch.zeros(4), 0)


def test_langevin_and_metropolis_chains_agree_on_a_mixture_and_with_the_truth():
    """Means of long chains within four of the standard errors that their effective sample size gives."""
    model, m = MixtureModel(Constant(0.3), **MIXTURE), 8
    start = 2 * StreamNoise(0).normal_like(torch.empty(m, 2))
    mean, covariance = model.moments(0.0)
    for kernel in (Mala(FixedStep(0.1), adapt=200), Langevin(FixedStep(0.02))):
        chains = run_chains(kernel, model, start, torch.zeros(m), 1000, 300, thin=5, noise=StreamNoise(1)).x
        size = effective_sample_size(chains)
        assert float(r_hat(chains).max()) < 1.05
        error = (covariance.diagonal() / size).sqrt()
        # The unadjusted chain's own bias of the mean is of the order of the step against the components' variances.
        assert ((chains.mean((0, 1)) - mean).abs() < 4 * error + 0.02).all()


def test_chains_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="at least 4 draws"):
        r_hat(torch.zeros(2, 3, 1))
    with pytest.raises(ValueError, match="not finite"):
        effective_sample_size(torch.full((2, 8, 1), torch.nan))


@pytest.mark.parametrize("rule", [SignalToNoise(0.1), BatchSignalToNoise(0.1)])
def test_a_step_that_follows_the_state_is_refused(rule):
    with pytest.raises(ValueError, match="depends on the chain's state"):
        Mala(rule)


def test_impossible_numbers_and_models_are_refused():
    with pytest.raises(ValueError, match=r"target=1\.0"):
        Mala(FixedStep(0.1), target=1.0)
    with pytest.raises(ValueError, match="adapt=-1"):
        Mala(FixedStep(0.1), adapt=-1)
    free = NetworkModel(MLP((2,), 8, 1, Fourier(4)), Constant(0.0), Parametrization(Score()))
    with pytest.raises(TypeError, match="needs the energy"):
        walk(Mala(FixedStep(0.1)), free, torch.zeros(2, 2), 1, StreamNoise(0))
