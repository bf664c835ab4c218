"""How a network is asked: what it predicts, how its input is scaled, how it is told the noise level."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.levels import once
from scorefield.prediction import Karras, Noise, Target
from scorefield.schedules import VP, Schedule, Tabulated
from scorefield.tensors import per_sample


class PerTime(ABC):
    """A number that a schedule has at each time: an input scale or a label."""

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        """(B,) -> (B,)."""


@dataclass(frozen=True)
class One(PerTime):
    """1: the network sees x_t as it is."""

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.ones_like(t)


@dataclass(frozen=True)
class Fixed(PerTime):
    """The same number at all times.

    Args:
        value: the number; 2, with a shift of -1, shows images of [0, 1] as [-1, 1] to a network.
    """

    value: float

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return torch.full_like(t, self.value)


@dataclass(frozen=True)
class UnitVariance(PerTime):
    """c_in = 1 / sqrt(alpha^2 d^2 + sigma^2): the network's input has variance 1 (Karras et al. 2022, eq. 7).

    Args:
        data_std: d, standard deviation of the data in model space, > 0.
    """

    data_std: float = 0.5

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return 1 / torch.hypot(schedule.alpha(t) * self.data_std, schedule.sigma(t))


@dataclass(frozen=True)
class Time(PerTime):
    """The time itself, times a factor: 999 t in the VP models of Song et al. 2021.

    Args:
        factor: what t is multiplied with.
    """

    factor: float = 1.0

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.factor * t


@dataclass(frozen=True)
class Sigma(PerTime):
    """The noise level sigma, times a factor: what the networks of Song et al. 2021 are told for VE, as its logarithm.

    Args:
        factor: what sigma is multiplied with.
    """

    factor: float = 1.0

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        sigma = schedule.sigma(t)
        return sigma if self.factor == 1 else self.factor * sigma


@dataclass(frozen=True)
class Log(PerTime):
    """The natural logarithm of another label.

    Args:
        of: the other label, positive.
    """

    of: PerTime

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.of(schedule, t).log()


@dataclass(frozen=True)
class ChainIndex(PerTime):
    """i = N t - 1: index of a level of a `Tabulated` schedule, 0 the least noisy (Ho et al. 2020).

    Args:
        levels: N, the schedule's number of levels.
    """

    levels: int

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return (self.levels * t - 1).clamp(min=0)


@dataclass(frozen=True)
class VPTime(PerTime):
    """factor times the time at which a VP schedule has this noise-to-signal ratio (Karras et al. 2022, table 1, "VP").

    Args:
        beta_min: rate of the VP schedule at time 0.
        beta_max: rate at time 1.
        factor: what the time is multiplied with.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    factor: float = 999.0

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.factor * VP(self.beta_min, self.beta_max).time_at(schedule.ratio(t))


@dataclass(frozen=True)
class NearestLevel(PerTime):
    """Index of the level of a chain with the nearest noise-to-signal ratio, 0 for the least noisy.

    M - 1 - argmin_j |u_j - u| of Karras et al. 2022, table 1, "iDDPM", where j counts from the noisiest: a network of a
    discrete chain under any schedule. Constant between the levels, as `LadderIndex` is.

    Args:
        chain: the chain.
    """

    chain: Tabulated

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        levels = self.chain.ratio(self.chain.ladder(self.chain.levels).flip(0))
        middle = ((levels[1:] + levels[:-1]) / 2).to(t)
        return torch.bucketize(schedule.ratio(t).contiguous(), middle).to(t.dtype)


@dataclass(frozen=True)
class LadderIndex(PerTime):
    """Index of the nearest level of the schedule's ladder, 0 for the noisiest: NCSN's label (Song & Ermon 2019).

    Constant between the levels, so a network told so has no time derivative and no score in between.

    Args:
        levels: number of levels L, >= 2; the time law's and the sampler's.
    """

    levels: int

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.nearest_rung(t, self.levels).to(t.dtype)


@dataclass(frozen=True)
class LogRatio(PerTime):
    """c_noise = factor ln(sigma / alpha), with factor 1/4 in Karras et al. 2022, table 1.

    Args:
        factor: what the logarithm is multiplied with.
    """

    factor: float = 0.25

    def __call__(self, schedule: Schedule, t: Tensor) -> Tensor:
        return self.factor * schedule.ratio(t).log()


@dataclass(frozen=True)
class Parametrization:
    """The contract between a network and its schedule.

    Args:
        target: what the network's output means.
        input_scale: c_in, multiplies x_t on its way into the network.
        label: c_noise, what the network is told of the noise level.
        input_shift: added to c_in x_t.
    """

    target: Target = field(default_factory=Noise)
    input_scale: PerTime = field(default_factory=One)
    label: PerTime = field(default_factory=Time)
    input_shift: float = 0.0

    @once
    def told(self, schedule: Schedule, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """c_in and the label at times t (B,), in a network's precision."""
        return self.input_scale(schedule, t).to(dtype), self.label(schedule, t).to(dtype)

    def seen(self, x: Tensor, schedule: Schedule, t: Tensor, dtype: torch.dtype) -> Tensor:
        """c_in x + shift, what a network of a precision sees of x (B, *event) at times t (B,)."""
        scaled = per_sample(self.told(schedule, t, dtype)[0], x) * x.to(dtype)
        return scaled + self.input_shift if self.input_shift else scaled

    @classmethod
    def edm(cls, data_std: float = 0.5) -> "Parametrization":
        """EDM's preconditioning: unit-variance input and output, label ln(sigma) / 4 (Karras et al. 2022, table 1)."""
        return cls(Karras(data_std), UnitVariance(data_std), LogRatio(0.25))
