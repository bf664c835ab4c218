"""Normalisation with its activation in one pass, against the library's in double precision."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from scorefield.nets import group_norm
from scorefield.nets.group_norm import ActivatedGroupNorm
from scorefield.nets.layers import ResidualBlock, activated

# Batch, channels, groups, height, width: one vector and one pixel, rests of the rows that are summed together, groups
# of one channel, one group, and groups that begin within a vector.
SHAPES = [(1, 16, 4, 1, 1), (3, 48, 4, 5, 13), (2, 16, 16, 16, 9), (2, 32, 1, 8, 8), (2, 96, 32, 3, 5)]
EPS = 1e-3


def tensors(shape, dtype=torch.float32):
    b, c, _, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.randn(b, c, height, width, generator=generator, dtype=torch.float64) + 1
    weight, bias, g = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((b, c), (b, c), x.shape))
    found = [a.to(dtype).requires_grad_() for a in (x, weight, bias, g)]
    return [a.contiguous(memory_format=torch.channels_last) if a.ndim == 4 else a for a in found]


def exact(x, weight, bias, groups):
    rows = [F.group_norm(a[None], groups, w, b, EPS) for a, w, b in zip(x, weight, bias, strict=True)]
    return F.silu(torch.cat(rows))


def pair(shape):
    """The two functions of x, weight, bias, and arguments for each."""
    groups = shape[2]
    ours = lambda *a: group_norm._Activated.apply(*a, groups, EPS)  # noqa: E731
    return (ours, tensors(shape)), (lambda *a: exact(*a, groups), tensors(shape, torch.float64))


def assert_close(found, expected):
    """Up to some units in the last place of the largest entry, each being a sum of products."""
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert (a - b).abs().max() <= 2e-6 * b.abs().max().clamp(min=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_the_librarys(shape):
    (ours, (*mine, g)), (other, (*doubles, gg)) = pair(shape)
    y, expected = ours(*mine), other(*doubles)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert_close([y], [expected])
    assert_close(torch.autograd.grad(y, mine, g), torch.autograd.grad(expected, doubles, gg))


@pytest.mark.parametrize("shape", SHAPES)
def test_derivatives_of_second_order(shape):
    """Gradients of a function of the gradients, for all that they depend on."""
    (ours, (*mine, g)), (other, (*doubles, gg)) = pair(shape)
    found = []
    for function, arguments, gradient in ((ours, mine, g), (other, doubles, gg)):
        slopes = torch.autograd.grad(function(*arguments), arguments, gradient, create_graph=True)
        found.append(torch.autograd.grad(sum((s**2).sum() for s in slopes), [*arguments, gradient]))
    assert_close(*found)


def test_derivatives_of_functions_of_functions():
    (ours, (*mine, g)), (other, (*doubles, gg)) = pair(SHAPES[1])
    found = []
    for function, arguments, gradient in ((ours, mine, g), (other, doubles, gg)):
        weights = [a.detach() for a in arguments], gradient.detach()

        def slope(x, function=function, weights=weights):
            (_, *others), gradient = weights
            return torch.func.grad(lambda y: (function(y, *others) * gradient).sum())(x)

        x = weights[0][0]
        found.append([slope(x), torch.func.grad(lambda y, slope=slope: slope(y).sin().sum())(x)])
    assert_close(*found)


@pytest.mark.parametrize("batched", [(0, None, None), (1, None, None), (0, 0, 0), (None, 0, None), (1, 1, None)])
def test_several_at_once(batched):
    """As several probes of one network, and several networks."""
    (ours, mine), _ = pair(SHAPES[1])
    arguments = [
        torch.stack([a, a.flip(0)], 0 if d is None else d).detach() for a, d in zip(mine, batched, strict=False)
    ]
    arguments = [a.select(0, 0) if d is None else a for a, d in zip(arguments, batched, strict=True)]
    found = torch.vmap(ours, in_dims=batched)(*arguments)
    for i in range(2):
        one = [a if d is None else a.select(d, i) for a, d in zip(arguments, batched, strict=True)]
        assert torch.equal(found[i], ours(*one))


def test_several_gradients_at_once():
    (ours, (*mine, g)), _ = pair(SHAPES[1])
    y = ours(*mine)
    rows = torch.stack([g, g.flip(1)]).detach()
    found = torch.vmap(lambda row: torch.autograd.grad(y, mine, row, retain_graph=True))(rows)
    for i, row in enumerate(rows):
        for all_of_them, one in zip(found, torch.autograd.grad(y, mine, row, retain_graph=True), strict=True):
            assert torch.equal(all_of_them[i], one)


def test_far_values_and_constant_images():
    """Where exp would overflow or vanish, far from zero beside the spread, and without any spread."""
    norm = ActivatedGroupNorm(4, 16, EPS).float()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-300, 300, 16))
        norm.bias.copy_(torch.linspace(200, -200, 16))
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    # Some units in the last place of z, here up to 2000, and of gradients as large. The library, which takes means of
    # squares in single precision, is off by 1 and by 26 where the mean is 100.
    for image, error, slope_error in ((x, 2e-3, 1e-2), (x + 100, 4e-3, 0.3), (torch.full_like(x, 3.0), 4e-3, 1e-2)):
        image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
        double = image.detach().double().requires_grad_()
        y, expected = norm.silu(image), F.silu(copy.deepcopy(norm).double()(double))
        assert (y - expected).abs().max() < error
        (slope,), (exactly,) = (torch.autograd.grad(v.sum(), a) for v, a in ((y, image), (expected, double)))
        assert (slope - exactly).abs().max() < slope_error


def test_exponential_keeps_its_digits():
    """silu of what is hardly normalised at all, over the whole range of single precision's exponential."""
    x = (
        torch.linspace(-95, 95, 16 * 4096, dtype=torch.float32)
        .reshape(1, 16, 64, 64)
        .contiguous(memory_format=torch.channels_last)
    )
    norm = ActivatedGroupNorm(1, 16, 0.0).float()
    with torch.no_grad():
        norm.weight.fill_(x.double().std(correction=0))
        norm.bias.fill_(x.double().mean())
    expected = F.silu(copy.deepcopy(norm).double()(x.double()))
    y = norm.silu(x)
    # z itself has a relative error of 2^-23 or so of the largest |z|, and exp makes of it 95 times as much.
    assert ((y - expected).abs() <= 5e-5 * expected.abs() + 1e-30).all()


