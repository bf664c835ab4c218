"""The variational bound against exact likelihoods: above them, and by how much in closed form."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from scorefield.models import MixtureModel, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.prediction import Prediction, Score
from scorefield.schedules import VE, VP, Linear, SubVP
from scorefield.times import Importance, Uniform
from scorefield.variational import VariationalBound
from tests.conftest import MIXTURE

N = 4000
SDES = {"ve": VE(0.01, 50.0), "vp": VP(t_min=1e-3), "subvp": SubVP(t_min=1e-2)}


class Scaled(ScoreModel):
    def __init__(self, model, factor):
        super().__init__(model.schedule)
        self.model, self.factor = model, factor

    def forward(self, x, t, cond=None):
        return Prediction(self.schedule, x, t, self.factor * self.model(x, t).score, Score())


def clean(model, n=N):
    noise = StreamNoise(0)
    still = MixtureModel(VE(1e-9, 1.0), model.weights, model.means, model.variances)
    return still.sample_like(torch.empty(n, 2), torch.full((n,), 1e-5), noise)


@pytest.fixture(params=SDES, ids=SDES)
def exact(request):
    return MixtureModel(SDES[request.param], **MIXTURE)


def test_with_the_exact_score_it_is_the_negative_log_likelihood_up_to_the_truncation(exact):
    """Two parts of the gap remain: the Gaussian at t_min, of order u^2 over the data's variance, and the prior."""
    x = clean(exact)
    at_zero = MixtureModel(VE(1e-9, 1.0), exact.weights, exact.means, exact.variances)
    nll = -at_zero.log_prob(x, torch.full((N,), 1e-5))
    bound = VariationalBound(draws=16)(exact, x, noise=StreamNoise(1))
    gap = bound.nll - nll
    error = float(gap.std()) / math.sqrt(N)
    u_sq = float(exact.schedule.ratio(torch.tensor([exact.schedule.t_min])).square())
    # The narrowest component has variance 0.02 in one of two dimensions; VE's prior forgets a mean of size 1 of 50.
    truncation = u_sq / 0.02 + 1e-3
    assert -4 * error < float(gap.mean()) < 4 * error + truncation, (float(gap.mean()), error)
    # What each sample is told of its own error is what its draws spread.
    assert float(bound.standard_error.mean()) > 0


def test_a_wrong_score_raises_it_by_half_the_weighted_fisher_divergence(exact):
    """For (1 + k) s the bound grows by k^2 / 2 int g^2 E|s|^2 dt, here with the same noise in both bounds."""
    k, x, bound = 0.2, clean(exact), VariationalBound(draws=16)
    right, wrong = (bound(model, x, noise=StreamNoise(1)).diffusion for model in (exact, Scaled(exact, 1 + k)))
    grown = (wrong - right).mean()
    # The integral by a quadrature in ln u, where g^2 dt = 2 sigma^2 dln u, over samples of its own.
    schedule = exact.schedule
    times = schedule.geometric_times(schedule.t_min, schedule.t_max, 201)
    norms = torch.stack(
        [
            exact(y, t.expand(len(y))).score.square().sum(1).mean() * schedule.sigma(t).square()
            for t in times
            for y in [exact.sample_like(torch.empty(2000, 2), t.expand(2000), StreamNoise(2))]
        ]
    )
    expected = k**2 * torch.trapezoid(norms, schedule.ratio(times).log())
    error = float((wrong - right).std()) / math.sqrt(N)
    # The cross term 2 k s . (s - grad ln q) has mean zero, and its deviation is what the error shows.
    assert float(grown) == pytest.approx(float(expected), abs=4 * error + 0.02 * float(expected))
    assert float(grown) > 4 * error


def test_it_is_above_the_likelihood_of_a_wrong_model():
    """A Gaussian of the wrong variance: the bound is the wrong density's own -ln p, which the model's SDE has."""
    schedule = VP(t_min=1e-3)
    wrong, x = MixtureModel(schedule, [1.0], [[0.2, 0.0]], [0.5]), torch.randn(N, 2)
    at_zero = MixtureModel(VE(1e-9, 1.0), [1.0], [[0.2, 0.0]], [0.5])
    nll = -at_zero.log_prob(x, torch.full((N,), 1e-5))
    gap = VariationalBound(draws=16)(wrong, x, noise=StreamNoise(1)).nll - nll
    error = float(gap.std()) / math.sqrt(N)
    assert -4 * error < float(gap.mean()) < 4 * error + 2e-3
    # Against the data's own entropy it is larger by the divergence of the two Gaussians.
    entropy = 1 + math.log(2 * math.pi)
    divergence = 0.5 * (2 / 0.5 - 2 + 2 * math.log(0.5) + 0.04 / 0.5)
    assert float((gap + nll).mean()) == pytest.approx(
        entropy + divergence, abs=4 * float(nll.std()) / math.sqrt(N) + 4e-3
    )


@pytest.mark.parametrize("schedule", [Linear(1e-2, 0.7), VP(t_min=1e-3, t_max=0.3)], ids=repr)
def test_the_priors_part_is_the_divergence_of_two_gaussians(schedule):
    """Where the diffusion ends early, its last Gaussian is neither at the prior's place nor of its width."""
    model, x = MixtureModel(schedule, **MIXTURE), torch.randn(5, 2)
    found = VariationalBound(draws=2)(model, x, noise=StreamNoise(0)).prior
    end = torch.tensor(schedule.t_max, dtype=torch.float64)
    last = Normal(schedule.alpha(end) * x, schedule.sigma(end))
    expected = kl_divergence(last, Normal(0.0, torch.tensor(schedule.prior_std, dtype=torch.float64))).sum(1)
    assert torch.allclose(found, expected, rtol=1e-10)
    assert float(found.min()) > 0.05


def test_every_law_of_times_gives_the_same(exact):
    x = clean(exact, 1000)
    importance, uniform = (
        VariationalBound(40, law)(exact, x, noise=StreamNoise(3)) for law in (Importance(), Uniform())
    )
    if isinstance(exact.schedule, VE):  # whose g^2 / sigma^2 is constant: both laws are one
        assert torch.allclose(importance.diffusion, uniform.diffusion, rtol=1e-12)
        return
    difference = importance.diffusion - uniform.diffusion
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(1000)
    # The law proportional to g^2 / sigma^2 is there for its variance.
    assert float(importance.standard_error.mean()) <= 1.01 * float(uniform.standard_error.mean())


def test_too_few_draws_have_no_error():
    with pytest.raises(ValueError, match="draws=1"):
        VariationalBound(draws=1)
