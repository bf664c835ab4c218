"""Time of sliced over time of denoising score matching, for the same network."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.networks import PlainMLP
from lecture.timing import cpu_seconds

from scorefield.models import NetworkModel, Parametrization
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Objective, Sliced
from scorefield.prediction import Score
from scorefield.records.style import PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    dimensions: list[int]
    width: int
    batch: int
    sigma: float
    turns: int
    seed: int


OBJECTIVES: dict[str, Objective] = {"denoising": Denoising(), "sliced": Sliced()}


def seconds(settings: Settings, dimension: int) -> dict[str, float]:
    """CPU time of each loss with its gradient in the weights."""
    torch.manual_seed(settings.seed)
    net = PlainMLP(dimension, settings.width)
    model = NetworkModel(net, Constant(settings.sigma), Parametrization(target=Score()))
    noise = StreamNoise(settings.seed, "L2.1", dimension)
    x = noise.normal_like(torch.empty(settings.batch, dimension))

    def work(objective: Objective) -> Callable[[], None]:
        return lambda: objective(model, x, None, noise).per_sample.mean().backward()

    return cpu_seconds({name: work(objective) for name, objective in OBJECTIVES.items()}, settings.turns)


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """The ratio in each dimension."""
    taken = {d: seconds(settings, d) for d in settings.dimensions}
    ratios = {d: each["sliced"] / each["denoising"] for d, each in taken.items()}
    draw(taken, ratios, figure)
    return {f"time sliced / time denoising, d = {d}": ratio for d, ratio in ratios.items()}


def draw(taken: dict[int, dict[str, float]], ratios: dict[int, float], figure: Path) -> None:
    """Bars for each dimension, the ratio above them."""
    with sheet(figure) as (_, (axes,)):
        place, top = np.arange(len(taken)), 0.0
        for i, name in enumerate(OBJECTIVES):
            heights = [1e3 * each[name] for each in taken.values()]
            axes.bar(place + 0.36 * (i - 0.5), heights, 0.34, color=PALETTE[i], label=name)
            top = max(top, *heights)
        for at, (d, ratio) in zip(place, ratios.items(), strict=True):
            axes.annotate(
                f"{ratio:.1f} times", (at + 0.18, 1e3 * taken[d]["sliced"]), ha="center", va="bottom", fontsize=8
            )
        axes.set_xticks(place, [f"d = {d}" for d in taken])
        axes.set(ylabel="CPU time of loss and gradient in ms", ylim=(0, 1.35 * top))
        axes.grid(False, axis="x")
        axes.set_title(f"Sliced takes {min(ratios.values()):.1f} to {max(ratios.values()):.1f} times as long")
        axes.legend(loc="upper left")
