"""One family: what the score matching objectives have in common, what tells them apart, and where they are minimal."""

import itertools

import pytest
import torch
from torch import nn

from scorefield.divergence import Exact, Gaussian, Hutchinson, Rademacher, Sphere
from scorefield.models import EnergyModel, LogRatio, MixtureModel, NetworkModel, One, Parametrization, ScoreModel, Time
from scorefield.nets import MLP, EnergyMLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Implicit, ObservedSure, SigmaPower, Sliced, Sure
from scorefield.prediction import Data, Prediction, Score
from scorefield.schedules import VP, Constant
from scorefield.times import Importance, Uniform
from tests.conftest import MIXTURE, inside

PROBES = [Rademacher(), Gaussian(), Sphere()]


def networks(schedule, shape=(2,)):
    """A vector network and an energy with weights that say something."""
    label = Time() if isinstance(schedule, Constant) else LogRatio()
    torch.manual_seed(0)
    free = NetworkModel(MLP(shape, 16, 1, Fourier(8)), schedule, Parametrization(Score(), One(), label))
    energy = EnergyModel(EnergyMLP(shape, 16, 1, Fourier(8)), schedule, Parametrization(Score(), One(), label))
    for model in (free, energy):
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.4)
    return {"free": free, "energy": energy}


def signs(d):
    """All 2^d sign vectors, (2^d, d)."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d)))


@pytest.mark.parametrize("kind", ["free", "energy"])
@pytest.mark.parametrize("d", [1, 2, 3, 5, 8])
def test_exact_is_the_mean_of_sliced_over_all_probes(kind, d):
    """Over all signs the mean of v v^T is the identity, so both sliced forms average to the exact objective."""
    model, x, t = networks(Constant(0.0), (d,))[kind], torch.randn(5, d), torch.zeros(5)
    exact = Implicit(Exact()).at(model, x, t, x.new_empty(0, *x.shape)).per_sample
    probes = signs(d)[:, None].expand(-1, 5, -1)
    for objective in (Implicit(Hutchinson()), Sliced()):
        assert torch.allclose(objective.at(model, x, t, probes).per_sample, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("probe", PROBES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("form", [Implicit, Sliced])
def test_sliced_is_unbiased_for_every_probe(probe, form):
    n = 20_000
    model = networks(VP())["free"]
    x, t = torch.randn(1, 2).expand(n, 2).contiguous(), torch.full((n,), 0.4)
    exact = Implicit().at(model, x[:1], t[:1], x.new_empty(0, 1, 2)).per_sample
    objective = form(Hutchinson(probe))
    found = objective.at(model, x, t, objective.divergence.draw(x, StreamNoise(0))).per_sample.detach()
    # In one case a sign's form has no variance at all: then rounding is all that is left.
    assert abs(float(found.mean() - exact)) <= 4 * float(found.std()) / n**0.5 + 1e-10


def test_variance_reduction_reduces_variance():
    model, n = networks(VP())["free"], 4000
    x, t = 2 * torch.randn(1, 2).expand(n, 2).contiguous(), torch.full((n,), 0.4)
    probes = Hutchinson(Gaussian()).draw(x, StreamNoise(0))
    reduced, plain = (o(Hutchinson()).at(model, x, t, probes).per_sample.var() for o in (Implicit, Sliced))
    assert float(reduced) < float(plain)


def test_more_probes_divide_the_variance():
    model, n = networks(VP())["free"], 4000
    x, t = torch.randn(1, 2).expand(n, 2).contiguous(), torch.full((n,), 0.4)
    variances = [
        float(Sliced().at(model, x, t, Hutchinson(Gaussian(), k).draw(x, StreamNoise(k))).per_sample.var())
        for k in (1, 8)
    ]
    # The ratio of two sample variances of heavy-tailed values (fourth moments of Gaussians): 15 % at n = 4000.
    assert variances[0] / variances[1] == pytest.approx(8, rel=0.3)


def test_sure_is_implicit_score_matching_in_other_units(continuous):
    """SURE = 2 sigma^4 / alpha^2 J + d sigma^2 / alpha^2, sample by sample."""
    t = inside(continuous, 9)
    x = torch.randn(9, 2) * torch.hypot(continuous.alpha(t), continuous.sigma(t))[:, None]
    alpha, sigma = continuous.alpha(t), continuous.sigma(t)
    for model in networks(continuous).values():
        none = x.new_empty(0, *x.shape)
        sure = Sure(Exact()).at(model, x, t, none).per_sample
        implicit = Implicit(Exact()).at(model, x, t, none).per_sample
        u2 = (sigma / alpha).square()
        # Terms of SURE cancel up to their sum, sigma^2 d / alpha^2.
        assert torch.allclose(sure, 2 * sigma.square() * u2 * implicit + 2 * u2, rtol=1e-9, atol=1e-9 * float(u2.max()))


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_sures_mean_is_the_mean_squared_error(sigma):
    """Of any denoiser, here a bad one; the clean sample is in the second number only."""
    n, schedule = 40_000, Constant(sigma)
    clean = MixtureModel(Constant(0.0), **MIXTURE)
    x = clean.sample_like(torch.empty(n, 2), torch.zeros(n), StreamNoise(0))
    model, t = networks(schedule)["free"], torch.zeros(n)
    y = schedule.perturb(x, t, StreamNoise(1).normal_like(x))
    with torch.no_grad():
        sure = Sure(Exact()).at(model, y, t, y.new_empty(0, n, 2)).per_sample
        error = (model(y, t).data - x).square().sum(1)
    difference = sure - error
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / n**0.5


@pytest.mark.parametrize("objective", [Implicit, Sliced, Sure, ObservedSure])
def test_importance_sampled_times_give_the_same_mean(objective):
    """The law of the times changes the variance, its weight takes the change of the mean back."""
    schedule, n = VP(t_min=0.05), 40_000
    model, x = networks(schedule)["free"], torch.randn(1, 2).expand(n, 2).contiguous()
    with torch.no_grad():
        plain, weighted = (
            objective(times=law)(model, x, None, StreamNoise(0)).per_sample for law in (Uniform(), Importance())
        )
    error = ((plain.var() + weighted.var()) / n) ** 0.5
    assert abs(float(plain.mean() - weighted.mean())) < 4 * float(error)
    assert float(error) < 0.1 * abs(float(plain.mean()))


def test_observed_data_are_not_perturbed_again():
    schedule, y = Constant(0.5), torch.randn(6, 2)
    model = networks(schedule)["free"]
    found = ObservedSure(Exact())(model, y, None, StreamNoise(0))
    assert torch.equal(found.per_sample, Sure(Exact()).at(model, y, found.t, y.new_empty(0, 6, 2)).per_sample)
    assert not torch.allclose(found.per_sample, Sure(Exact())(model, y, None, StreamNoise(0)).per_sample)


class Off(ScoreModel):
    """The exact score, and a direction in which it can be left: s + theta (strength) times a smooth field."""

    def __init__(self, exact, direction):
        super().__init__(exact.schedule)
        self.exact, self.direction = exact, direction
        self.theta = nn.Parameter(torch.zeros(()))

    def forward(self, x, t, cond=None):
        score = self.exact(x, t).score
        # A linear field and a wave, both of the size of the score.
        step = {"scale": score, "wave": (x.flip(1) / self.exact.schedule.sigma(t)[:, None]).sin()}[self.direction]
        return Prediction(self.schedule, x, t, score + self.theta * step, Score())


OBJECTIVES = {
    "exact": Implicit(Exact()),
    "sliced": Implicit(Hutchinson()),
    "sliced gaussian": Implicit(Hutchinson(Gaussian(), 2)),
    "sliced plain": Sliced(),
    "denoising": Denoising(Score()),
    "denoising data": Denoising(Data()),
    "sure": Sure(Exact()),
    "sure probes": Sure(Hutchinson()),
    "weighted": Implicit(Exact(), SigmaPower(2.0), Uniform(t_min=0.1)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("direction", ["scale", "wave"])
@pytest.mark.parametrize("schedule", [Constant(0.5), VP(t_min=0.1)], ids=["one level", "vp"])
def test_the_exact_score_is_stationary_and_one_percent_beside_it_is_not(name, direction, schedule):
    """The gradient's mean over samples is zero within the CLT bound; moved by 1 % of the direction it is not.

    The mean of d loss / d theta is linear in theta: its slope is the curvature of the objective, and 1 % of it stands
    out of the noise with n samples where common random numbers are used, which leaves the slope alone.
    """
    n = 20_000
    exact = MixtureModel(schedule, **MIXTURE)
    clean = MixtureModel(Constant(0.0), **MIXTURE)
    x = clean.sample_like(torch.empty(n, 2), torch.zeros(n), StreamNoise(0))

    def derivatives(theta):
        model = Off(exact, direction)
        with torch.no_grad():
            model.theta.fill_(theta)
        step = 1e-4

        def loss(shift):
            with torch.no_grad():
                model.theta.fill_(theta + shift)
            return OBJECTIVES[name](model, x, None, StreamNoise(1)).per_sample.detach()

        # Losses are quadratic in theta, so central differences are exact.
        return (loss(step) - loss(-step)) / (2 * step)

    at_truth, beside = derivatives(0.0), derivatives(0.01)
    error = float(at_truth.std()) / n**0.5
    assert abs(float(at_truth.mean())) < 4 * error
    moved = beside - at_truth
    assert float(moved.mean()) > 4 * float(moved.std()) / n**0.5 + 1e-12


def test_denoising_and_explicit_score_matching_differ_by_one_constant():
    """For three different models (Vincent 2011, appendix): E|s - target|^2 - E|s - grad log q|^2 is the same number."""
    n, schedule = 200_000, Constant(0.5)
    truth = MixtureModel(schedule, **MIXTURE)
    clean = MixtureModel(Constant(0.0), **MIXTURE)
    x = clean.sample_like(torch.empty(n, 2), torch.zeros(n), StreamNoise(0))
    eps, t = StreamNoise(1).normal_like(x), torch.zeros(n)
    y = schedule.perturb(x, t, eps)
    models = [*networks(schedule).values(), Off(truth, "wave")]
    with torch.no_grad():
        models[-1].theta.fill_(0.5)
        gaps = [
            Denoising(Score()).at(m, x, t, eps).per_sample - (m(y, t).score - truth(y, t).score).square().mean(1)
            for m in models
        ]
    for first, second in itertools.combinations(gaps, 2):
        difference = first - second
        assert float(difference.std()) > 1e-3  # three models, not one
        assert abs(float(difference.mean())) < 4 * float(difference.std()) / n**0.5


@pytest.mark.parametrize("kind", ["free", "energy"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains_networks_and_energies(kind, name):
    model = networks(VP(t_min=0.1))[kind]
    OBJECTIVES[name](model, torch.randn(8, 2), None, StreamNoise(0)).per_sample.mean().backward()
    # The free network's output bias moves no divergence, but it moves |s|^2.
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
