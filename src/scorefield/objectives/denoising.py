"""Denoising score matching in every parametrisation."""

from dataclasses import replace

import torch
from torch import Tensor

from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.objectives.base import Loss, Objective
from scorefield.objectives.weights import Unit, Weight
from scorefield.prediction import Prediction, Target
from scorefield.schedules import Schedule
from scorefield.tensors import event_mean, per_sample
from scorefield.times import TimeLaw, Uniform


class Denoising(Objective):
    """lambda(t) / d |view(x_t, t) - (p x + q eps)|^2, with p x + q eps the view's value for the known x and eps.

    Vincent 2011, eq. 14 (one level); Song & Ermon 2019, eq. 5-6; Ho et al. 2020, eq. 14; Song et al. 2021, eq. 7;
    Karras et al. 2022, eq. 8; Lipman et al. 2023, eq. 23: they differ in view, weight and law alone. The error is
    averaged over the d dimensions; the papers' 1/2 sum over dimensions is d / 2 times this: a `Sum` of one term, or a
    gradient clipped at 2 / d of the threshold and Adam's eps times 2 / d.

    Args:
        view: the target in which the error is measured; None takes what the network itself predicts.
        weight: lambda(t).
        times: law of the training times; its importance weight multiplies the loss.
    """

    def __init__(self, view: Target | None = None, weight: Weight | None = None, times: TimeLaw | None = None) -> None:
        super().__init__()
        self.view = view
        self.weight = Unit() if weight is None else weight
        self.times = Uniform() if times is None else times

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        t, importance = self.times.sample(len(x), model.schedule, noise, x.device)
        eps = noise.normal_like(x)
        loss = self.at(model, x, t, eps, cond)
        return replace(loss, per_sample=importance.to(x.dtype) * loss.per_sample)

    def at(self, model: ScoreModel, x: Tensor, t: Tensor, eps: Tensor, cond: Cond | None = None) -> Loss:
        """The loss at given times t (B,) and noise eps (B, *event), without importance weight."""
        x_t = model.schedule.perturb(x, t, eps)
        prediction = model(x_t, t, cond)
        error = event_mean(self._error(prediction, x, eps).square())
        weight = self.weight(model.schedule, t).to(error.dtype)
        return Loss(weight * error, t, {"error": error.detach()})

    def _error(self, prediction: Prediction, x: Tensor, eps: Tensor) -> Tensor:
        target = prediction.target if self.view is None else self.view
        p, q = (
            _finite(c, prediction.schedule, target).to(x)
            for c in target.coefficients(prediction.schedule, prediction.t)
        )
        return prediction.view(target) - (per_sample(p, x) * x + per_sample(q, x) * eps)


def _finite(coefficient: Tensor, schedule: Schedule, target: Target) -> Tensor:
    """The coefficient, refused where the target does not exist (score of clean data)."""
    if not coefficient.is_cuda and not torch.isfinite(coefficient).all():
        raise ValueError(
            f"{target} has no value for given noise under {schedule} at some training time; denoising needs "
            "sigma(t) > 0: raise the law's t_min or use another schedule"
        )
    return coefficient
