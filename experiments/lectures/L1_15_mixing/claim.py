"""Shares of two distant modes before and after Langevin dynamics, and what the score knows of their weights."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from torch import Tensor

from scorefield.grids import Uniform
from scorefield.kernels import FixedStep, Langevin
from scorefield.metrics.chains import r_hat
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.records.style import PALETTE, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    half_width: float
    steps: int
    epsilon: float
    chains: int
    recorded: int
    seed: int


def share(x: Tensor, model: MixtureModel) -> float:
    """Fraction of the points that belong to the heavier mode more probably than to the other."""
    return float((model.responsibilities(x, times(x)).argmax(1) == model.weights.argmax()).double().mean())


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """What the score knows of the weights, and what chains make of it."""
    model = MixtureModel(Constant(), settings.weights, settings.means, [1.0, 1.0])
    swapped = MixtureModel(Constant(), settings.weights[::-1], settings.means, [1.0, 1.0])
    mode, origin = model.means[1:], torch.zeros(1, 2, dtype=torch.float64)
    at_mode, between = ((model(x, times(x)).score - swapped(x, times(x)).score).abs().max() for x in (mode, origin))
    barrier = model.log_prob(mode, times(mode)) - model.log_prob(origin, times(origin)) - model.weights[1].log()

    noise = StreamNoise(settings.seed, "L1.15")
    like = torch.empty(settings.chains, 2, dtype=torch.float64)
    start = settings.half_width * (2 * noise.uniform_like(like) - 1)
    record: list[Tensor] = []

    def keep(step: int, t: float, x: Tensor) -> None:
        record.append(x[: settings.recorded])

    sampler = Sampler(Uniform(), settings.steps, Langevin(FixedStep(settings.epsilon / 2)))
    end = sampler(model, start, noise=noise, trace=keep).x
    exact = exact_samples(model, settings.chains, noise)
    clouds = {"exact samples": exact, "start of the chains": start, "after Langevin dynamics": end}
    shares = {name: share(x, model) for name, x in clouds.items()}
    draw(clouds, shares, figure)
    return {
        "share of the heavier mode at the start": shares["start of the chains"],
        "share of the heavier mode after Langevin dynamics": shares["after Langevin dynamics"],
        "share of the heavier mode in exact samples": shares["exact samples"],
        "|score with weight 0.2 - score with weight 0.8| at a mode": float(at_mode),
        "the same at the origin, per coordinate": float(between),
        "ln(density at the mode / at the origin) - ln weight": float(barrier),
        # the first half of the steps is left for the chains to reach a mode
        "R-hat of the chains": float(r_hat(torch.stack(record, 1)[:, settings.steps // 2 :]).min()),
    }


def draw(clouds: dict[str, Tensor], shares: dict[str, float], figure: Path) -> None:
    """Exact samples, start and end."""
    with sheet(figure, panels=3, width=3.4, height=3.9, shared=True) as (_, panels):
        for i, (axes, (name, x)) in enumerate(zip(panels, clouds.items(), strict=True)):
            axes.scatter(x[:2000, 0], x[:2000, 1], s=3, color=PALETTE[(2, 5, 1)[i]], alpha=0.5, linewidths=0)
            axes.set(xlabel="x₁", ylabel="" if i else "x₂", xlim=(-9, 9), ylim=(-9, 9), box_aspect=1)
            axes.set_title(f"{name}: {100 * shares[name]:.0f} % right")
