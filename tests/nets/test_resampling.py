"""Laws of resampling, against the definition by scipy's up-filter-down and by zeros around the image."""

import numpy as np
import pytest
import torch
from scipy.signal import upfirdn
from torch import nn
from torch.nn import functional as F

from scorefield.nets.resampling import Box, CentredBox, DownConv, Fir, Resampling, UpConv

FILTERS = {"box": (1, 1), "tent": (1, 3, 3, 1), "six": (1, 2, 5, 5, 2, 1)}
EVERY: dict[str, Resampling] = {
    "box": Box(),
    "centred": CentredBox(),
    **{f"fir_{n}": Fir(f) for n, f in FILTERS.items()},
}


def along_both(x: np.ndarray, f: np.ndarray, up: int, down: int, start: int, size: tuple[int, int]) -> np.ndarray:
    """Up-filter-down along the last two axes, of which ``size`` places from ``start`` on are kept."""
    for axis, n in ((-2, size[0]), (-1, size[1])):
        whole = np.moveaxis(np.apply_along_axis(lambda v: upfirdn(f, v, up, 1), axis, x), axis, -1)
        whole = np.concatenate([np.zeros((*whole.shape[:-1], max(0, -start))), whole[..., max(0, start) :]], -1)
        kept = whole[..., : n * down : down]
        x = np.moveaxis(np.concatenate([kept, np.zeros((*kept.shape[:-1], n - kept.shape[-1]))], -1), -1, axis)
    return x


@pytest.mark.parametrize("taps", FILTERS.values(), ids=FILTERS.keys())
def test_down_is_scipys(taps):
    x, n = torch.randn(2, 3, 6, 8), len(taps)
    f = np.array(taps) / sum(taps)
    # Place 2 j + (n - 1) - (n - 2) / 2 of the full convolution is centred on pixels 2 j and 2 j + 1.
    expected = along_both(x.numpy(), f, 1, 2, n // 2, (3, 4))
    np.testing.assert_allclose(Fir(taps).down(x).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("taps", FILTERS.values(), ids=FILTERS.keys())
def test_up_is_scipys(taps):
    x, n = torch.randn(2, 3, 3, 4), len(taps)
    f = 2 * np.array(taps) / sum(taps)
    expected = along_both(x.numpy(), f, 2, 1, (n - 2) // 2, (6, 8))
    np.testing.assert_allclose(Fir(taps).up(x).numpy(), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("resampling", EVERY.values(), ids=EVERY.keys())
def test_constants_stay_and_up_is_the_transpose_of_down(resampling):
    inside = (..., slice(3, 5), slice(3, 5))
    constant = torch.ones(1, 2, 16, 16)
    assert torch.allclose(resampling.down(constant)[inside], constant[inside])
    assert torch.allclose(resampling.up(constant)[inside], constant[inside])
    x, y = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 4, 3)
    # <down x, y> = <x, up y> / 4: the same filter, with the gain that up has for the zeros between its pixels.
    torch.testing.assert_close((resampling.down(x) * y).sum(), (x * resampling.up(y)).sum() / 4)


@pytest.mark.parametrize("taps", FILTERS.values(), ids=FILTERS.keys())
def test_a_filter_commutes_with_the_convolution_it_is_joined_with(taps):
    """On an image surrounded by enough zeros the order and the places where padding happens make no difference."""
    fir, conv, far = Fir(taps), nn.Conv2d(2, 5, 3, padding=1), 8
    x = torch.randn(1, 2, 6, 4)
    wide = F.pad(x, (far,) * 4)
    free = F.conv2d(wide, conv.weight, padding=1)
    expected = fir.down(free)[..., far // 2 : far // 2 + 3, far // 2 : far // 2 + 2] + conv.bias[:, None, None]
    torch.testing.assert_close(fir.down_conv(conv, x), expected)
    doubled = F.conv2d(fir.up(wide), conv.weight, padding=1)
    expected = doubled[..., 2 * far : 2 * far + 12, 2 * far : 2 * far + 8] + conv.bias[:, None, None]
    torch.testing.assert_close(fir.up_conv(conv, x), expected)


def test_padding_of_the_strided_convolution():
    """One kernel entry at a time: which pixel each of the nine reads."""
    x = torch.arange(16.0).reshape(1, 1, 4, 4) + 1
    for resampling, first in ((Box(), 0), (CentredBox(), -1)):
        for i in range(3):
            for j in range(3):
                layer = DownConv(1, 1, resampling)
                nn.init.zeros_(layer.conv.weight)
                nn.init.zeros_(layer.conv.bias)
                layer.conv.weight.data[0, 0, i, j] = 1
                padded = F.pad(x, (2, 2, 2, 2))
                at = [2 + first + i, 2 + first + j]
                assert torch.equal(layer(x), padded[..., at[0] : at[0] + 3 : 2, at[1] : at[1] + 3 : 2])


def test_nearest_then_convolved():
    layer, x = UpConv(2, 3, Box()), torch.randn(1, 2, 3, 4)
    copies = x.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(layer(x), layer.conv(copies))


@pytest.mark.parametrize("taps", [(1,), (1, 2, 1), (1, 2, 3, 4), (1, -1), ()])
def test_filters_that_are_none_are_refused(taps):
    with pytest.raises(ValueError, match="must be symmetric, of even length"):
        Fir(taps)
