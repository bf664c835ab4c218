"""Winograd's convolutions against the library's direct ones: values, all kinds of derivatives, where they are used."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from scorefield.nets import winograd
from scorefield.nets.winograd import WinogradConv2d

# Batch, channels in, channels out, height, width; the last with whole vectors of channels and a rest.
SHAPES = [(1, 2, 3, 4, 4), (2, 3, 2, 8, 4), (5, 2, 2, 12, 16), (2, 35, 17, 8, 4)]


def tensors(shape, dtype=torch.float64):
    b, c, k, height, width = shape
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(b, c, height, width, generator=generator, dtype=dtype)
    w = torch.randn(k, c, 3, 3, generator=generator, dtype=dtype)
    return x.requires_grad_(), w.requires_grad_()


@pytest.fixture(params=["tiles", "columns", "library"])
def path(request, monkeypatch):
    """Each of the three ways to each of the three sums."""
    monkeypatch.setattr(winograd, "pays", lambda x, _: request.param == "tiles")
    monkeypatch.setattr(winograd, "_FEW", {"tiles": 4, "columns": 1000, "library": 0}[request.param])
    return request.param


def direct(x, w):
    return F.conv2d(x, w, padding=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_values_are_those_of_the_direct_sum(shape, path):
    x, w = tensors(shape)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = winograd._Convolution.apply(x.contiguous(memory_format=layout), w.contiguous(memory_format=layout))
        assert torch.allclose(found, direct(x, w), rtol=0, atol=1e-12)


def test_blocks_of_images_are_put_together(monkeypatch):
    """However many tiles a block has, all images come out, and the filters' gradient sums over them."""
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    x, w = tensors((5, 2, 3, 8, 8))
    g = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(direct(x, w), (x, w), g)
    for tiles in (1, 8, 1000):
        monkeypatch.setattr(winograd, "_TILES", tiles)
        found = torch.autograd.grad(winograd._Convolution.apply(x, w), (x, w), g)
        for a, b in zip(found, expected, strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-12)


