"""What a network predicts, and every other view of it.

With x_t = alpha x + sigma eps, every quantity that a score network is asked for is a linear combination p x + q eps of
the clean sample and the noise:

    data        1                  0
    noise       0                  1
    score       0                 -1 / sigma
    scaled      0                 -1
    velocity    alpha'             sigma'
    Karras      sigma / (d n)     -alpha d / n          n = sqrt(alpha^2 d^2 + sigma^2), d the data's std
    mean        c + b alpha        b sigma              c x + b x_t the mean of q(x_s | x_t, x), s one step before t
    any         p                  q                    given numbers

Together with x_t, the output F for one pair (p, q) determines the value for any other pair (p', q'):

    A x_t + B F,    delta = alpha q - sigma p,    A = (q p' - p q') / delta,    B = (alpha q' - sigma p') / delta,

and for (p', q') = (p, q) it is F itself. So one network call gives every view, and no conversion is written twice.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scorefield.levels import once
from scorefield.schedules import Schedule
from scorefield.tensors import per_sample


class Target(ABC):
    """A quantity p x + q eps, named by its coefficients. Targets are values: equal when their parameters are."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        """p and q at each time: (B,) -> (B,), (B,)."""


@dataclass(frozen=True)
class Data(Target):
    """The clean sample x; its optimal prediction is the posterior mean E[x | x_t] (Tweedie's formula)."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)


@dataclass(frozen=True)
class Noise(Target):
    """The noise eps (Ho et al. 2020, eq. 12)."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)


@dataclass(frozen=True)
class Score(Target):
    """The score of the perturbation kernel, -eps / sigma (Vincent 2011); its mean is the score of the marginal."""

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), -1 / schedule.sigma(t)


@dataclass(frozen=True)
class ScaledScore(Target):
    """sigma times the score, -eps: predicted where a network's output is divided by sigma (Song and Ermon 2020, eq. 5).

    The noise with the other sign, so that published networks of this convention keep theirs.

    Args:
        levels: number of levels of the schedule's ladder, where sigma is that of the nearest level, which is what the
            network is told (`LadderIndex`); None where it is that of t itself.
    """

    levels: int | None = None

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.levels is None:
            return torch.zeros_like(t), -torch.ones_like(t)
        nearest = schedule.ladder(self.levels).to(t)[schedule.nearest_rung(t, self.levels)]
        return torch.zeros_like(t), -schedule.sigma(nearest) / schedule.sigma(t)


@dataclass(frozen=True)
class Velocity(Target):
    """The velocity alpha' x + sigma' eps; its mean is the probability-flow field f x_t - 1/2 g^2 score.

    Flow matching's target on the Linear schedule (Lipman et al. 2023, eq. 23).
    """

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return schedule.alpha_dot(t), schedule.sigma_dot(t)


@dataclass(frozen=True)
class Karras(Target):
    """The unit-variance output of EDM's preconditioning (Karras et al. 2022, eq. 7-8), for any schedule.

    With alpha = 1 the data view is c_skip x_t + c_out F, c_skip = d^2 / (sigma^2 + d^2), c_out = sigma d / n.

    Args:
        data_std: d, standard deviation of the data in model space, > 0.
    """

    data_std: float = 0.5

    def __post_init__(self) -> None:
        if self.data_std <= 0:
            raise ValueError(f"data_std={self.data_std} must be positive: the standard deviation of the data")

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        scale = torch.hypot(alpha * self.data_std, sigma)
        return sigma / (self.data_std * scale), -alpha * self.data_std / scale


@dataclass(frozen=True)
class PosteriorMean(Target):
    """The mean c x + b x_t of q(x_s | x_t, x), s = t - step: DDPM's prediction of mu (Ho et al. 2020, eq. 7 and 8).

    c = alpha_s v / sigma_t^2 and b = a sigma_s^2 / sigma_t^2, with the gain a and the variance v of the forward step
    from s to t. Where a step is short, c is small: the output is nearly x_t, and its error weighs much in every other
    view.

    Args:
        step: length of a step of the chain, > 0, in time; 1 / N for a `Tabulated` chain of N levels.
    """

    step: float = 1e-3

    def __post_init__(self) -> None:
        if self.step <= 0:
            raise ValueError(f"step={self.step} is the length of a step of the chain and must be positive")

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        s = (t - self.step).clamp(min=0)
        gain, variance = schedule.transition(s, t)
        sigma_sq = schedule.sigma(t).square()
        kept = gain * schedule.sigma(s).square() / sigma_sq
        return schedule.alpha(s) * variance / sigma_sq + kept * schedule.alpha(t), kept * schedule.sigma(t)


@dataclass(frozen=True, eq=False)
class Combination(Target):
    """p x + q eps with given coefficients, such as those of the point that an ancestral step moves to.

    Args:
        p: factor of the clean sample at each time, (B,).
        q: factor of the noise, (B,).
    """

    p: Tensor
    q: Tensor

    def coefficients(self, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.p, self.q


def conversion(native: Target, target: Target, schedule: Schedule, t: Tensor) -> tuple[Tensor, Tensor]:
    """A and B of the module's formula: ``target`` is A x_t + B F where F predicts ``native``; both (B,), like t.

    Raises:
        ValueError: if F does not determine ``target`` at one of the times.
    """
    if target == native:
        return torch.zeros_like(t), torch.ones_like(t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    p, q = native.coefficients(schedule, t)
    p_new, q_new = target.coefficients(schedule, t)
    delta = alpha * q - sigma * p
    from_x = (q * p_new - p * q_new) / delta
    from_out = (alpha * q_new - sigma * p_new) / delta
    # Reading the check back from a GPU would stall every step. A sum is not finite where one of its terms is not.
    if not t.is_cuda and not math.isfinite(float((from_x.detach() + from_out.detach()).sum())):
        defined = from_x.isfinite() & from_out.isfinite()
        if not defined.all():
            raise ValueError(
                f"{target} does not follow from a prediction of {native} under {schedule} at "
                f"t={float(t[~defined][0]):.6g}; keep t inside [t_min, t_max], or predict {target} itself"
            )
    return from_x, from_out


@once
def _factors(
    native: Target, target: Target, schedule: Schedule, t: Tensor, dtype: torch.dtype, ndim: int
) -> tuple[Tensor, Tensor]:
    """`conversion`, in a precision and with as many axes as x_t and F have."""
    from_x, from_out = (factor.to(dtype) for factor in conversion(native, target, schedule, t))
    return from_x.reshape(-1, *(1,) * (ndim - 1)), from_out.reshape(-1, *(1,) * (ndim - 1))


@dataclass(frozen=True)
class Prediction:
    """One network call and every view of it.

    Args:
        schedule: the schedule that perturbed the data.
        x: perturbed sample x_t, (B, *event).
        t: its time, (B,).
        out: the network's output, (B, *event).
        target: what ``out`` predicts.
    """

    schedule: Schedule
    x: Tensor
    t: Tensor
    out: Tensor
    target: Target

    def view(self, target: Target) -> Tensor:
        """The prediction of ``target``, (B, *event); the native target is returned untouched.

        Raises:
            ValueError: if the native output does not determine ``target`` at one of the times (for example the data
                view of a score at sigma = 0).
        """
        if target == self.target:
            return self.out
        from_x, from_out = _factors(self.target, target, self.schedule, self.t, self.x.dtype, self.x.ndim)
        return from_x * self.x + from_out * self.out

    @property
    def data(self) -> Tensor:
        """Posterior mean of the clean sample, E[x | x_t]."""
        return self.view(Data())

    @property
    def noise(self) -> Tensor:
        """Posterior mean of the noise, E[eps | x_t]."""
        return self.view(Noise())

    @property
    def score(self) -> Tensor:
        """Score of the marginal, grad log p_t(x_t)."""
        return self.view(Score())

    @property
    def velocity(self) -> Tensor:
        """Probability-flow field dx/dt."""
        return self.view(Velocity())

    def add_score(self, gradient: Tensor) -> "Prediction":
        """The same prediction with ``gradient`` (B, *event) added to its score."""
        p, q = self.target.coefficients(self.schedule, self.t)
        alpha, sigma = self.schedule.alpha(self.t), self.schedule.sigma(self.t)
        # d out / d score at fixed x_t: the score moves eps by -sigma and, to keep x_t, x by sigma^2 / alpha.
        slope = (p * sigma.square() / alpha - q * sigma).to(self.x)
        return replace(self, out=self.out + per_sample(slope, self.x) * gradient)
