"""Editing pictures through a model: perturb and sample again, or encode, move and decode.

The probability flow takes a picture to its code and back without loss, so whatever is done to the code, or to what the
model is told on the way back, changes the picture and keeps the rest of it.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.grids import Grid
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.probability_flow import ProbabilityFlow, spherical
from scorefield.samplers import Sampler
from scorefield.schedules import Schedule


class Edit(ABC):
    """A way to make other pictures of given ones."""

    @abstractmethod
    def __call__(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        """K edited forms (K, B, *event) of each of the pictures x (B, *event), in model space."""


@dataclass(frozen=True)
class From(Grid):
    """Another grid, begun at a smaller noise level than the schedule's largest.

    Args:
        grid: the other grid, which takes its start from the schedule.
        level: sigma / alpha at which it begins.
    """

    grid: Grid
    level: float

    def start(self, schedule: Schedule) -> float:
        """The time at which it begins.

        Raises:
            ValueError: the schedule has no such level above its smallest.
        """
        low, high = schedule.ratio(torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)).tolist()
        if not low < self.level <= high:
            raise ValueError(f"level={self.level} must be a noise level sigma / alpha in ({low:.4g}, {high:.4g}]")
        return min(float(schedule.time_at(torch.tensor(self.level, dtype=torch.float64))), schedule.t_max)

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        below = copy.copy(schedule)
        below.t_max = self.start(schedule)
        times = self.grid(below, steps)
        if float(times[0]) != below.t_max:
            raise ValueError(
                f"{self.grid} begins at t={float(times[0]):.6g} whatever the schedule; leave its t_max away"
            )
        return times

    def descents(self, steps: int) -> int:
        return self.grid.descents(steps)

    def moves(self, steps: int) -> int:
        return self.grid.moves(steps)


@dataclass(frozen=True)
class SDEdit(Edit):
    """Noise is added up to a level, and the sampler takes it away again (Meng et al. 2022, algorithm 1).

    The larger the level, the less is left of the picture: it keeps what is coarser than the noise.

    Args:
        sampler: removes the noise; its grid begins at the level.
        level: sigma / alpha up to which noise is added.
        copies: K, edited forms of each picture, >= 1.
    """

    sampler: Sampler
    level: float = 1.0
    copies: int = 1

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies={self.copies} must be at least 1")

    def __call__(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        grid = From(self.sampler.grid, self.level)
        sampler = Sampler(**{**vars(self.sampler), "grid": grid})
        t = torch.full((len(x),), grid.start(model.schedule), dtype=torch.float64, device=x.device)
        made = []
        for _ in range(self.copies):
            made.append(sampler(model, model.schedule.perturb(x, t, noise.normal_like(x)), cond, noise).x)
        return torch.stack(made)


@dataclass(frozen=True)
class Interpolation(Edit):
    """From each picture to the next, the last to the first: decoded points of the great circle between their codes.

    Args:
        points: K, both ends included, >= 2.
        flow: encodes and decodes.
    """

    points: int = 8
    flow: ProbabilityFlow = field(default_factory=ProbabilityFlow)

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points={self.points} must be at least 2, the two ends")

    @torch.no_grad()
    def __call__(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        codes = _codes(self.flow, model, x, cond)
        between = spherical(codes, codes.roll(-1, 0), torch.linspace(0, 1, self.points))
        return torch.stack([self.flow.decode(model, z, cond) for z in between])


@dataclass(frozen=True)
class Relabelling(Edit):
    """Encoded as one class and decoded as others: the code keeps what the classes have in common, such as the hand.

    Args:
        labels: the K classes that the codes are decoded as.
        flow: encodes and decodes.
    """

    labels: Sequence[int]
    flow: ProbabilityFlow = field(default_factory=ProbabilityFlow)

    def __post_init__(self) -> None:
        if not self.labels:
            raise ValueError("labels must name at least one class to decode as")

    @torch.no_grad()
    def __call__(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        if cond is None or "label" not in cond:
            raise ValueError("a Relabelling encodes pictures of known classes: pass cond={'label': classes (B,)}")
        codes = _codes(self.flow, model, x, cond)
        others = (torch.full_like(cond["label"], label) for label in self.labels)
        return torch.stack([self.flow.decode(model, codes, {**cond, "label": other}) for other in others])


def _codes(flow: ProbabilityFlow, model: ScoreModel, x: Tensor, cond: Cond | None) -> Tensor:
    """Where the flow takes pictures, without the log-determinant, which costs a backward pass a step."""
    return flow.transport(model, x, flow.start(model), model.schedule.t_max, cond)[0]
