"""Grids of sampling times: from noise to data, decreasing, ``steps`` steps and so ``steps`` + 1 times.

A grid takes its end points from the schedule unless it is given its own. `Resampled` alone goes back up in between.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.schedules import Schedule


class Grid(ABC):
    """A rule that places sampling times."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        """Decreasing times, (steps + 1,), float64; only a ladder repeats its last."""

    def descents(self, steps: int) -> int:
        """How many moves lead towards the data; the others add noise, and ask no network."""
        return steps

    def moves(self, steps: int) -> int:
        """How many moves there are from one time to the next."""
        return steps


@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps in time.

    Args:
        t_min: time at which sampling ends; None takes the schedule's.
        t_max: time at which sampling starts; None takes the schedule's.
        levels: round each time to a level of a `Tabulated` chain of so many, a multiple of 1 / levels; None for none.
    """

    t_min: float | None = None
    t_max: float | None = None
    levels: int | None = None

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        start, end = _ends(schedule, self.t_min, self.t_max)
        times = _pin(_line(start, end, steps), start, end)
        if self.levels is None:
            return times
        rounded = (self.levels * times).round() / self.levels
        if not (rounded.diff() < 0).all():
            raise ValueError(
                f"levels={self.levels} leaves fewer times than {steps} steps need between t={float(end):.4g} and "
                f"{float(start):.4g}; take fewer steps"
            )
        return rounded


@dataclass(frozen=True)
class LogRatio(Grid):
    """Equal steps in ln(sigma / alpha), half the log signal-to-noise ratio.

    Args:
        t_min: time at which sampling ends; None takes the schedule's.
        t_max: time at which sampling starts; None takes the schedule's.
    """

    t_min: float | None = None
    t_max: float | None = None

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        start, end = _ends(schedule, self.t_min, self.t_max)
        return schedule.geometric_times(float(start), float(end), steps + 1)


@dataclass(frozen=True)
class Karras(Grid):
    """Equal steps in u^(1/rho), u = sigma / alpha (Karras et al. 2022, eq. 5).

    The paper's final step to sigma = 0 is the sampler's ``denoise_last``: its N network levels are N - 1 steps here.

    Args:
        rho: exponent, > 0; larger values shorten the steps near the data.
        t_min: time at which sampling ends; None takes the schedule's.
        t_max: time at which sampling starts; None takes the schedule's.
    """

    rho: float = 7.0
    t_min: float | None = None
    t_max: float | None = None

    def __post_init__(self) -> None:
        if self.rho <= 0:
            raise ValueError(f"rho={self.rho} must be positive")

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        start, end = _ends(schedule, self.t_min, self.t_max)
        high, low = schedule.ratio(torch.stack([start, end])) ** (1 / self.rho)
        return _pin(schedule.time_at(_line(high, low, steps) ** self.rho), start, end)


@dataclass(frozen=True)
class Transferred(Grid):
    """The levels sigma / alpha of a grid on another schedule, at the times where this schedule has them.

    The discretisation of Karras et al. 2022, table 1, without the schedule that belongs to it: uniform times of VP, or
    the chain of iDDPM, as levels for any sigma(t) and s(t).

    Args:
        grid: the grid.
        schedule: the schedule that it is laid on.
    """

    grid: Grid
    schedule: Schedule

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        times = schedule.time_at(self.schedule.ratio(self.grid(self.schedule, steps)))
        for i, end in ((0, schedule.t_max), (-1, schedule.t_min)):  # which rounding may have moved beyond it
            if math.isclose(float(times[i]), end, rel_tol=1e-9):
                times[i] = end
        return times

    def descents(self, steps: int) -> int:
        return self.grid.descents(steps)

    def moves(self, steps: int) -> int:
        return self.grid.moves(steps)


@dataclass(frozen=True)
class Ladder(Grid):
    """The levels of the schedule's ladder, one for each step, and the last of them once more.

    For correctors: each level is corrected once in turn, and the run ends at the smallest (Song & Ermon 2019,
    algorithm 1). A predictor has no way to go in the last step.
    """

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        times = schedule.ladder(steps)
        return torch.cat([times, times[-1:]])


@dataclass(frozen=True)
class Given(Grid):
    """Times given one by one.

    Args:
        times: decreasing times; one more than the sampler's steps.
    """

    times: Sequence[float]

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        if len(self.times) != steps + 1:
            raise ValueError(f"times has {len(self.times)} entries, but {steps} steps need {steps + 1}")
        return torch.tensor(list(self.times), dtype=torch.float64)


@dataclass(frozen=True)
class Resampled(Grid):
    """Another grid, of which every ``jump`` steps are walked ``repeats`` times: down, back up by noise, down again.

    RePaint's schedule (Lugmayr et al. 2022, section 4.2): the part of a sample that a constraint does not hold gets to
    agree with the part it holds. The way up is one transition of the forward process, in law the same as many.

    Args:
        grid: the other grid.
        jump: steps that are repeated together, >= 1.
        repeats: how often they are walked, >= 1; 1 is the grid itself.
    """

    grid: Grid
    jump: int = 10
    repeats: int = 10

    def __post_init__(self) -> None:
        if self.jump < 1 or self.repeats < 1:
            raise ValueError(f"jump={self.jump} and repeats={self.repeats} must be at least 1")

    def __call__(self, schedule: Schedule, steps: int) -> Tensor:
        if self.jump > steps:
            raise ValueError(f"jump={self.jump} is more than the {steps} steps that there are")
        order = [0]
        for i in range(1, steps + 1):
            order.append(i)
            if i >= self.jump and (steps - i) % self.jump == 0:
                order += [*range(i - self.jump, i + 1)] * (self.repeats - 1)
        return self.grid(schedule, steps)[order]

    def descents(self, steps: int) -> int:
        return steps + (self.repeats - 1) * self.jump * (steps // self.jump)

    def moves(self, steps: int) -> int:
        return self.descents(steps) + (self.repeats - 1) * (steps // self.jump)


def _ends(schedule: Schedule, t_min: float | None, t_max: float | None) -> tuple[Tensor, Tensor]:
    """Start (noise) and end (data) of a grid."""
    end = schedule.t_min if t_min is None else t_min
    start = schedule.t_max if t_max is None else t_max
    if not end < start:
        raise ValueError(f"a sampling grid needs t_min < t_max, got t_min={end}, t_max={start}")
    return torch.tensor(start, dtype=torch.float64), torch.tensor(end, dtype=torch.float64)


def _line(start: Tensor, end: Tensor, steps: int) -> Tensor:
    """steps + 1 equally spaced values from start to end, both included exactly."""
    if steps < 1:
        raise ValueError(f"steps={steps} must be at least 1")
    return start + (end - start) * (torch.arange(steps + 1, dtype=torch.float64) / steps)


def _pin(times: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Put the two ends exactly where they belong, which rounding has moved them from."""
    times[0], times[-1] = start, end
    return times
