"""Integrators of dx/dt = v(t, x) for a batch of independent samples.

States are flat, (B, D), and every sample has its own time (B,): the adaptive solver controls the error of each sample
alone, so a sample's path does not depend on its batch-mates, and it leaves the batch once it has arrived. A field is
therefore told which rows of the batch it is asked for. Times are float64 whatever the state's precision.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, fields
from itertools import pairwise

import torch
from torch import Tensor

from scorefield.errors import NumericalError

Field = Callable[[Tensor, Tensor, Tensor], Tensor]  # times (b,), states (b, D), rows of the batch (b,) -> (b, D)


class OdeError(NumericalError):
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


class _Counted:
    """A field that counts its evaluations and sees states in the precision in which they were given."""

    def __init__(self, field: Field, x: Tensor) -> None:
        self.field, self.dtype = field, x.dtype
        self.nfe = torch.zeros(len(x), dtype=torch.long, device=x.device)
        self.calls = 0

    def __call__(self, t: Tensor, x: Tensor, rows: Tensor) -> Tensor:
        self.calls += 1
        self.nfe[rows] += 1
        return self.field(t, x.to(self.dtype), rows).to(x.dtype)


@dataclass(frozen=True)
class Solver(ABC):
    """A way to integrate from one time to another.

    Args:
        state_dtype: precision in which the state is accumulated; None is that of x. The field sees that of x.
    """

    _: KW_ONLY
    state_dtype: torch.dtype | None = None

    def solve(self, field: Field, x: Tensor, start: float, end: float) -> Solution:
        """Integrate x (B, D) from ``start`` to ``end``, forwards or backwards.

        Raises:
            OdeError: if the integration cannot go on, with the place where it stopped.
            ValueError: if x is not flat.
        """
        if x.ndim != 2:
            raise ValueError(f"x has shape {tuple(x.shape)}; solvers take flat states (B, D)")
        if start == end or len(x) == 0:
            return Solution(x, torch.zeros(len(x), dtype=torch.long, device=x.device), 0)
        grad = torch.is_grad_enabled()
        # A field may differentiate, and tensors made in inference mode cannot enter its graph.
        with torch.inference_mode(False), torch.set_grad_enabled(grad):
            counted = _Counted(field, x)
            state = (x.clone() if x.is_inference() else x).to(self.state_dtype or x.dtype)
            _require(state.isfinite().all(1), "the initial state is not finite", self, state, start)
            final = self._integrate(counted, state, start, end)
        return Solution(final.to(x.dtype), counted.nfe, counted.calls)

    @abstractmethod
    def _integrate(self, field: _Counted, x: Tensor, start: float, end: float) -> Tensor:
        """Final states of x (B, D), which is finite, over an interval of positive length."""


def _require(ok: Tensor, what: str, solver: Solver, x: Tensor, t: Tensor | float, rows: Tensor | None = None) -> None:
    """Raise for the first sample of x (b, D), rows of the batch, that is not ok (b,)."""
    if ok.all():
        return
    i = int((~ok).nonzero()[0])
    sample, time = i if rows is None else int(rows[i]), float(t[i]) if isinstance(t, Tensor) else t
    raise OdeError(
        f"{what}: sample {sample} at t={time:.6g}, |x|={float(x[i].norm()):.4g}, {x.dtype}; {int((~ok).sum())} of "
        f"{len(ok)} samples, {solver}. Try a larger t_min, a looser tolerance, float64 or a fixed grid of more steps; "
        "look at the weights if the field is not finite"
    )


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: stage i sees x + h sum_j a_ij k_j at t + c_i h; the step is h sum_i b_i k_i."""

    name: str
    order: int
    a: tuple[tuple[float, ...], ...] = field(repr=False)  # rows of the strictly lower triangle
    b: tuple[float, ...] = field(repr=False)
    c: tuple[float, ...] = field(repr=False)


EULER = Tableau("Euler", 1, ((),), (1.0,), (0.0,))
HEUN = Tableau("Heun", 2, ((), (1.0,)), (0.5, 0.5), (0.0, 1.0))
RK4 = Tableau("RK4", 4, ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), (0.0, 0.5, 0.5, 1.0))


