"""The variational bound of a discrete chain, of images with grey levels as they are: what DDPM's papers report.

The model draws x_1 from the prior, walks down the levels t_1 > ... > t_N with Gaussian steps p(x_s | x_t), and ends by
a Gaussian around the posterior mean E[x | x_t] at t_N, of which each grey level gets what falls into its interval. With
the forward chain q from the middle x of the intervals (Ho et al. 2020, eq. 5, 6 and 13; in their order of the levels)

    -ln P(k) <= L_T + L_1 + ... + L_(T-1) + L_0
              = KL(q(x_T | x) || prior) + sum E KL(q(x_s | x_t, x) || p(x_s | x_t)) - E ln P(k | x_1).

A step has q's own mean with the denoised x in the place of x, and q's variance v or that of the forward step, v / c
with c = sigma_s^2 / sigma_t^2. Its divergence is for every schedule (Kingma et al. 2021, eq. 11-14, in d dimensions)

    c' / 2 (u_t^2 / u_s^2 - 1) |eps_hat - eps|^2 + d / 2 (c' - 1 - ln c'),    u = sigma / alpha,    c' = 1 or c,

so that with ever more levels between the same ends the sum becomes the integral of `scorefield.variational`.
"""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from scorefield.data import Data
from scorefield.grids import Grid, Uniform
from scorefield.levels import once, shared
from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import GlobalNoise, Noise
from scorefield.schedules import Schedule
from scorefield.tensors import event_mean, event_size, event_sum
from scorefield.variational import Bound


@dataclass(frozen=True)
class Codelength(Bound):
    """A bound of -ln P as the length of a code: its rate, then what the decoder leaves (Ho et al. 2020, section 4.3).

    Its standard error is too large rather than too small.

    Args:
        squared_error: mean over the dimensions of the decoder's squared error, in grey levels, (B,).
    """

    squared_error: Tensor

    @property
    def rate(self) -> Tensor:
        """L_1 + ... + L_T, in nats, (B,)."""
        return self.prior + self.diffusion

    @property
    def distortion(self) -> Tensor:
        """L_0, in nats, (B,)."""
        return self.reconstruction


