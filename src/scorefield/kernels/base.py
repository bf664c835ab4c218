"""Transitions of the sampling state from one time to the next."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise

State = Mapping[str, Tensor]


class Kernel(ABC):
    """One transition of x from time t to time s <= t; a corrector is a kernel that is called with s = t.

    Kernels are values: whatever a method remembers between steps is the state that `init` makes and `step` returns.

    Attributes:
        order: order of convergence of a deterministic kernel in the step size; None for a stochastic one.
        calls: network evaluations of one step.
    """

    order: int | None = None
    calls: int = 1

    def init(self, x: Tensor, grid: Tensor | None = None) -> State:
        """State before the first step along ``grid``, decreasing times (steps + 1,), where the kernel asks for it."""
        return {}

    @abstractmethod
    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        """Move x (B, *event) from times t (B,) to s (B,)."""

    def denoise(
        self, model: ScoreModel, x: Tensor, t: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> Tensor:
        """The move from the last times t (B,) to the data, by one evaluation: the posterior mean E[x | x_t]."""
        return model(x, t, cond).data


@dataclass(frozen=True)
class Stay(Kernel):
    """Leaves x where it is: the predictor of corrector-only methods such as annealed Langevin dynamics."""

    order = None
    calls = 0

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        return x, state