def test_nan_is_not_lost():
    norm = ActivatedGroupNorm(4, 16).float()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float32).contiguous(memory_format=torch.channels_last)
    x[1, 5, 3, 3] = torch.nan
    y = norm.silu(x.requires_grad_())
    (slope,) = torch.autograd.grad(y.sum(), x)
    for found in (y, slope):
        lost = found.isnan().flatten(2)
        assert lost[1, 4:8].all()  # its group
        assert not lost[1, :4].any()
        assert not lost[0].any()


def test_any_number_of_threads_does_the_same(monkeypatch):
    (ours, (*mine, g)), _ = pair((5, 32, 4, 4, 4))
    y = ours(*mine)
    alone = [y, *torch.autograd.grad(y, mine, g)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    y = ours(*mine)
    for a, b in zip([y, *torch.autograd.grad(y, mine, g)], alone, strict=True):
        assert torch.equal(a, b)


def test_only_the_image_is_kept():
    """Not also what is between normalisation and activation."""
    norm = ActivatedGroupNorm(4, 16).float()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda a: kept.append(a.nbytes) or a, lambda a: a):
        norm.silu(x)
    assert sum(kept) <= x.nbytes + 2 * 2 * norm.weight.nbytes  # and an image's own weight and bias


def test_a_modulation_is_of_the_same_pass():
    """In a residual block, with gradients for all that takes part."""
    torch.manual_seed(0)
    block = ResidualBlock(32, 32, 8).float()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    fused = copy.deepcopy(block)
    for norm in (fused.norm_in, fused.norm_out):
        norm.__class__ = ActivatedGroupNorm
    x = torch.randn(2, 32, 8, 8, dtype=torch.float32).contiguous(memory_format=torch.channels_last).requires_grad_()
    c = torch.randn(2, 8, dtype=torch.float32, requires_grad=True)
    found = []
    for module, of in ((fused, torch.float32), (block.double(), torch.float64)):
        arguments = [a.detach().to(of).requires_grad_() for a in (x, c)]
        y = module(*arguments)
        found.append([y, *torch.autograd.grad(y.sin().sum(), [*arguments, *module.parameters()])])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()  # four layers of rounding, the sine of what is up to 30


def test_where_it_is_the_librarys(monkeypatch):
    """Images laid out otherwise, double precision, autocast, activations other than SiLU; and what is a fit at all."""
    monkeypatch.setattr(group_norm, "_run", lambda *_: pytest.fail("not the library's"))
    norm = ActivatedGroupNorm(4, 16).float()
    x = torch.randn(2, 16, 8, 8, dtype=torch.float32)
    side_by_side = x.contiguous(memory_format=torch.channels_last)
    for norm_of_type, image in ((norm, x), (copy.deepcopy(norm).double(), side_by_side.double()), (norm, x.flatten(2))):
        assert torch.equal(activated(norm_of_type, image), F.silu(norm_of_type(image)))
    with torch.autocast("cpu", torch.bfloat16):
        activated(norm, side_by_side)
    assert torch.equal(activated(norm, side_by_side, nn.ELU()), F.elu(norm(side_by_side)))
    plain = nn.GroupNorm(4, 16).float()
    assert torch.equal(activated(plain, side_by_side), F.silu(plain(side_by_side)))
    for activation in (F.silu, nn.SiLU()):
        with pytest.raises(pytest.fail.Exception, match="not the library's"):
            activated(norm, side_by_side, activation)
    fits = ActivatedGroupNorm.fits
    assert fits(plain)
    for other in (nn.GroupNorm(4, 20), nn.GroupNorm(4, 16, affine=False), nn.BatchNorm2d(16)):
        assert not fits(other)


def test_it_is_a_group_norm_still():
    """With the same state, and the same answer without the activation."""
    plain = nn.GroupNorm(4, 16).float()
    fused = copy.deepcopy(plain)
    fused.__class__ = ActivatedGroupNorm
    x = torch.randn(2, 16, 8, 8, dtype=torch.float32)
    assert torch.equal(fused(x), plain(x))
    assert list(fused.state_dict()) == list(plain.state_dict())
