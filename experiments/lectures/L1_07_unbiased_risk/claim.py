"""Stein's unbiased risk estimate of linear denoisers, against their true error."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.draws import times
from lecture.fitting import newton
from torch import Tensor, nn

from scorefield.divergence import Exact
from scorefield.models import Cond, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Implicit, Sure
from scorefield.prediction import Data, Prediction
from scorefield.records.style import PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    dimension: int
    sigma: float
    samples: int
    gains: list[float]
    chunk: int
    seed: int


class Shrinkage(ScoreModel):
    """The denoiser c y."""

    def __init__(self, schedule: Constant, gain: float) -> None:
        super().__init__(schedule)
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, self.gain * x, Data())


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """SURE at every gain, its minimum, and what it has in common with the two other losses."""
    schedule, noise, d = Constant(settings.sigma), StreamNoise(settings.seed, "L1.7"), settings.dimension
    x = noise.normal_like(torch.empty(settings.samples, d, dtype=torch.float64))
    t, eps = times(x), noise.normal_like(x)
    y, probes = schedule.perturb(x, t, eps), x.new_empty(0, *x.shape)
    exact = Exact(settings.chunk)
    sure, implicit, denoising = Sure(exact), Implicit(exact), Denoising(view=Data())

    estimates, identity, standard = [], 0.0, 0.0
    with torch.no_grad():
        for gain in settings.gains:
            model = Shrinkage(schedule, gain)
            stein = sure.at(model, y, t, probes).per_sample
            other = d * settings.sigma**2 + 2 * settings.sigma**4 * implicit.at(model, y, t, probes).per_sample
            excess = stein - d * denoising.at(model, x, t, eps).per_sample
            estimates.append(float(stein.mean()))
            identity = max(identity, float((stein - other).abs().max()))
            error = float(excess.mean() / excess.std() * len(excess) ** 0.5)
            standard = max(standard, error, key=abs)
    best = Shrinkage(schedule, 0.0)
    gain = float(newton(lambda: sure.at(best, y, t, probes).per_sample.mean(), best.gain))
    least = float(sure.at(best, y, t, probes).per_sample.mean().detach())
    draw(settings, np.array(estimates), gain, least, figure)
    return {
        "gain of least SURE": gain,
        "SURE at its least": least,
        "|SURE - (d σ² + 2 σ⁴ implicit loss)|": identity,
        "SURE - squared error, in standard errors": standard,
        "largest |SURE - expected squared error|": float(
            np.abs(np.array(estimates) - risk(np.array(settings.gains), settings)).max()
        ),
    }


def risk(gain: np.ndarray, settings: Settings) -> np.ndarray:
    """E|c y - x|^2 for x ~ N(0, I)."""
    return settings.dimension * ((1 - gain) ** 2 + gain**2 * settings.sigma**2)


def draw(settings: Settings, estimates: np.ndarray, gain: float, least: float, figure: Path) -> None:
    """Estimate and truth against the gain."""
    fine = np.linspace(settings.gains[0], settings.gains[-1], 200)
    with sheet(figure) as (_, (axes,)):
        axes.plot(fine, risk(fine, settings), color=PALETTE[0], label="E|cy − x|², true")
        axes.plot(settings.gains, estimates, "o", color=PALETTE[1], label="SURE, from y alone")
        axes.plot(gain, least, "*", color=PALETTE[2], markersize=13, label=f"least SURE: c = {gain:.3f}")
        axes.set(xlabel="gain c of the denoiser cy", ylabel=f"squared error in {settings.dimension} dimensions")
        axes.set(ylim=(0, None))
        axes.set_title(f"Least error {least:.2f}, found without clean data (true 50)")
        axes.legend(loc="lower left")
