"""Implicit score matching: the score's error without the true score, from the divergence of the model's field.

    E_{p_t} |s - grad log p_t|^2 / 2 = E_{p_t} [|s|^2 / 2 + div s] + constant             (Hyvärinen 2005, theorem 1)

holds at every noise level, sigma = 0 included: no noise is needed, only derivatives. Losses are in the papers' units,
sums over the d dimensions; those of `Denoising` with the score view are 2 / d times the same error.
"""

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from scorefield.divergence import Divergence, Exact, Hutchinson, quadratic_forms
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise
from scorefield.objectives.base import Loss, Objective
from scorefield.objectives.weights import Unit, Weight
from scorefield.tensors import event_sum, per_sample
from scorefield.times import TimeLaw, Uniform


class OnPerturbed(Objective, ABC):
    """An objective of the perturbed sample alone: neither the clean one nor the noise enters it.

    Args:
        divergence: how the divergence is computed.
        weight: lambda(t).
        times: law of the training times; its importance weight multiplies the loss.
    """

    def __init__(
        self, divergence: Divergence | None = None, weight: Weight | None = None, times: TimeLaw | None = None
    ) -> None:
        super().__init__()
        self.divergence = Exact() if divergence is None else divergence
        self.weight = Unit() if weight is None else weight
        self.times = Uniform() if times is None else times

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        t, importance = self.times.sample(len(x), model.schedule, noise, x.device)
        x_t = model.schedule.perturb(x, t, noise.normal_like(x))
        loss = self.at(model, x_t, t, self.divergence.draw(x_t, noise), cond)
        return replace(loss, per_sample=importance.to(x.dtype) * loss.per_sample)

    def at(self, model: ScoreModel, x_t: Tensor, t: Tensor, probes: Tensor, cond: Cond | None = None) -> Loss:
        """The loss of perturbed samples x_t (B, *event) at times t (B,), without importance weight.

        Args:
            model: the model.
            x_t: perturbed samples, (B, *event).
            t: their times, (B,).
            probes: what ``divergence.draw`` returns, (k, B, *event).
            cond: conditions of the samples.
        """
        value = self.unweighted(model, x_t, t, probes, cond)
        return Loss(self.weight(model.schedule, t).to(value) * value, t, {"error": value.detach()})

    @abstractmethod
    def unweighted(self, model: ScoreModel, x_t: Tensor, t: Tensor, probes: Tensor, cond: Cond | None) -> Tensor:
        """The loss of each sample before its weight, (B,)."""


class Implicit(OnPerturbed):
    """lambda(t) (|s|^2 / 2 + div s) at x_t.

    With `Exact` the objective of Hyvärinen 2005, eq. 4; with `Hutchinson` sliced score matching with variance
    reduction (Song et al. 2020, eq. 8); with a ladder of levels and weight sigma^2, NCSN trained by sliced score
    matching (Song & Ermon 2019, section 3.2).

    Args:
        divergence: how the divergence is computed: exactly, or by probes.
        weight: lambda(t).
        times: law of the training times; its importance weight multiplies the loss.
    """

    def unweighted(self, model: ScoreModel, x_t: Tensor, t: Tensor, probes: Tensor, cond: Cond | None) -> Tensor:
        score, divergence = self.divergence.along(lambda y: model(y, t, cond).score, x_t, probes)
        return event_sum(score.square()) / 2 + divergence


class Sliced(OnPerturbed):
    """lambda(t) mean over probes v of (v . s)^2 / 2 + v . grad s v at x_t (Song et al. 2020, eq. 7).

    The same expectation as `Implicit` for probes with E[v v^T] = I, and more variance; kept because the published
    method is this one. The mean over the d basis vectors times sqrt(d) is the exact objective.

    Args:
        divergence: the probes.
        weight: lambda(t).
        times: law of the training times; its importance weight multiplies the loss.
    """

    def __init__(
        self, divergence: Hutchinson | None = None, weight: Weight | None = None, times: TimeLaw | None = None
    ) -> None:
        super().__init__(Hutchinson() if divergence is None else divergence, weight, times)

    def unweighted(self, model: ScoreModel, x_t: Tensor, t: Tensor, probes: Tensor, cond: Cond | None) -> Tensor:
        score, forms = quadratic_forms(lambda y: model(y, t, cond).score, x_t, [probes])
        along = (probes * score).flatten(2).sum(2)
        return (along.square() / 2 + forms).mean(0)


class Sure(OnPerturbed):
    """lambda(t) SURE: |D - x_t / alpha|^2 + 2 sigma^2 / alpha div D - d sigma^2 / alpha^2, D the data view at x_t.

    Stein's unbiased risk estimate (Stein 1981, theorem 1): its mean is the mean squared error E|D - x|^2 of the
    denoiser, which it estimates without ever seeing x. With D = (x_t + sigma^2 s) / alpha it is
    2 sigma^4 / alpha^2 (|s|^2 / 2 + div s) + d sigma^2 / alpha^2: the objective `Implicit` in other units
    (Raphan & Simoncelli 2011), kept for its value.

    Args:
        divergence: how the divergence is computed: exactly, or by probes.
        weight: lambda(t).
        times: law of the training times; its importance weight multiplies the loss.
    """

    def unweighted(self, model: ScoreModel, x_t: Tensor, t: Tensor, probes: Tensor, cond: Cond | None) -> Tensor:
        alpha, sigma = (scale(t).to(x_t) for scale in (model.schedule.alpha, model.schedule.sigma))
        data, divergence = self.divergence.along(lambda y: model(y, t, cond).data, x_t, probes)
        residual = event_sum((data - x_t / per_sample(alpha, x_t)).square())
        variance = sigma.square() / alpha
        return residual + variance * (2 * divergence - x_t[0].numel() / alpha)


class ObservedSure(Sure):
    """`Sure` on data that are noisy already: each batch is taken for x_t itself, and no clean sample exists.

    The schedule says how noisy the data are; with `Constant(sigma)` every training time means that level.
    """

    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        t, importance = self.times.sample(len(x), model.schedule, noise, x.device)
        loss = self.at(model, x, t, self.divergence.draw(x, noise), cond)
        return replace(loss, per_sample=importance.to(x.dtype) * loss.per_sample)
