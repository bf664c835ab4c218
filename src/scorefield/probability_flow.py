"""The probability-flow ODE: latent codes, decoding, and likelihoods (Song et al. 2021, section 4.3).

The flow's field is the velocity view of the model, dx/dt = f x - 1/2 g^2 score, and along it

    log p_0(x) = log p_T(z) + int_0^T div velocity(x_t, t) dt,

the instantaneous change of variables (Chen et al. 2018, theorem 1), from t_min to t_max of the schedule. The density
is the one of the data perturbed to t_min; nothing is added for the way from t_min to 0.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.divergence import Divergence, Exact
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise
from scorefield.ode import DormandPrince, Solver
from scorefield.tensors import event_dot, event_norm, per_sample


@dataclass(frozen=True)
class Code:
    """Where the flow takes samples.

    Args:
        z: end points, (B, *event).
        log_abs_det: log|det dz/dx| of the map, (B,).
        nfe: network evaluations for each sample, (B,).
    """

    z: Tensor
    log_abs_det: Tensor
    nfe: Tensor


@dataclass(frozen=True)
class LogDensity:
    """log p of samples from several draws of what is random about it.

    Args:
        log_prob: mean over the draws, in nats, (B,).
        standard_error: of that mean, (B,); nan for a single draw.
        nfe: network evaluations for each sample over all draws, (B,).
    """

    log_prob: Tensor
    standard_error: Tensor
    nfe: Tensor


def spherical(a: Tensor, b: Tensor, weights: Tensor) -> Tensor:
    """Latent codes between two of them along great circles: codes of N(0, I) keep their usual length.

    (sin((1 - w) theta) a + sin(w theta) b) / sin(theta), theta the angle between a and b (Shoemake 1985, section 3.3).

    Args:
        a: codes at weight 0, (B, *event).
        b: codes at weight 1, (B, *event).
        weights: w, (K,), in [0, 1].

    Returns:
        (K, B, *event); where a and b have the same direction, their linear interpolation.
    """
    cosine = (event_dot(a, b) / (event_norm(a) * event_norm(b))).clamp(-1, 1)
    theta = per_sample(cosine.arccos(), a)
    w = weights.to(a).reshape(-1, *(1,) * a.ndim)
    from_a, from_b = ((part * theta).sin() / theta.sin() for part in (1 - w, w))
    aligned = theta.sin() < 1e-6
    return torch.where(aligned, 1 - w, from_a) * a + torch.where(aligned, w, from_b) * b


def _at_rows(cond: Cond | None, rows: Tensor) -> Cond | None:
    return None if cond is None else {name: value[rows] for name, value in cond.items()}


@dataclass(frozen=True)
class ProbabilityFlow:
    """Encodes, decodes and evaluates densities along the probability flow.

    Args:
        solver: integrates the flow; its tolerance bounds the error of states and log-determinants together.
        divergence: exact, or estimated by probes that are held fixed along each path.
        t_min: time that stands for the data; None takes the schedule's.
    """

    solver: Solver = field(default_factory=DormandPrince)
    divergence: Divergence = field(default_factory=Exact)
    t_min: float | None = None

    def start(self, model: ScoreModel) -> float:
        """The time at the data's end of the flow."""
        return model.schedule.t_min if self.t_min is None else self.t_min

    @torch.no_grad()
    def encode(self, model: ScoreModel, x: Tensor, cond: Cond | None = None, noise: Noise | None = None) -> Code:
        """Latent codes of x (B, *event) at t_max, with the log-determinant of the map.

        Args:
            model: the model.
            x: samples at t_min, (B, *event).
            cond: conditions.
            noise: draws the probes of an estimated divergence.

        Raises:
            OdeError: if the solver fails, with the place where it did.
        """
        probes = self.divergence.draw(x, GlobalNoise() if noise is None else noise)

        def augmented(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
            at, where = state[:, :-1].reshape(-1, *x.shape[1:]), _at_rows(cond, rows)
            value, divergence = self.divergence.along(lambda y: model(y, t, where).velocity, at, probes[:, rows])
            return torch.cat([value.flatten(1), divergence[:, None]], 1)

        state = torch.cat([x.flatten(1), x.new_zeros(len(x), 1)], 1)
        solution = self.solver.solve(augmented, state, self.start(model), model.schedule.t_max)
        return Code(solution.x[:, :-1].reshape(x.shape), solution.x[:, -1], solution.nfe)

    def decode(self, model: ScoreModel, z: Tensor, cond: Cond | None = None) -> Tensor:
        """Samples at t_min of latent codes z (B, *event): the inverse of `encode`."""
        return self.transport(model, z, model.schedule.t_max, self.start(model), cond)[0]

    @torch.no_grad()
    def transport(
        self, model: ScoreModel, x: Tensor, start: float, end: float, cond: Cond | None = None
    ) -> tuple[Tensor, Tensor]:
        """States of x (B, *event) after the flow from one time to another, and the evaluations of each sample (B,)."""

        def flat(t: Tensor, state: Tensor, rows: Tensor) -> Tensor:
            return model(state.reshape(-1, *x.shape[1:]), t, _at_rows(cond, rows)).velocity.flatten(1)

        solution = self.solver.solve(flat, x.flatten(1), start, end)
        return solution.x.reshape(x.shape), solution.nfe

    def log_prob(self, model: ScoreModel, x: Tensor, cond: Cond | None = None, noise: Noise | None = None) -> Tensor:
        """log p(x) in nats under the prior at t_max, (B,)."""
        code = self.encode(model, x, cond, noise)
        return model.schedule.prior_log_prob(code.z) + code.log_abs_det

    def log_density(
        self,
        model: ScoreModel,
        draws: Iterable[Tensor],
        cond: Cond | None = None,
        noise: Noise | None = None,
        log_abs_det: Tensor | None = None,
    ) -> LogDensity:
        """log p of each sample with its standard error over probes and dequantisation.

        Args:
            model: the model.
            draws: for each draw the samples in model space, (B, *event): the same tensor again for continuous data,
                another dequantisation each time for integer data. Every draw has probes of its own.
            cond: conditions.
            noise: draws the probes of an estimated divergence.
            log_abs_det: log-determinant of the way from data to model space, (B,), which is added; None for 0.
        """
        noise = GlobalNoise() if noise is None else noise
        found, calls = [], []
        for x in draws:
            code = self.encode(model, x, cond, noise)
            found.append(model.schedule.prior_log_prob(code.z).double() + code.log_abs_det.double())
            calls.append(code.nfe)
        values = torch.stack(found)
        extra = 0 if log_abs_det is None else log_abs_det.double()
        error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.full_like(values[0], torch.nan)
        return LogDensity(values.mean(0) + extra, error, torch.stack(calls).sum(0))
