"""The residual of the score Fokker-Planck equation as a regulariser."""

from dataclasses import replace

from torch import Tensor

from scorefield.divergence import Divergence, Hutchinson
from scorefield.fokker_planck import residual, squared_norm
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.objectives.base import Loss, Objective
from scorefield.objectives.weights import SigmaPower, Weight
from scorefield.times import TimeLaw, Uniform


class FokkerPlanck(Objective):
    """lambda(t) / d |d_t s - grad [g^2 / 2 (div s + |s|^2) - f x . s]|^2 at x_t (Lai et al. 2023, eq. 13).

    Zero for the scores of any diffusion under the schedule, right or wrong: it says that the levels fit together, not
    that they fit the data. Use it beside a score matching objective, in a `Sum`.

    Args:
        divergence: exact, or by probes; the square of an estimate is off by its variance. None takes one sign probe.
        weight: lambda(t); None takes sigma^2, in which the score has the same size at every level.
        times: law of the training times; its importance weight multiplies the loss.
    """

    def __init__(
        self, divergence: Divergence | None = None, weight: Weight | None = None, times: TimeLaw | None = None
    ) -> None:
        super().__init__()
        self.divergence = Hutchinson() if divergence is None else divergence
        self.weight = SigmaPower(2.0) if weight is None else weight
        self.times = Uniform() if times is None else times

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        t, importance = self.times.sample(len(x), model.schedule, noise, x.device)
        x_t = model.schedule.perturb(x, t, noise.normal_like(x))
        loss = self.at(model, x_t, t, noise, cond)
        return replace(loss, per_sample=importance.to(x.dtype) * loss.per_sample)

    def at(self, model: ScoreModel, x_t: Tensor, t: Tensor, noise: Noise, cond: Cond | None = None) -> Loss:
        """The loss of perturbed samples x_t (B, *event) at times t (B,), without importance weight."""
        error = squared_norm(residual(model, x_t, t, cond, self.divergence, noise))
        return Loss(self.weight(model.schedule, t).to(error) * error, t, {"residual": error.detach()})
