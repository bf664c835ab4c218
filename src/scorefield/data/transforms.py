"""Between data space and model space.

Data space is where the data are counted: grey level k of an image with L levels is the unit interval [k, k + 1) of
[0, L). Model space is where networks work, [-1, 1] for images. A transform carries its log-determinant, so that

    log p_data(x) = log p_model(forward(x)) + log|det d forward / dx|

and bits/dim is -log2 p_data / d, with no offset that depends on how the data were scaled.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.tensors import event_size


class Transform(ABC):
    """An invertible map from data space to model space."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Data space to model space, (B, *event)."""

    @abstractmethod
    def inverse(self, y: Tensor) -> Tensor:
        """Model space to data space, (B, *event)."""

    @abstractmethod
    def log_abs_det(self, x: Tensor) -> Tensor:
        """log|det d forward / dx| at x (B, *event), in nats, (B,)."""


@dataclass(frozen=True)
class Identity(Transform):
    """y = x."""

    def forward(self, x: Tensor) -> Tensor:
        return x

    def inverse(self, y: Tensor) -> Tensor:
        return y

    def log_abs_det(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))


@dataclass(frozen=True)
class Affine(Transform):
    """y = (x - shift) / scale.

    Args:
        shift: subtracted from the data.
        scale: divides the data, not zero.
    """

    shift: float
    scale: float

    def __post_init__(self) -> None:
        if self.scale == 0 or not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} must be finite and not zero, or the map has no inverse")

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        return y * self.scale + self.shift

    def log_abs_det(self, x: Tensor) -> Tensor:
        return x.new_full((len(x),), -event_size(x) * math.log(abs(self.scale)))


@dataclass(frozen=True)
class Logit(Transform):
    """y = log(p / (1 - p)) with p = margin + (1 - 2 margin) x, for x in [0, 1] (Dinh et al. 2017, section 4.1).

    Args:
        margin: keeps p away from 0 and 1, in (0, 1/2).
    """

    margin: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 < self.margin < 0.5:
            raise ValueError(f"margin={self.margin} must lie between 0 and 1/2")

    def forward(self, x: Tensor) -> Tensor:
        return torch.logit(self.margin + (1 - 2 * self.margin) * x)

    def inverse(self, y: Tensor) -> Tensor:
        return (torch.sigmoid(y) - self.margin) / (1 - 2 * self.margin)

    def log_abs_det(self, x: Tensor) -> Tensor:
        p = self.margin + (1 - 2 * self.margin) * x
        return (math.log(1 - 2 * self.margin) - p.log() - torch.log1p(-p)).flatten(1).sum(1)


@dataclass(frozen=True)
class Compose(Transform):
    """One transform after the other; the log-determinants add.

    Args:
        transforms: applied in this order on the way to model space.
    """

    transforms: tuple[Transform, ...]

    def forward(self, x: Tensor) -> Tensor:
        for transform in self.transforms:
            x = transform.forward(x)
        return x

    def inverse(self, y: Tensor) -> Tensor:
        for transform in reversed(self.transforms):
            y = transform.inverse(y)
        return y

    def log_abs_det(self, x: Tensor) -> Tensor:
        total = x.new_zeros(len(x))
        for transform in self.transforms:
            total = total + transform.log_abs_det(x)
            x = transform.forward(x)
        return total


def to_symmetric_unit(levels: int) -> Affine:
    """y = 2 x / L - 1, which maps [0, L) to [-1, 1).

    Args:
        levels: number of grey levels L, >= 2.
    """
    if levels < 2:
        raise ValueError(f"levels={levels} must be at least 2")
    return Affine(shift=levels / 2, scale=levels / 2)


def to_unit(levels: int) -> Affine:
    """y = x / L, which maps [0, L) to [0, 1).

    Args:
        levels: number of grey levels L, >= 2.
    """
    if levels < 2:
        raise ValueError(f"levels={levels} must be at least 2")
    return Affine(shift=0.0, scale=float(levels))


def dequantise(levels: Tensor, u: Tensor) -> Tensor:
    """Spread level k over its interval: k + u in [k, k + 1) (Theis et al. 2016, section 3.1).

    Args:
        levels: integer levels k.
        u: in [0, 1), shaped like ``levels``, of floating type.
    """
    k = levels.to(u)
    # k + u may round up to k + 1, which is the next level's.
    return torch.minimum(k + u, torch.nextafter(k + 1, k))


def quantise(x: Tensor, levels: int) -> Tensor:
    """The level whose interval holds x, uint8: floor, with values outside [0, L) moved to the first or last level.

    Args:
        x: in data space; integers stay what they are.
        levels: number of grey levels L, at most 256.
    """
    return x.floor().clamp(0, levels - 1).to(torch.uint8)


def to_uint8(brightness: Tensor) -> Tensor:
    """Brightness in [0, 1] to 0..255: clamp, scale, round to the nearest. The only place where pixels are rounded."""
    return brightness.clamp(0, 1).mul(255).round().to(torch.uint8)


def from_uint8(pixels: Tensor, levels: int) -> Tensor:
    """Pixels 0..255 to the nearest of L grey levels, uint8: the inverse of `to_uint8` at levels / (L - 1)."""
    return (pixels.float() * (levels - 1) / 255).round().to(torch.uint8)
