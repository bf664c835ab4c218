"""Noise schedules: x_t = alpha(t) x + sigma(t) eps with eps ~ N(0, I), for t in [t_min, t_max].

Two numbers per time define everything else. The marginals are those of the linear SDE dx = f(t) x dt + g(t) dw with

    f = alpha' / alpha,     g^2 = 2 sigma (sigma' - f sigma),

whose transition from s to t > s is Gaussian with gain a = alpha_t / alpha_s and variance sigma_t^2 - a^2 sigma_s^2
(Song et al. 2021, section 3 and appendix B; Karras et al. 2022, appendix B). The noise-to-signal ratio
u = sigma / alpha increases with t and orders the levels of every schedule.

Times are tensors of shape (B,). The end points t_min and t_max belong to the schedule: t_min keeps clear of the
divisions by sigma, t_max of those by alpha.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from scorefield.levels import Changeable
from scorefield.noise import Noise
from scorefield.recipe import Remembered
from scorefield.tensors import event_size, event_sum, per_sample


def _time_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt at each time, by forward-mode differentiation."""
    t = t.contiguous()  # samplers pass one time expanded over the batch, which forward mode refuses
    value: Tensor = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
    return value


class Schedule(Remembered, Changeable):
    """The two scales of x_t = alpha(t) x + sigma(t) eps, and all that follows from them.

    A schedule is given by `alpha` and `sigma`. Every other method is derived from them once, here; a subclass may
    override one by its closed form, which the tests then hold to the derived value.

    Args:
        t_min: smallest time, where sampling ends and likelihoods begin.
        t_max: largest time, where the prior stands in for the marginal.

    Attributes:
        levels: number of levels of a schedule that is a table of them; None in continuous time.
    """

    levels: int | None = None

    def __init__(self, t_min: float, t_max: float) -> None:
        if not t_min < t_max:
            raise ValueError(f"t_min={t_min} must be smaller than t_max={t_max}")
        self.t_min = t_min
        self.t_max = t_max

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={value}" for name, value in self._fields())
        return f"{type(self).__name__}({fields})"

    def _fields(self) -> list[tuple[str, object]]:
        return [(k, v) for k, v in vars(self).items() if k != "_made_with" and not isinstance(v, Tensor)]

    def state(self) -> Hashable:
        # Itself, since tables are not among the fields; another schedule in it as that one is now.
        return self, *(v.state() if isinstance(v, Changeable) else v for _, v in self._fields())

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Signal scale, positive and not increasing."""

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        """Noise scale, not negative."""

    def alpha_dot(self, t: Tensor) -> Tensor:
        """Time derivative of alpha."""
        return _time_derivative(self.alpha, t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        """Time derivative of sigma."""
        return _time_derivative(self.sigma, t)

    def drift(self, t: Tensor) -> Tensor:
        """f = alpha' / alpha: the forward SDE's drift is f(t) x."""
        return self.alpha_dot(t) / self.alpha(t)

    def diffusion_sq(self, t: Tensor) -> Tensor:
        """g^2 = 2 sigma (sigma' - f sigma): the squared diffusion of the forward SDE."""
        sigma = self.sigma(t)
        return 2 * sigma * (self.sigma_dot(t) - self.drift(t) * sigma)

    def ratio(self, t: Tensor) -> Tensor:
        """u = sigma / alpha, the noise-to-signal ratio; strictly increasing."""
        return self.sigma(t) / self.alpha(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        """The time whose noise-to-signal ratio is ``ratio``: inverse of `ratio`, by bisection on [0, 2 t_max]."""
        low, high = torch.zeros_like(ratio), torch.full_like(ratio, 2 * self.t_max)
        for _ in range(64 if ratio.dtype == torch.float64 else 32):
            middle = (low + high) / 2
            below = self.ratio(middle) < ratio
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    def geometric_times(self, start: float, end: float, n: int) -> Tensor:
        """n times (float64) from start to end at equal steps of ln(sigma / alpha), both ends exactly as given.

        Raises:
            ValueError: if n < 2, or if the schedule has one level only.
        """
        if n < 2:
            raise ValueError(f"n={n} times from t={start} to t={end} are too few: a line has two ends")
        first, last = self.ratio(torch.tensor([start, end], dtype=torch.float64)).log()
        times = self.time_at((first + (last - first) * (torch.arange(n, dtype=torch.float64) / (n - 1))).exp())
        times[0], times[-1] = start, end  # which rounding has moved
        return times

    def ladder(self, levels: int) -> Tensor:
        """Times of a ladder of L noise levels, the noisiest first, (L,) float64.

        Equal steps of ln(sigma / alpha) from t_max to t_min: where alpha = 1 the levels are geometric (Song & Ermon
        2019, section 4.1). A `Tabulated` schedule has its own levels.

        Args:
            levels: L, >= 2.
        """
        if levels < 2:
            raise ValueError(f"levels={levels} must be at least 2; for one level use the schedule Constant")
        return self.geometric_times(self.t_max, self.t_min, levels)

    def nearest_rung(self, t: Tensor, levels: int) -> Tensor:
        """Index of the time in `ladder` that is nearest to t (B,): (B,) int64, 0 for the noisiest."""
        times = self.ladder(levels).flip(0).to(t)
        return levels - 1 - torch.bucketize(t.contiguous(), (times[1:] + times[:-1]) / 2)

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Gain a and variance of the Gaussian x_t | x_s, for t >= s.

        The variance sigma_t^2 - a^2 sigma_s^2 is computed as sigma_t^2 (1 - u_s^2 / u_t^2), which keeps its relative
        accuracy when s approaches t.
        """
        gain = self.alpha(t) / self.alpha(s)
        log_ratio = torch.log(self.ratio(s) / self.ratio(t))
        return gain, -self.sigma(t).square() * torch.expm1(2 * log_ratio)

    def chain_gain_sq(self, t: Tensor, levels: int) -> Tensor:
        """Squared gain 1 - beta of the step that ends at t, in a forward chain of so many steps: 1 + 2 f(t) / N.

        To first order; the alpha of Song et al. 2021, algorithm 5.

        Args:
            t: times, (B,).
            levels: N, >= 1.
        """
        return 1 + 2 * self.drift(t) / levels

    def perturb(self, x: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x + sigma(t) eps; x and eps (B, *event), t (B,)."""
        alpha, sigma = self.alpha(t).to(x), self.sigma(t).to(x)
        return per_sample(alpha, x) * x + per_sample(sigma, x) * eps

    @property
    def prior_std(self) -> float:
        """Standard deviation of the prior N(0, prior_std^2 I) that stands in for the marginal at t_max."""
        return float(self.sigma(torch.tensor([self.t_max], dtype=torch.float64)))

    def prior_log_prob(self, z: Tensor) -> Tensor:
        """log N(z; 0, prior_std^2 I), in nats: (B, *event) -> (B,)."""
        log_scale = math.log(2 * math.pi * self.prior_std**2)
        return -0.5 * (event_sum((z / self.prior_std).square()) + event_size(z) * log_scale)

    def prior_divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """KL(N(alpha x, sigma^2 I) || N(0, prior_std^2 I)), in nats: x (B, *event), t (B,) -> (B,) float64."""
        t = t.double()
        mean_sq = self.alpha(t).square() * event_sum(x.double().square()) / self.prior_std**2
        variance = (self.sigma(t) / self.prior_std).square()
        return (mean_sq + event_size(x) * (variance - 1 - variance.log())) / 2

    def prior_like(self, x: Tensor, noise: Noise) -> Tensor:
        """A draw from the prior, shaped like ``x`` (B, *event)."""
        return self.prior_std * noise.normal_like(x)
