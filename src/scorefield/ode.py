"""Integrators of dx/dt = v(t, x) for a batch of independent samples.

States are flat, (B, D), and every sample has its own time (B,): the adaptive solver controls the error of each sample
alone, so a sample's path does not depend on its batch-mates, and it leaves the batch once it has arrived. A field is
therefore told which rows of the batch it is asked for.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Field = Callable[[Tensor, Tensor, Tensor], Tensor]  # times (b,), states (b, D), rows of the batch (b,) -> (b, D)


class OdeError(ArithmeticError):
    """An integration that cannot go on."""


@dataclass(frozen=True)
class Solution:
    """Where an integration ended.

    Args:
        x: final states, (B, D).
        nfe: evaluations of the field for each sample, (B,) int64.
        calls: evaluations of the field on a batch.
    """

    x: Tensor
    nfe: Tensor
    calls: int


class Solver(ABC):
    """A way to integrate from one time to another."""

    @abstractmethod
    def solve(self, field: Field, x: Tensor, start: float, end: float) -> Solution:
        """Integrate x (B, D) from ``start`` to ``end``, forwards or backwards.

        Raises:
            OdeError: if the integration cannot go on, with the place where it stopped.
        """


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage i sees x + h sum_j a_ij k_j at t + c_i h; the step is h sum_i b_i k_i.

    Args:
        name: the method's name.
        order: its order of convergence.
        a: rows of the strictly lower triangle.
        b: weights of the stages.
        c: nodes of the stages.
    """

    name: str
    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]