def bias_of(k):
    """One that does not lie in one piece."""
    return torch.randn(k, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[:, 1].requires_grad_()


@pytest.mark.parametrize("name", ["_Convolution", "with a bias", "_Transposed", "_Correlation"])
def test_derivatives_of_first_and_second_order(name, path):
    """By finite differences, backwards, forwards and batched."""
    x, w = tensors((1, 2, 2, 4, 4))
    g = torch.randn_like(direct(x, w)).detach().requires_grad_()
    both = {"_Convolution": (x, w), "with a bias": (x, w, bias_of(2)), "_Transposed": (g, w), "_Correlation": (x, g)}
    function = getattr(winograd, "_Convolution" if name == "with a bias" else name).apply
    assert torch.autograd.gradcheck(function, both[name], check_forward_ad=True, check_batched_grad=False)
    assert torch.autograd.gradgradcheck(function, both[name])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bias_is_added(shape, path):
    x, w = tensors(shape)
    bias = bias_of(len(w))
    found = winograd._Convolution.apply(x, w, bias)
    assert torch.allclose(found, F.conv2d(x, w, bias, padding=1), rtol=0, atol=1e-12)
    biases = torch.stack([bias, 2 * bias], 1)
    several = torch.vmap(lambda b: winograd._Convolution.apply(x, w, b), in_dims=1)(biases)
    assert torch.allclose(several[1], F.conv2d(x, w, 2 * bias, padding=1), rtol=0, atol=1e-12)


def test_several_gradients_at_once(path):
    x, w = tensors((2, 3, 2, 8, 4))
    y = winograd._Convolution.apply(x, w)
    rows = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(1))
    batched = torch.vmap(lambda row: torch.autograd.grad(y, (x, w), row, retain_graph=True))(rows)
    for i, row in enumerate(rows):
        for found, expected in zip(batched, torch.autograd.grad(direct(x, w), (x, w), row), strict=True):
            assert torch.allclose(found[i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("batched", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("name", ["_Convolution", "_Transposed", "_Correlation"])
def test_several_of_each_argument_at_once(name, batched, path):
    """As several networks have filters of their own, and several probes one network."""
    x, w = (torch.stack([a, 2 * a.flip(0)], 1) for a in tensors((2, 3, 2, 8, 4)))
    g = torch.randn(2, 2, 2, 8, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = {"_Convolution": (x, w), "_Transposed": (g, w), "_Correlation": (x, g)}[name]
    dims = tuple(1 if b else None for b in batched)
    both = [a if b else a.select(1, 0) for a, b in zip(both, batched, strict=True)]
    function = getattr(winograd, name).apply
    found = torch.vmap(function, in_dims=dims)(*both)
    for i in range(2):
        expected = function(*(a if d is None else a.select(d, i) for a, d in zip(both, dims, strict=True)))
        assert torch.allclose(found[i], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_threads_transforms_the_same(shape, monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    x, w = tensors(shape)
    g = torch.randn_like(direct(x, w))
    alone = torch.autograd.grad(winograd._Convolution.apply(x, w), (x, w), g)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    for a, b in zip(torch.autograd.grad(winograd._Convolution.apply(x, w), (x, w), g), alone, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


def test_what_was_answered_stays(monkeypatch):
    """Though the next sum works in the same memory; and so does one without gradients before one with them."""
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    monkeypatch.setattr(winograd, "_room", winograd._Room())
    x, w = tensors((2, 3, 2, 8, 4))
    with torch.inference_mode():
        winograd._Convolution.apply(x, w)
    y = winograd._Convolution.apply(x, w)
    slopes = torch.autograd.grad(y, (x, w), torch.ones_like(y), retain_graph=True)
    kept = [a.detach().clone() for a in (y, *slopes)]
    other = winograd._Convolution.apply(7 * x, 3 * w)
    torch.autograd.grad(other, (x, w), torch.ones_like(other))
    assert all(torch.equal(a, b) for a, b in zip((y, *slopes), kept, strict=True))


def test_threads_do_not_share_their_memory(monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    pairs = [tensors((4, 16, 16, 16, 16), torch.float64) for _ in range(8)]
    pairs = [((i + 1) * x.detach(), w.detach()) for i, (x, w) in enumerate(pairs)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: [winograd._Convolution.apply(*pair) for _ in range(20)], pairs))
    for (x, w), answers in zip(pairs, found, strict=True):
        assert all(torch.allclose(y, direct(x, w), rtol=0, atol=1e-11) for y in answers)


def test_nan_is_not_lost(monkeypatch):
    monkeypatch.setattr(winograd, "pays", lambda *_: True)
    x, w = (a.detach() for a in tensors((2, 3, 2, 8, 4)))
    x[1, 2, 5, 1] = torch.nan
    y = winograd._Convolution.apply(x, w)
    assert y[1, :, 4:7, :3].isnan().all()  # wherever the pixel is seen, and in the rest of its tile too
    assert not y[0].isnan().any()


def test_rounding_errors_are_small():
    """In single precision: some units of 2^-24, times the root of the number of terms and of the transforms' growth."""
    x, w = tensors((4, 128, 128, 16, 16), torch.float32)
    exact = direct(x.double(), w.double())
    error = (winograd._Convolution.apply(x, w) - exact).norm() / exact.norm()
    assert 1e-7 < error < 5e-6


def kept(function):
    """Bytes that autograd keeps."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(found.values())


def test_no_more_is_kept_than_by_the_direct_sum(path):
    x, w = tensors((4, 8, 8, 16, 16))
    assert kept(lambda: winograd._Convolution.apply(x, w)) <= kept(lambda: direct(x, w))


def test_a_gradient_for_the_input_alone_computes_no_other(monkeypatch):
    x, w = tensors((1, 2, 2, 4, 4))
    w.requires_grad_(False)
    monkeypatch.setattr(winograd, "_correlate", lambda *_: pytest.fail("the filters' gradient was computed"))
    torch.autograd.grad(winograd._Convolution.apply(x, w).sum(), x)


def layer(**arguments):
    torch.manual_seed(0)
    module = torch.nn.Conv2d(128, 128, 3, padding=1, **arguments)
    twin = copy.deepcopy(module)
    twin.__class__ = WinogradConv2d
    return module, twin


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_same_layer(bias, monkeypatch):
    module, twin = layer(bias=bias)
    assert list(module.state_dict()) == list(twin.state_dict())
    x = torch.randn(4, 128, 16, 16)
    used = []
    convolve = winograd._convolve
    monkeypatch.setattr(winograd, "_convolve", lambda *a: used.append(1) or convolve(*a))
    assert torch.allclose(twin(x), module(x), rtol=0, atol=1e-12)
    assert used


@pytest.mark.parametrize(
    ("shape", "filters", "expected"),
    [
        ((4, 128, 16, 16), 128, True),
        ((4, 128, 18, 16), 128, False),  # tiles would not be whole
        ((1, 128, 4, 4), 128, False),  # a single tile does not pay for its filters
        ((4, 3, 32, 32), 128, False),  # the transforms of so few channels cost more than their products save
    ],
)
def test_tiles_are_taken_where_they_pay(shape, filters, expected):
    assert winograd.pays(torch.zeros(shape), filters) == expected


def test_elsewhere_than_on_a_cpu_the_library_chooses(monkeypatch):
    module, twin = layer()
    monkeypatch.setattr(winograd, "_convolve", lambda *_: pytest.fail("not direct"))
    x = torch.zeros(4, 128, 16, 16, device="meta")
    assert twin.to("meta")(x).shape == module.to("meta")(x).shape


def test_what_neither_tiles_nor_unfolding_helps_is_left_to_the_library(monkeypatch):
    """Whole, since its backward pass shares work between the two gradients."""
    module, twin = layer()
    monkeypatch.setattr(winograd, "_convolve", lambda *_: pytest.fail("not the library's"))
    x = torch.randn(4, 128, 18, 18)  # tiles would not be whole, and there are many pixels
    assert torch.equal(twin(x), module(x))


@pytest.mark.parametrize("side", [4, 8])
def test_small_images_have_their_gradient_by_one_product(side, monkeypatch):
    """As the inner levels of a U-Net have; larger ones are left to the library."""
    monkeypatch.setattr(winograd, "pays", lambda *_: False)
    monkeypatch.setattr(winograd, "conv2d_weight", lambda *_, **__: pytest.fail("by the library's loop"))
    x, w = tensors((4, 64, 64, side, side), torch.float32)
    (found,) = torch.autograd.grad(winograd._Convolution.apply(x, w).sum(), w)
    (expected,) = torch.autograd.grad(direct(x, w).sum(), w)
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)
    with pytest.raises(pytest.fail.Exception, match="library's loop"):
        winograd._correlate(torch.zeros(4, 4, 18, 18), torch.zeros(4, 4, 18, 18))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_numbers_of_another_width_are_left_to_the_library(dtype, monkeypatch):
    module, twin = layer()
    monkeypatch.setattr(winograd, "_convolve", lambda *_: pytest.fail("not the library's"))
    x = torch.randn(4, 128, 16, 16).to(dtype)
    assert torch.equal(twin.to(dtype)(x), module.to(dtype)(x))


def test_under_autocast_the_sum_is_direct(monkeypatch):
    _, twin = layer()
    monkeypatch.setattr(winograd, "_convolve", lambda *_: pytest.fail("not direct under autocast"))
    with torch.autocast("cpu", torch.bfloat16):
        assert twin.float()(torch.zeros(4, 128, 16, 16, dtype=torch.float32)).dtype == torch.bfloat16


def test_only_convolutions_of_this_kind_are_taken():
    fits = WinogradConv2d.fits
    assert fits(torch.nn.Conv2d(2, 3, 3, padding=1))
    others = [
        torch.nn.Conv2d(2, 3, 1),
        torch.nn.Conv2d(2, 3, 3),
        torch.nn.Conv2d(2, 3, 3, padding=1, stride=2),
        torch.nn.Conv2d(2, 4, 3, padding=1, groups=2),
        torch.nn.Conv2d(2, 3, 3, padding=2, dilation=2),
        torch.nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"),
        torch.nn.Linear(2, 3),
    ]
    assert not any(fits(module) for module in others)
