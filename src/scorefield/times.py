"""Laws of the training time: which noise levels the objective sees, and how often.

A law is given by its quantile function, so that stratification is one wrapper for all of them, and by an importance
weight 1 / ((t_max - t_min) density), with which the average over the law equals the average over uniform times.
Densities that are meant as a weighting of the levels (log-normal) carry weight 1.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.noise import Noise
from scorefield.schedules import Schedule


class TimeLaw(ABC):
    """A distribution of training times."""

    @abstractmethod
    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Time at which the law's distribution function is ``u`` in [0, 1), and its importance weight; all (B,)."""

    def uniforms(self, n: int, noise: Noise, device: torch.device | None = None) -> Tensor:
        """n uniform numbers in [0, 1) at which the quantile function is read."""
        return noise.uniform_like(torch.empty(n, dtype=torch.float64, device=device))

    def sample(
        self, n: int, schedule: Schedule, noise: Noise, device: torch.device | None = None
    ) -> tuple[Tensor, Tensor]:
        """n times (float64) and their importance weights."""
        return self.quantile(self.uniforms(n, noise, device), schedule)


@dataclass(frozen=True)
class Uniform(TimeLaw):
    """Uniform on [t_min, t_max] (Song et al. 2021, eq. 7).

    Args:
        t_min: smallest training time; None takes the schedule's.
    """

    t_min: float | None = None

    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        low = schedule.t_min if self.t_min is None else self.t_min
        return low + u * (schedule.t_max - low), torch.ones_like(u)


@dataclass(frozen=True)
class LogNormal(TimeLaw):
    """Log-normal noise-to-signal ratio, ln(sigma / alpha) ~ N(mean, std^2) (Karras et al. 2022, table 1).

    Truncated to the schedule's range of levels by its quantile function, so that no mass piles up at the ends.

    Args:
        mean: P_mean.
        std: P_std, > 0.
    """

    mean: float = -1.2
    std: float = 1.2

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std={self.std} must be positive")

    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        low, high = ((end - self.mean) / self.std for end in _log_ratio_range(schedule, u))
        below = torch.special.ndtr(low)
        level = below + u * (torch.special.ndtr(high) - below)
        log_ratio = self.mean + self.std * torch.special.ndtri(level).clamp(low, high)
        return schedule.time_at(log_ratio.exp()), torch.ones_like(u)


@dataclass(frozen=True)
class Importance(TimeLaw):
    """Density proportional to g^2 / sigma^2, for likelihood weighting (Song et al. 2021b, section 4.4).

    Since g^2 / sigma^2 = 2 d ln(sigma / alpha) / dt for every schedule, this is the uniform law of the log ratio, in
    closed form for all of them. The importance weight is Z sigma^2 / (g^2 (t_max - t_min)), Z = 2 ln(u_max / u_min).
    """

    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        low, high = _log_ratio_range(schedule, u)
        t = schedule.time_at(torch.exp(low + u * (high - low)))
        total = 2 * (high - low)
        weight = total * schedule.sigma(t).square() / schedule.diffusion_sq(t) / (schedule.t_max - schedule.t_min)
        return t, weight


@dataclass(frozen=True)
class Ladder(TimeLaw):
    """Each of the L levels of the schedule's ladder with the same probability (Song & Ermon 2019, eq. 6).

    NCSN on a geometric ladder is this law on `VE` with t_min = 0; DDPM and SMLD are it on a `Tabulated` schedule.

    Args:
        levels: L, >= 2.
    """

    levels: int

    def __post_init__(self) -> None:
        if self.levels < 2:
            raise ValueError(f"levels={self.levels} must be at least 2; for one level use the schedule Constant")

    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        # From the smallest level up, so that the time increases with u as a quantile function does.
        times = schedule.ladder(self.levels).flip(0).to(u)
        return times[(u * self.levels).long().clamp(max=self.levels - 1)], torch.ones_like(u)


@dataclass(frozen=True)
class Stratified(TimeLaw):
    """Any law, with one draw in each of n equal slices of its mass: same expectation, less variance.

    Args:
        law: the law that is stratified.
    """

    law: TimeLaw

    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return self.law.quantile(u, schedule)

    def uniforms(self, n: int, noise: Noise, device: torch.device | None = None) -> Tensor:
        slices = torch.arange(n, dtype=torch.float64, device=device)
        return (slices + self.law.uniforms(n, noise, device)) / n


def _log_ratio_range(schedule: Schedule, like: Tensor) -> tuple[Tensor, Tensor]:
    """ln(sigma / alpha) at the schedule's two ends."""
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=like.dtype, device=like.device)
    low, high = schedule.ratio(ends).log()
    if not math.isfinite(schedule.t_min) or (not like.is_cuda and not torch.isfinite(low)):
        raise ValueError(f"{schedule} has sigma = 0 at t_min, so its log ratio is unbounded; give it a larger t_min")
    return low, high
