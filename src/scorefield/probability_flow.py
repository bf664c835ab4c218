"""The probability-flow ODE: latent codes, decoding, and likelihoods (Song et al. 2021, section 4.3).

The flow's field is the velocity view of the model, dx/dt = f x - 1/2 g^2 score, and along it

    log p_0(x) = log p_T(z) + int_0^T div velocity(x_t, t) dt,

the instantaneous change of variables (Chen et al. 2018, theorem 1), from t_min to t_max of the schedule. The density
is the one of the data perturbed to t_min; nothing is added for the way from t_min to 0.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.divergence import Divergence, Exact
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise
from scorefield.ode import DormandPrince, Solver


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
