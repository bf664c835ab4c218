"""Stochastic predictors: discretisations of the reverse-time SDE dx = [f x - g^2 score] dt + g dw (Anderson 1982)."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.levels import once
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.prediction import Combination
from scorefield.schedules import Schedule
from scorefield.tensors import per_sample


class _Discretised(Kernel):
    """A step by weights of x, the score and noise, over the grid's distance or that of a chain of so many steps."""

    chain: int | None

    def __post_init__(self) -> None:
        if self.chain is not None and self.chain < 2:
            raise ValueError(f"chain={self.chain} is the number of steps of a chain and must be at least 2, or None")

    @abstractmethod
    def _weights(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of x, the score and z, (B,)."""

    def _moved(self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None) -> tuple[Tensor, Tensor]:
        """The mean of x_s, and the standard deviation of its noise with as many axes."""
        score = model(x, t, cond).score
        shrink, push, spread = (per_sample(w.to(x), x) for w in self._weights(model.schedule, t, s))
        return shrink * x + push * score, spread

    def denoise(
        self, model: ScoreModel, x: Tensor, t: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> Tensor:
        """The posterior mean; of a chain the mean of its next step, whose length does not depend on where it ends."""
        if self.chain is None:
            return super().denoise(model, x, t, state, noise, cond)
        return self._moved(model, x, t, t, cond)[0]


@dataclass(frozen=True)
class EulerMaruyama(_Discretised):
    """x_s = x - h (f x - g^2 score) + g sqrt(h) z with h = t - s (Song et al. 2021, section 4.1).

    The authors' code takes N times from t_max to t_min and N steps of 1 / N from them, the last without noise. That is
    ``chain=N`` on a uniform grid of N - 1 steps with ``denoise_last``.

    Args:
        chain: N, for steps h = 1 / N whatever the grid's, and for the mean of one more as the last move; None for the
            steps of the grid, and the posterior mean as the last move.
    """

    chain: int | None = None

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        mean, spread = self._moved(model, x, t, s, cond)
        return mean + spread * noise.normal_like(x), state

    @once
    def _weights(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = t - s if self.chain is None else torch.full_like(t, 1 / self.chain)
        f, g_sq = schedule.drift(t), schedule.diffusion_sq(t)
        return 1 - h * f, h * g_sq, (h * g_sq).sqrt()


@dataclass(frozen=True)
class ReverseDiffusion(_Discretised):
    """x_s = (2 - a) x + (1 + eta^2) / 2 G^2 score + eta G z, with a and G^2 of the forward step from s to t.

    eta = 1 discretises the reverse SDE (Song et al. 2021, eq. 46), eta = 0 the probability flow in the same way (there,
    appendix D.3). The forward step is the schedule's exact transition; on a `Tabulated` schedule that is the discrete
    chain's own.

    The authors' code takes N times from t_max to t_min, and from each the step of a chain of N levels, the last without
    noise. For VE that is a uniform grid of N - 1 steps with ``denoise_last``; for VP it is ``chain=N`` with the same.

    Args:
        eta: amount of noise, in [0, 1].
        chain: N, for a^2 = 1 + 2 f / N and G^2 = g^2 / N at the time floor(t (N - 1)) / (N - 1), whatever the grid's
            steps: DDPM's chain under VP, beta = g^2 / N = -2 f / N. The last move is then the mean of one more such
            step. None for the transition, and the posterior mean as the last move.
    """

    eta: float = 1.0
    chain: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must be in [0, 1]: 0 is the probability flow, 1 the reverse SDE")
        super().__post_init__()

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return 1 if self.eta == 0 and self.chain is None else None

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        mean, spread = self._moved(model, x, t, s, cond)
        return mean if self.eta == 0 else mean + spread * noise.normal_like(x), state

    @once
    def _weights(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.chain is None:
            gain, variance = schedule.transition(s, t)
        else:
            level = torch.floor(t * (self.chain - 1)) / (self.chain - 1)
            gain, variance = schedule.chain_gain_sq(level, self.chain).sqrt(), schedule.diffusion_sq(level) / self.chain
        return 2 - gain, 0.5 * (1 + self.eta**2) * variance, self.eta * variance.sqrt()


@dataclass(frozen=True)
class Ancestral(Kernel):
    """x_s = alpha_s E[x] + sqrt(sigma_s^2 - tau^2) E[eps] + tau z with z ~ N(0, I).

    tau^2 = eta^2 sigma_s^2 (1 - a^2 sigma_s^2 / sigma_t^2), with the forward gain a = alpha_t / alpha_s from s to t.
    eta = 1 samples the posterior q(x_s | x_t, x) at x = E[x | x_t] (Ho et al. 2020, eq. 6-7; for VE Song et al. 2021,
    eq. 47), eta = 0 is DDIM (Song et al. 2021a, eq. 12 and 16).

    Args:
        eta: fraction of the posterior's noise, in [0, 1].
        forward_variance: draw z with the forward step's variance sigma_t^2 - a^2 sigma_s^2 instead of the posterior's:
            DDPM's other choice, sigma_t^2 = beta_t (Ho et al. 2020, section 3.2); needs eta = 1.
    """

    eta: float = 1.0
    forward_variance: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must be in [0, 1]: 0 is DDIM, 1 is ancestral sampling")
        if self.forward_variance and self.eta != 1:
            raise ValueError(f"forward_variance=True needs eta=1, got eta={self.eta}")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return 1 if self.eta == 0 else None

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        mean, spread = self._posterior(model.schedule, t, s)
        x_s = model(x, t, cond).view(mean)
        return x_s if self.eta == 0 else x_s + per_sample(spread.to(x), x) * noise.normal_like(x), state

    @once
    def _posterior(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Combination, Tensor]:
        """The mean of x_s as a quantity to predict, and the standard deviation of the noise, (B,)."""
        sigma_s, sigma_t = schedule.sigma(s), schedule.sigma(t)
        _, variance = schedule.transition(s, t)
        tau_sq = self.eta**2 * sigma_s.square() / sigma_t.square() * variance
        direction = (sigma_s.square() - tau_sq).clamp(min=0).sqrt()  # rounding can fall below zero where s nears t
        mean = Combination(schedule.alpha(s), direction)
        return mean, (variance if self.forward_variance else tau_sq).sqrt()


@dataclass(frozen=True)
class Consistent(Kernel):
    """Consistent annealed sampling: a Langevin step whose noise brings x exactly to the next level.

    x_s = alpha_s (E[x] + (1 - eta) u_t E[eps] + sqrt(u_s^2 - (1 - eta)^2 u_t^2) z) with u = sigma / alpha, where
    E[x] + u_t E[eps] is x_t / alpha_t itself, so that eta is the fraction of the noise that the score's step removes
    (Jolicoeur-Martineau et al. 2021, algorithm 2: eta = epsilon / sigma_L^2). Langevin dynamics adds noise for the
    level it is at and leaves x noisier than the next; this step does not. At eta = 1 - u_s / u_t it is DDIM.

    Args:
        eta: in (0, 1]; at least 1 - u_s / u_t for every step of the grid.
    """

    eta: float

    def __post_init__(self) -> None:
        if not 0 < self.eta <= 1:
            raise ValueError(f"eta={self.eta} is a fraction of the noise and must be in (0, 1]")

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        """Move x from t to s.

        Raises:
            ValueError: if the score's step removes less noise than lies between t and s.
        """
        mean, spread = self._next_level(model.schedule, t, s)
        return model(x, t, cond).view(mean) + per_sample(spread.to(x), x) * noise.normal_like(x), state

    @once
    def _next_level(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Combination, Tensor]:
        """x_s without its noise as a quantity to predict, and the standard deviation of the noise, (B,)."""
        direction = (1 - self.eta) * schedule.alpha(s) * schedule.ratio(t)
        variance = schedule.sigma(s).square() - direction.square()
        if not t.is_cuda and (variance < -1e-9 * schedule.sigma(s).square()).any():
            least = 1 - float((schedule.ratio(s) / schedule.ratio(t)).min())
            raise ValueError(
                f"eta={self.eta} removes less noise than the step from t={float(t[0]):.4g} to s={float(s[0]):.4g} asks "
                f"for, {least:.4g}; raise eta, or give the sampler more steps"
            )
        return Combination(schedule.alpha(s), direction), variance.clamp(min=0).sqrt()
