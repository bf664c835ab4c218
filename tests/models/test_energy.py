"""An energy is a score model: its score is minus its gradient, under every parametrisation, and it is conservative."""

import pytest
import torch
from torch import nn

from scorefield.jacobian import asymmetry
from scorefield.models import (
    Classifier,
    EnergyModel,
    Fixed,
    LogRatio,
    MixtureModel,
    NetworkModel,
    One,
    Parametrization,
    Time,
    UnitVariance,
)
from scorefield.nets import MLP, ClassifierMLP, EnergyConv, EnergyMLP, Fourier
from scorefield.prediction import Data, Karras, Noise, Score, Velocity
from scorefield.schedules import VE, Constant
from tests.conftest import MIXTURE, inside

TARGETS = [Data(), Noise(), Score(), Velocity(), Karras(0.7)]


def energy_model(schedule, target=None, shape=(2,), scale=None):
    torch.manual_seed(0)
    net = EnergyMLP(shape, 16, 2, Fourier(8), reference_std=2.0)
    target = Score() if target is None else target
    return EnergyModel(net, schedule, Parametrization(target, One() if scale is None else scale, LogRatio()))


def gradient(model, x, t):
    """Of the energy, by central differences: independent of the model's own autograd."""
    step, columns = 1e-6, []
    for e in torch.eye(x[0].numel()).reshape(-1, *x.shape[1:]) * step:
        columns.append((model.energy(x + e, t) - model.energy(x - e, t)) / (2 * step))
    return torch.stack(columns, 1).detach().reshape(x.shape)


@pytest.mark.parametrize("target", TARGETS, ids=repr)
def test_score_is_minus_the_gradient_of_the_energy(continuous, target):
    model = energy_model(continuous, target, scale=UnitVariance(0.7))
    t = inside(continuous, 5)
    # Points of the size that x_t has; the differences lose half of the 16 digits and 1 / sigma^2 is up to 1e4.
    x = torch.randn(5, 2) * torch.hypot(continuous.alpha(t), continuous.sigma(t))[:, None]
    score, differences = model(x, t).score, -gradient(model, x, t)
    assert torch.allclose(score, differences, rtol=1e-4, atol=1e-4 * float(score.detach().abs().max()))


def test_the_networks_gradient_is_what_the_target_asks_for():
    """The output is the native view, untouched by the noise level: what preconditioning is for."""
    edm = VE(0.01, 50.0)
    model, t = energy_model(edm, Karras(0.7), scale=UnitVariance(0.7)), torch.tensor([0.1, 0.9])
    x = torch.randn(2, 2) * edm.sigma(t)[:, None]
    c_in = 1 / torch.hypot(torch.tensor(0.7), edm.sigma(t))
    y = (c_in[:, None] * x).requires_grad_()
    (native,) = torch.autograd.grad(model.net(y, LogRatio()(edm, t)).sum(), y)
    assert torch.allclose(model(x, t).view(Karras(0.7)), -native, rtol=1e-12)


def test_the_network_sees_what_the_parametrisation_says():
    """c_in x + shift, as a vector network and a classifier do."""
    t, x, seen = torch.full((1,), 0.5), torch.tensor([[0.25, 0.75]]), []
    shifted = Parametrization(Score(), Fixed(2.0), LogRatio(), -1.0)
    for make, net in (
        (EnergyModel, EnergyMLP((2,), 16, 1, Fourier(8))),
        (NetworkModel, MLP((2,), 16, 1, Fourier(8))),
        (Classifier, ClassifierMLP((2,), 16, 1, Fourier(8), 3)),
    ):
        net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model = make(net, VE(), shifted)
        model(x, t, {"label": torch.tensor([1])} if make is Classifier else None)
    assert [y.tolist() for y in seen] == [[[-0.5, 0.5]]] * 3


def test_clean_data_have_an_energy():
    model = EnergyModel(EnergyMLP((2,), 16, 1, Fourier(8)), Constant(0.0), Parametrization(Score(), One(), Time()))
    x, t = torch.randn(4, 2), torch.zeros(4)
    assert torch.allclose(model(x, t).score, -gradient(model, x, t), rtol=1e-6, atol=1e-8)


def test_an_energy_is_conservative_and_a_network_is_not():
    schedule = VE(0.01, 50.0)
    x, t = torch.randn(6, 2), torch.full((6,), 0.5)
    free = NetworkModel(MLP((2,), 16, 1, Fourier(8)), schedule, Parametrization(Score(), One(), LogRatio()))
    for parameter in free.parameters():
        nn.init.normal_(parameter, std=0.5)
    energy = energy_model(schedule)
    # Rounding of two second derivatives that are equal by Schwarz's theorem.
    assert float(asymmetry(lambda y: energy(y, t).score, x).max()) < 1e-12
    assert float(asymmetry(lambda y: free(y, t).score, x).min()) > 1e-3


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_every_context_gives_the_same_score(context):
    model, x, t = energy_model(VE()), torch.randn(3, 2), torch.full((3,), 0.5)
    expected = model(x, t).score
    with context():
        found = model(x, t).score
    # With a graph to keep, autograd takes other formulas for some derivatives: equal but for rounding.
    assert torch.allclose(found.detach(), expected.detach(), rtol=1e-12)
    assert found.requires_grad == (context is torch.enable_grad)


def test_with_energy_is_both_at_once():
    model, x, t = energy_model(VE()), torch.randn(3, 2), torch.full((3,), 0.5)
    energy, prediction = model.with_energy(x, t)
    assert torch.allclose(energy, model.energy(x, t), rtol=1e-12)
    assert torch.allclose(prediction.score, model(x, t).score, rtol=1e-12)


def test_every_weight_gets_a_gradient_from_a_score_loss():
    """A bias of the output would not, and distributed training refuses such a parameter."""
    nets = {
        "mlp": (EnergyMLP((2,), 8, 1, Fourier(4)), (2,)),
        "conv": (EnergyConv((1, 8, 8), 4, [1, 2], 1, Fourier(4)), (1, 8, 8)),
    }
    for name, (net, shape) in nets.items():
        model = EnergyModel(net, VE(), Parametrization(Score(), One(), LogRatio()))
        model(torch.randn(3, *shape), torch.full((3,), 0.5)).score.square().sum().backward()
        missing = [key for key, parameter in model.named_parameters() if parameter.grad is None]
        assert missing == [], name


def test_a_mixture_knows_its_energy():
    model, t = MixtureModel(VE(), **MIXTURE), torch.full((4,), 0.5)
    x = torch.randn(4, 2)
    assert torch.allclose(model(x, t).score, -gradient(model, x, t), rtol=1e-6, atol=1e-8)
    assert torch.equal(model.energy(x, t), -model.log_prob(x, t))


def test_a_vector_network_is_refused():
    model = EnergyModel(MLP((2,), 8, 1, Fourier(4)), VE(), Parametrization())
    with pytest.raises(ValueError, match=r"returns one number per sample.*EnergyMLP"):
        model(torch.randn(3, 2), torch.full((3,), 0.5))