@dataclass(frozen=True)
class ChainBound:
    """Every term of the sum, one network call each, or ``draws`` of them; and two calls for the decoder.

    Args:
        levels: N >= 3, number of levels; None takes those of the schedule's table.
        grid: where they lie.
        forward_variance: steps have the variance of the forward step, `Ancestral`'s choice of the same name (Ho et al.
            2020, section 3.2, "fixedlarge" in their code), instead of the posterior's.
        posterior_decoder: the decoder has the variance of the posterior of the last step, as in the code of Ho et al.,
            which wants a chain that is coarse there; otherwise u^2 of the last level, as `VariationalBound` has it.
        draws: steps for each example, >= 2, one in each of as many equal slices of ln u; None takes all.
    """

    levels: int | None = None
    grid: Grid = field(default_factory=Uniform)
    forward_variance: bool = False
    posterior_decoder: bool = False
    draws: int | None = None

    def __post_init__(self) -> None:
        if self.levels is not None and self.levels < 3:
            raise ValueError(f"levels={self.levels} must be at least 3, or None for those of the schedule's table")
        if self.draws is not None and self.draws < 2:
            raise ValueError(f"draws={self.draws} must be at least 2, for a standard error, or None for every step")

    def times(self, schedule: Schedule) -> Tensor:
        """The levels' times, the noisiest first, (N,) float64.

        Raises:
            ValueError: if the schedule has no levels of its own and none are given, or the grid does not fall.
        """
        levels = schedule.levels if self.levels is None else self.levels
        if levels is None:
            raise ValueError(f"levels=None takes those of a table, and {schedule} has none; give levels=1000, say")
        times = self.grid(schedule, levels - 1)
        if not (schedule.ratio(times).diff() < 0).all():
            raise ValueError(
                f"grid={self.grid} does not fall from level to level on {schedule}; choose another, such as Uniform()"
            )
        return times

    def calls(self, schedule: Schedule) -> int:
        """Network calls for each example."""
        return (len(self.times(schedule)) - 1 if self.draws is None else self.draws) + 2

    @torch.no_grad()
    def __call__(
        self, model: ScoreModel, k: Tensor, data: Data, cond: Cond | None = None, noise: Noise | None = None
    ) -> Codelength:
        """The bound of -ln P of each image.

        Args:
            model: the model.
            k: grey levels, integers in [0, L), (B, *event).
            data: what they are levels of, which knows their intervals in model space.
            cond: conditions of the images.
            noise: source of randomness.

        Raises:
            ValueError: if the data have no grey levels, or the schedule and the grid make no chain.
        """
        below, above = _interval(k, data)
        noise, schedule, x = GlobalNoise() if noise is None else noise, model.schedule, data.observable(k)
        times = self.times(schedule).to(x.device)
        first, last = times[0].expand(len(x)), times[-1].expand(len(x))
        terms = torch.stack(self._steps(model, x, times, cond, noise))
        kept = _kept(schedule, times[:-1], times[1:], self.forward_variance)
        widths = event_size(x) / 2 * (kept - 1 - kept.log()).sum()
        noisy = [schedule.perturb(x, last, noise.normal_like(x)) for _ in range(2)]
        means = torch.stack([model(x_1, last, cond).data.double() for x_1 in noisy])
        std = self._decoder_std(schedule, times)
        one, other = (-event_sum(_log_mass((below - mean) / std, (above - mean) / std)) for mean in means)
        parts = schedule.prior_divergence(x, first), terms.sum(0) + widths, (one + other) / 2
        # Half the square of a difference of neighbours holds half of each one's variance, and what lies between their
        # levels; at the ends it counts twice. So every variance is in it at least once.
        squares = terms.diff(dim=0).square()
        variance = (squares.sum(0) + squares[0] + squares[-1]) / 2 + (one - other).square() / 4
        squared = (data.transform.inverse(means) - 0.5 - k.double()).square().mean(0)
        return Codelength(parts[0] + parts[1] + parts[2], variance.sqrt(), *parts, event_mean(squared))

    def _steps(self, model: ScoreModel, x: Tensor, times: Tensor, cond: Cond | None, noise: Noise) -> list[Tensor]:
        """What the means of the steps make of the sum, in parts, (B,) each."""
        if self.draws is None:
            rows = shared(times, x)
            return [self._step(model, x, t, s, cond, noise) for t, s in pairwise(rows)]
        falls = -model.schedule.ratio(times).log().diff()
        law = falls / falls.sum()
        found = []
        for j in range(self.draws):
            level = (j + noise.uniform_like(times[:1].expand(len(x), 1))[:, 0]) / self.draws
            i = torch.searchsorted(law.cumsum(0), level, right=True).clamp(max=len(law) - 1)
            found.append(self._step(model, x, times[i], times[i + 1], cond, noise) / (self.draws * law[i]))
        return found

    def _step(self, model: ScoreModel, x: Tensor, t: Tensor, s: Tensor, cond: Cond | None, noise: Noise) -> Tensor:
        eps = noise.normal_like(x)
        error = event_sum((model(model.schedule.perturb(x, t, eps), t, cond).noise - eps).double().square())
        return _weight(model.schedule, t, s, self.forward_variance) * error

    def _decoder_std(self, schedule: Schedule, times: Tensor) -> Tensor:
        t, s = times[-2:-1], times[-1:]
        if not self.posterior_decoder:
            return schedule.ratio(s)
        return (_kept(schedule, t, s, True) * schedule.transition(s, t)[1]).sqrt()


def _kept(schedule: Schedule, t: Tensor, s: Tensor, forward_variance: bool) -> Tensor:
    """c': the posterior's variance of the step from t to s over that of the step's own Gaussian, like t."""
    return (schedule.sigma(s) / schedule.sigma(t)).square() if forward_variance else torch.ones_like(t)


@once
def _weight(schedule: Schedule, t: Tensor, s: Tensor, forward_variance: bool) -> Tensor:
    """Of the squared error of the noise in the divergence of the step from t to s, (B,)."""
    fall = (schedule.ratio(t) / schedule.ratio(s)).log()
    return _kept(schedule, t, s, forward_variance) * torch.expm1(2 * fall) / 2


def _interval(k: Tensor, data: Data) -> tuple[Tensor, Tensor]:
    """The ends of each level's interval in model space, like k; beyond the first and the last there is none."""
    if data.levels is None:
        raise ValueError(f"{data.name} has no grey levels to give a probability to; take VariationalBound")
    levels = k.double()
    above = data.transform.forward(levels + 1).masked_fill(k == data.levels - 1, math.inf)
    return data.transform.forward(levels).masked_fill(k == 0, -math.inf), above


def _log_mass(below: Tensor, above: Tensor) -> Tensor:
    """ln of what N(0, 1) has between two numbers, of either sign and size, infinite ones included."""
    right = below + above > 0  # where the tail is exact on the other side
    low, high = torch.where(right, -above, below), torch.where(right, -below, above)
    most = torch.special.log_ndtr(high)
    return most + torch.log1p(-torch.exp(torch.special.log_ndtr(low) - most))
