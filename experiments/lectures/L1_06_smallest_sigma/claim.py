"""Bias and variance of a score fitted by denoising, against the noise level."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.draws import times
from lecture.fitting import newton
from torch import Tensor, nn

from scorefield.models import Cond, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.prediction import Prediction, Score
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    samples: int
    repeats: int
    smallest: float
    sigmas: list[float]
    shown: list[float]
    seed: int


class LinearScores(ScoreModel):
    """s(x) = -theta x, with a theta for each of several data sets of equal size, which lie one after the other in x."""

    def __init__(self, schedule: Constant, data_sets: int) -> None:
        super().__init__(schedule)
        self.theta = nn.Parameter(torch.zeros(data_sets, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        theta = self.theta.repeat_interleave(len(x) // len(self.theta))[:, None]
        return Prediction(self.schedule, x, t, -theta * x, Score())


def bias_and_variance(sigma: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The two terms of the error, in closed form."""
    return sigma**4 / (1 + sigma**2) ** 2, 1 / (n * sigma**2) / (1 + sigma**2) ** 2


def errors(settings: Settings) -> dict[float, tuple[float, float]]:
    """Squared bias and variance of the fitted theta at each level; every level sees the same data and noise."""
    noise = StreamNoise(settings.seed, "L1.6")
    like = torch.empty(settings.repeats * settings.samples, 1, dtype=torch.float64)
    x, eps, t = noise.normal_like(like), noise.normal_like(like), times(like)
    objective = Denoising(view=Score())

    def fitted(sigma: float) -> Tensor:
        model = LinearScores(Constant(sigma), settings.repeats)
        return newton(lambda: objective.at(model, x, t, eps).per_sample.sum(), model.theta)

    found = {sigma: fitted(sigma) for sigma in sorted({settings.smallest, *settings.sigmas, *settings.shown})}
    return {sigma: (float((theta.mean() - 1).square()), float(theta.var())) for sigma, theta in found.items()}


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Fit at all levels and find the best."""
    found = errors(settings)
    total = {sigma: bias + variance for sigma, (bias, variance) in found.items()}
    around = np.log([[sigma, total[sigma]] for sigma in settings.sigmas])
    curve = np.polynomial.Polynomial.fit(around[:, 0], around[:, 1], 4)
    fine = np.linspace(around[0, 0], around[-1, 0], 2001)
    best, least = float(np.exp(fine[curve(fine).argmin()])), float(np.exp(curve(fine).min()))
    ratio = total[settings.smallest] / least
    draw(settings, found, best, ratio, figure)
    return {
        "best sigma": best,
        "error at the best sigma": least,
        f"error at sigma {settings.smallest:g} / error at the best": ratio,
    }


def draw(settings: Settings, found: dict[float, tuple[float, float]], best: float, ratio: float, figure: Path) -> None:
    """Bias, variance and sum against the level, both axes logarithmic."""
    sigma = np.geomspace(settings.smallest, max(found), 200)
    bias, variance = bias_and_variance(sigma, settings.samples)
    at = np.array(list(found))
    measured = np.array(list(found.values()))
    with sheet(figure, width=6.0) as (_, (axes,)):
        for i, (name, curve, points) in enumerate(
            [("bias²", bias, measured[:, 0]), ("variance", variance, measured[:, 1]), ("sum", bias + variance, None)]
        ):
            axes.plot(sigma, curve, color=PALETTE[i], label=f"{name}, closed form")
            points = measured.sum(1) if points is None else points
            # Below its own sampling error a measured bias says nothing.
            seen = points > (3 * measured[:, 1] / settings.repeats if name == "bias²" else 0)
            axes.plot(at[seen], points[seen], "o", color=PALETTE[i], markersize=4)
        axes.plot([], [], "o", color="0.4", markersize=4, label="measured")
        axes.axvline(best, color="0.6", linestyle=(0, (4, 3)), linewidth=1)
        axes.set(xscale="log", yscale="log", ylim=(1e-5, 30))
        axes.set(xlabel="noise level σ (data: standard deviation 1)", ylabel="squared error of the slope")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_title(f"Best at σ = {best:.3f}; σ = {settings.smallest:g} is {ratio:.0f} times worse")
        axes.legend(loc="lower left")