EULER = Tableau("Euler", 1, ((),), (1.0,), (0.0,))
HEUN = Tableau("Heun", 2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0))
RK4 = Tableau("RK4", 4, ((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0))


def _combine(x: Tensor, h: Tensor | float, weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """x + h sum_i w_i k_i."""
    total = torch.zeros_like(x)
    for weight, slope in zip(weights, slopes, strict=True):
        if weight:
            total = total + weight * slope
    return x + h * total


@dataclass(frozen=True)
class FixedGrid(Solver):
    """Runge-Kutta steps on a grid that is equally spaced in t^(1/rho).

    Args:
        tableau: the method.
        steps: number of steps, >= 1.
        rho: 1 for equal steps in t; larger values shorten the steps towards t = 0 (Karras et al. 2022, eq. 5).
    """

    tableau: Tableau = HEUN
    steps: int = 100
    rho: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rho <= 0:
            raise ValueError(f"need steps >= 1 and rho > 0, got steps={self.steps}, rho={self.rho}")

    def solve(self, field: Field, x: Tensor, start: float, end: float) -> Solution:
        low, high = start ** (1 / self.rho), end ** (1 / self.rho)
        times = [(low + (high - low) * i / self.steps) ** self.rho for i in range(self.steps)] + [end]
        rows = torch.arange(len(x), device=x.device)
        for t, s in zip(times[:-1], times[1:], strict=True):
            slopes: list[Tensor] = []
            for a, c in zip(self.tableau.a, self.tableau.c, strict=True):
                at = torch.full((len(x),), t + c * (s - t), dtype=torch.float64, device=x.device)
                slopes.append(field(at, _combine(x, s - t, a, slopes), rows))
            x = _combine(x, s - t, self.tableau.b, slopes)
            if not x.isfinite().all():
                bad = int((~x.isfinite().all(1)).nonzero()[0])
                raise OdeError(
                    f"sample {bad} is not finite at t={s:.6g} after a step from {t:.6g} of {self.tableau.name} with "
                    f"steps={self.steps}; use more steps or an adaptive solver"
                )
        calls = self.steps * len(self.tableau.b)
        return Solution(x, torch.full((len(x),), calls, device=x.device), calls)


# Dormand & Prince 1980, table 2: fifth order with an embedded fourth; the last stage is the next step's first.
_DP_A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_DP_C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_DP_ERROR = (-71 / 57600, 0.0, 71 / 16695, -71 / 1920, 17253 / 339200, -22 / 525, 1 / 40)
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0  # step-size limits of Hairer, Norsett & Wanner 1993, section II.4


@dataclass
class _Walk:
    """The samples that are still under way; all tensors have one row for each of them."""

    rows: Tensor
    x: Tensor
    t: Tensor
    h: Tensor  # signed
    slope: Tensor
    rejected: Tensor  # whether the last step was

    def keep(self, mask: Tensor) -> "_Walk":
        fields = (self.rows, self.x, self.t, self.h, self.slope, self.rejected)
        return _Walk(*(value[mask] for value in fields))


@dataclass(frozen=True)
class DormandPrince(Solver):
    """Dormand-Prince 5(4) with the error of each sample controlled on its own (Dormand & Prince 1980).

    A step is accepted where rms(error / (atol + rtol max(|x|, |x'|))) <= 1 over the sample's D components.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        max_nfe: evaluations of the field after which a sample is given up.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000

    def __post_init__(self) -> None:
        if self.rtol <= 0 or self.atol <= 0:
            raise ValueError(f"rtol={self.rtol} and atol={self.atol} must be positive")
        if self.max_nfe < 8:
            raise ValueError(f"max_nfe={self.max_nfe} must be at least 8: one step with its start")

    def solve(self, field: Field, x: Tensor, start: float, end: float) -> Solution:
        nfe = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if start == end or len(x) == 0:
            return Solution(x, nfe, 0)
        calls = 0

        def counted(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            nfe[rows] += 1
            return field(t, state, rows)

        walk = self._begin(counted, x, start, end)
        final = torch.empty_like(x)
        while len(walk.rows):
            self._check(walk, nfe)
            walk = self._advance(counted, walk, end)
            arrived = walk.t == end
            if arrived.any():
                final[walk.rows[arrived]] = walk.x[arrived]
                walk = walk.keep(~arrived)
        return Solution(final, nfe, calls)

    def _norm(self, value: Tensor, scale: Tensor) -> Tensor:
        return (value / scale).square().mean(1).sqrt().double()

    def _begin(self, field: Field, x: Tensor, start: float, end: float) -> _Walk:
        """First slope and first step size (Hairer, Norsett & Wanner 1993, section II.4)."""
        rows = torch.arange(len(x), device=x.device)
        t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
        slope = field(t, x, rows)
        if not slope.isfinite().all():
            raise OdeError(self._report(f"the field is not finite at the start, t={start:.6g}", x, ~slope.isfinite().all(1)))
        scale, length, sign = self.atol + self.rtol * x.abs(), abs(end - start), 1.0 if end > start else -1.0
        size, speed = self._norm(x, scale), self._norm(slope, scale)
        trial = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
        trial = trial.clamp(max=length)
        step = (sign * trial)[:, None].to(x)
        bend = self._norm(field(t + sign * trial, x + step * slope, rows) - slope, scale) / trial
        steepest = torch.maximum(speed, bend)
        wanted = torch.where(steepest <= 1e-15, (trial * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** 0.2)
        h = sign * torch.minimum(100 * trial, wanted).clamp(max=length)
        return _Walk(rows, x, t, h, slope, torch.zeros_like(rows, dtype=torch.bool))

    def _advance(self, field: Field, walk: _Walk, end: float) -> _Walk:
        """One attempted step of every sample."""
        last = (walk.t + walk.h - end) * walk.h.sign() >= 0
        h = torch.where(last, end - walk.t, walk.h)
        step, slopes = h[:, None].to(walk.x), [walk.slope]
        state = walk.x
        for a, c in zip(_DP_A[1:], _DP_C[1:], strict=True):
            state = _combine(walk.x, step, a, slopes)
            slopes.append(field(walk.t + c * h, state, walk.rows))
        scale = self.atol + self.rtol * torch.maximum(walk.x.abs(), state.abs())
        error = self._norm(_combine(torch.zeros_like(state), step, _DP_ERROR, slopes), scale)
        # A stage outside the field's domain is an error without bound: the step is taken again, shorter.
        error = torch.where(error.isfinite(), error, torch.full_like(error, torch.inf))
        accepted = error < 1
        growth = (_SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
        growth = torch.where(~accepted | walk.rejected, growth.clamp(max=1.0), growth)
        take = accepted[:, None]
        return _Walk(
            walk.rows,
            torch.where(take, state, walk.x),
            torch.where(accepted, torch.where(last, torch.full_like(walk.t, end), walk.t + h), walk.t),
            h * growth,
            torch.where(take, slopes[-1], walk.slope),
            ~accepted,
        )

    def _check(self, walk: _Walk, nfe: Tensor) -> None:
        smallest = 16 * torch.finfo(torch.float64).eps * walk.t.abs().clamp(min=1e-300)
        stuck = walk.h.abs() <= smallest
        if stuck.any():
            raise OdeError(self._report("the step size fell to rounding", walk.x, stuck, walk))
        spent = nfe[walk.rows] + 6 > self.max_nfe
        if spent.any():
            raise OdeError(self._report(f"max_nfe={self.max_nfe} evaluations are spent", walk.x, spent, walk))

    def _report(self, what: str, x: Tensor, bad: Tensor, walk: _Walk | None = None) -> str:
        first = int(bad.nonzero()[0])
        where = f"sample {first}"
        if walk is not None:
            where = f"sample {int(walk.rows[first])} at t={float(walk.t[first]):.6g}, step {float(walk.h[first]):.3g}"
        return (
            f"{what}: {where}, |x|={float(x[first].norm()):.4g} in {str(x.dtype).removeprefix('torch.')}, rtol={self.rtol}, "
            f"atol={self.atol}; {int(bad.sum())} of {len(bad)} samples. Try a larger t_min, a looser tolerance, float64, or "
            "a fixed grid"
        )
