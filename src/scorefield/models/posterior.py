"""Scores of p(x_t | y) for an observation y = A x + std n: a term for log p(y | x_t) is added to any model's score.

By Bayes' rule the score of the posterior is s(x_t) + grad log p(y | x_t), and p(y | x_t) is the mean of
N(y; A x, std^2) over p(x | x_t). The methods differ in the Gaussian N(m, C) that stands for p(x | x_t), m = E[x | x_t]
in all of them:

    DPS                 C = 0                             underrates the uncertainty: too strong at large noise
    PiGDM               C = r_t^2 I                       exact if the data are N(., d^2 I)
    MomentMatching      C = Cov[x | x_t] by Tweedie       exact if the data are Gaussian

and their term is J^T A^T (A C A^T + std^2 I)^-1 (y - A m) with J = dm / dx_t, where the dependence of C on x_t is left
out. What comes out is a score model, which every sampler and guidance takes. The observation travels in the conditions,
``cond["observed"]`` (B, *observed).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from scorefield.models.base import Cond, ScoreModel, observed
from scorefield.operators import LinearOperator
from scorefield.prediction import Data, Prediction
from scorefield.tensors import event_dot, event_norm, per_sample

Pull = Callable[[Tensor], Tensor]  # v (B, *observed) -> J^T A^T v (B, *event)


class Observed(ScoreModel, ABC):
    """score = s(x_t) + scale J^T A^T W (y - A m); subclasses say what W is.

    One call costs one of the model and one backward pass through it. All rows are computed apart from each other.

    Args:
        model: the prior; guided or not.
        operator: A.
        std: standard deviation of the observation's noise, one number or a tensor shaped like one y, in model space.
        scale: multiplies the term; 1 is Bayes' rule.
    """

    needs_noise = False

    def __init__(
        self, model: ScoreModel, operator: LinearOperator, std: float | Tensor = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__(model.schedule)
        least = float(torch.as_tensor(std).min())
        if least < 0 or (self.needs_noise and least == 0):
            raise ValueError(
                f"std={std} of {type(self).__name__} must be {'positive' if self.needs_noise else 'at least 0'}: the "
                "deviation of the observation's noise"
            )
        self.model, self.operator, self.std, self.scale = model, operator, std, scale

    @abstractmethod
    def weigh(self, residual: Tensor, t: Tensor, pull: Pull) -> Tensor:
        """W (y - A m), (B, *observed), of the residual y - A m at times t (B,)."""

    def variance(self, like: Tensor) -> Tensor:
        """std^2, which broadcasts against observations."""
        return torch.as_tensor(self.std, dtype=like.dtype, device=like.device).square()

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        y = observed(cond, x)
        differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            # Tensors made in inference mode cannot enter a graph, copies of them can.
            at = x if x.requires_grad and differentiable else x.detach().clone().requires_grad_()
            told = {name: value.clone() for name, value in (cond or {}).items()}
            prediction = self.model(at, t.clone(), told)
            mean = prediction.data

            def pull(v: Tensor) -> Tensor:
                back = self.operator.adjoint(v)
                return torch.autograd.grad(mean, at, back, retain_graph=True, create_graph=differentiable)[0]

            residual = y.clone() - self.operator.forward(mean)
            term = self.scale * pull(self.weigh(residual if differentiable else residual.detach(), t.clone(), pull))
        if not differentiable:
            prediction = replace(prediction, x=x, t=t, out=prediction.out.detach())
            term = term.detach()
        return prediction.add_score(term)


class DPS(Observed):
    """W = 1 / std^2: diffusion posterior sampling (Chung et al. 2023, theorem 1), with p(y | x_t) = N(y; A m, std^2).

    Stiff where std is small: at noise levels far above std the term wants steps of about (std / sigma)^2. The authors
    take steps of a fixed length instead, see `NormalisedDPS`.
    """

    needs_noise = True

    def weigh(self, residual: Tensor, t: Tensor, pull: Pull) -> Tensor:
        return residual / self.variance(residual)


class NormalisedDPS(Observed):
    """W = 1 / (g^2 |y - A m|): the step rule of diffusion posterior sampling in continuous time.

    The authors move x by zeta grad |y - A m| in each of N steps, whatever the noise level (Chung et al. 2023, step
    sizes of the appendix). With the reverse SDE that is this term with ``scale`` = zeta N / (t_max - t_min): on VP and
    1000 steps, 1000 zeta. It is no approximation of Bayes' rule.
    """

    def weigh(self, residual: Tensor, t: Tensor, pull: Pull) -> Tensor:
        g_sq = self.schedule.diffusion_sq(t).to(residual)
        # A residual of 0 has no direction, and no term.
        length = event_norm(residual).clamp(min=torch.finfo(residual.dtype).tiny ** 0.5)
        return residual / per_sample(g_sq * length, residual)


class PiGDM(Observed):
    """W = (r^2 + std^2)^-1 with r^2 = sigma^2 d^2 / (alpha^2 d^2 + sigma^2) (Song et al. 2023, section 3).

    r^2 is the posterior variance of data of variance d^2; the paper has d = 1.

    Args:
        model: the prior; guided or not.
        operator: A.
        std: standard deviation of the observation's noise.
        data_std: d, > 0.
        scale: multiplies the term.
    """

    def __init__(
        self,
        model: ScoreModel,
        operator: LinearOperator,
        std: float | Tensor = 0.0,
        data_std: float = 1.0,
        scale: float = 1.0,
    ) -> None:
        super().__init__(model, operator, std, scale)
        if data_std <= 0:
            raise ValueError(f"data_std={data_std} must be positive: the standard deviation of the data in model space")
        self.data_std = data_std

    def weigh(self, residual: Tensor, t: Tensor, pull: Pull) -> Tensor:
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        scaled = sigma * self.data_std / torch.hypot(alpha * self.data_std, sigma)
        return residual / (per_sample(scaled.square().to(residual), residual) + self.variance(residual))


class MomentMatching(Observed):
    """W = (sigma^2 / alpha A J A^T + std^2 I)^-1: the mean and the covariance of p(x | x_t) are the model's own.

    Tweedie's formula gives Cov[x | x_t] = sigma^2 / alpha J (Finzi et al. 2023; Boys et al. 2024; Rozet et al. 2024).
    The system is solved by conjugate gradients, one backward pass an iteration; m of them are exact for an y of m
    entries and an exact score, whose J is symmetric. That of a trained network is so only nearly, which many iterations
    magnify: with few, and small steps, hardly a sample is lost.

    Args:
        model: the prior; guided or not.
        operator: A.
        std: standard deviation of the observation's noise.
        iterations: of the solver, >= 1.
        scale: multiplies the term.
    """

    def __init__(
        self,
        model: ScoreModel,
        operator: LinearOperator,
        std: float | Tensor = 0.0,
        iterations: int = 2,
        scale: float = 1.0,
    ) -> None:
        super().__init__(model, operator, std, scale)
        if iterations < 1:
            raise ValueError(f"iterations={iterations} must be at least 1")
        self.iterations = iterations

    def weigh(self, residual: Tensor, t: Tensor, pull: Pull) -> Tensor:
        gain = per_sample((self.schedule.sigma(t).square() / self.schedule.alpha(t)).to(residual), residual)

        def spread(v: Tensor) -> Tensor:
            return gain * self.operator.forward(pull(v)) + self.variance(residual) * v

        return _conjugate_gradients(spread, residual, self.iterations)


def _conjugate_gradients(matrix: Pull, b: Tensor, iterations: int) -> Tensor:
    """x with matrix x = b for each sample by itself, from x = 0 (Hestenes & Stiefel 1952).

    A sample stops where it is solved to rounding, or where the matrix is not positive, as a learnt one may not be.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    size = first = event_dot(b, b)
    enough = (4 * torch.finfo(b.dtype).eps) ** 2 * first
    for _ in range(iterations):
        image = matrix(direction)
        curvature = event_dot(direction, image)
        going = (curvature > 0) & (size > enough)
        step = per_sample(torch.where(going, size / torch.where(going, curvature, 1.0), 0.0), b)
        x, residual = x + step * direction, residual - step * image
        now = event_dot(residual, residual)
        turn = torch.where(going, now / torch.where(going, size, 1.0), 0.0)
        direction, size = residual + per_sample(turn, b) * direction, torch.where(going, now, torch.zeros_like(now))
    return x


class NullSpace(ScoreModel):
    """The data view is m + A^T (y - A m): every estimate of x is projected onto what was observed, without noise.

    The range and null-space decomposition of Wang et al. 2023 (DDNM, section 3); needs no backward pass. What the model
    says of the rest does not feel the observation but through x_t.

    Args:
        model: the prior; guided or not.
        operator: A.
    """

    def __init__(self, model: ScoreModel, operator: LinearOperator) -> None:
        super().__init__(model.schedule)
        self.model, self.operator = model, operator

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        mean = self.model(x, t, cond).data
        return Prediction(self.schedule, x, t, mean + self.operator.toward(mean, observed(cond, x)), Data())
