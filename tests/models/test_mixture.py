"""The exact truth is exact: density by quadrature, score by differentiation, samples by their moments."""

import pytest
import torch
from scipy import stats

from scorefield.models import MixtureModel
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.schedules import VP
from tests.conftest import MIXTURE, inside


def test_density_integrates_to_one_and_has_the_stated_moments(mixture):
    for t in inside(mixture.schedule, 3):
        mean, covariance = mixture.moments(float(t))
        half = 12 * covariance.diagonal().sqrt().max() / torch.linalg.eigvalsh(covariance).max().sqrt()
        scale = torch.linalg.eigvalsh(covariance).max().sqrt()
        axis = torch.linspace(-float(half), float(half), 401) * scale
        x = mean + torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        density = mixture.log_prob(x, t.expand(len(x))).exp() * (axis[1] - axis[0]) ** 2
        # The narrowest component (std 0.14 of a spread of 0.6) spans ten cells: the rule is spectrally exact.
        assert float(density.sum()) == pytest.approx(1, abs=1e-6)
        assert torch.allclose(density @ x, mean, atol=1e-6 * float(scale))
        centred = x - mean
        assert torch.allclose(
            (centred * density[:, None]).T @ centred, covariance, rtol=1e-5, atol=1e-6 * float(scale) ** 2
        )


@pytest.mark.parametrize("shape", [(2,), (2, 1, 1), (1, 2)])
def test_score_is_the_gradient_of_the_density(mixture, shape):
    t = inside(mixture.schedule, 6)
    x = mixture.sample_like(torch.empty(6, *shape), t, StreamNoise(0)).requires_grad_()
    gradient = torch.autograd.grad(mixture.log_prob(x, t).sum(), x)[0]
    assert torch.allclose(mixture(x.detach(), t).score, gradient, rtol=1e-10, atol=1e-12)


def test_data_view_is_the_posterior_mean(mixture):
    """Tweedie's formula against quadrature of E[x | x_t] over the prior of x."""
    t = inside(mixture.schedule, 5)[2:3]
    alpha, sigma = float(mixture.schedule.alpha(t)), float(mixture.schedule.sigma(t))
    axis = torch.linspace(-4, 4, 801)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    prior = sum(
        w * torch.exp(-0.5 * ((x - torch.tensor(m)).square() / torch.tensor(v)).sum(1)) / torch.tensor(v).prod().sqrt()
        for w, m, v in zip(*MIXTURE.values(), strict=True)
    )
    x_t = torch.tensor([[0.2, 0.1]]) * (alpha + sigma)
    likelihood = torch.exp(-0.5 * ((x_t - alpha * x) / sigma).square().sum(1))
    posterior = prior * likelihood / (prior * likelihood).sum()
    # sigma at these times is at least ten cells of the grid wide.
    assert torch.allclose(mixture(x_t, t).data[0], posterior @ x, atol=1e-6)


def test_samples_have_the_right_weights_and_moments(mixture):
    n = 20_000
    t = inside(mixture.schedule, 3)[1]
    x = mixture.sample_like(torch.empty(n, 2), t.expand(n), StreamNoise(5))
    mean, covariance = mixture.moments(float(t))
    # Kolmogorov-Smirnov of each marginal against the mixture's own distribution function.
    alpha, sigma = float(mixture.schedule.alpha(t[None])), float(mixture.schedule.sigma(t[None]))
    for axis in range(2):

        def cdf(value, axis=axis):
            return sum(
                w * stats.norm.cdf(value, alpha * m[axis], (alpha**2 * v[axis] + sigma**2) ** 0.5)
                for w, m, v in zip(*MIXTURE.values(), strict=True)
            )

        assert stats.kstest(x[:, axis].numpy(), cdf).pvalue > 1e-3
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()


def test_a_sample_depends_on_its_index_alone():
    model = MixtureModel(VP(), **MIXTURE)
    t = torch.full((5,), 0.3)
    together = model.sample_like(torch.empty(5, 2), t, IndexedNoise(0, "x", range(5)))
    alone = model.sample_like(torch.empty(1, 2), t[:1], IndexedNoise(0, "x", [3]))
    assert torch.equal(together[3:4], alone)


def test_wrong_parameters_are_refused():
    with pytest.raises(ValueError, match="sum to 1"):
        MixtureModel(VP(), [0.5, 0.6], [[0.0], [1.0]], [[1.0], [1.0]])
    with pytest.raises(ValueError, match="agree"):
        MixtureModel(VP(), [0.5, 0.5], [[0.0, 1.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match="negative"):
        MixtureModel(VP(), [1.0], [[0.0]], [[-1.0]])
