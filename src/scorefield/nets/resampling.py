"""Halving and doubling the size of an image without weights, alone or joined with a 3x3 convolution.

A filter f is separable and normalised to sum 1. With zeros outside of the image,

    down(x)[j] = sum_k f[k] x[2 j + k - (n - 2) / 2],      up(x)[j] = 2 sum_i f[j - 2 i + (n - 2) / 2] x[i]

along each axis: the average of n neighbours of every second place, and its transpose with the gain that keeps a
constant image constant (Zhang 2019; Karras et al. 2020, appendix B; Song et al. 2021, appendix H.1).
"""

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
    """A symmetric filter with an even number of taps, (1, 3, 3, 1) in NCSN++ and StyleGAN2.

    Joined with a convolution the image is extended by zeros once, for filter and convolution together, so that the two
    commute; the convolution then runs at the smaller number of places.

    Args:
        taps: the filter f before normalisation: symmetric, of even length, with a sum that is not zero.
    """

    kernel: Tensor

    def __init__(self, taps: Sequence[float] = (1, 3, 3, 1)) -> None:
        super().__init__()
        n = len(taps)
        if n < 2 or n % 2 or list(taps) != list(reversed(taps)) or sum(taps) == 0:
            raise ValueError(f"taps={list(taps)} must be symmetric, of even length and with a sum that is not zero")
        self.taps = tuple(taps)
        f = torch.tensor(self.taps, dtype=torch.float64)
        kernel = torch.outer(f, f) / f.sum().square()
        self.register_buffer("kernel", kernel.to(torch.get_default_dtype())[None, None], persistent=False)
        self.crop = (n - 2) // 2
        self.is_box = self.taps == (self.taps[0],) * 2

    def _filter(self, x: Tensor, padding: int, stride: int) -> Tensor:
        channels = x.shape[1]
        kernel = self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        return F.conv2d(x, kernel, padding=padding, stride=stride, groups=channels)

    def _spread(self, x: Tensor, crop: int) -> Tensor:
        channels = x.shape[1]
        kernel = 4 * self.kernel.to(x.dtype).expand(channels, -1, -1, -1)
        return F.conv_transpose2d(x, kernel, padding=crop, stride=2, groups=channels)

    def down(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if self.is_box else self._filter(x, self.crop, 2)

    def up(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="nearest") if self.is_box else self._spread(x, self.crop)

    def down_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        return F.conv2d(self._filter(x, self.crop + 1, 1), conv.weight, conv.bias, stride=2)

    def up_conv(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        # One more place on every side than `up` keeps: what the convolution at the rim still sees of the filter. For
        # the two taps of the box there is nothing beyond the image but zeros.
        wide = self._spread(x, self.crop - 1) if self.crop else F.pad(self.up(x), (1, 1, 1, 1))
        return F.conv2d(wide, conv.weight, conv.bias)


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
