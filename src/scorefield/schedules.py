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
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scorefield.noise import Noise
from scorefield.recipe import Remembered
from scorefield.tensors import event_size, event_sum, per_sample


def _time_derivative(function: Callable[[Tensor], Tensor], t: Tensor) -> Tensor:
    """d function / dt at each time, by forward-mode differentiation."""
    t = t.contiguous()  # samplers pass one time expanded over the batch, which forward mode refuses
    value: Tensor = torch.func.jvp(function, (t,), (torch.ones_like(t),))[1]
    return value


class Schedule(Remembered, ABC):
    """The two scales of x_t = alpha(t) x + sigma(t) eps, and all that follows from them.

    A schedule is given by `alpha` and `sigma`. Every other method is derived from them once, here; a subclass may
    override one by its closed form, which the tests then hold to the derived value.

    Args:
        t_min: smallest time, where sampling ends and likelihoods begin.
        t_max: largest time, where the prior stands in for the marginal.
    """

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

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Gain a and variance of the Gaussian x_t | x_s, for t >= s.

        The variance sigma_t^2 - a^2 sigma_s^2 is computed as sigma_t^2 (1 - u_s^2 / u_t^2), which keeps its relative
        accuracy when s approaches t.
        """
        gain = self.alpha(t) / self.alpha(s)
        log_ratio = torch.log(self.ratio(s) / self.ratio(t))
        return gain, -self.sigma(t).square() * torch.expm1(2 * log_ratio)

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

    def prior_like(self, x: Tensor, noise: Noise) -> Tensor:
        """A draw from the prior, shaped like ``x`` (B, *event)."""
        return self.prior_std * noise.normal_like(x)


class Constant(Schedule):
    """One noise level at all times: alpha = 1, sigma constant; sigma = 0 is the clean density.

    No noise leads to the prior here: chains of a Markov chain Monte Carlo sampler start from it, and whether they
    forget it is theirs to show.

    Args:
        sigma: noise level, >= 0, in units of the data.
        start: standard deviation of the Gaussian from which chains start, > 0, in units of the data.
    """

    def __init__(self, sigma: float = 0.0, start: float = 1.0) -> None:
        if sigma < 0:
            raise ValueError(f"sigma={sigma} is a standard deviation and must not be negative")
        if start <= 0:
            raise ValueError(f"start={start} is the standard deviation of the chains' start and must be positive")
        super().__init__(t_min=0.0, t_max=1.0)
        self.level = sigma
        self.start = start

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.level)

    def time_at(self, ratio: Tensor) -> Tensor:
        raise ValueError(
            "Constant has one noise level at every time, so no time belongs to a ratio; use another schedule"
        )

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), torch.zeros_like(t)

    @property
    def prior_std(self) -> float:
        return self.start


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
        return self.sigma_min * torch.exp(self._log_range * t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return self._log_range * self.sigma(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return torch.log(ratio / self.sigma_min) / self._log_range


class _LinearBeta(Schedule):
    """alpha of a linear rate beta(t) = beta_min + t (beta_max - beta_min): alpha = exp(-1/2 int_0^t beta)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5, t_max: float = 1.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"need 0 < beta_min < beta_max, got beta_min={beta_min}, beta_max={beta_max}")
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
        return 2 * rate / (self.beta_min + root)

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
        beta_min: rate at t = 0, > 0.
        beta_max: rate at t = 1, > beta_min.
    """

    def sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(2 * self.log_alpha(t)))

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * self.beta(t) * self.alpha(t).square() / self.sigma(t)

    def diffusion_sq(self, t: Tensor) -> Tensor:
        return self.beta(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return self._time_at_log_alpha(-0.5 * torch.log1p(ratio.square()))


class SubVP(_LinearBeta):
    """Sub-variance preserving: VP's alpha with sigma = 1 - alpha^2 (Song et al. 2021, eq. 29 and appendix B).

    Args:
        beta_min: rate at t = 0, > 0.
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


