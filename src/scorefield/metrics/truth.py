"""Distances of a model to a known density: of its score, and of its energy on a grid."""

import torch
from torch import Tensor

from scorefield.tensors import event_sum


def fisher_divergence(score: Tensor, truth: Tensor) -> Tensor:
    """|s - grad log p|^2 / 2 at each sample of p, (B,); its mean is the Fisher divergence (Hyvärinen 2005, eq. 2).

    Args:
        score: the model's, (B, *event).
        truth: the density's, at the same points, (B, *event).
    """
    if score.shape != truth.shape:
        raise ValueError(f"score {tuple(score.shape)} and truth {tuple(truth.shape)} must be of the same points")
    return event_sum((score - truth).double().square()) / 2


def lattice(low: float, high: float, side: int) -> tuple[Tensor, float]:
    """Centres of side^2 equal square cells on [low, high]^2, (side^2, 2) float64, and the area of one."""
    if not low < high or side < 2:
        raise ValueError(f"low={low} must be below high={high}, and side={side} at least 2")
    width = (high - low) / side
    axis = low + width * (torch.arange(side, dtype=torch.float64) + 0.5)
    return torch.cartesian_prod(axis, axis), width**2


def normalised(energy: Tensor, area: float) -> Tensor:
    """exp(-E) / Z on the cells of a grid, Z by the midpoint rule: energies (N,) in nats -> densities (N,) float64."""
    return torch.softmax(-energy.double(), 0) / area


def total_variation(p: Tensor, q: Tensor, area: float) -> float:
    """Half the integral of |p - q| over the cells of a grid: 0 for equal densities, 1 for disjoint ones.

    Args:
        p: densities on the cells, (N,).
        q: densities on the cells, (N,).
        area: of one cell.
    """
    return float((p.double() - q.double()).abs().sum() * area / 2)
