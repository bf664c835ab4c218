"""Errors of the variance against the number of steps, without sampling."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.gaussian import Run

from scorefield.grids import Grid, LogRatio, Uniform
from scorefield.kernels import DPMSolver2M, DPMSolver3M, Euler, EulerMaruyama, Heun, Kernel
from scorefield.models import MixtureModel
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import VP


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    beta_min: float
    beta_max: float
    t_min: float
    std: float
    steps: list[int]


def variance_at(model: MixtureModel, t: float) -> float:
    return float(model.moments(t)[1])


def deterministic_end(model: MixtureModel, grid: Grid, steps: int, kernel: Kernel, start: float) -> float:
    """The variance of a deterministic run: the square of what it makes of one deviation."""
    x = torch.full((1, 1), start**0.5, dtype=torch.float64)
    return float(Sampler(grid, steps, kernel)(model, x).x.square())


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Slopes of five kernels."""
    schedule = VP(settings.beta_min, settings.beta_max, t_min=settings.t_min)
    model = MixtureModel(schedule, [1.0], [[0.0]], [settings.std**2])
    start, end = variance_at(model, schedule.t_max), variance_at(model, schedule.t_min)
    kernels: dict[str, tuple[Kernel, Grid]] = {
        "Euler-Maruyama": (EulerMaruyama(), Uniform()),
        "Euler": (Euler(), LogRatio()),
        "Heun": (Heun(), LogRatio()),
        "DPM-Solver++ 2M": (DPMSolver2M(), LogRatio()),
        "DPM-Solver++ 3M": (DPMSolver3M(), LogRatio()),
    }
    errors: dict[str, list[float]] = {}
    for name, (kernel, grid) in kernels.items():
        if kernel.order is None:
            ends = [Run(grid, n, kernel).end(model, start) for n in settings.steps]
        else:
            ends = [deterministic_end(model, grid, n, kernel, start) for n in settings.steps]
        errors[name] = [abs(value - end) / end for value in ends]
    draw(settings.steps, errors, figure)
    slopes = {name: np.polyfit(np.log(settings.steps), np.log(values), 1)[0] for name, values in errors.items()}
    return {f"slope of {name}": float(slope) for name, slope in slopes.items()}


def draw(steps: list[int], errors: dict[str, list[float]], figure: Path) -> None:
    """Error against the number of steps."""
    with sheet(figure, width=5.8, height=3.8) as (_, (axes,)):
        for i, (name, values) in enumerate(errors.items()):
            axes.plot(steps, values, "o-", color=PALETTE[i], markersize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel="steps", ylabel="relative error of the variance")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_title("Orders of the integrators on Gaussian data")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