class Linear(Schedule):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t (Lipman et al. 2023, eq. 20 with sigma_min = 0).

    Time runs from data (0) to noise (1), as everywhere in this project. The end points keep clear of sigma = 0 and of
    alpha = 0, where f = alpha' / alpha has a pole; the prior is N(0, I).
    """

    def __init__(self, t_min: float = 1e-4, t_max: float = 0.999) -> None:
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"need 0 <= t_min < t_max <= 1, got t_min={t_min}, t_max={t_max}")
        super().__init__(t_min, t_max)

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return ratio / (1 + ratio)

    @property
    def prior_std(self) -> float:
        return 1.0


class EDM(Schedule):
    """Time is the noise level: alpha = 1, sigma = t (Karras et al. 2022, table 1).

    Args:
        t_min: smallest noise level, > 0, in units of the data.
        t_max: largest noise level.
    """

    def __init__(self, t_min: float = 0.002, t_max: float = 80.0) -> None:
        if t_min <= 0:
            raise ValueError(f"t_min={t_min} is the smallest noise level and must be positive")
        super().__init__(t_min, t_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.clone()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return ratio.clone()


class Tabulated(Schedule):
    """A ladder of levels given as numbers, continued between them.

    Level i of N sits at t = (i + 1) / N, the clean data at t = 0. At the levels the values, and so the transitions of
    the discrete chain, are exactly the given ones. Between them log alpha and log u are interpolated linearly in t;
    below the first level log alpha and u itself, which is 0 for clean data.

    Args:
        alphas: signal scale of each level, in (0, 1], not increasing.
        sigmas: noise scale of each level, > 0, such that sigmas / alphas increases; as many as alphas.
    """

    def __init__(self, alphas: Sequence[float], sigmas: Sequence[float]) -> None:
        alpha, sigma = (torch.as_tensor(v, dtype=torch.float64) for v in (alphas, sigmas))
        if alpha.shape != sigma.shape or alpha.ndim != 1 or len(alpha) < 2:
            raise ValueError(
                f"alphas and sigmas must be two sequences of the same length >= 2, got {alpha.shape}, {sigma.shape}"
            )
        if not (alpha > 0).all() or not (sigma > 0).all() or not ((sigma / alpha).diff() > 0).all():
            raise ValueError("alphas and sigmas must be positive and sigmas / alphas must increase from level to level")
        self.levels = len(alpha)
        super().__init__(t_min=1 / self.levels, t_max=1.0)
        self._log_alpha = torch.cat([alpha.new_zeros(1), alpha.log()])
        self._log_ratio = (sigma / alpha).log()

    @classmethod
    def ddpm(cls, betas: Sequence[float]) -> "Tabulated":
        """The chain x_i = sqrt(1 - beta_i) x_(i-1) + sqrt(beta_i) z (Ho et al. 2020, eq. 2-4)."""
        alpha_bar = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), 0)
        return cls(alpha_bar.sqrt().tolist(), (1 - alpha_bar).sqrt().tolist())

    @classmethod
    def linear(cls, levels: int = 1000, beta_first: float = 1e-4, beta_last: float = 0.02) -> "Tabulated":
        """`ddpm` with variances in equal steps, by default those of Ho et al. 2020, section 4.

        Args:
            levels: number of levels, at least 2.
            beta_first: variance of the first step, > 0.
            beta_last: variance of the last step, < 1.
        """
        if levels < 2 or not 0 < beta_first <= beta_last < 1:
            raise ValueError(
                f"need levels >= 2 and 0 < beta_first <= beta_last < 1, got levels={levels}, beta_first={beta_first}, "
                f"beta_last={beta_last}"
            )
        return cls.ddpm(torch.linspace(beta_first, beta_last, levels, dtype=torch.float64).tolist())

    @classmethod
    def geometric(cls, sigma_min: float = 0.01, sigma_max: float = 50.0, levels: int = 1000) -> "Tabulated":
        """SMLD's chain: alpha = 1 and noise levels in equal ratios (Song & Ermon 2019; Song et al. 2021, appendix C.1).

        Args:
            sigma_min: smallest level, > 0, in units of the data.
            sigma_max: largest level.
            levels: N, >= 2.
        """
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"need 0 < sigma_min < sigma_max, got sigma_min={sigma_min}, sigma_max={sigma_max}")
        logs = torch.linspace(math.log(sigma_min), math.log(sigma_max), levels, dtype=torch.float64)
        return cls([1.0] * levels, logs.exp().tolist())

    def ladder(self, levels: int) -> Tensor:
        """The given levels themselves; fewer than there are at equal steps of their index, the two ends included.

        Args:
            levels: L, from 2 to the number of levels in the table.
        """
        if not 2 <= levels <= self.levels:
            raise ValueError(f"levels={levels} must be between 2 and the {self.levels} of this schedule's table")
        return torch.linspace(self.levels, 1, levels, dtype=torch.float64).round() / self.levels

    def _log_alpha_at(self, t: Tensor) -> Tensor:
        position, table = t * self.levels, self._log_alpha.to(t)
        low = position.detach().floor().clamp(0, self.levels - 1).long()
        return torch.lerp(table[low], table[low + 1], position - low)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(self._log_alpha_at(t))

    def ratio(self, t: Tensor) -> Tensor:
        position, table = t * self.levels - 1, self._log_ratio.to(t)
        low = position.detach().floor().clamp(0, self.levels - 2).long()
        between = torch.lerp(table[low], table[low + 1], position - low).exp()
        return torch.where(position < 0, (position + 1) * table[0].exp(), between)

    def sigma(self, t: Tensor) -> Tensor:
        return self.alpha(t) * self.ratio(t)
