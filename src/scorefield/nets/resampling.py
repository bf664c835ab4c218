"""Halving and doubling the size of an image without weights, alone or joined with a 3x3 convolution.

A filter f is separable and normalised to sum 1. With zeros outside of the image and n even and f symmetric,

    down(x)[j] = sum_k f[k] x[2 j + k - (n - 2) / 2],      up(x)[j] = 2 sum_i f[j - 2 i + (n - 2) / 2] x[i]

along each axis: the average of n neighbours of every second place, and its transpose with the gain that keeps a
constant image constant (Zhang 2019; Karras et al. 2020, appendix B; Song et al. 2021, appendix H.1). Of other filters
there are two readings: `Fir` convolves both ways, `TransposedFir` keeps the transpose.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.recipe import Remembered


class Resampling(Remembered, nn.Module, ABC):
    """A way to halve and to double an image; it has no weights of its own, so that all levels can share one."""

    @abstractmethod
    def down(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) with even H and W -> (B, C, H / 2, W / 2)."""

    @abstractmethod
    def up(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, C, 2 H, 2 W)."""

    @abstractmethod
    def down_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 3x3 convolution joined with `down`: (B, C, H, W) -> (B, C', H / 2, W / 2)."""

    @abstractmethod
    def up_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """A 3x3 convolution joined with `up`: (B, C, H, W) -> (B, C', 2 H, 2 W)."""


class Box(Resampling):
    """2x2 means and nearest neighbours; joined with a convolution, one of stride 2, or one after doubling (DDPM).

    The convolution of stride 2 sees one row and column of zeros on the right and below (Ho et al. 2020, whose code pads
    as TensorFlow does).
    """

    def down(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)

    def up(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest")

    def down_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), conv.weight, conv.bias, stride=2)

    def up_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return conv(self.up(x))


class CentredBox(Box):
    """Like `Box`, with the zeros of the convolution of stride 2 on all four sides."""

    def down_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(x, conv.weight, conv.bias, stride=2, padding=1)


class Fir(Resampling):
    """A filter f of n taps, (1, 3, 3, 1) in NCSN++ and StyleGAN2, by which the image is convolved both ways.

        down(x)[j] = sum_m f[m] x[2 j - m + n // 2],      up(x)[j] = 2 sum_i f[j - 2 i + n // 2 - 1] x[i]

    (the up-filter-down of Karras et al. 2020 with the padding of Song et al. 2021's code). An odd filter is centred on
    pixel 2 j going down and 2 i + 1 going up. A constant image stays constant where f's even and odd taps have one sum.
    Joined with a convolution the image is extended by zeros once, for filter and convolution together, so that the two
    commute; the convolution then runs at the smaller number of places.

    Args:
        taps: the filter f before normalisation, at least two, with a sum that is not zero.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float] = (1, 3, 3, 1)) -> None:
        super().__init__()
        if len(taps) < 2 or not math.isfinite(sum(taps)) or sum(taps) == 0:
            raise ValueError(f"taps={list(taps)} must be two or more, finite and with a sum that is not zero")
        self.taps = tuple(taps)
        f = torch.tensor(self.taps, dtype=torch.float64)
        kernel = torch.outer(f, f) / f.sum().square()
        self.register_buffer("kernel", kernel.to(torch.get_default_dtype())[None, None], persistent=False)
        self.is_box = self.taps == (self.taps[0],) * 2

    @property
    def _down_kernel(self) -> Tensor:
        return self.kernel.flip(2, 3)  # convolutions of torch are correlations

    @property
    def _first(self) -> int:
        """The tap that takes pixel 0 to the first place of the doubled image."""
        return len(self.taps) // 2 - 1

    def _filter(self, x: Tensor, more: int, stride: int) -> Tensor:
        """The image filtered from ``more`` places before its first on."""
        channels = x.shape[1]
        kernel = self._down_kernel.to(x.dtype).expand(channels, -1, -1, -1)
        return F.conv2d(x, kernel, padding=(len(self.taps) - 1) // 2 + more, stride=stride, groups=channels)

    def _spread(self, x: Tensor, more: int) -> Tensor:
        """The doubled image with ``more`` places on every side."""
        channels = x.shape[1]
        kernel = 4 * self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        # The places of the whole transposed convolution to be cut on either side; below zero, to be added.
        left = self._first - more
        right = len(self.taps) - 2 - self._first - more
        both = max(0, min(left, right))
        spread = F.conv_transpose2d(x, kernel, padding=both, stride=2, groups=channels)
        return spread if left == right == both else F.pad(spread, (both - left, both - right) * 2)

    def down(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.is_box else self._filter(x, 0, 2)

    def up(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.is_box else self._spread(x, 0)

    def down_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(self._filter(x, 1, 1), conv.weight, conv.bias, stride=2)

    def up_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        # One more place on every side than `up` keeps: what the convolution at the rim still sees of the filter. For
        # the two taps of the box there is nothing beyond the image but zeros.
        wide = F.pad(self.up(x), (1, 1, 1, 1)) if self.is_box else self._spread(x, 1)
        return F.conv2d(wide, conv.weight, conv.bias)


class TransposedFir(Fir):
    """Like `Fir`, with an average that is not mirrored, whose transpose is the way up (Karras et al. 2022's code).

        down(x)[j] = sum_k f[k] x[2 j + k - (n - 1) // 2],      up(x)[j] = 2 sum_i f[j - 2 i + (n - 1) // 2] x[i]

    The same as `Fir` for a symmetric f of even length. For odd lengths the images of Karras et al.'s code lack a last
    row and column after doubling, so that its networks cannot run; here they are whole.

    Args:
        taps: the filter f before normalisation, at least two, with a sum that is not zero.
    """

    @property
    def _down_kernel(self) -> Tensor:
        return self.kernel

    @property
    def _first(self) -> int:
        return (len(self.taps) - 1) // 2


class DownConv(nn.Module):
    """Half the size by a 3x3 convolution joined with a resampling, or by the resampling alone.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result; equal to ``channels_in`` without a convolution.
        resampling: the resampling.
        conv: whether there is a convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, resampling: Resampling, conv: bool = True) -> None:
        super().__init__()
        self.resampling = resampling
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1) if conv else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, channels_in, H, W) with even H and W -> (B, channels_out, H / 2, W / 2); c is not looked at."""
        return self.resampling.down(x) if self.conv is None else self.resampling.down_conv(self.conv, x)


class UpConv(nn.Module):
    """Twice the size by a 3x3 convolution joined with a resampling, or by the resampling alone.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result; equal to ``channels_in`` without a convolution.
        resampling: the resampling.
        conv: whether there is a convolution.
    """

    def __init__(self, channels_in: int, channels_out: int, resampling: Resampling, conv: bool = True) -> None:
        super().__init__()
        self.resampling = resampling
        self.conv = nn.Conv2d(channels_in, channels_out, 3, padding=1) if conv else None

    def forward(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """x (B, channels_in, H, W) -> (B, channels_out, 2 H, 2 W); c is not looked at."""
        return self.resampling.up(x) if self.conv is None else self.resampling.up_conv(self.conv, x)
