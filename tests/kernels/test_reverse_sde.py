"""Stochastic predictors reproduce the mixture: mean and covariance within CLT plus a measured discretisation bias."""

import itertools

import pytest
import torch

from scorefield.grids import LogRatio
from scorefield.kernels import Ancestral, EulerMaruyama, ReverseDiffusion
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.samplers import Sampler
from scorefield.schedules import VP, SubVP, Tabulated
from tests.conftest import MIXTURE

N, STEPS = 4000, 300


@pytest.mark.parametrize(
    "kernel",
    [EulerMaruyama(), ReverseDiffusion(), ReverseDiffusion(eta=0.5), Ancestral(), Ancestral(eta=0.5)],
    ids=repr,
)
def test_samples_have_the_mixtures_moments(mixture, kernel):
    schedule = mixture.schedule
    x = mixture.sample_like(torch.empty(N, 2), torch.full((N,), schedule.t_max), StreamNoise(0))
    samples = Sampler(LogRatio(), STEPS, kernel)(mixture, x, noise=StreamNoise(1)).x
    mean, covariance = mixture.moments(schedule.t_min)
    scale = covariance.diagonal().max()
    # CLT: four standard errors. Bias: first order in the log-ratio step h = ln(u_max / u_min) / 300 <= 0.06.
    assert ((samples.mean(0) - mean).abs() < 4 * (scale / N).sqrt() + 0.06 * scale.sqrt()).all()
    assert ((torch.cov(samples.T) - covariance).abs() < (4 * (2 / N) ** 0.5 + 0.06) * scale).all()


def test_bias_of_ancestral_sampling_halves_with_the_step():
    """A weak order of one, on a Gaussian whose variance recursion is followed exactly through its two moments."""
    model = MixtureModel(VP(), [1.0], [[0.0]], [[0.25]])

    def variance(steps: int, kernel) -> float:
        # The kernel is affine in (x, z) for a Gaussian: x_s = A x + C z. Read A and C off two evaluations per step.
        times, v = LogRatio()(model.schedule, steps), None
        for t, s in itertools.pairwise(times):
            t, s = t[None], s[None]
            one = torch.ones(1, 1)
            gain = kernel.step(model, one, t, s, {}, _Fixed(0.0))[0]
            spread = kernel.step(model, 0 * one, t, s, {}, _Fixed(1.0))[0]
            v = model.moments(float(t))[1] if v is None else v
            v = gain**2 * v + spread**2
        return float(v)

    truth = float(model.moments(model.schedule.t_min)[1])
    for kernel in (Ancestral(), EulerMaruyama(), ReverseDiffusion()):
        coarse, fine = (abs(variance(n, kernel) - truth) for n in (200, 400))
        assert coarse / fine == pytest.approx(2, rel=0.1), kernel


def test_steps_of_a_chain_have_its_length_whatever_the_grid():
    """N(0, 1) under VP, where the score is -x: Euler's mean is x (1 - beta h / 2), the chain's x (2 - a - beta / N)."""
    model, x, t, n = MixtureModel(VP(), [1.0], [[0.0]], [[1.0]]), torch.tensor([[0.8]]), torch.tensor([0.5]), 11
    rate = 0.1 + 0.5 * 19.9  # 0.5 is level 5 of 0..10
    expected = {
        EulerMaruyama(chain=n): 0.8 * (1 - rate / n / 2),
        ReverseDiffusion(chain=n): 0.8 * (2 - (1 - rate / n) ** 0.5 - rate / n),
    }
    for kernel, mean in expected.items():
        for s in (0.1, 0.4999):
            assert float(kernel.step(model, x, t, torch.tensor([s]), {}, _Fixed(0.0))[0]) == pytest.approx(
                mean, rel=1e-12
            )
        assert float(kernel.denoise(model, x, t, {}, _Fixed(0.0))) == pytest.approx(mean, rel=1e-12)
        noisy = float(kernel.step(model, x, t, t, {}, _Fixed(1.0))[0])
        assert noisy - mean == pytest.approx((rate / n) ** 0.5, rel=1e-12)
        with pytest.raises(ValueError, match="chain=1 "):
            type(kernel)(chain=1)
    assert ReverseDiffusion(eta=0.0).order == 1
    assert ReverseDiffusion(eta=0.0, chain=n).order is None  # of a chain that no grid makes finer
    # The level below, 5, until the next is reached.
    later = ReverseDiffusion(chain=n).step(model, x, torch.tensor([0.58]), t, {}, _Fixed(0.0))[0]
    assert float(later) == pytest.approx(expected[ReverseDiffusion(chain=n)], rel=1e-12)


class _Fixed:
    """Noise of one given value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def normal_like(self, x):
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("schedule", [VP(), SubVP()], ids=repr)
def test_ancestral_step_is_the_posterior_of_a_gaussian(schedule):
    """For known clean x the step's mean and variance are those of q(x_s | x_t, x) by Bayes' rule."""
    x0, t, s = torch.tensor([[0.7]]), torch.tensor([0.6]), torch.tensor([0.4])
    model = MixtureModel(schedule, [1.0], x0.tolist(), [[0.0]])  # the data are one point, so E[x | x_t] = x0
    x_t = torch.tensor([[-0.2]])
    mean = Ancestral().step(model, x_t, t, s, {}, _Fixed(0.0))[0]
    spread = Ancestral().step(model, x_t, t, s, {}, _Fixed(1.0))[0] - mean
    gain, variance = schedule.transition(s, t)
    prior_variance, prior_mean = schedule.sigma(s).square(), schedule.alpha(s) * x0
    precision = 1 / prior_variance + gain.square() / variance
    assert torch.allclose(spread.square(), 1 / precision, rtol=1e-10)
    assert torch.allclose(mean, (prior_mean / prior_variance + gain * x_t / variance) / precision, rtol=1e-10)


def test_forward_variance_is_ddpms_other_choice():
    betas = torch.linspace(1e-4, 0.02, 100)
    chain = Tabulated.ddpm(betas.tolist())
    model = MixtureModel(chain, **MIXTURE)
    t, s = torch.tensor([0.5]), torch.tensor([0.49])
    x = torch.randn(1, 2)
    kernel = Ancestral(forward_variance=True)
    spread = kernel.step(model, x, t, s, {}, _Fixed(1.0))[0] - kernel.step(model, x, t, s, {}, _Fixed(0.0))[0]
    assert torch.allclose(spread.square(), betas[49].expand(1, 2), rtol=1e-9)
    with pytest.raises(ValueError, match="needs eta=1"):
        Ancestral(eta=0.5, forward_variance=True)
