"""Samples by the reverse diffusion of a model that is a denoiser and nothing else."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.draws import exact_samples, times
from torch import Tensor

from scorefield.grids import Uniform
from scorefield.kernels import EulerMaruyama
from scorefield.metrics.two_sample import wasserstein_1d
from scorefield.models import Cond, MixtureModel, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.prediction import Data, Prediction, Score
from scorefield.records.style import INK, PALETTE, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import VP, Schedule
from scorefield.tweedie import posterior_mean


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    beta_min: float
    beta_max: float
    steps: int
    samples: int
    reference: int
    seed: int


class Denoiser(ScoreModel):
    """Answers with the clean sample's posterior mean alone."""

    def __init__(self, truth: MixtureModel) -> None:
        super().__init__(truth.schedule)
        self.truth = truth

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, posterior_mean(self.truth, x, t), Data())


class NoScore(ScoreModel):
    """s = 0: what is left of the reverse diffusion is its drift."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, torch.zeros_like(x), Score())


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Sample with the denoiser and without any score, and compare with exact samples."""
    schedule = VP(settings.beta_min, settings.beta_max)
    truth = MixtureModel(schedule, settings.weights, [[m] for m in settings.means], [settings.std**2] * 2)
    data = exact_samples(truth, settings.reference, StreamNoise(settings.seed, "data"))
    floor = exact_samples(truth, settings.samples, StreamNoise(settings.seed, "floor"))
    sampler = Sampler(Uniform(), settings.steps, EulerMaruyama())
    kept: dict[float, Tensor] = {}

    def keep(step: int, t: float, x: Tensor) -> None:
        if step in (0, settings.steps // 2, 4 * settings.steps // 5):
            kept[t] = x

    start = schedule.prior_like(
        torch.empty(settings.samples, 1, dtype=torch.float64), StreamNoise(settings.seed, "start")
    )
    x = sampler(Denoiser(truth), start, noise=StreamNoise(settings.seed, "steps"), trace=keep).x
    few = start[: settings.samples // 10]  # a distance of 100 shows in any number of samples
    drift = sampler(NoScore(schedule), few, noise=StreamNoise(settings.seed, "drift")).x
    share, distance = float((x > 0).double().mean()), float(wasserstein_1d(x, data, order=1))
    draw(settings, truth, kept, x, share, distance, figure)
    return {
        "W1 to the data": distance,
        "share of the right mode": share,
        "W1 to the data without the score": float(wasserstein_1d(drift, data, order=1)),
        "W1 of exact samples to the data": float(wasserstein_1d(floor, data, order=1)),
    }


def draw(
    settings: Settings,
    truth: MixtureModel,
    kept: dict[float, Tensor],
    x: Tensor,
    share: float,
    distance: float,
    figure: Path,
) -> None:
    """Histograms from the noise to the samples, and the exact density over the last."""
    grid = torch.linspace(-4.5, 4.5, 301, dtype=torch.float64)[:, None]
    edges = np.linspace(-4.5, 4.5, 91).tolist()
    with sheet(figure, width=6.0) as (_, (axes,)):
        for i, (t, state) in enumerate(kept.items()):
            axes.hist(
                state[:, 0].numpy(), edges, density=True, histtype="step", color=PALETTE[i + 1], label=f"t = {t:.2g}"
            )
        axes.hist(x[:, 0].numpy(), edges, density=True, color=PALETTE[0], alpha=0.35, label="samples")
        axes.plot(grid[:, 0], truth.log_prob(grid, times(grid)).exp(), color=INK, linewidth=1, label="exact density")
        axes.set(xlabel="x", ylabel="density")
        axes.set_title(f"From noise by denoising: W1 {distance:.3f}, right mode {100 * share:.1f} % (80 %)")
        axes.legend(loc="upper left")
