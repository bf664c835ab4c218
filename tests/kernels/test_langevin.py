"""Langevin dynamics: its stationary variance in closed form, its step rules, its independence of the batch."""

import pytest
import torch

from scorefield.kernels import BatchSignalToNoise, FixedStep, Langevin, SigmaStep, SignalToNoise
from scorefield.models import MixtureModel
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.schedules import VE, VP, Constant, Tabulated
from tests.conftest import MIXTURE


def run(kernel, model, x, t, steps, noise):
    for _ in range(steps):
        x, _ = kernel.step(model, x, t, t, {}, noise)
    return x


@pytest.mark.parametrize("epsilon", [0.2, 0.05])
def test_stationary_variance_of_a_gaussian(epsilon):
    """x <- (1 - eps) x + sqrt(2 eps) z on N(0, 1) has variance 1 / (1 - eps / 2)."""
    n, model = 40_000, MixtureModel(Constant(0.0), [1.0], [[0.0]], [[1.0]])
    x = run(Langevin(FixedStep(epsilon)), model, torch.zeros(n, 1), torch.ones(n), int(8 / epsilon), StreamNoise(0))
    # From zero the variance has come within exp(-16) of stationarity; CLT error sqrt(2/n), four of them.
    assert float(x.var()) == pytest.approx(1 / (1 - epsilon / 2), rel=4 * (2 / n) ** 0.5)


def test_leaves_a_mixture_nearly_invariant():
    n, model = 20_000, MixtureModel(VE(0.01, 50.0), **MIXTURE)
    t = torch.full((n,), 0.3)
    x = model.sample_like(torch.empty(n, 2), t, StreamNoise(1))
    after = run(Langevin(FixedStep(2e-3)), model, x, t, 200, StreamNoise(2))
    mean, covariance = model.moments(0.3)
    scale = covariance.diagonal().max()
    # Narrowest component has variance 0.02 + sigma^2 = 0.037: relative bias eps / (2 * 0.037) = 3 %.
    assert ((after.mean(0) - mean).abs() < 4 * (scale / n).sqrt() + 0.03 * scale.sqrt()).all()
    assert ((torch.cov(after.T) - covariance).abs() < (4 * (2 / n) ** 0.5 + 0.03) * scale).all()


def test_sigma_rule_is_ncsns():
    """epsilon_i = epsilon sigma_i^2 / sigma_L^2 (Song & Ermon 2019, algorithm 1)."""
    ve, epsilon = VE(0.01, 1.0), 2e-5
    t = torch.linspace(1, 0, 10)
    sigmas = torch.logspace(0, -2, 10)
    rule = SigmaStep((epsilon / 2) ** 0.5 / 0.01)
    steps = rule(ve, t, torch.randn(10, 2), torch.randn(10, 2))
    assert torch.allclose(steps, epsilon * (sigmas / sigmas[-1]).square(), rtol=1e-12)


def test_signal_to_noise_rule_makes_the_ratio_of_the_two_moves():
    """|epsilon score| / |sqrt(2 epsilon) z| is r for every sample."""
    score, z = 7 * torch.randn(5, 3, 4, 4), torch.randn(5, 3, 4, 4)
    epsilon = SignalToNoise(0.16)(VE(), torch.full((5,), 0.5), score, z).reshape(-1, 1, 1, 1)
    ratio = (epsilon * score).flatten(1).norm(dim=1) / ((2 * epsilon).sqrt() * z).flatten(1).norm(dim=1)
    assert torch.allclose(ratio, torch.full((5,), 0.16), rtol=1e-12)


def test_chain_gain_is_the_discrete_chains():
    vp, n = VP(), 1000
    t = torch.arange(n) / (n - 1)
    score = z = torch.ones(n, 1)
    with_chain, without = (SignalToNoise(0.16, chain)(vp, t, score, z) for chain in (n, None))
    betas = torch.linspace(0.1 / n, 20 / n, n)
    assert torch.allclose(with_chain / without, 1 - betas, rtol=1e-12)
    few = torch.linspace(0.1 / 30, 20 / 30, 30)  # large steps, the last of which keeps a third of the variance
    chain, t = Tabulated.ddpm(few.tolist()), (torch.arange(30) + 1) / 30
    score = z = torch.ones(30, 1)
    with_chain, without = (SignalToNoise(0.16, n)(chain, t, score, z) for n in (30, None))
    assert torch.allclose(with_chain / without, 1 - few, rtol=1e-12)


def test_per_sample_rule_ignores_batch_mates_and_the_papers_does_not():
    model, t = MixtureModel(VE(), **MIXTURE), torch.full((4,), 0.4)
    x = torch.randn(4, 2)

    def step(rule, rows):
        noise = IndexedNoise(0, "step", rows)
        return Langevin(rule).step(model, x[rows], t[rows], t[rows], {}, noise)[0]

    assert torch.equal(step(SignalToNoise(0.16), [0, 1, 2, 3])[1:2], step(SignalToNoise(0.16), [1]))
    assert not torch.allclose(step(BatchSignalToNoise(0.16), [0, 1, 2, 3])[1:2], step(BatchSignalToNoise(0.16), [1]))


def test_impossible_step_is_refused():
    with pytest.raises(ValueError, match="epsilon=0"):
        FixedStep(0)
