"""Schedules given by a table of levels, as the chains of DDPM and SMLD are."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from scorefield.schedules.base import Schedule


class Tabulated(Schedule):
    """A ladder of levels given as numbers, continued between them.

    Level i of N sits at t = (i + 1) / N, the clean data at t = 0. At the levels the values, and so the transitions of
    the discrete chain, are exactly the given ones. Between them log alpha and log u are interpolated linearly in t;
    below the first level log alpha and u itself, which is 0 for clean data.

    Args:
        alphas: signal scale of each level, in (0, 1], not increasing.
        sigmas: noise scale of each level, > 0, such that sigmas / alphas increases; as many as alphas.
    """

    levels: int

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
    def cosine(cls, levels: int = 1000, offset: float = 0.008, beta_last: float = 0.999) -> "Tabulated":
        """`ddpm` with alpha_bar a squared cosine of the index: iDDPM's chain (Nichol & Dhariwal 2021, eq. 17).

        beta_i = min(1 - f_i / f_(i-1), beta_last), f_i = cos^2(pi / 2 (i / N + offset) / (1 + offset)). Its ratios are
        the u_j of Karras et al. 2022, table 1, "iDDPM", there counted from the noisiest: j = N - i, C_1 = 1 - beta_last
        and C_2 = offset.

        Args:
            levels: number of levels N, at least 2.
            offset: s, >= 0; keeps the first steps from being too small.
            beta_last: bound of the variances, in (0, 1), which only the last steps reach.
        """
        if levels < 2 or offset < 0 or not 0 < beta_last < 1:
            raise ValueError(
                f"need levels >= 2, offset >= 0 and 0 < beta_last < 1, got levels={levels}, offset={offset}, "
                f"beta_last={beta_last}"
            )
        angle = (torch.arange(levels + 1, dtype=torch.float64) / levels + offset) / (1 + offset)
        level = torch.cos(math.pi / 2 * angle).square()
        return cls.ddpm((1 - level[1:] / level[:-1]).clamp(max=beta_last).tolist())

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

    def chain_gain_sq(self, t: Tensor, levels: int) -> Tensor:
        """Squared gain of the step from t - 1 / N to t: of the table's own chain exactly 1 - beta_i."""
        return (self.alpha(t) / self.alpha((t - 1 / levels).clamp(min=0))).square()

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
