"""The noise levels of another schedule under another scaling: sigma(t) and s(t) of Karras et al. 2022, table 1.

There x_t = s (x + sigma eps) with two free functions of time. Here the level is the ratio u = sigma / alpha and the
scaling is alpha: of a schedule with the wanted levels, `Exploding` keeps u and takes alpha = 1, `Preserving` keeps u
and takes alpha = 1 / sqrt(1 + u^2).
"""

import torch
from torch import Tensor

from scorefield.schedules.base import Schedule


class _Rescaled(Schedule):
    """The times, ends and ladder of another schedule, whose ratio it has.

    Args:
        of: the other schedule.
    """

    def __init__(self, of: Schedule) -> None:
        super().__init__(of.t_min, of.t_max)
        self.of = of

    def ratio(self, t: Tensor) -> Tensor:
        return self.of.ratio(t)

    def time_at(self, ratio: Tensor) -> Tensor:
        return self.of.time_at(ratio)

    def ladder(self, levels: int) -> Tensor:
        return self.of.ladder(levels)


class Exploding(_Rescaled):
    """alpha = 1, sigma = u of another schedule: the scaling "none", s = 1, of Karras et al. 2022, table 1.

    Of `VP` it is sigma = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1) without VP's scaling.

    Args:
        of: the schedule with the levels u(t).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        return self.of.ratio(t)

    def alpha_dot(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)


class Preserving(_Rescaled):
    """alpha = 1 / sqrt(1 + u^2), sigma = u alpha of another schedule: alpha^2 + sigma^2 = 1, "VP" in the same table.

    Args:
        of: the schedule with the levels u(t).
    """

    def alpha(self, t: Tensor) -> Tensor:
        return torch.rsqrt(1 + self.of.ratio(t).square())

    def sigma(self, t: Tensor) -> Tensor:
        return self.of.ratio(t) * self.alpha(t)
