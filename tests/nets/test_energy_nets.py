"""Scalar networks: each sample's energy is its own, the Gaussian is tilted, and what cannot be built is refused."""

import math

import pytest
import torch

from scorefield.nets import EnergyConv, EnergyMLP, Fourier


def nets(**extra):
    torch.manual_seed(0)
    return [
        (EnergyMLP((1, 8, 8), 16, 2, Fourier(8), **extra), (1, 8, 8)),
        (EnergyConv((1, 8, 8), 8, [1, 2], 1, Fourier(8), **extra), (1, 8, 8)),
    ]


def test_a_sample_does_not_know_its_batch_mates():
    for net, shape in nets():
        x, label = torch.randn(4, *shape), torch.rand(4)
        assert torch.allclose(net(x, label)[2:3], net(x[2:3], label[2:3]), rtol=1e-12, atol=1e-12)


def test_the_tilted_gaussian_is_added():
    """With and without it the energies differ by that of N(0, std^2 I), up to the Gaussian's own constant."""
    for (with_it, shape), (without, _) in zip(nets(reference_std=1.7), nets(), strict=True):
        x, label = torch.randn(4, *shape), torch.rand(4)
        normal = torch.distributions.Normal(torch.zeros(()), torch.tensor(1.7))
        log_prob = normal.log_prob(x).flatten(1).sum(1)
        constant = 64 * math.log(1.7 * math.sqrt(2 * math.pi))
        assert torch.allclose(with_it(x, label) - without(x, label), -log_prob - constant, rtol=1e-10)


def test_label_and_class_matter():
    for net, shape in nets(classes=3):
        for parameter in net.parameters():  # a fresh residual block does not look at its condition
            torch.nn.init.normal_(parameter, std=0.3)
        x = torch.randn(2, *shape)
        first = net(x, torch.zeros(2), torch.tensor([0, 0]))
        assert not torch.allclose(first, net(x, torch.ones(2), torch.tensor([0, 0])))
        assert not torch.allclose(first, net(x, torch.zeros(2), torch.tensor([1, 1])))


def test_second_derivatives_exist_and_are_smooth():
    """The Hessian is the derivative of the gradient: central differences of the gradient agree with it."""
    for net, shape in nets():
        x, label, v = torch.randn(1, *shape), torch.rand(1), torch.randn(1, *shape)

        def slope(at, net=net, label=label):
            y = at.requires_grad_()
            return torch.autograd.grad(net(y, label).sum(), y, create_graph=True)[0]

        at = x.clone().requires_grad_()
        (product,) = torch.autograd.grad((slope(at) * v).sum(), at)
        step = 1e-5
        differences = (slope(x + step * v) - slope(x - step * v)) / (2 * step)
        assert torch.allclose(product, differences, rtol=1e-5, atol=1e-6 * float(product.abs().max()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EnergyMLP((0,), 8, 1, Fourier(4)), "shape="),
        (lambda: EnergyMLP((2,), 0, 1, Fourier(4)), "width=0"),
        (lambda: EnergyMLP((2,), 8, 1, Fourier(4), reference_std=0.0), "reference_std=0.0"),
        (lambda: EnergyConv((8, 8), 8, [1], 1, Fourier(4)), "shape="),
        (lambda: EnergyConv((1, 8, 8), 8, [], 1, Fourier(4)), "multipliers="),
        (lambda: EnergyMLP((2,), 8, 1, Fourier(4))(torch.zeros(1, 3), torch.zeros(1)), "was built for"),
        (
            lambda: EnergyConv((1, 8, 8), 8, [1], 1, Fourier(4))(torch.zeros(1, 1, 4, 4), torch.zeros(1)),
            "was built for",
        ),
    ],
)
def test_impossible_networks_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
