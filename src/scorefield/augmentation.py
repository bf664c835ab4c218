"""Images moved, turned and stretched before a network learns from them, and the numbers that tell it how.

A network that is told does not mix up what was done to an image with what images are: asked with zeros, or with no
labels, it answers for images as they are (Karras et al. 2022, appendix F.2, after Karras et al. 2020's augmentations of
GANs). Places are in pixels from the centre of the image, x to the right and y down.
"""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield.nets.resampling import TransposedFir
from scorefield.noise import Noise
from scorefield.tensors import per_sample

# The symlet of six vanishing moments (Daubechies 1992, *Ten lectures on wavelets*): orthonormal to its even shifts.
SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
_RIM = len(SYM6) // 4  # pixels around the result that its outermost pixels are averaged over


@dataclass(frozen=True)
class Geometry:
    """What is done to each image of a batch: the two flips, then one affine map. Zeros leave an image as it is.

    Args:
        mirrored: 1 where left and right change places, otherwise 0, (B,).
        upended: 1 where top and bottom do, otherwise 0, (B,).
        scale: log2 of the magnification, in standard deviations of its law, (B,).
        angle: turn against the clock, in radians, (B,).
        stretch: log2 of the stretch along an axis, and of the shrinking across it, in standard deviations, (B,).
        axis: direction of that axis, from the horizontal against the clock, in radians, (B,).
        shift: move to the right and down, in standard deviations, (B, 2).
    """

    mirrored: Tensor
    upended: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    axis: Tensor
    shift: Tensor

    @property
    def labels(self) -> Tensor:
        """The nine numbers that a network is told, (B, 9); all zero where nothing was done (table 6 of the paper).

        As published, a stretch and the stretch of the opposite sign along the opposite axis have one label.
        """
        turn = self.angle.cos() - 1, self.angle.sin()
        stretch = self.stretch * self.axis.cos(), self.stretch * self.axis.sin()
        return torch.stack([self.mirrored, self.upended, self.scale, *turn, *stretch, *self.shift.unbind(1)], dim=1)


@dataclass(frozen=True)
class Augmentation:
    """Random flips, magnification, turn, stretch and shift of images, each by itself with probability p.

    In this order, with independent standard normal a, b, c and d (Karras et al. 2022, table 6): left and right change
    places with probability 1/2, top and bottom with probability 1/2; magnification 2^(scale a); a turn by any angle;
    2^(stretch b) along an axis, of any direction or horizontal, and its inverse across; shift (c, d) of the image's
    width and height. Flips move pixels as they are. The rest resamples the image once: it is mirrored at its edges,
    doubled in size by an orthogonal wavelet's filter, interpolated linearly and halved by the same filter, so that the
    map that moves nothing changes nothing.

    Args:
        p: probability of each part but the first, in [0, 1].
        p_mirror: probability that left and right may change places, which happens in half of the cases, in [0, 1].
        scale: deviation of the magnification's log2, >= 0.
        stretch: deviation of the stretch's log2, >= 0.
        p_oblique: probability that a stretch is along any axis and not horizontal, in [0, 1].
        shift: deviation of the shift, in widths and heights of the image, >= 0.

    Raises:
        ValueError: a probability or deviation is out of range.
    """

    p: float = 0.12
    p_mirror: float = 1.0
    scale: float = 0.2
    stretch: float = 0.2
    p_oblique: float = 0.5
    shift: float = 0.125

    labels = 9  # length of what a network is told

    def __post_init__(self) -> None:
        for name in ("p", "p_mirror", "p_oblique"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is a probability and must be in [0, 1]")
        for name in ("scale", "stretch", "shift"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)} is a deviation and must be finite and not negative")

    def __call__(self, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) in model space -> the same augmented, and their labels (B, 9).

        Raises:
            ValueError: ``x`` is no batch of images.
        """
        if x.ndim != 4 or min(x.shape[2:]) < 2:
            raise ValueError(f"x has shape {list(x.shape)}, but images are (B, C, H, W) with two or more pixels a side")
        geometry = self.draw(x, noise)
        return self.apply(x, geometry), geometry.labels

    def draw(self, x: Tensor, noise: Noise) -> Geometry:
        """What to do to each image of x (B, C, H, W)."""
        coins = noise.uniform_like(x.new_empty(len(x), 11)).unbind(1)
        normal = noise.normal_like(x.new_empty(len(x), 4))
        none = torch.zeros_like(coins[0])
        mirrored, upended, scaled, turned, stretched, shifted = (
            coin < p for coin, p in zip(coins, (self.p_mirror, *[self.p] * 5), strict=False)
        )
        return Geometry(
            mirrored=(mirrored & (coins[6] < 0.5)).to(x.dtype),
            upended=(upended & (coins[7] < 0.5)).to(x.dtype),
            scale=torch.where(scaled, normal[:, 0], none),
            angle=torch.where(turned, math.pi * (2 * coins[8] - 1), none),
            stretch=torch.where(stretched, normal[:, 1], none),
            axis=torch.where(coins[10] < self.p_oblique, math.pi * (2 * coins[9] - 1), none),
            shift=torch.where(shifted[:, None], normal[:, 2:], none[:, None]),
        )

    def apply(self, x: Tensor, geometry: Geometry) -> Tensor:
        """Do it to images x (B, C, H, W); those that no part of it is about come back as they are, to the bit."""
        x = torch.where(per_sample(geometry.mirrored, x) == 1, x.flip(3), x)
        x = torch.where(per_sample(geometry.upended, x) == 1, x.flip(2), x)
        resampled = resample(x, *self.origins(geometry, *x.shape[2:]))
        moved = geometry.labels[:, 2:].any(dim=1)
        return torch.where(per_sample(moved, x), resampled, x)

    def origins(self, geometry: Geometry, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Where the pixel at place u of the result comes from: A u + b, with A (B, 2, 2) and b (B, 2).

        A place goes from v to u = T v + shift, T = (stretch) (turn) (magnification); so A = T^-1 and b = -A shift.
        """
        magnified = torch.exp2(-self.scale * geometry.scale)
        along = torch.exp2(-self.stretch * geometry.stretch)
        to_axis = _turn(geometry.axis)
        squeezed = to_axis.mT @ torch.diag_embed(torch.stack([along, 1 / along], dim=1)) @ to_axis
        a = magnified[:, None, None] * _turn(geometry.angle) @ squeezed
        right, down = geometry.shift.unbind(1)
        shift = self.shift * torch.stack([width * right, height * down], dim=1)
        return a, -(a @ shift[:, :, None])[:, :, 0]


