"""Multistep predictors: higher order from what the network said at earlier times, at one call a step.

In lambda = ln(alpha / sigma) the probability flow is linear but for the data prediction D(lambda) = E[x | x_t]
(Lu et al. 2022, DPM-Solver++, eq. 8): with h = lambda_s - lambda_t

    x_s = sigma_s / sigma_t x_t + sigma_s int_{lambda_t}^{lambda_s} e^lambda D(lambda) dlambda,

and D is extrapolated by the polynomial through its last values. The state holds those values and the lengths of the
steps between them, so steps may differ in length. The first steps have no past and are of lower order, as published;
there the noise is so large that D hardly moves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.kernels.base import Kernel, State
from scorefield.levels import once
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.schedules import Schedule
from scorefield.tensors import per_sample


def _step_length(schedule: Schedule, t: Tensor, s: Tensor) -> Tensor:
    """h = lambda_s - lambda_t, in float64, (B,)."""
    return torch.log(schedule.ratio(t) / schedule.ratio(s))


@dataclass(frozen=True)
class DPMSolver2M(Kernel):
    """DPM-Solver++(2M) and, for eta > 0, its form for the reverse SDE.

    x_s = sigma_s / sigma_t e^{-eta h} x_t + alpha_s (1 - e^{-(1 + eta) h}) (D + (D - D_before) h / (2 h_before))
          + sigma_s sqrt(1 - e^{-2 eta h}) z

    (Lu et al. 2022, DPM-Solver++, algorithm 2 for eta = 0, and its SDE form, appendix D, for eta = 1; without history
    eta = 0 is DDIM.)

    Args:
        eta: amount of noise, in [0, 1]: 0 is the probability flow, 1 the reverse SDE.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta={self.eta} must be in [0, 1]: 0 is the probability flow, 1 the reverse SDE")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return 2 if self.eta == 0 else None

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        data = model(x, t, cond).data
        h, shrink, pull, spread = self._weights(model.schedule, t, s)
        ahead = data
        if "h" in state:
            ahead = data + per_sample((h / (2 * state["h"])).to(x), x) * (data - state["data"])
        x_s = per_sample(shrink.to(x), x) * x + per_sample(pull.to(x), x) * ahead
        if self.eta > 0:
            x_s = x_s + per_sample(spread.to(x), x) * noise.normal_like(x)
        return x_s, {"h": h, "data": data}

    @once
    def _weights(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """h, and the weights of x_t, the data and z, (B,)."""
        h = _step_length(schedule, t, s)
        shrink = schedule.sigma(s) / schedule.sigma(t) * torch.exp(-self.eta * h)
        pull = -schedule.alpha(s) * torch.expm1(-(1 + self.eta) * h)
        return h, shrink, pull, schedule.sigma(s) * torch.sqrt(-torch.expm1(-2 * self.eta * h))


@dataclass(frozen=True)
class DPMSolver3M(Kernel):
    """DPM-Solver++(3M): D by the parabola through its last three values.

    x_s = sigma_s / sigma_t x_t + alpha_s (phi_1 D + phi_2 D' + phi_3 D'')

    with h^k D^(k) from divided differences, phi_1 = 1 - e^{-h}, phi_2 = (e^{-h} - 1 + h) / h and
    phi_3 = 1/2 - (e^{-h} - 1 + h) / h^2: the third-order exponential Adams-Bashforth method for data prediction (Lu et
    al. 2022, DPM-Solver++, appendix A; Hochbruck & Ostermann 2010, section 2.5).
    """

    order = 3

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        data = model(x, t, cond).data
        h, shrink, *pulls = self._weights(model.schedule, t, s)
        kept = {"h": h, "data": data}
        slope, bend = torch.zeros_like(data), torch.zeros_like(data)
        if "h" in state:
            # First divided differences, in units of h: of the last two values, and of the two before.
            slope = per_sample((h / state["h"]).to(x), x) * (data - state["data"])
            kept |= {"h_before": state["h"], "data_before": state["data"]}
        if "h_before" in state:
            near, far = state["h"], state["h_before"]
            before = per_sample((h / far).to(x), x) * (state["data"] - state["data_before"])
            curvature = (slope - before) * per_sample((h / (near + far)).to(x), x)  # h^2 times the second difference
            slope = slope + per_sample((near / h).to(x), x) * curvature
            bend = 2 * curvature
        x_s = per_sample(shrink.to(x), x) * x
        for pull, value in zip(pulls, (data, slope, bend), strict=True):
            x_s = x_s + per_sample(pull.to(x), x) * value
        return x_s, kept

    @once
    def _weights(self, schedule: Schedule, t: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        """h, and the weights of x_t, the data, its slope and its bend, (B,)."""
        h, alpha = _step_length(schedule, t, s), schedule.alpha(s)
        decay = torch.expm1(-h)
        first = (decay + h) / h  # the moments of e^(lambda - lambda_s) against 1, the slope and half the bend
        second = 0.5 - (decay + h) / h.square()
        return h, schedule.sigma(s) / schedule.sigma(t), -alpha * decay, alpha * first, alpha * second


def _adams(h: Tensor, nodes: Sequence[Tensor]) -> list[Tensor]:
    """Weights w_j, (B,), with sum_j w_j D(lambda_t + u_j h) = int e^{lambda - lambda_s} D dlambda over the step.

    Exact for polynomials D of a lower degree than there are nodes: sum_j w_j u_j^k is the k-th moment, I_0 = 1 - e^-h
    and I_k = 1 - k / h I_{k-1}.

    Args:
        h: length of the step in lambda, (B,).
        nodes: u_j, (B,), all different.
    """
    moments = [-torch.expm1(-h)]
    for k in range(1, len(nodes)):
        moments.append(1 - k / h * moments[-1])
    u = torch.stack(list(nodes), 1)
    powers = torch.stack([u**k for k in range(len(nodes))], 1)
    return list(torch.linalg.solve(powers, torch.stack(moments, 1)).unbind(1))


@dataclass(frozen=True)
class UniPC(Kernel):
    """UniPC-p: a multistep prediction, corrected once the network has been asked where it led (Zhao et al. 2023).

    Algorithms 1 and 2 there, with the data prediction: the step is predicted from the last p values of D (UniP-p), and
    x_t corrected by the polynomial through these and the value at x_t itself (UniC-p), at no further call. The last
    point of a run is a prediction. The coefficients solve the equations for them (there, theorem 3.1), from which B(h)
    drops out; the authors' code takes 1/2 where that is enough for the order. A correction is added to x, so that what
    a corrector or a constraint has done to it in between remains.

    Args:
        p: values of the prediction, 1, 2 or 3; the order is one more.
    """

    p: int = 3

    def __post_init__(self) -> None:
        if self.p not in (1, 2, 3):
            raise ValueError(f"p={self.p} is the number of values that a step is predicted from: 1, 2 or 3")

    @property
    def order(self) -> int | None:  # type: ignore[override]
        return self.p + 1

    def step(
        self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, state: State, noise: Noise, cond: Cond | None = None
    ) -> tuple[Tensor, State]:
        schedule, data = model.schedule, model(x, t, cond).data
        values, times = ([v for k, v in state.items() if k.startswith(name)] for name in ("data", "time"))
        for weight, value in zip(self._correction(schedule, t, *times), [data, *values], strict=False):
            x = x + per_sample(weight.to(x), x) * value
        values, times = [data, *values][: self.p], [t, *times][: self.p]
        shrink, pulls = self._prediction(schedule, s, *times)
        x_s = per_sample(shrink.to(x), x) * x
        for pull, value in zip(pulls, values, strict=True):
            x_s = x_s + per_sample(pull.to(x), x) * value
        kept = {f"data_{i}": value for i, value in enumerate(values)}
        return x_s, kept | {f"time_{i}": time for i, time in enumerate(times)}

    @once
    def _correction(self, schedule: Schedule, t: Tensor, *before: Tensor) -> list[Tensor]:
        """Weights of D at t and at the times before it, the latest first, in what is added to the predicted x_t."""
        if not before:
            return []
        h = _step_length(schedule, before[0], t)
        known = [_step_length(schedule, before[0], time) / h for time in before]
        first, *others = _adams(h, [torch.ones_like(h), *known])
        changes = [new - old for new, old in zip(others, _adams(h, known), strict=True)]
        return [schedule.alpha(t) * weight for weight in (first, *changes)]

    @once
    def _prediction(self, schedule: Schedule, s: Tensor, t: Tensor, *before: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Weights of x_t, and of D at t and at the times before it, in x_s."""
        h = _step_length(schedule, t, s)
        weights = _adams(h, [_step_length(schedule, t, time) / h for time in (t, *before)])
        return schedule.sigma(s) / schedule.sigma(t), [schedule.alpha(s) * weight for weight in weights]
