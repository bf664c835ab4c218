"""Laws that every network obeys."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck

from scorefield.nets import MLP, UNet
from scorefield.nets.embeddings import Fourier, Sinusoidal

NETWORKS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "mlp_vector": ((2,), lambda: MLP((2,), 8, 2, Fourier(4), classes=3)),
    "mlp_image": ((1, 3, 2), lambda: MLP((1, 3, 2), 8, 1, Sinusoidal(4), classes=3)),
    "unet": ((1, 8, 8), lambda: UNet((1, 8, 8), 4, (1, 2), 1, Fourier(4), classes=3)),
    "unet_attention": (
        (3, 4, 4),
        lambda: UNet((3, 4, 4), 4, (1, 2), (1, 2), Sinusoidal(4), attention=(0, 1), head_channels=4, classes=3),
    ),
    "unet_odd": (
        (2, 7, 5),
        lambda: UNet((2, 7, 5), 4, (1, 2, 2), 1, Fourier(4), attention=(1,), head_channels=4, classes=3),
    ),
    "unet_line": ((1, 1, 6), lambda: UNet((1, 1, 6), 4, (1,), 2, Fourier(4), classes=3)),
    "unet_flat": ((1, 2, 3), lambda: UNet((1, 2, 3), 4, (1, 1), 1, Fourier(4), classes=3)),
}


@pytest.fixture(params=NETWORKS.items(), ids=NETWORKS.keys())
def case(request):
    """A network away from its zero start, and a batch of five for it."""
    _, (shape, make) = request.param
    net = awake(make())
    return net, torch.randn(5, *shape), torch.randn(5), torch.tensor([0, 2, -1, 1, 1])


def awake(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


@pytest.mark.parametrize(("shape", "make"), NETWORKS.values(), ids=NETWORKS.keys())
def test_a_fresh_network_returns_zero(shape, make):
    out = make()(torch.randn(3, *shape), torch.randn(3), torch.tensor([0, 1, 2]))
    assert out.shape == (3, *shape)
    assert (out == 0).all()


def test_the_output_answers_to_every_input(case):
    net, x, label, classes = case
    out = net(x, label, classes)
    assert out.shape == x.shape
    for other in (net(x + 0.1, label, classes), net(x, label + 0.1, classes), net(x, label, (classes + 2) % 4 - 1)):
        assert ((other - out).flatten(1).abs().amax(1) > 1e-6).all()


def test_a_sample_does_not_see_its_mates(case):
    net, x, label, classes = case
    alone = torch.cat([net(x[i : i + 1], label[i : i + 1], classes[i : i + 1]) for i in range(5)])
    # Blocking of matrix products depends on the batch size: float64 rounding.
    torch.testing.assert_close(net(x, label, classes), alone, rtol=1e-10, atol=1e-12)


def test_no_labels_means_no_class(case):
    net, x, label, _ = case
    assert torch.equal(net(x, label), net(x, label, torch.full((5,), -1)))


def test_first_and_second_derivatives_in_the_input(case):
    net, x, label, classes = case
    x = x[:2].requires_grad_()
    assert gradcheck(lambda x: net(x, label[:2], classes[:2]), (x,), fast_mode=True)
    assert gradgradcheck(lambda x: net(x, label[:2], classes[:2]), (x,), fast_mode=True)


def test_forward_mode_agrees_with_reverse_mode(case):
    net, x, label, classes = case
    v, w = torch.randn_like(x), torch.randn_like(x)
    _, forward = torch.func.jvp(lambda x: net(x, label, classes), (x,), (v,))
    _, pullback = torch.func.vjp(lambda x: net(x, label, classes), x)
    torch.testing.assert_close((forward * w).sum(), (pullback(w)[0] * v).sum(), rtol=1e-9, atol=1e-9)


def test_every_parameter_is_used(case):
    """Data-parallel training stops at parameters without a gradient, with class labels and without."""
    net, x, label, classes = case
    for given in (classes, None):
        net.zero_grad()
        net(x, label, given).square().sum().backward()
        unused = [name for name, p in net.named_parameters() if p.grad is None]
        assert not unused
        dead = [name for name, p in net.named_parameters() if not p.grad.any()]
        assert not dead or (given is None and all("class_embedding" in name for name in dead))


def test_channels_last_changes_nothing_but_the_layout(case):
    net, x, label, classes = case
    if x.ndim != 4:
        pytest.skip("a layout of images")
    expected = net(x, label, classes)
    layout = torch.channels_last
    out = net.to(memory_format=layout)(x.to(memory_format=layout), label, classes)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)


def test_state_reproduces_the_network(case):
    net, x, label, classes = case
    twin = next(make() for shape, make in NETWORKS.values() if shape == tuple(x.shape[1:]))
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x, label, classes), net(x, label, classes))


def test_events_of_another_shape_are_refused(case):
    net, x, label, classes = case
    with pytest.raises(ValueError, match="was built for"):
        net(torch.cat((x, x), -1), label, classes)


def test_the_perceptron_has_a_right_third_derivative():
    """Along a line, by central differences of the second: what objectives of a field's divergence train with."""
    net = MLP((2,), 8, 2, Fourier(8)).double()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)

    def derivative(function):
        return lambda a: torch.autograd.grad(function(a), a, create_graph=True)[0]

    def along(a):
        return net(torch.stack([a.sin(), 2 * a])[None], torch.ones(1).double()).sum()

    second = derivative(derivative(along))
    at, h = torch.tensor(0.3).double().requires_grad_(), 1e-5
    ahead, behind = (float(second((at + s * h).detach().requires_grad_()).detach()) for s in (1, -1))
    # The difference is off by h^2 and by rounding over h, both about 1e-10 of the derivatives here.
    assert float(derivative(second)(at).detach()) == pytest.approx((ahead - behind) / (2 * h), rel=1e-6)
