"""A score model: a network, or a known density, that answers every question about x_t in one call."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from scorefield.prediction import Prediction
from scorefield.recipe import Remembered
from scorefield.schedules import Schedule

Cond = Mapping[str, Tensor]


def observed(cond: Cond | None, x: Tensor) -> Tensor:
    """The observation y (B, *observed) of each sample of x (B, *event), in their precision: ``cond["observed"]``.

    Raises:
        ValueError: there is none, or not one for each sample.
    """
    if cond is None or "observed" not in cond:
        raise ValueError("nothing was observed: pass cond={'observed': y (B, *observed)} with what the operator saw")
    y = cond["observed"]
    if len(y) != len(x):
        raise ValueError(f"cond['observed'] holds {len(y)} observations for {len(x)} samples; give one for each")
    return y.to(x)


class ScoreModel(Remembered, nn.Module, ABC):
    """Maps a perturbed sample and its time to a `Prediction`.

    Args:
        schedule: the schedule under which the data are perturbed; samplers, grids and likelihoods read it from here.
    """

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @abstractmethod
    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        """Predict from x (B, *event) at times t (B,), given the conditions ``cond`` (each with leading B)."""