def _turn(angle: Tensor) -> Tensor:
    """The matrix (B, 2, 2) that takes places to where they were before a turn by (B,) against the clock."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)


@cache
def _wavelet(device: torch.device, dtype: torch.dtype) -> TransposedFir:
    return TransposedFir(SYM6).to(device, dtype)


def resample(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Images whose pixel at place u is that of x (B, C, H, W) at place A u + b, for A (B, 2, 2) and b (B, 2).

    Beyond its edges an image is mirrored once, and is 0 after that. Halving is the transpose of doubling, and undoes
    it; the filter's middle is taken to be its largest tap, which puts pixel i at place 2 i of the doubled image.
    """
    n, channels, height, width = x.shape
    wavelet = _wavelet(x.device, x.dtype)
    wide = F.pad(x, (width - 1, width - 1, height - 1, height - 1), mode="reflect")
    fine = wavelet.up(wide.flatten(0, 1)[:, None]).unflatten(0, (n, channels))[:, :, 0]
    # Places of the result's doubled grid, with a rim for the filter, and where they come from.
    columns, rows = (
        torch.arange(2 * (size + 2 * _RIM), device=x.device, dtype=x.dtype) / 2 - _RIM - (size - 1) / 2
        for size in (width, height)
    )
    u = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1).flatten(0, 1)
    v = (u @ a.mT + b[:, None]).unflatten(1, (len(rows), len(columns)))
    # Place v of the image is number 2 v + 3 (size - 1) of the doubled one, which grid_sample counts from -1 to 1.
    right, down = v.unbind(-1)
    grid = torch.stack(
        [
            (4 * right + 6 * (width - 1)) / (fine.shape[3] - 1) - 1,
            (4 * down + 6 * (height - 1)) / (fine.shape[2] - 1) - 1,
        ],
        dim=-1,
    )
    moved = F.grid_sample(fine, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    halved = wavelet.down(moved.flatten(0, 1)[:, None]).unflatten(0, (n, channels))[:, :, 0]
    return halved[:, :, _RIM:-_RIM, _RIM:-_RIM]
