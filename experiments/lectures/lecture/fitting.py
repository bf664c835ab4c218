"""Minimisers for the claims: plain torch loops, with no trainer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from scorefield.models import ScoreModel
from scorefield.noise import Noise
from scorefield.objectives import Objective


def newton(loss: Callable[[], Tensor], parameter: nn.Parameter) -> Tensor:
    """One Newton step, which ends in the minimum of a loss that is quadratic in its parameter.

    Several problems are solved at once where each element of the parameter has a term of the loss to itself.

    Args:
        loss: a scalar, quadratic in ``parameter``; it must be twice differentiable.
        parameter: moved to the minimum, in place.
    """
    (slope,) = torch.autograd.grad(loss(), parameter, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), parameter)
    with torch.no_grad():
        parameter.sub_(slope.detach() / curvature)
    return parameter.detach()


def train(
    model: ScoreModel,
    objective: Objective,
    data: Tensor,
    noise: Noise,
    steps: int,
    batch: int,
    learning_rate: float,
) -> list[float]:
    """Adam with a cosine decay to zero on random batches of the data; the loss of each step.

    Args:
        model: trained in place.
        objective: what is minimised.
        data: clean samples, (N, *event).
        noise: randomness of batches and objective.
        steps: number of updates.
        batch: samples in one.
        learning_rate: at the start.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    losses = []
    for _ in range(steps):
        rows = (noise.uniform_like(torch.empty(batch, dtype=torch.float64)) * len(data)).long()
        loss = objective(model, data[rows], None, noise).per_sample.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        losses.append(float(loss.detach()))
    return losses
