"""The schedules of the score SDEs: variance exploding, variance preserving, sub-variance preserving.

(Song et al. 2021, section 3.4 and appendix B.)
"""

import math

import torch
from torch import Tensor

from scorefield.schedules.base import Schedule


class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, eq. 30).

    At t = 0 the noise level is sigma_min, not zero. A geometric NCSN ladder of L levels is this schedule at the times
    1 - i / (L - 1).

    Args:
        sigma_min: smallest noise level, > 0, in units of the data.
        sigma_max: largest noise level; about the largest distance between two data points (Song & Ermon 2020).
    """

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 1e-5, t_max: float = 1.0
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")
        super().__init__(t_min, t_max)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self._log_range = math.log(sigma_max / sigma_min)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.pow(self.sigma_max / self.sigma_min, t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self._log_range * self.sigma(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / self._log_range

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), -self.sigma(t).square() * torch.expm1(2 * self._log_range * (s - t))


class _LinearBeta(Schedule):
    """alpha of a linear rate beta(t) = beta_min + t (beta_max - beta_min): alpha = exp(-1/2 int_0^t beta)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5, t_max: float = 1.0) -> None:
        if not 0 <= beta_min < beta_max:
            raise ValueError(f"need 0 <= beta_min < beta_max, got beta_min={beta_min}, beta_max={beta_max}")
        super().__init__(t_min, t_max)
        self.beta_min = beta_min
        self.beta_max = beta_max

    def beta(self, t: Tensor) -> Tensor:
        """Rate of the forward SDE, 1 / time."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Tensor) -> Tensor:
        """log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2 (Song et al. 2021, eq. 33)."""
        return -0.25 * t.square() * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def _time_at_log_alpha(self, log_alpha: Tensor) -> Tensor:
        """The root of the quadratic `log_alpha`, in the form that does not cancel near t = 0."""
        rate = -2 * log_alpha
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * rate)
        least = torch.finfo(rate.dtype).tiny  # where beta_min = 0, the time 0 is 0 / 0
        return 2 * rate / (self.beta_min + root).clamp(min=least)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self.log_alpha(t))

    def alpha_dot(self, t: Tensor) -> Tensor:
        return self.drift(t) * self.alpha(t)

    def drift(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta(t)

    @property
    def prior_std(self) -> float:
        return 1.0


class VP(_LinearBeta):
    """Variance preserving: alpha^2 + sigma^2 = 1 with a linear rate (Song et al. 2021, eq. 32-33).

    The continuous limit of DDPM; the prior is N(0, I).

    Args:
        beta_min: rate at t = 0, >= 0; with 0, sigma grows from t = 0 in proportion to t, not to its root.
        beta_max: rate at t = 1, > beta_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta(t) * self.alpha(t).square() / self.sigma(t)

    def diffusion_sq(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        log_gain = -0.25 * (t - s) * (self.beta(s) + self.beta(t))  # the integral of a linear rate
        return torch.exp(log_gain), -torch.expm1(2 * log_gain)

    def time_at(self, ratio: Tensor) -> Tensor:
        return self._time_at_log_alpha(-0.5 * torch.log1p(ratio.square()))


class SubVP(_LinearBeta):
    """Sub-variance preserving: VP's alpha with sigma = 1 - alpha^2 (Song et al. 2021, eq. 29 and appendix B).

    Args:
        beta_min: rate at t = 0, >= 0; with 0, sigma grows from t = 0 as t^2: then t_min = 1e-5 is a level of 1e-9.
        beta_max: rate at t = 1, > beta_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(2 * self.log_alpha(t))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self.beta(t) * self.alpha(t).square()

    def diffusion_sq(self, t: Tensor) -> Tensor:
        return -self.beta(t) * torch.expm1(4 * self.log_alpha(t))

    def time_at(self, ratio: Tensor) -> Tensor:
        return self._time_at_log_alpha(-torch.asinh(0.5 * ratio))
