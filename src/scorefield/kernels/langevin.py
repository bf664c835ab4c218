"""Langevin dynamics as a corrector, and the rules for its step size."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.schedules import Schedule
from scorefield.tensors import event_norm, per_sample


class StepSize(ABC):
    """A rule for the step size epsilon of x + epsilon score + sqrt(2 epsilon) z.

    Attributes:
        follows_state: whether epsilon depends on where the chain is; the way back then has another step size, which
            rules out a Metropolis test.
    """

    follows_state: bool = False

    @abstractmethod
    def __call__(self, schedule: Schedule, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        """Step size of each sample, (B,), from its time, score and noise (B, *event)."""


@dataclass(frozen=True)
class FixedStep(StepSize):
    """The same step size everywhere.

    Args:
        epsilon: step size, > 0, in squared units of x.
    """

    epsilon: float

    def __post_init__(self) -> None:
        if self.epsilon <= 0:
            raise ValueError(f"epsilon={self.epsilon} must be positive")

    def __call__(self, schedule: Schedule, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return score.new_full((len(score),), self.epsilon)


@dataclass(frozen=True)
class SigmaStep(StepSize):
    """epsilon = 2 a (r sigma)^2: annealed Langevin dynamics (Song & Ermon 2019, algorithm 1; Song et al. 2021).

    `SigmaStep.ncsn` makes the same rule of the step size at the smallest level.

    Args:
        snr: r, signal-to-noise ratio of a step, > 0.
        chain: number of steps N of the discrete forward chain whose squared gain a = 1 - beta scales the step, see
            `Schedule.chain_gain_sq`; None for a = 1.
    """

    snr: float
    chain: int | None = None

    @classmethod
    def ncsn(cls, epsilon: float, sigma_min: float) -> "SigmaStep":
        """epsilon_i = epsilon sigma_i^2 / sigma_L^2, the step of x + epsilon_i score + sqrt(2 epsilon_i) z.

        NCSNv2's step (Song & Ermon 2020, algorithm 1) and that of NCSN's code; the paper of 2019 writes
        x + epsilon_i / 2 score + sqrt(epsilon_i) z, whose epsilon is twice this one.

        Args:
            epsilon: step size at the smallest level, > 0, in squared units of x.
            sigma_min: sigma_L, the smallest level, > 0.
        """
        if epsilon <= 0 or sigma_min <= 0:
            raise ValueError(f"epsilon={epsilon} and sigma_min={sigma_min} must be positive")
        return cls(math.sqrt(epsilon / 2) / sigma_min)

    def __call__(self, schedule: Schedule, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return (2 * _chain_gain(schedule, t, self.chain) * (self.snr * schedule.sigma(t)).square()).to(score)


@dataclass(frozen=True)
class SignalToNoise(StepSize):
    """epsilon = 2 a (r |z| / |score|)^2, with the norms of each sample alone (Song et al. 2021, algorithms 4 and 5).

    For many dimensions, where norms hardly vary. In few, a sample near a mode has a score near 0, and a step without
    bound: there take `SigmaStep`.

    Args:
        snr: r, ratio of the norms of the score's and the noise's contribution, > 0.
        chain: number of steps N of the discrete forward chain whose squared gain a = 1 - beta scales the step, see
            `Schedule.chain_gain_sq`; None for a = 1.
    """

    snr: float
    chain: int | None = None
    follows_state = True

    def __call__(self, schedule: Schedule, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        return self._step(schedule, t, event_norm(score), event_norm(z))

    def _step(self, schedule: Schedule, t: Tensor, score_norm: Tensor, z_norm: Tensor) -> Tensor:
        gain = _chain_gain(schedule, t, self.chain).to(score_norm)
        return 2 * gain * (self.snr * z_norm / score_norm).square()


@dataclass(frozen=True)
class BatchSignalToNoise(SignalToNoise):
    """`SignalToNoise` with the norms averaged over the batch, as published tables were made.

    A sample then depends on its batch-mates; use it only to reproduce such a table.
    """

    def __call__(self, schedule: Schedule, t: Tensor, score: Tensor, z: Tensor) -> Tensor:
        score_norm, z_norm = (event_norm(v).mean().expand(len(v)) for v in (score, z))
        return self._step(schedule, t, score_norm, z_norm)


def _chain_gain(schedule: Schedule, t: Tensor, chain: int | None) -> Tensor:
    return t.new_ones(t.shape) if chain is None else schedule.chain_gain_sq(t, chain)


@dataclass(frozen=True)
class Langevin(Kernel):
    """Unadjusted Langevin dynamics, x + epsilon score + sqrt(2 epsilon) z, at one noise level.

    Its stationary law is off by O(epsilon): for N(0, 1) the variance is 1 / (1 - epsilon / 2). Papers that write
    x + epsilon' / 2 score + sqrt(epsilon') z have epsilon' = 2 epsilon (Welling & Teh 2011, eq. 4).

    Args:
        step_size: the rule for epsilon.
    """

    step_size: StepSize

    @property
    def temperature(self) -> float:
        """1: the noise is that of Langevin dynamics proper."""
        return 1.0

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        score = model(x, t, cond).score
        z = noise.normal_like(x)
        epsilon = per_sample(self.step_size(model.schedule, t, score, z), x)
        return x + epsilon * score + (2 * epsilon).sqrt() * z, state


@dataclass(frozen=True)
class TemperedLangevin(Kernel):
    """x + epsilon score + noise_scale z: Langevin dynamics at the temperature noise_scale^2 / (2 epsilon).

    What energy-based models are often trained with (step 10, noise 0.005 in Du & Mordatch 2019): for small steps it
    samples p^(1 / temperature), not p. At noise_scale = sqrt(2 epsilon) it is `Langevin`.

    Args:
        epsilon: step size, > 0, in squared units of x.
        noise_scale: standard deviation of the noise of one step, >= 0, in units of x.
    """

    epsilon: float
    noise_scale: float

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.noise_scale < 0:
            raise ValueError(f"epsilon={self.epsilon} must be positive and noise_scale={self.noise_scale} not negative")

    @property
    def temperature(self) -> float:
        """The temperature that step size and noise imply, in nats; 1 is Langevin dynamics proper."""
        return self.noise_scale**2 / (2 * self.epsilon)

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        return x + self.epsilon * model(x, t, cond).score + self.noise_scale * noise.normal_like(x), state
