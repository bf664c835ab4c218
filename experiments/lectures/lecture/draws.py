"""Samples of a known density, and times for a batch."""

import torch
from torch import Tensor

from scorefield.models import MixtureModel
from scorefield.noise import Noise


def times(x: Tensor, t: float = 0.0) -> Tensor:
    """The same time for every sample of x (B, *event), (B,) float64."""
    return torch.full((len(x),), t, dtype=torch.float64)


def exact_samples(model: MixtureModel, n: int, noise: Noise, t: float = 0.0) -> Tensor:
    """n samples of p_t, (n, d) float64."""
    like = torch.empty(n, model.means.shape[1], dtype=torch.float64)
    return model.sample_like(like, times(like, t), noise)
