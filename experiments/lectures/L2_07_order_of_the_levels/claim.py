"""Annealed Langevin dynamics along a ladder and against it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorefield.grids import Given
from scorefield.kernels import Langevin, SigmaStep
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.samplers import Path as Trajectory
from scorefield.samplers import Sampler
from scorefield.schedules import VE


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    half_width: float
    sigma_min: float
    sigma_max: float
    levels: int
    corrections: int
    epsilon: float
    chains: int
    seed: int


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Spread and shares at the end of both orders."""
    schedule = VE(settings.sigma_min, settings.sigma_max, t_min=0.0)
    model = MixtureModel(schedule, settings.weights, settings.means, [0.0, 0.0])
    noise = StreamNoise(settings.seed, "L2.7")
    start = settings.half_width * (2 * noise.uniform_like(torch.empty(settings.chains, 2, dtype=torch.float64)) - 1)
    step = Langevin(SigmaStep.ncsn(settings.epsilon / 2, settings.sigma_min))
    down = schedule.ladder(settings.levels)
    ends: dict[str, Tensor] = {}
    spreads: dict[str, list[float]] = {}
    for name, levels in (("large to small", down), ("small to large", down.flip(0))):
        grid, path = Given([*levels.tolist(), float(levels[-1])]), Trajectory()
        sampler = Sampler(grid, settings.levels, corrector=step, corrections=settings.corrections)
        ends[name] = sampler(model, start, noise=noise, trace=path).x
        spreads[name] = path.x.std(1).mean(1).tolist()
    nearest = {name: torch.cdist(x, model.means).argmin(1) for name, x in ends.items()}
    draw(schedule.sigma(down), spreads, figure)
    heavy = ends["large to small"][nearest["large to small"] == 1] - model.means[1]
    return {
        "standard deviation, small to large": float(ends["small to large"].std(0).mean()),
        "share of the heavier mode, small to large": float((nearest["small to large"] == 1).double().mean()),
        "share of the heavier mode, large to small": float((nearest["large to small"] == 1).double().mean()),
        "standard deviation within a mode, large to small": float(heavy.std()),
    }


def draw(sigma: Tensor, spreads: dict[str, list[float]], figure: Path) -> None:
    """Spread of the chains along the run."""
    with sheet(figure, width=5.8) as (_, (axes,)):
        for i, (name, values) in enumerate(spreads.items()):
            axes.plot(range(len(values)), values, "o-", color=PALETTE[i], markersize=3, label=name)
        axes.set(yscale="log", xlabel="levels done", ylabel="standard deviation of a coordinate")
        plain_ticks(axes.yaxis)
        axes.set_title(f"Levels from {float(sigma[0]):g} to {float(sigma[-1]):g}, in both orders")
        axes.legend(loc="center right")
