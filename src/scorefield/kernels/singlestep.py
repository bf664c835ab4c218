"""Single-step predictors of higher order: several network calls between two times, and no memory of earlier steps.

In lambda = ln(alpha / sigma) the probability flow is linear but for the noise prediction eps(lambda) = E[eps | x_t]
(Lu et al. 2022, DPM-Solver, eq. 3.4): with h = lambda_s - lambda_t

    x_s = alpha_s / alpha_t x_t - alpha_s int_{lambda_t}^{lambda_s} e^-lambda eps(lambda) dlambda,

and eps is followed along the step by the slope that calls in between show.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.levels import once
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.schedules import Schedule
from scorefield.tensors import per_sample


@once
def _part(schedule: Schedule, t: Tensor, s: Tensor, r: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The time at lambda_t + r h, and there the weights of x_t, eps and its change over the way r h, (B,)."""
    u_t = schedule.ratio(t)
    h = r * torch.log(u_t / schedule.ratio(s))
    at = s if r == 1 else schedule.time_at(u_t * torch.exp(-h))
    sigma, grown = schedule.sigma(at), torch.expm1(h)
    return at, schedule.alpha(at) / schedule.alpha(t), -sigma * grown, -sigma * (grown / h - 1)


@dataclass(frozen=True)
class DPMSolver2(Kernel):
    """DPM-Solver-2: the noise of the middle, in lambda, for the whole step (Lu et al. 2022, algorithm 1).

    x_m = alpha_m / alpha_t x_t - sigma_m (e^{h/2} - 1) eps(x_t, t), x_s = alpha_s / alpha_t x_t - sigma_s (e^h - 1)
    eps(x_m, m).
    """

    order = 2
    calls = 2

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        m, keep, push, _ = _part(model.schedule, t, s, 0.5)
        middle = _weighted(x, (keep, x), (push, model(x, t, cond).noise))
        _, keep, push, _ = _part(model.schedule, t, s, 1)
        return _weighted(x, (keep, x), (push, model(middle, m, cond).noise)), state


@dataclass(frozen=True)
class DPMSolver3(Kernel):
    """DPM-Solver-3: calls at 0, 1/3 and 2/3 of the step in lambda (Lu et al. 2022, algorithm 2).

    At the part r of the step, with alpha, sigma and eps_r there and g = e^{r h} - 1,

        x_{1/3} = alpha / alpha_t x_t - sigma g eps_0
        x_{2/3} = alpha / alpha_t x_t - sigma g eps_0 -   2 sigma (g / (r h) - 1) (eps_{1/3} - eps_0)
        x_1     = alpha / alpha_t x_t - sigma g eps_0 - 3/2 sigma (g / (r h) - 1) (eps_{2/3} - eps_0).
    """

    order = 3
    calls = 3

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        eps, bend, before = model(x, t, cond).noise, torch.zeros_like(x), 0.0
        x_s = x
        for r in (1 / 3, 2 / 3, 1):
            at, keep, push, slope = _part(model.schedule, t, s, r)
            # The change of eps over the part so far, continued to this one.
            further = slope * (r / before) if before else slope
            x_s = _weighted(x, (keep, x), (push, eps), (further, bend))
            if r < 1:
                bend, before = model(x_s, at, cond).noise - eps, r
        return x_s, state


def _weighted(x: Tensor, *terms: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of tensors like x by weights (B,)."""
    first, *others = (per_sample(weight.to(x), x) * value for weight, value in terms)
    return sum(others, first)
