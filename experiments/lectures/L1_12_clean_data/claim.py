"""The slope of a linear score, by sliced score matching on clean data and by denoising."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from lecture.fitting import newton
from lecture.networks import LinearScore

from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Sliced
from scorefield.prediction import Score
from scorefield.records.style import INK, PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    dimension: int
    sigma: float
    samples: int
    seed: int


def normal(schedule: Constant, dimension: int = 1) -> MixtureModel:
    """N(0, I), perturbed by the schedule."""
    return MixtureModel(schedule, [1.0], [[0.0] * dimension], [1.0])


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Both minimisers, from the same data."""
    x = exact_samples(normal(Constant(), settings.dimension), settings.samples, StreamNoise(settings.seed, "data"))
    t, noise = times(x), StreamNoise(settings.seed, "objective")
    sliced, denoising = Sliced(), Denoising(view=Score())
    clean, perturbed = LinearScore(Constant()), LinearScore(Constant(settings.sigma))
    probes, eps = sliced.divergence.draw(x, noise), noise.normal_like(x)
    found = {
        "sliced": float(newton(lambda: sliced.at(clean, x, t, probes).per_sample.mean(), clean.theta)),
        "denoising": float(newton(lambda: denoising.at(perturbed, x, t, eps).per_sample.mean(), perturbed.theta)),
    }
    draw(settings, found, figure)
    return {f"slope by {name} score matching": value for name, value in found.items()}


def draw(settings: Settings, found: dict[str, float], figure: Path) -> None:
    """Densities, and the fitted and exact scores."""
    x = torch.linspace(-4, 4, 201, dtype=torch.float64)[:, None]
    t = times(x)
    truths = {"clean": normal(Constant()), "perturbed": normal(Constant(settings.sigma))}
    with sheet(figure, panels=2, width=4.5) as (_, (one, two)):
        for i, (truth, (method, slope)) in enumerate(zip(truths.items(), found.items(), strict=True)):
            name, model = truth
            one.plot(x, model.log_prob(x, t).exp(), color=PALETTE[i], label=f"{name} density")
            two.plot(x, -slope * x, color=PALETTE[i], label=f"{method}: slope −{slope:.3f}")
            two.plot(x, model(x, t).score, color=INK, linestyle=(0, (1, 3)), label="exact scores" if i else None)
        one.set(xlabel="a coordinate of x", ylabel="density", ylim=(0, 0.5))
        one.set_title(f"Data N(0, I), and perturbed with σ = {settings.sigma:g}")
        two.set(xlabel="a coordinate of x", ylabel="score in 1 / length")
        two.set_title("Each method fits the score of what it sees")
        one.legend(loc="upper right")
        two.legend(loc="upper right")
