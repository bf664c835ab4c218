"""Samplers: a grid of times, a predictor between them, a corrector on each.

`Sampler` is the predictor-corrector of Song et al. 2021 (section 4.2); predictor-only and corrector-only sampling are
its two degenerate forms. `FlowSampler` solves the probability-flow ODE with error control instead of on a grid. Both
may be held to an observation by a constraint.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from scorefield.constraints import Constraint
from scorefield.errors import NumericalError
from scorefield.grids import Grid
from scorefield.kernels.base import Kernel, Stay
from scorefield.levels import shared
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise
from scorefield.ode import Solver
from scorefield.probability_flow import ProbabilityFlow
from scorefield.schedules import Schedule
from scorefield.tensors import per_sample

Trace = Callable[[int, float, Tensor], None]  # step number (0 is the start), time, state


@dataclass
class Path:
    """A trace that keeps the path: give it to any sampler as ``trace``.

    Args:
        every: steps from one kept state to the next; the first and the last are always kept.
        rows: keep the first so many samples only; None keeps all.
    """

    every: int = 1
    rows: int | None = None
    _times: list[float] = field(default_factory=list)
    _states: list[Tensor] = field(default_factory=list)
    _last: tuple[int, float, Tensor] | None = None

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        self._last = (step, t, x.detach()[: self.rows].clone())
        if step % self.every == 0:
            self._keep()

    def _keep(self) -> None:
        if self._last is not None:
            self._times.append(self._last[1])
            self._states.append(self._last[2])
            self._last = None

    @property
    def t(self) -> Tensor:
        """Times of the kept states, (K,) float64; 0 for a denoised end."""
        self._keep()
        return torch.tensor(self._times, dtype=torch.float64)

    @property
    def x(self) -> Tensor:
        """Kept states, (K, B, *event)."""
        self._keep()
        return torch.stack(self._states)


class NonFiniteSamplesError(NumericalError):
    """Some samples came out as nan or infinity."""


@dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Args:
        x: samples, (B, *event).
        nfe: network evaluations per sample.
    """

    x: Tensor
    nfe: float


@dataclass(frozen=True)
class Sampler:
    """Corrects at each time of the grid, then predicts the next one (Song et al. 2021, algorithm 1).

    At each grid time the corrector runs before the predictor leaves it, the order of the authors' code. There it leaves
    the last time too, corrected: ``correct_last`` with ``denoise_last``. Where the grid goes back up, noise is added by
    the forward process and the predictor starts anew.

    Args:
        grid: where the times lie.
        steps: number of the grid's steps, >= 1.
        predictor: moves x from one time to the next.
        corrector: moves x at one time, towards that time's marginal; None for none.
        corrections: corrector steps at each time.
        denoise_last: end with the posterior mean E[x | x_t] at the last time (one more network evaluation).
        constraint: holds the observed part of x after every move, at the start and at the end; None for none.
        correct_last: correct at the last time too.
    """

    grid: Grid
    steps: int
    predictor: Kernel = field(default_factory=Stay)
    corrector: Kernel | None = None
    corrections: int = 1
    denoise_last: bool = False
    constraint: Constraint | None = None
    correct_last: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} must be at least 1")
        if self.corrections < 1:
            raise ValueError(f"corrections={self.corrections} must be at least 1; for none set corrector to null")
        if self.correct_last and self.corrector is None:
            raise ValueError("correct_last=True corrects at the last time and needs a corrector, which is None")

    @property
    def moves(self) -> int:
        """Moves from one time to the next."""
        return self.grid.moves(self.steps)

    @property
    def nfe(self) -> int:
        """Network evaluations of one run."""
        corrector = 0 if self.corrector is None else self.corrections * self.corrector.calls
        moves = self.grid.descents(self.steps)
        return moves * self.predictor.calls + (moves + self.correct_last) * corrector + self.denoise_last

    @torch.no_grad()
    def __call__(
        self,
        model: ScoreModel,
        x: Tensor,
        cond: Cond | None = None,
        noise: Noise | None = None,
        trace: Trace | None = None,
    ) -> Samples:
        """Sample from the state x (B, *event) at the grid's first time, usually ``schedule.prior_like``.

        Raises:
            NonFiniteSamplesError: if a sample is not finite at the end.
            ValueError: if there is a constraint and no observation in ``cond``.
        """
        noise = GlobalNoise() if noise is None else noise
        held = _Held(self.constraint, model.schedule, cond, noise)
        grid = self.grid(model.schedule, self.steps)
        times, levels = shared(grid, x), grid.tolist()
        moved = self.predictor.init(x, grid)
        corrected = None if self.corrector is None else self.corrector.init(x, grid)

        def correct(x: Tensor, t: Tensor) -> Tensor:
            nonlocal corrected
            for _ in range(self.corrections):
                if self.corrector is not None and corrected is not None:
                    x, corrected = self.corrector.step(model, x, t, t, corrected, noise, cond)
                    x = held(x, t)
            return x

        x = held(x, times[0])
        if trace is not None:
            trace(0, levels[0], x)
        for i, (t, s) in enumerate(pairwise(times)):
            if levels[i + 1] > levels[i]:
                x, moved = _raised(model.schedule, x, t, s, noise), self.predictor.init(x, grid)
            else:
                x, moved = self.predictor.step(model, correct(x, t), t, s, moved, noise, cond)
                x = held(x, s)
            if trace is not None:
                trace(i + 1, levels[i + 1], x)
        if self.correct_last:
            x = correct(x, times[-1])
            if trace is not None:
                trace(len(grid) - 1, levels[-1], x)
        if self.denoise_last:
            x = self.predictor.denoise(model, x, times[-1], moved, noise, cond)
        x = held.at_the_end(x)
        if trace is not None and (self.denoise_last or self.constraint is not None):
            trace(len(grid), 0.0, x)
        return Samples(_finite(x, self), self.nfe)


