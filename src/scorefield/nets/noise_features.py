"""The features by which the published U-Nets are told their noise level: (sin w_i c, cos w_i c), not normalised."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from scorefield.recipe import Remembered


class NoiseFeatures(Remembered, nn.Module, ABC):
    """e(c) = (sin w_1 c, ..., sin w_h c, cos w_1 c, ..., cos w_h c) of a noise label c, h = dim / 2.

    Args:
        dim: number of features, even and > 0.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim={dim} must be even and positive: features come as pairs of sine and cosine")
        self.dim = dim

    @abstractmethod
    def angles(self, label: Tensor) -> Tensor:
        """w_i c for each label: (B,) -> (B, dim / 2)."""

    def forward(self, label: Tensor) -> Tensor:
        """Labels (B,) -> features (B, dim)."""
        angle = self.angles(label)
        return torch.cat((angle.sin(), angle.cos()), 1)


class Positional(NoiseFeatures):
    """w_i = period^(-i / (h - 1)), or period^(-i / h) without the end point (Vaswani et al. 2017, section 3.5).

    Args:
        dim: number of features, even and > 0; at least 4 with the end point.
        period: ratio of the slowest to the fastest period, > 1.
        endpoint: whether the slowest pair has exactly this period, as in DDPM; ADM stops one step before.
    """

    frequencies: Tensor

    def __init__(self, dim: int, period: float = 10_000.0, endpoint: bool = True) -> None:
        super().__init__(dim)
        steps = dim // 2 - endpoint
        if period <= 1 or steps < 1:
            raise ValueError(f"period={period} must be above 1 and dim={dim} at least {2 * (1 + endpoint)}")
        # Rounded once, from float64: labels reach 999, which magnifies what a float32 power loses.
        exponent = torch.arange(dim // 2, dtype=torch.float64) / steps
        frequencies = torch.exp(-math.log(period) * exponent).to(torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies, persistent=False)

    def angles(self, label: Tensor) -> Tensor:
        return label[:, None] * self.frequencies.to(label.dtype)


class GaussianFourier(NoiseFeatures):
    """w_i = 2 pi W_i with W_i ~ N(0, scale^2), drawn once and frozen (Tancik et al. 2020, section 3).

    W is a parameter without gradient, as in NCSN++, whose published sizes count it.

    Args:
        dim: number of features, even and > 0.
        scale: standard deviation of W.
    """

    def __init__(self, dim: int, scale: float = 16.0) -> None:
        super().__init__(dim)
        if scale <= 0:
            raise ValueError(f"scale={scale} must be positive")
        self.frequencies = nn.Parameter(scale * torch.randn(dim // 2), requires_grad=False)

    def angles(self, label: Tensor) -> Tensor:
        # 2 pi comes last: with the product 2 pi W rounded first, phases of a few hundred would differ from the
        # published networks' by more than the rounding of the phases themselves.
        return label[:, None] * self.frequencies * (2 * math.pi)