def _weighted(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    """sum_i w_i k_i, sample by sample in the same order whatever the batch."""
    terms = [(w, k) for w, k in zip(weights, slopes, strict=True) if w]
    total = terms[0][0] * terms[0][1]
    for w, k in terms[1:]:
        total = torch.add(total, k, alpha=w)
    return total


@dataclass(frozen=True)
class FixedGrid(Solver):
    """Runge-Kutta steps on a grid that is equally spaced in t^(1/rho), or on a given one.

    Args:
        tableau: the method.
        steps: number of steps, >= 1.
        rho: 1 for equal steps in t; larger values shorten the steps towards t = 0 (Karras et al. 2022, eq. 5).
        times: the grid itself, strictly monotone, walked in either direction; replaces ``steps`` and ``rho``.
    """

    tableau: Tableau = HEUN
    steps: int = 100
    rho: float = 1.0
    times: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rho <= 0:
            raise ValueError(f"need steps >= 1 and rho > 0, got steps={self.steps}, rho={self.rho}")
        if self.times is not None:
            signs = {(s > t) - (s < t) for t, s in pairwise(self.times)}
            if signs not in ({1}, {-1}):
                raise ValueError(f"times={self.times} must be two or more, strictly increasing or decreasing")

    def grid(self, start: float, end: float) -> list[float]:
        """Times from ``start`` to ``end``, both included."""
        if self.times is not None:
            given = self.times if self.times[0] == start else self.times[::-1]
            if (given[0], given[-1]) != (start, end):
                raise ValueError(f"times end at {given[0]} and {given[-1]}, but the interval is {start} to {end}")
            return list(given)
        if self.rho != 1 and min(start, end) < 0:
            raise ValueError(f"rho={self.rho} needs times >= 0, the interval is {start} to {end}; use rho=1")
        low, high = start ** (1 / self.rho), end ** (1 / self.rho)
        inner = [(low + (high - low) * i / self.steps) ** self.rho for i in range(1, self.steps)]
        return [start, *inner, end]

    def _integrate(self, field: _Counted, x: Tensor, start: float, end: float) -> Tensor:
        rows = torch.arange(len(x), device=x.device)
        for t, s in pairwise(self.grid(start, end)):
            h, slopes = s - t, list[Tensor]()
            for a, c in zip(self.tableau.a, self.tableau.c, strict=True):
                # t + (s - t) may round to a time beyond s, outside the field's domain.
                at = torch.full((len(x),), s if c == 1 else t + c * h, dtype=torch.float64, device=x.device)
                state = torch.add(x, _weighted(a, slopes), alpha=h) if a else x
                slopes.append(field(at, state, rows))
            moved = torch.add(x, _weighted(self.tableau.b, slopes), alpha=h)
            if not moved.isfinite().all():
                for slope in slopes:
                    _require(slope.isfinite().all(1), f"the field is not finite in the step of {h:.3g}", self, x, t)
                _require(moved.isfinite().all(1), f"the state is not finite after the step of {h:.3g}", self, x, t)
            x = moved
        return x


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
    broken: Tensor  # whether the last step met a field or a state that is not finite

    def keep(self, mask: Tensor) -> "_Walk":
        return _Walk(*(getattr(self, column.name)[mask] for column in fields(self)))


@dataclass(frozen=True)
class DormandPrince(Solver):
    """Dormand-Prince 5(4) with the error of each sample controlled on its own (Dormand & Prince 1980).

    A step is accepted where rms(error / (atol + rtol max(|x|, |x'|))) < 1 over the sample's D components.

    Args:
        rtol: relative tolerance, > 0.
        atol: absolute tolerance, > 0.
        max_nfe: evaluations of the field after which a sample is given up, >= 8.
    """

    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000

    def __post_init__(self) -> None:
        if self.rtol <= 0 or self.atol <= 0 or self.max_nfe < 8:
            raise ValueError(f"need rtol > 0, atol > 0 and max_nfe >= 8 (one step with its start), got {self}")

    def _integrate(self, field: _Counted, x: Tensor, start: float, end: float) -> Tensor:
        # A shorter step would be lost in the rounding of times of this interval.
        shortest = 16 * torch.finfo(torch.float64).eps * max(abs(start), abs(end))
        walk, final = self._begin(field, x, start, end), torch.empty_like(x)
        while len(walk.rows):
            self._check(walk, field.nfe, shortest)
            walk = self._advance(field, walk, end)
            arrived = walk.t == end
            if arrived.any():
                final[walk.rows[arrived]] = walk.x[arrived]
                walk = walk.keep(~arrived)
        return final

    def _norm(self, value: Tensor, scale: Tensor) -> Tensor:
        return (value / scale).square().mean(1).sqrt().double()

    def _begin(self, field: _Counted, x: Tensor, start: float, end: float) -> _Walk:
        """First slope and first step size (Hairer, Norsett & Wanner 1993, section II.4)."""
        rows = torch.arange(len(x), device=x.device)
        t = torch.full((len(x),), start, dtype=torch.float64, device=x.device)
        slope = field(t, x, rows)
        _require(slope.isfinite().all(1), "the field is not finite at the start", self, x, start)
        scale, length, sign = self.atol + self.rtol * x.abs(), abs(end - start), 1.0 if end > start else -1.0
        size, speed = self._norm(x, scale), self._norm(slope, scale)
        trial = torch.where((size < 1e-5) | (speed < 1e-5), torch.full_like(size, 1e-6), 0.01 * size / speed)
        trial = trial.clamp(max=length)
        at, step = (t + sign * trial).clamp(min(start, end), max(start, end)), (sign * trial)[:, None].to(x)
        bend = self._norm(field(at, x + step * slope, rows) - slope, scale) / trial
        steepest = torch.maximum(speed, bend)
        wanted = torch.where(steepest <= 1e-15, (trial * 1e-3).clamp(min=1e-6), (0.01 / steepest) ** 0.2)
        # Where the trial left the field's domain, its own length is all that is known.
        wanted = torch.where(bend.isfinite(), torch.minimum(100 * trial, wanted), trial)
        return _Walk(rows, x, t, sign * wanted.clamp(max=length), slope, rejected=rows < 0, broken=rows < 0)

    def _advance(self, field: _Counted, walk: _Walk, end: float) -> _Walk:
        """One attempted step of every sample."""
        last = (walk.t + walk.h - end) * walk.h.sign() >= 0
        h = torch.where(last, end - walk.t, walk.h)
        landing = torch.where(last, torch.full_like(walk.t, end), walk.t + h)
        step, slopes, state = h[:, None].to(walk.x), [walk.slope], walk.x
        for a, c in zip(_DP_A[1:], _DP_C[1:], strict=True):
            state = torch.addcmul(walk.x, step, _weighted(a, slopes))
            slopes.append(field(landing if c == 1 else walk.t + c * h, state, walk.rows))
        scale = self.atol + self.rtol * torch.maximum(walk.x.abs(), state.abs())
        error = self._norm(step * _weighted(_DP_ERROR, slopes), scale)
        # A stage outside the field's domain is an error without bound: the step is taken again, shorter.
        broken = ~(error.isfinite() & state.isfinite().all(1))
        error = torch.where(broken, torch.full_like(error, torch.inf), error)
        accepted = error < 1
        growth = (_SAFETY * error.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
        growth = torch.where(~accepted | walk.rejected, growth.clamp(max=1.0), growth)
        take = accepted[:, None]
        return _Walk(
            walk.rows,
            torch.where(take, state, walk.x),
            torch.where(accepted, landing, walk.t),
            h * growth,
            torch.where(take, slopes[-1], walk.slope),
            ~accepted,
            broken,
        )

    def _check(self, walk: _Walk, nfe: Tensor, shortest: float) -> None:
        stuck = walk.h.abs() <= shortest
        spent = nfe[walk.rows] + 6 > self.max_nfe
        broken = walk.broken & (stuck | spent)
        _require(~broken, "the field is not finite however short the step", self, walk.x, walk.t, walk.rows)
        _require(~stuck, "the step size fell to the rounding of time", self, walk.x, walk.t, walk.rows)
        _require(~spent, f"max_nfe={self.max_nfe} evaluations are spent", self, walk.x, walk.t, walk.rows)
