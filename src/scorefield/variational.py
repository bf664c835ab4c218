"""A bound of the negative log-likelihood of the generative diffusion, without solving an ODE (Song et al. 2021b).

The model draws x_T from the prior, follows the reverse SDE with its own score down to t_min, and ends by a Gaussian
around the posterior mean, p(x | x_min) = N(E[x | x_min], u^2 I) with u = sigma / alpha at t_min. Its path and the
forward diffusion from x are two processes, and so (Song et al. 2021b, theorem 3, with the truncation of appendix B)

    -ln p(x) <= KL(q(x_T | x) || prior) + 1/2 int_{t_min}^{T} g^2 E |s(x_t, t) - grad ln q(x_t | x)|^2 dt
                - E ln p(x | x_min).

The first term is closed; the second is drawn at times of density g^2 / sigma^2, where it is Z / 2 E |eps_hat - eps|^2.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise
from scorefield.tensors import event_size, event_sum
from scorefield.times import Importance, TimeLaw


@dataclass(frozen=True)
class Bound:
    """Upper bounds of -ln p, in nats, (B,) each.

    Args:
        nll: the bound.
        standard_error: of each bound over its draws; too large rather than too small, since their times are spread.
        prior: KL of x_T to the prior, part of the bound.
        diffusion: the integral over time, part of the bound.
        reconstruction: -ln p(x | x_min), part of the bound.
    """

    nll: Tensor
    standard_error: Tensor
    prior: Tensor
    diffusion: Tensor
    reconstruction: Tensor


@dataclass(frozen=True)
class VariationalBound:
    """Estimates the bound by Monte Carlo, two network calls for each draw: one at its time, one at t_min.

    Args:
        draws: times for each example, >= 2, one in each of as many equal slices of the law.
        times: law of the times; its importance weight makes any law right, `Importance` makes it accurate.
    """

    draws: int = 32
    times: TimeLaw = field(default_factory=Importance)

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"draws={self.draws} must be at least 2, for a standard error")

    @torch.no_grad()
    def __call__(self, model: ScoreModel, x: Tensor, cond: Cond | None = None, noise: Noise | None = None) -> Bound:
        """The bound at each x (B, *event) of the clean data, in model space."""
        return self.estimate(model, x, cond, noise)

    def estimate(self, model: ScoreModel, x: Tensor, cond: Cond | None = None, noise: Noise | None = None) -> Bound:
        """The same, with the graph of its gradient in x where gradients are enabled."""
        noise, schedule = GlobalNoise() if noise is None else noise, model.schedule
        length = schedule.t_max - schedule.t_min
        low = torch.full((len(x),), schedule.t_min, dtype=torch.float64, device=x.device)
        inner, ends = [], []
        for k in range(self.draws):
            level = (k + noise.uniform_like(low[:, None])[:, 0]) / self.draws
            t, importance = self.times.quantile(level, schedule)
            eps = noise.normal_like(x)
            error = event_sum((model(schedule.perturb(x, t, eps), t, cond).noise - eps).double().square())
            inner.append(length * importance * schedule.diffusion_sq(t) / (2 * schedule.sigma(t).square()) * error)
            ends.append(self._reconstruction(model, x, schedule.perturb(x, low, noise.normal_like(x)), low, cond))
        diffusion, reconstruction = torch.stack(inner), torch.stack(ends)
        spread = (diffusion + reconstruction).std(0) / math.sqrt(self.draws)
        prior = schedule.prior_divergence(x, torch.full_like(low, schedule.t_max))
        parts = prior, diffusion.mean(0), reconstruction.mean(0)
        return Bound(parts[0] + parts[1] + parts[2], spread, *parts)

    @staticmethod
    def _reconstruction(model: ScoreModel, x: Tensor, x_min: Tensor, t: Tensor, cond: Cond | None) -> Tensor:
        variance = model.schedule.ratio(t).double().square()
        error = event_sum((x - model(x_min, t, cond).data).double().square())
        return error / (2 * variance) + event_size(x) / 2 * torch.log(2 * math.pi * variance)
