"""One objective under many names: identities between published losses, unbiased weighting, and what minimises it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from scorefield.models import MixtureModel, NetworkModel, Parametrization, ScoreModel
from scorefield.nets.embeddings import Fourier
from scorefield.nets.mlp import MLP
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Likelihood, SigmaPower, Weight
from scorefield.prediction import Data, Karras, Noise, Prediction, Score, Velocity
from scorefield.schedules import EDM, VE, VP, Constant, Linear
from scorefield.times import Importance, LogNormal, Uniform
from tests.conftest import MIXTURE, inside

EVENT = (1, 3, 2)


def network(schedule, parametrization):
    """A small network with weights that say something."""
    model = NetworkModel(MLP(EVENT, 16, 1, Fourier(8)), schedule, parametrization)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def clean(n):
    """The mixture itself; schedules such as VE have noise at t = 0."""
    model = MixtureModel(Constant(0.0), **MIXTURE)
    return model.sample_like(torch.empty(n, 2), torch.zeros(n), StreamNoise(0))


def batch(schedule, n=7):
    return torch.randn(n, *EVENT), inside(schedule, n), torch.randn(n, *EVENT)


def test_ncsns_balanced_score_loss_is_the_noise_loss(continuous):
    """sigma^2 |s + eps / sigma|^2 = |sigma s + eps|^2 (Song & Ermon 2019; Ho et al. 2020)."""
    model, (x, t, eps) = network(continuous, Parametrization(Score())), batch(continuous)
    balanced = Denoising(Score(), SigmaPower(2.0)).at(model, x, t, eps).per_sample
    noise = Denoising(Noise()).at(model, x, t, eps).per_sample
    assert float(noise.detach().min()) > 1e-3
    assert torch.allclose(balanced, noise, rtol=1e-10)


@dataclass(frozen=True)
class EdmWeight(Weight):
    """(sigma^2 + d^2) / (sigma d)^2 (Karras et al. 2022, table 1)."""

    data_std: float

    def __call__(self, schedule, t):
        sigma = schedule.sigma(t)
        return (sigma.square() + self.data_std**2) / (sigma * self.data_std).square()


def test_edms_weighted_denoiser_loss_is_the_raw_networks():
    edm = EDM()
    model, (x, t, eps) = network(edm, Parametrization.edm(0.5)), batch(edm)
    weighted = Denoising(Data(), EdmWeight(0.5)).at(model, x, t, eps).per_sample
    raw = Denoising().at(model, x, t, eps).per_sample
    # At sigma = 0.002 the denoiser's error is a difference of terms (d / sigma)^2 = 6e4 times its size.
    assert torch.allclose(weighted, raw, rtol=1e-8)
    # The raw network's target has unit variance for data of standard deviation d (appendix B.6 there).
    target = Denoising(Karras(0.5)).at(_Silent(edm, Karras(0.5)), 0.5 * torch.randn(40_000, 1), _spread(edm), _eps())
    # CLT over squares of variance 2; the network that returns 0 pays the target's own variance.
    assert float(target.per_sample.mean()) == pytest.approx(1, abs=4 * (2 / 40_000) ** 0.5)


class _Silent(ScoreModel):
    """A network that returns 0."""

    def __init__(self, schedule, target) -> None:
        super().__init__(schedule)
        self.target = target

    def forward(self, x, t, cond=None) -> Prediction:
        return Prediction(self.schedule, x, t, torch.zeros_like(x), self.target)


def _spread(schedule):
    return LogNormal().sample(40_000, schedule, StreamNoise(5))[0]


def _eps():
    return StreamNoise(6).normal_like(torch.empty(40_000, 1))


def test_flow_matching_regresses_the_straight_line():
    """|F - (eps - x)|^2 with x_t on the segment from x to eps (Lipman et al. 2023, eq. 23)."""
    line = Linear()
    model, (x, t, eps) = network(line, Parametrization(Velocity())), batch(line)
    found = Denoising().at(model, x, t, eps).per_sample
    seen = torch.lerp(x, eps, t.reshape(-1, 1, 1, 1))
    out = model.net(seen, t)
    assert torch.allclose(found, (out - (eps - x)).square().flatten(1).mean(1), rtol=1e-12)


@pytest.mark.parametrize("view", [Data(), Noise(), Score(), Velocity(), Karras(0.7)], ids=repr)
def test_loss_vanishes_for_the_model_that_knows(continuous, view):
    """Data at one point: its exact score predicts the very noise that was added, in every view."""
    point = [[0.7, -1.2]]
    model = MixtureModel(continuous, [1.0], point, [[0.0, 0.0]])
    t = continuous.time_at(torch.tensor([0.05, 0.3, 1.0, 5.0, 15.0]))
    loss = Denoising(view).at(model, torch.tensor(point).expand(5, 2), t, torch.randn(5, 2)).per_sample
    # Squared roundings of 1e-16, magnified by 1 / sigma^2 = 400 at the lowest level and sigma = 15 at the highest.
    assert float(loss.max()) < 1e-22


def test_importance_weighting_of_the_likelihood_loss_is_unbiased():
    # From t = 0.02 the uniform law's losses, of size 1 / sigma^2, have a mean that 200000 draws settle to 1 %.
    schedule, n = VP(t_min=0.02), 200_000
    model = MixtureModel(schedule, **MIXTURE)
    x = clean(n)
    losses = [
        Denoising(Score(), Likelihood(), law)(model, x, None, StreamNoise(seed)).per_sample
        for seed, law in enumerate((Uniform(), Importance()), 1)
    ]
    means, errors = [loss.mean() for loss in losses], [loss.std() / n**0.5 for loss in losses]
    # Two independent estimates of one integral: four standard errors of their difference.
    assert abs(means[0] - means[1]) < 4 * (errors[0].square() + errors[1].square()).sqrt()
    # g^2 / sigma^2 is the weight of the unit-variance noise error, so its law leaves the least variance.
    assert errors[1] < errors[0] / 1.5


def test_forward_is_the_law_then_the_noise():
    schedule = VP()
    model, law = network(schedule, Parametrization()), Importance()
    x, noise = torch.randn(6, *EVENT), StreamNoise(3)
    loss = Denoising(times=law)(model, x, None, noise)
    again = StreamNoise(3)
    t, importance = law.sample(6, schedule, again)
    at = Denoising().at(model, x, t, again.normal_like(x))
    assert torch.equal(loss.t, t)
    assert torch.allclose(loss.per_sample, importance * at.per_sample, rtol=1e-14)
    # What is recorded is neither weighted nor part of the graph.
    assert torch.equal(loss.log["error"], at.per_sample)
    assert not loss.log["error"].requires_grad
    assert loss.per_sample.requires_grad


@pytest.mark.parametrize("view", [None, Data(), Score()], ids=repr)
def test_samples_do_not_mix(view):
    schedule = VP()
    model, (x, t, eps) = network(schedule, Parametrization()), batch(schedule)
    x.requires_grad_()
    objective = Denoising(view, SigmaPower(1.0))
    together = objective.at(model, x, t, eps).per_sample
    (gradient,) = torch.autograd.grad(together[2], x, retain_graph=True)
    assert gradient[2].abs().min() > 0
    assert gradient[:2].abs().max() == gradient[3:].abs().max() == 0
    for i in range(len(x)):
        alone = objective.at(model, x[i : i + 1], t[i : i + 1], eps[i : i + 1]).per_sample
        # Matrix products may sum in another order for one row.
        assert torch.allclose(alone[0], together[i], rtol=1e-11)


class Bent(ScoreModel):
    """A model whose score is multiplied and shifted."""

    def __init__(self, model, gain=1.0, shift=0.0) -> None:
        super().__init__(model.schedule)
        self.model, self.gain, self.shift = model, gain, shift

    def forward(self, x, t, cond=None) -> Prediction:
        return Prediction(self.schedule, x, t, self.gain * self.model(x, t).score + self.shift, Score())


@pytest.mark.parametrize("schedule", [VE(0.05, 50.0), VP(t_min=1e-3)], ids=repr)
@pytest.mark.parametrize(("gain", "shift"), [(1.01, 0.0), (0.99, 0.0), (1.0, 0.3)])
def test_the_true_score_minimises_the_expected_loss(schedule, gain, shift):
    n = 200_000
    model = MixtureModel(schedule, **MIXTURE)
    x = clean(n)
    # The weight that a score loss of unit scale needs; the same times and noise for both models.
    t, eps = Uniform().sample(n, schedule, StreamNoise(1))[0], StreamNoise(2).normal_like(x)
    objective = Denoising(Score(), SigmaPower(2.0))
    rise = (
        objective.at(Bent(model, gain, shift), x, t, eps).per_sample - objective.at(model, x, t, eps).per_sample
    ).double()
    # Four standard errors of the paired difference: a rise of chance is excluded, and so is a fall.
    assert rise.mean() > 4 * rise.std() / n**0.5


def hermite(n=80):
    nodes, weights = np.polynomial.hermite_e.hermegauss(n)
    return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())


@pytest.mark.parametrize("schedule", [VE(0.01, 50.0), VP(), Linear()], ids=repr)
def test_denoising_differs_from_explicit_score_matching_by_a_constant(schedule):
    """Vincent 2011, eq. 11, with all expectations by quadrature: the constant is the same for every model."""
    weights, means, variances = [0.4, 0.6], [[-0.5], [0.8]], [[0.1], [0.3]]
    truth = MixtureModel(schedule, weights, means, variances)
    u, probability = hermite()
    parts, noise = torch.tensor(means) + torch.tensor(variances).sqrt() * u, u
    x = parts[:, :, None].expand(-1, -1, len(u)).reshape(-1, 1)
    eps = noise.expand(2, len(u), -1).reshape(-1, 1)
    p = (torch.tensor(weights)[:, None, None] * probability[:, None] * probability).flatten()
    other = MixtureModel(schedule, [0.5, 0.5], [[0.0], [1.0]], [[0.2], [0.4]])
    for level in (0.5, 2.0):
        t = schedule.time_at(torch.tensor([level])).expand(len(x))
        x_t = schedule.perturb(x, t, eps)
        constants = []
        for model in (truth, Bent(truth, 0.7, 0.2), other):
            denoising = p @ Denoising(Score()).at(model, x, t, eps).per_sample
            explicit = p @ (model(x_t, t).score - truth(x_t, t).score).square()[:, 0]
            constants.append(float(denoising - explicit))
        # 80 nodes resolve these densities, blurred by half their size or more, to 1e-8.
        assert constants == pytest.approx([constants[0]] * 3, rel=1e-7)
        assert constants[0] > 0.01


def test_clean_data_have_no_denoising_target():
    model = Bent(MixtureModel(Constant(0.0), **MIXTURE))
    with pytest.raises(ValueError, match=r"sigma\(t\) > 0"):
        Denoising(Score()).at(model, torch.randn(3, 2), torch.full((3,), 0.5), torch.randn(3, 2))
