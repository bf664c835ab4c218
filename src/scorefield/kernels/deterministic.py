"""Deterministic predictors: fixed steps of the probability-flow ODE dx/dt = velocity (Song et al. 2021, eq. 13)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.tensors import per_sample


@dataclass(frozen=True)
class Euler(Kernel):
    """x_s = x + (s - t) velocity(x, t).

    Args:
        to_zero: make the last move, `denoise`, one more such step, to t = 0, where the schedule's sigma must be 0.
            EDM's samplers end so (Karras et al. 2022, algorithms 1 to 3); where alpha = 1 and sigma = t it is the
            posterior mean itself.
    """

    to_zero: bool = False

    order = 1

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        return x + per_sample((s - t).to(x), x) * model(x, t, cond).velocity, state

    def denoise(
        self, model: ScoreModel, x: Tensor, t: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> Tensor:
        if self.to_zero:
            return _to_zero(model, x, t, cond)
        return super().denoise(model, x, t, state, noise, cond)


@dataclass(frozen=True)
class Heun(Kernel):
    """EDM's second-order step with optional churn (Karras et al. 2022, algorithm 2; general alpha: algorithm 3).

    Churn first raises the noise-to-signal ratio from u to u (1 + gamma), gamma = min(churn / N, sqrt 2 - 1), by the
    forward transition, where N is the number of network levels of the run: its steps and the final denoising.

    Args:
        churn: S_churn >= 0; 0 is the deterministic sampler.
        churn_min: S_min, smallest u at which noise is added.
        churn_max: S_max, largest u at which noise is added.
        churn_noise: S_noise, standard deviation of the added noise relative to the exact transition's.
        midpoint: alpha of algorithm 3, in (0, 1]: 1 is Heun's method, 1/2 the midpoint method.
        to_zero: make the last move, `denoise`, Euler's step to t = 0, see `Euler`.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    midpoint: float = 1.0
    to_zero: bool = False

    calls = 2

    def __post_init__(self) -> None:
        if self.churn < 0:
            raise ValueError(f"churn={self.churn} must not be negative; 0 switches it off")
        if not 0 < self.midpoint <= 1:
            raise ValueError(f"midpoint={self.midpoint} must be in (0, 1]: 1 is Heun, 0.5 the midpoint method")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return 2 if self.churn == 0 else None

    def init(self, x: Tensor, grid: Tensor | None = None) -> State:
        if self.churn == 0:
            return {}
        if grid is None:
            raise ValueError(f"churn={self.churn} is spread over the levels of the run: give init the grid")
        return {"levels": torch.tensor(len(grid))}

    def _raise_noise(
        self, model: ScoreModel, x: Tensor, t: Tensor, state: State, noise: Noise
    ) -> tuple[Tensor, Tensor]:
        """x and t after the churn."""
        schedule = model.schedule
        gamma = min(self.churn / int(state["levels"]), math.sqrt(2) - 1)
        u = schedule.ratio(t)
        churned = (u >= self.churn_min) & (u <= self.churn_max)
        raised = torch.where(churned, schedule.time_at(u * (1 + gamma)), t)
        gain, variance = schedule.transition(t, raised)
        spread = self.churn_noise * torch.where(churned, variance, torch.zeros_like(variance)).sqrt()
        return per_sample(gain.to(x), x) * x + per_sample(spread.to(x), x) * noise.normal_like(x), raised

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        if self.churn > 0:
            x, t = self._raise_noise(model, x, t, state, noise)
        h = per_sample((s - t).to(x), x)
        slope = model(x, t, cond).velocity
        between = t + self.midpoint * (s - t) if self.midpoint < 1 else s
        slope_between = model(x + self.midpoint * h * slope, between, cond).velocity
        weight = 1 / (2 * self.midpoint)
        return x + h * ((1 - weight) * slope + weight * slope_between), state

    def denoise(
        self, model: ScoreModel, x: Tensor, t: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> Tensor:
        """The last step, Euler's to noise level 0, which is the posterior mean; churned like every other."""
        if self.churn > 0:
            x, t = self._raise_noise(model, x, t, state, noise)
        if self.to_zero:
            return _to_zero(model, x, t, cond)
        return super().denoise(model, x, t, state, noise, cond)


def _to_zero(model: ScoreModel, x: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
    """Euler's step from times t (B,) to 0.

    Raises:
        ValueError: if there is noise at time 0 too.
    """
    if not t.is_cuda and (model.schedule.sigma(torch.zeros_like(t)) != 0).any():
        raise ValueError(f"to_zero=True needs sigma = 0 at t = 0, where {model.schedule} has noise; use to_zero=False")
    return x - per_sample(t.to(x), x) * model(x, t, cond).velocity
