"""Weights of the noise levels in an objective."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.schedules import Schedule


class Weight(ABC):
    """A positive weight lambda(t)."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """(B,) -> (B,)."""


@dataclass(frozen=True)
class Unit(Weight):
    """lambda = 1."""

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class SigmaPower(Weight):
    """lambda = sigma^power; 2 balances the levels of a score loss (Song & Ermon 2019, section 4.2).

    Args:
        power: exponent of sigma.
    """

    power: float = 2.0

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.sigma(t) ** self.power


@dataclass(frozen=True)
class Likelihood(Weight):
    """lambda = g^2: the score loss bounds the negative log-likelihood (Song et al. 2021b, theorem 1)."""

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.diffusion_sq(t)
