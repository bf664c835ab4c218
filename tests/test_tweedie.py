"""Tweedie's formula against the posterior of a mixture by quadrature and in closed form."""

import pytest
import torch

from scorefield.divergence import Hutchinson
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.schedules import VP, Constant
from scorefield.tweedie import posterior_covariance, posterior_mean, posterior_variance
from tests.conftest import MIXTURE, inside


def by_quadrature(model, x_t, t):
    """Mean and covariance of p(x | x_t) on a grid over the plane, from prior and likelihood alone."""
    axis = torch.linspace(-4.0, 4.0, 1601)
    x = torch.cartesian_prod(axis, axis)
    clean = MixtureModel(Constant(0.0), model.weights, model.means, model.variances)
    prior = clean.log_prob(x, torch.zeros(len(x)))
    alpha, sigma = float(model.schedule.alpha(t)), float(model.schedule.sigma(t))
    weight = torch.softmax(prior - (x_t - alpha * x).square().sum(1) / (2 * sigma**2), 0)
    mean = weight @ x
    return mean, (x - mean).T @ (weight[:, None] * (x - mean))


def test_posterior_moments_by_quadrature():
    model = MixtureModel(VP(), **MIXTURE)
    for level in (0.1, 0.3, 0.6):
        t = torch.tensor([level])
        x_t = model.sample_like(torch.empty(1, 2), t, StreamNoise(0))
        mean, covariance = by_quadrature(model, x_t[0], t)
        # Cells of 0.005 against deviations above 0.1: the rule is exact to rounding.
        assert torch.allclose(posterior_mean(model, x_t, t)[0], mean, atol=1e-10)
        assert torch.allclose(posterior_covariance(model, x_t, t)[0], covariance, atol=1e-10)
        assert float(posterior_variance(model, x_t, t)) == pytest.approx(float(covariance.trace()), abs=1e-10)


def test_a_gaussian_has_the_textbook_posterior(continuous):
    """x ~ N(m, v), x_t = a x + s e: precision 1/v + a^2/s^2, whatever x_t is."""
    model = MixtureModel(continuous, [1.0], [[0.3, -0.2]], [[0.5, 2.0]])
    t = inside(continuous, 5)
    x_t = model.sample_like(torch.empty(5, 2), t, StreamNoise(0))
    precision = 1 / model.variances + (continuous.alpha(t) / continuous.sigma(t)).square()[:, None]
    found = posterior_covariance(model, x_t, t)
    # Where sigma dominates, the formula is sigma^2 times a difference from one: relative to the prior it is exact.
    assert torch.allclose(found, torch.diag_embed(1 / precision), atol=1e-8)


def test_probes_estimate_the_variance():
    model, n = MixtureModel(VP(), **MIXTURE), 4000
    t = torch.full((n,), 0.3)
    x_t = model.sample_like(torch.empty(1, 2), t[:1], StreamNoise(0)).expand(n, 2).contiguous()
    estimates = posterior_variance(model, x_t, t, divergence=Hutchinson(), noise=StreamNoise(1))
    exact = float(posterior_variance(model, x_t[:1], t[:1]))
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * float(estimates.std()) / n**0.5)


def test_clean_samples_are_refused():
    model = MixtureModel(Constant(0.0), **MIXTURE)
    for moment in (posterior_covariance, posterior_variance):
        with pytest.raises(ValueError, match="sigma is 0"):
            moment(model, torch.zeros(1, 2), torch.zeros(1))
    with pytest.raises(ValueError, match="does not follow"):
        posterior_mean(model, torch.zeros(1, 2), torch.zeros(1))
