"""The table of posterior samplers: its truth is the truth, its errors are 0 there and known elsewhere."""

import importlib

import pytest
import torch

from scorefield.models import ExactPosterior


@pytest.fixture
def mixtures():
    return importlib.import_module("mixtures")


@pytest.fixture
def case(mixtures):
    """A problem, the law of its posteriors and many exact samples."""
    problem = mixtures.problems()[0]
    law = ExactPosterior(problem.prior, problem.operator, problem.std).law(mixtures.observations(problem))
    return problem, law, mixtures.exact_samples(law, 4000, 0)


def test_exact_samples_have_the_laws_moments_and_weights(mixtures, case):
    _, law, x = case
    mean, covariance = law.moments()
    n = x.shape[1]
    for b in range(len(x)):
        # Four standard errors; of a covariance, with the fourth moment of a Gaussian, which bounds these.
        assert ((x[b].mean(0) - mean[b]).abs() < 4 * (covariance[b].diagonal() / n).sqrt()).all()
        assert float((x[b].T.cov() - covariance[b]).abs().max()) < 4 * float(covariance[b].max()) * (2 / n) ** 0.5
    assert float((mixtures.weights_of(law, x) - law.weights).abs().max()) < 4 * 0.5 / n**0.5


def test_errors_are_those_that_were_made(mixtures, case):
    """A shift, a stretch and a wrong mode each show in their own column, by the amount that was put in."""
    _, law, x = case
    none = mixtures.errors(law, x, x)
    assert none[4] == 0
    assert max(none[0], none[1], abs(none[2] - 1), none[3]) < 0.06  # 4000 samples
    shifted = mixtures.errors(law, x, x + torch.tensor([3.0, 4.0]))
    assert shifted[0] == pytest.approx(5, abs=0.1)
    assert shifted[1] == pytest.approx(none[1], abs=1e-9)
    mean = x.mean(1, keepdim=True)
    assert mixtures.errors(law, x, mean + 2 * (x - mean))[2] == pytest.approx(4, rel=0.05)
    heaviest = law.means[torch.arange(len(x)), law.weights.argmax(1)][:, None]
    astray = mixtures.errors(law, x, heaviest + 1e-3 * (x - heaviest))
    assert astray[3] == pytest.approx(float((1 - law.weights.max(1).values).mean()), abs=0.05)


def test_every_method_draws_what_was_asked_for(mixtures, monkeypatch, case):
    problem, law, _ = case
    monkeypatch.setattr(mixtures, "STEPS", 20)
    y = mixtures.observations(problem)
    for name, method in mixtures.METHODS.items():
        x = mixtures.run(problem, method, y, 3, 0)
        assert x.shape == (len(law.means), 3, 2), name
        again = mixtures.run(problem, method, y, 3, 0)
        assert torch.equal(x, again), name
    # Samples of an observation belong to it: with the exact score the residual is of the noise's size.
    exact = mixtures.run(problem, mixtures.METHODS["exact score"], y, 200, 0)
    residual = (y[:, None] - exact @ problem.operator.matrix().T).flatten()
    assert float(residual.square().mean().sqrt()) < 2 * problem.std
