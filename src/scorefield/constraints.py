"""Constraints: the observed part of a sample is held while a sampler moves the rest.

With y = A x, A of orthonormal rows, the noisy sample that belongs to the observation has A x_t = alpha y + sigma z with
z ~ N(0, I). After every step of the sampler x_t is moved there along A^T, and at the end x itself is. The unobserved
part is left to the model, which sees a consistent picture at each level but is never told the joint law of both parts:
what comes out is close to the conditional law, and not equal to it.

The observation travels in the conditions, ``cond["observed"]`` (B, *observed), beside the class.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from scorefield.models.base import Cond, observed
from scorefield.noise import Noise
from scorefield.operators import LinearOperator
from scorefield.schedules import Schedule
from scorefield.tensors import per_sample


class Constraint(ABC):
    """Moves a state to where its observed part may be; acts on each sample by itself."""

    @abstractmethod
    def hold(self, schedule: Schedule, x: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        """x_t (B, *event) after a step that ended at times t (B,)."""

    @abstractmethod
    def finish(self, x: Tensor, cond: Cond | None) -> Tensor:
        """The samples (B, *event) at the end."""


@dataclass(frozen=True)
class Projection(Constraint):
    """x_t + w A^T (y_t - A x_t) with y_t = alpha y + sigma z, z ~ N(0, I): the point between x_t and its projection.

    It minimises (1 - w) |x' - x_t|^2 + w |x' - u|^2 over all u with A u = y_t (Song et al. 2022, section 3), and at
    the end w A^T (y - A x) is added in the same way. w below 1 leaves room for noise in the observation.

    Args:
        operator: A.
        weight: w, in (0, 1].
    """

    operator: LinearOperator
    weight: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.weight <= 1:
            raise ValueError(f"weight={self.weight} must be in (0, 1]: 1 replaces the observed part, 0 would ignore it")

    def hold(self, schedule: Schedule, x: Tensor, t: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        y = observed(cond, x)
        alpha, sigma = (per_sample(scale.to(x), y) for scale in (schedule.alpha(t), schedule.sigma(t)))
        return x + self.weight * self.operator.toward(x, alpha * y + sigma * noise.normal_like(y))

    def finish(self, x: Tensor, cond: Cond | None) -> Tensor:
        return x + self.weight * self.operator.toward(x, observed(cond, x))


@dataclass(frozen=True)
class Replacement(Projection):
    """The observed part is replaced by the perturbed observation, and by the observation itself at the end.

    Inpainting by Song & Ermon 2019 (appendix B, with annealed Langevin dynamics) and Song et al. 2021 (appendix I.2);
    with `Grey` the colourisation of the latter (appendix I.3). Here y is perturbed to the level that the step has
    reached; the authors' code takes the level that it has left.

    Args:
        operator: A.
        weight: 1; less is a `Projection`.
    """

    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight != 1:
            raise ValueError(f"weight={self.weight} of a Replacement is 1; use Projection for less")
