"""Score models that also know their density, up to a constant."""

from abc import ABC, abstractmethod

from torch import Tensor

from scorefield.models.base import Cond, ScoreModel
from scorefield.prediction import Prediction


class DensityModel(ScoreModel, ABC):
    """A score model of p_t(x) = exp(-E(x, t)) / Z(t), with Z unknown: score = -grad E.

    Only two methods need more than the score: contrastive divergence and the Metropolis test of a Markov chain.
    """

    @abstractmethod
    def energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
        """E(x, t) in nats, up to a constant for each t: x (B, *event), t (B,) -> (B,)."""

    def with_energy(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> tuple[Tensor, Prediction]:
        """Energy (B,) and prediction at the same points; a subclass may compute both in one pass."""
        return self.energy(x, t, cond), self(x, t, cond)