@dataclass(frozen=True)
class FlowSampler:
    """Samples by solving the probability-flow ODE from t_max down to t_min (Song et al. 2021, section 4.3).

    Args:
        solver: the ODE solver.
        t_min: time at which the flow ends; None takes the schedule's.
        denoise_last: end with the posterior mean E[x | x_t] at the last time (one more network evaluation).
        stops: parts of the way, in equal steps of ln(sigma / alpha), after each of which the state is traced. The
            solver starts anew at each, which costs it a few evaluations.
        constraint: holds the observed part of x at the stops; wants many of them. None for none.
    """

    solver: Solver
    t_min: float | None = None
    denoise_last: bool = False
    stops: int = 1
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if self.stops < 1:
            raise ValueError(f"stops={self.stops} must be at least 1: the end of the flow is one")
        if self.constraint is not None and self.stops < 2:
            raise ValueError(
                f"stops={self.stops} holds the constraint at the end only, where the rest can no longer agree with it; "
                "give many, such as 50"
            )

    @torch.no_grad()
    def __call__(
        self,
        model: ScoreModel,
        x: Tensor,
        cond: Cond | None = None,
        noise: Noise | None = None,
        trace: Trace | None = None,
    ) -> Samples:
        """Sample from the state x (B, *event) at t_max.

        Raises:
            OdeError: if the solver fails, with the place where it did.
        """
        flow = ProbabilityFlow(self.solver, t_min=self.t_min)
        start, end = model.schedule.t_max, flow.start(model)
        held = _Held(self.constraint, model.schedule, cond, GlobalNoise() if noise is None else noise)
        x = held(x, _times(start, x))
        if trace is not None:
            trace(0, start, x)
        times = [start, end] if self.stops == 1 else model.schedule.geometric_times(start, end, self.stops + 1).tolist()
        nfe = 0.0
        for i, (t, s) in enumerate(pairwise(times)):
            x, calls = flow.transport(model, x, t, s, cond)
            nfe += float(calls.double().mean())
            x = held(x, _times(s, x))
            if trace is not None:
                trace(i + 1, s, x)
        if self.denoise_last:
            x = model(x, _times(end, x), cond).data
            nfe += 1
        x = held.at_the_end(x)
        if trace is not None and (self.denoise_last or self.constraint is not None):
            trace(self.stops + 1, 0.0, x)
        return Samples(_finite(x, self), nfe)


@dataclass(frozen=True)
class _Held:
    """A constraint along one run, or none."""

    constraint: Constraint | None
    schedule: Schedule
    cond: Cond | None
    noise: Noise

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return x if self.constraint is None else self.constraint.hold(self.schedule, x, t, self.cond, self.noise)

    def at_the_end(self, x: Tensor) -> Tensor:
        return x if self.constraint is None else self.constraint.finish(x, self.cond)


def _raised(schedule: Schedule, x: Tensor, t: Tensor, s: Tensor, noise: Noise) -> Tensor:
    """x after the forward transition from times t (B,) up to s (B,)."""
    gain, variance = schedule.transition(t, s)
    return per_sample(gain.to(x), x) * x + per_sample(variance.sqrt().to(x), x) * noise.normal_like(x)


def _times(t: float, x: Tensor) -> Tensor:
    """One time for each sample, (B,)."""
    return torch.full((len(x),), t, dtype=torch.float64, device=x.device)


def _finite(x: Tensor, sampler: object) -> Tensor:
    bad = ~x.flatten(1).isfinite().all(1)
    if bad.any():
        raise NonFiniteSamplesError(
            f"{int(bad.sum())} of {len(x)} samples are not finite (first: {int(bad.nonzero()[0])}) after {sampler}; "
            "usual causes: steps too large for the schedule (more steps, smaller corrector snr) or diverged weights",
            samples=x,
        )
    return x
