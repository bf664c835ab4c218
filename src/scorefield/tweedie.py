"""Posterior moments of the clean sample given a noisy one, from the score and its Jacobian (Tweedie's formula).

For x_t = alpha x + sigma eps, at any density of x,

    E[x | x_t]   = (x_t + sigma^2 s(x_t, t)) / alpha                          (Robbins 1956; Efron 2011, eq. 2.8)
    Cov[x | x_t] = sigma^2 / alpha^2 (I + sigma^2 grad s(x_t, t))             (Efron 2011, eq. 2.8)
                 = sigma^2 / alpha dE[x | x_t] / dx_t.

The second form asks for the data view alone and stays accurate where sigma is small.
"""

from torch import Tensor

from scorefield.divergence import Divergence, Exact
from scorefield.jacobian import jacobian
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise


def posterior_mean(model: ScoreModel, x: Tensor, t: Tensor, cond: Cond | None = None) -> Tensor:
    """E[x | x_t]: x_t (B, *event), t (B,) -> (B, *event)."""
    return model(x, t, cond).data


def posterior_covariance(
    model: ScoreModel, x: Tensor, t: Tensor, cond: Cond | None = None, chunk: int | None = None
) -> Tensor:
    """Cov[x | x_t], (B, d, d): symmetric for an exact score, as near to it as the model's field is conservative.

    Args:
        model: gives the data view.
        x: x_t, (B, *event).
        t: its time, (B,), with sigma(t) > 0.
        cond: conditions of the samples.
        chunk: rows of the Jacobian computed at once; None takes all d.

    Raises:
        ValueError: if sigma(t) is 0 for some sample.
    """
    gain = _gain(model, x, t)
    return gain[:, None, None] * jacobian(lambda y: model(y, t, cond).data, x, chunk)


def posterior_variance(
    model: ScoreModel,
    x: Tensor,
    t: Tensor,
    cond: Cond | None = None,
    divergence: Divergence | None = None,
    noise: Noise | None = None,
) -> Tensor:
    """Trace of Cov[x | x_t], (B,): the expected squared error of the best denoiser at x_t.

    Args:
        model: gives the data view.
        x: x_t, (B, *event).
        t: its time, (B,), with sigma(t) > 0.
        cond: conditions of the samples.
        divergence: exact, or by probes; None takes `Exact`.
        noise: randomness of the probes.

    Raises:
        ValueError: if sigma(t) is 0 for some sample.
    """
    gain = _gain(model, x, t)
    way = Exact() if divergence is None else divergence
    _, trace = way(lambda y: model(y, t, cond).data, x, GlobalNoise() if noise is None else noise)
    return gain * trace


def _gain(model: ScoreModel, x: Tensor, t: Tensor) -> Tensor:
    """sigma^2 / alpha, (B,)."""
    sigma = model.schedule.sigma(t)
    if not t.is_cuda and not (sigma > 0).all():
        raise ValueError(
            f"at t={float(t[sigma <= 0][0]):.6g} sigma is 0 under {model.schedule}: x_t is x, and nothing is uncertain"
        )
    gain: Tensor = (sigma.square() / model.schedule.alpha(t)).to(x)
    return gain
