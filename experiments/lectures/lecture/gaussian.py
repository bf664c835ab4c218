"""Variances along a sampling run on Gaussian data, exactly: there every kernel is linear in the state and the noise."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from scorefield.grids import Grid
from scorefield.kernels import Kernel
from scorefield.models import MixtureModel


class PlusMinus:
    """The noises 1 and -1 for a batch of two."""

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.tensor([[1.0], [-1.0]], dtype=x.dtype)

    uniform_like = signs_like = normal_like


def next_variance(kernel: Kernel, model: MixtureModel, t: Tensor, s: Tensor, variance: float) -> float:
    """a^2 v + b^2 for the kernel's x' = a x + b z; for step sizes by norms in the limit of many dimensions."""
    x = torch.full((2, 1), variance**0.5, dtype=torch.float64)
    (up, down), _ = kernel.step(model, x, t.expand(2), s.expand(2), kernel.init(x), PlusMinus())
    return float(((up + down) / 2).square() + ((up - down) / 2).square())


@dataclass(frozen=True)
class Run:
    """A sampler whose variances are followed.

    Args:
        grid: its times.
        steps: number of predictor steps.
        predictor: moves between the times; None stays.
        corrector: moves at each time; None for none.
        corrections: corrector steps at each time.
        before: correct at each time before the predictor leaves it, as the sampler does; else at the time that it has
            come to, as the algorithms of Song et al. 2021 are written.
    """

    grid: Grid
    steps: int
    predictor: Kernel | None
    corrector: Kernel | None = None
    corrections: int = 1
    before: bool = True

    def end(self, model: MixtureModel, variance: float) -> float:
        """The variance at the last time, from that at the first."""
        times = self.grid(model.schedule, self.steps)
        for t, s in pairwise(times):
            if self.before:
                variance = self._corrected(model, t, variance)
            if self.predictor is not None:
                variance = next_variance(self.predictor, model, t, s, variance)
            if not self.before:
                variance = self._corrected(model, s, variance)
        return variance

    def _corrected(self, model: MixtureModel, t: Tensor, variance: float) -> float:
        if self.corrector is not None:
            for _ in range(self.corrections):
                variance = next_variance(self.corrector, model, t, t, variance)
        return variance
