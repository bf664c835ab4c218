"""The score Fokker-Planck equation: how far the scores of a model at neighbouring times fit together (Lai et al. 2023).

The densities of dx = f(t) x dt + g(t) dw obey the Fokker-Planck equation, so their scores obey

    d_t s = grad [ g^2 / 2 (div s + |s|^2) - f x . s ]                                     (Lai et al. 2023, eq. 8)

(the term grad div(f x) vanishes for a drift that is linear in x). A network that learns each time by itself need not.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from scorefield.divergence import Divergence, Exact
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise
from scorefield.tensors import event_dot, event_mean, event_sum


@dataclass(frozen=True)
class Residual:
    """The two sides of the equation at each sample.

    Args:
        rate: d_t s, (B, *event).
        transport: grad [g^2 / 2 (div s + |s|^2) - f x . s], (B, *event).
    """

    rate: Tensor
    transport: Tensor

    @property
    def value(self) -> Tensor:
        """d_t s less what the equation says it is, (B, *event)."""
        return self.rate - self.transport

    def relative(self) -> float:
        """Root of the mean square of the residual over that of d_t s: 0 for the scores of a diffusion."""
        return float((self.value.double().square().mean() / self.rate.double().square().mean()).sqrt())


def residual(
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    cond: Cond | None = None,
    divergence: Divergence | None = None,
    noise: Noise | None = None,
) -> Residual:
    """Both sides of the score Fokker-Planck equation at x_t.

    All derivatives are automatic, none is a finite difference. Works under `torch.no_grad`; with gradients enabled the
    result can be differentiated with respect to weights. With a divergence by probes the residual is unbiased, but its
    square has the variance of the estimate on top.

    Args:
        model: its score, three times differentiable in x and once in t. A label that is constant between the levels of
            a ladder has no time derivative.
        x: x_t, (B, *event).
        t: its time, (B,).
        cond: conditions of the samples.
        divergence: exact, d backward passes, or by probes; None takes `Exact`.
        noise: randomness of the probes.
    """
    way = Exact() if divergence is None else divergence
    differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        at, time = (v.detach().clone().requires_grad_() for v in (x, t))
        probes = way.draw(at, GlobalNoise() if noise is None else noise).clone()
        score, trace = way.along(lambda y: model(y, time, cond).score, at, probes)
        fixed = time.detach()
        drift, diffusion = (c.to(x) for c in (model.schedule.drift(fixed), model.schedule.diffusion_sq(fixed)))
        potential = diffusion / 2 * (trace + event_sum(score.square())) - drift * event_dot(at, score)
        (transport,) = torch.autograd.grad(potential.sum(), at, create_graph=differentiable, retain_graph=True)
        # v^T d_t s is linear in v; its derivative with respect to v is d_t s of every dimension at once.
        v = torch.zeros_like(score).requires_grad_()
        (pulled,) = torch.autograd.grad(score, time, v, create_graph=True, allow_unused=True)
        if pulled is None:  # the same score at all times
            rate = torch.zeros_like(score)
        else:
            (rate,) = torch.autograd.grad(pulled.sum(), v, create_graph=differentiable)
    return Residual(rate, transport) if differentiable else Residual(rate.detach(), transport.detach())


def squared_norm(found: Residual) -> Tensor:
    """|d_t s - transport|^2 / d of each sample, (B,)."""
    return event_mean(found.value.square())
