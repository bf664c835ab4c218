"""Schedules whose scales are constant or powers of time: one level, straight paths, time as the level or its square."""

import torch
from torch import Tensor

from scorefield.schedules.base import Schedule


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


class Linear(Schedule):
    """Straight lines from data to noise: alpha = 1 - t, sigma = t + (1 - t) sigma_min (Lipman et al. 2023, eq. 20-23).

    Time runs from data (0) to noise (1), as everywhere in this project; there it is 1 - t. The end points keep clear of
    sigma = 0 and of alpha = 0, where f = alpha' / alpha has a pole; the prior is N(0, I).

    Args:
        t_min: smallest time, >= 0; 0 is a noise level only where sigma_min > 0.
        t_max: largest time, <= 1.
        sigma_min: noise level at t = 0, in [0, 1), in units of the data.
    """

    def __init__(self, t_min: float = 1e-4, t_max: float = 0.999, sigma_min: float = 0.0) -> None:
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"need 0 <= t_min < t_max <= 1, got t_min={t_min}, t_max={t_max}")
        if not 0 <= sigma_min < 1:
            raise ValueError(f"sigma_min={sigma_min} must be in [0, 1): below the noise of the prior, which is 1")
        super().__init__(t_min, t_max)
        self.sigma_min = sigma_min

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return t + (1 - t) * self.sigma_min

    def alpha_dot(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 - self.sigma_min)

    def time_at(self, ratio: Tensor) -> Tensor:
        above = ratio - self.sigma_min
        return above / (1 + above)

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

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), (t - s) * (t + s)


class Brownian(Schedule):
    """The data and a Brownian motion: alpha = 1, sigma = sqrt(t), dx = dw (Karras et al. 2022, table 1, "VE").

    The levels of `VE` in EDM's reading of it, where time is the variance.

    Args:
        t_min: smallest variance of the noise, > 0, in squared units of the data.
        t_max: largest variance.
    """

    def __init__(self, t_min: float = 0.02**2, t_max: float = 100.0**2) -> None:
        if t_min <= 0:
            raise ValueError(f"t_min={t_min} is the smallest variance of the noise and must be positive")
        super().__init__(t_min, t_max)

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * t.rsqrt()

    def diffusion_sq(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return ratio.square()

    def transition(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t - s
