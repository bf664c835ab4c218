"""Laws of resampling, against the definition by scipy's up-filter-down and by zeros around the image."""

import numpy as np
import pytest
import torch
from scipy.signal import correlate2d, upfirdn
from torch import nn
from torch.nn import functional as F

from scorefield.nets.resampling import Box, CentredBox, DownConv, Fir, Resampling, TransposedFir, UpConv

FILTERS = {"box": (1, 1), "tent": (1, 3, 3, 1), "six": (1, 2, 5, 5, 2, 1)}
# Of odd length or not symmetric: what the two readings of a filter differ in.
OTHERS = {"three": (1, 2, 1), "five": (1, 4, 6, 4, 1), "skewed": (1, 2, 3, 4), "odd_skewed": (2, -1, 3), "two": (3, 1)}
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


def convolved(x: np.ndarray, f: np.ndarray, before: int, after: int) -> np.ndarray:
    """Zeros around both axes, then the true convolution (of the mirrored filter) wherever it is whole."""
    for axis in (0, 1):
        x = np.apply_along_axis(lambda v: np.convolve(np.pad(v, (before, after)), f, "valid"), axis, x)
    return x


@pytest.mark.parametrize("taps", (FILTERS | OTHERS).values(), ids=(FILTERS | OTHERS).keys())
def test_any_filter_is_padded_as_published(taps):
    """Zeros between the pixels, zeros around, convolution, every second place: by numpy, with Song et al.'s padding.

    Joined with a convolution, going up, the zeros between pixels are first met by the whole 3x3 kernel.
    """
    x, n, fir = torch.randn(6, 8), len(taps), Fir(taps)
    f = np.array(taps) / sum(taps)
    spread = np.zeros((12, 16))
    spread[::2, ::2] = x.numpy()
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    w = conv.weight.detach().numpy()[0, 0]
    p = n - 2
    expected = {
        "down": convolved(x.numpy(), f, (p + 1) // 2, p // 2)[::2, ::2],
        "up": convolved(spread, 2 * f, (p + 1) // 2 + 1, p // 2),
        "down_conv": correlate2d(convolved(x.numpy(), f, (p + 3) // 2, (p + 2) // 2), w, "valid")[::2, ::2],
        "up_conv": convolved(correlate2d(spread[:-1, :-1], w, "full"), 2 * f, (p - 1) // 2 + 1, (p - 2) // 2 + 1),
    }
    found = {
        "down": fir.down(x[None, None]),
        "up": fir.up(x[None, None]),
        "down_conv": fir.down_conv(conv, x[None, None]),
        "up_conv": fir.up_conv(conv, x[None, None]),
    }
    for name, value in found.items():
        # Sums of a few hundred products of order one, in double precision.
        np.testing.assert_allclose(value[0, 0].detach().numpy(), expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("taps", (FILTERS | OTHERS).values(), ids=(FILTERS | OTHERS).keys())
def test_the_transposed_reading(taps):
    """Down is numpy's correlation; of even length, both ways are the other reading's but for the mirrored average."""
    x, n, fir = torch.randn(1, 1, 6, 8), len(taps), TransposedFir(taps)
    f, around = np.array(taps) / sum(taps), (len(taps) - 1) // 2
    expected = x[0, 0].numpy()
    for axis in (0, 1):
        expected = np.apply_along_axis(lambda v: np.correlate(np.pad(v, around), f, "valid")[::2], axis, expected)
    np.testing.assert_allclose(fir.down(x)[0, 0].numpy(), expected, rtol=0, atol=1e-12)
    if n % 2 == 0:
        torch.testing.assert_close(fir.down(x), Fir(taps[::-1]).down(x))
        torch.testing.assert_close(fir.up(x), Fir(taps).up(x))


@pytest.mark.parametrize("resampling", EVERY.values(), ids=EVERY.keys())
def test_constants_stay(resampling):
    inside = (..., slice(3, 5), slice(3, 5))
    constant = torch.ones(1, 2, 16, 16)
    assert torch.allclose(resampling.down(constant)[inside], constant[inside])
    assert torch.allclose(resampling.up(constant)[inside], constant[inside])


@pytest.mark.parametrize(
    "resampling", [*EVERY.values(), *map(TransposedFir, OTHERS.values())], ids=[*EVERY, *OTHERS.keys()]
)
def test_up_is_the_transpose_of_down(resampling):
    x, y = torch.randn(2, 3, 8, 6), torch.randn(2, 3, 4, 3)
    # <down x, y> = <x, up y> / 4: the same filter, with the gain that up has for the zeros between its pixels.
    torch.testing.assert_close((resampling.down(x) * y).sum(), (x * resampling.up(y)).sum() / 4)


@pytest.mark.parametrize("kind", [Fir, TransposedFir])
@pytest.mark.parametrize("taps", (FILTERS | OTHERS).values(), ids=(FILTERS | OTHERS).keys())
def test_a_filter_commutes_with_the_convolution_it_is_joined_with(taps, kind):
    """On an image surrounded by enough zeros the order and the places where padding happens make no difference."""
    fir, conv, far = kind(taps), nn.Conv2d(2, 5, 3, padding=1), 8
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


@pytest.mark.parametrize("taps", [(1,), (1, -1), (1, float("nan")), ()])
def test_filters_that_are_none_are_refused(taps):
    with pytest.raises(ValueError, match="must be two or more, finite and with a sum that is not zero"):
        Fir(taps)
