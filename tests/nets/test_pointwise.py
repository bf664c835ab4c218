"""1x1 convolutions as one product against the library's: values, layout, derivatives, where they are used."""

import copy

import pytest
import torch

from scorefield.nets.pointwise import PointwiseConv2d


def layer(**arguments):
    torch.manual_seed(0)
    module = torch.nn.Conv2d(3, 5, 1, **arguments).double()
    twin = copy.deepcopy(module)
    twin.__class__ = PointwiseConv2d
    return module, twin


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_same_layer(bias, layout):
    module, twin = layer(bias=bias)
    assert list(module.state_dict()) == list(twin.state_dict())
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    g = torch.randn(2, 5, 4, 6, dtype=torch.float64)
    found, expected = (torch.autograd.grad(m(x), (x, *m.parameters()), g) for m in (twin, module))
    assert torch.allclose(twin(x), module(x), rtol=0, atol=1e-14)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-13) for a, b in zip(found, expected, strict=True))
    assert twin(x).is_contiguous(memory_format=torch.channels_last)


def test_derivatives_of_second_order():
    _, twin = layer()
    x = torch.randn(1, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    call = lambda x, w: torch.func.functional_call(twin, {"weight": w}, (x,))  # noqa: E731
    assert torch.autograd.gradgradcheck(call, (x, twin.weight.detach().requires_grad_()))


def test_elsewhere_than_on_a_cpu_the_library_chooses(monkeypatch):
    _, twin = layer()
    used = []
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda self, x: used.append(1))
    twin.to("meta")(torch.zeros(2, 3, 4, 4, device="meta"))
    assert used


def test_only_convolutions_of_this_kind_are_taken():
    fits = PointwiseConv2d.fits
    assert fits(torch.nn.Conv2d(2, 3, 1))
    others = [
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.Conv2d(2, 3, 1, stride=2),
        torch.nn.Conv2d(2, 3, 1, padding=1),
        torch.nn.Conv2d(2, 4, 1, groups=2),
        torch.nn.Linear(2, 3),
    ]
    assert not any(fits(module) for module in others)
