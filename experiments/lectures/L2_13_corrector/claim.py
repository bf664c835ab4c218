"""Exact variances of predictor, predictor-corrector and corrector runs on Gaussian data."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.gaussian import Run, next_variance
from scipy.optimize import minimize_scalar

from scorefield.grids import Uniform
from scorefield.kernels import Kernel, Langevin, ReverseDiffusion, SignalToNoise
from scorefield.models import MixtureModel
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.schedules import Tabulated


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    sigma_min: float
    sigma_max: float
    std: float
    steps: list[int]
    compared: int
    snr: float


def chain(settings: Settings, levels: int) -> MixtureModel:
    """Gaussian data under the chain of so many levels, at which SMLD moves."""
    schedule = Tabulated.geometric(settings.sigma_min, settings.sigma_max, levels)
    return MixtureModel(schedule, [1.0], [[0.0]], [settings.std**2])


def error(
    settings: Settings, levels: int, predictor: Kernel | None, corrector: Kernel | None = None, corrections: int = 1
) -> float:
    """Relative error of the variance at the end of the chain, the clean data, from the exact start."""
    model = chain(settings, levels)
    start, end = (float(model.moments(t)[1]) for t in (1.0, 0.0))
    run = Run(Uniform(t_min=0.0), levels, predictor, corrector, corrections, before=False)
    return abs(run.end(model, start) - end) / end


def best(settings: Settings, levels: int, predictor: Kernel | None, corrections: int) -> float:
    """The least error over the corrector's r."""

    def at(log_snr: float) -> float:
        return error(settings, levels, predictor, Langevin(SignalToNoise(10**log_snr)), corrections)

    return float(minimize_scalar(at, bounds=(-1.5, 0.0), method="bounded", options={"xatol": 1e-2}).fun)


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Errors of the four ways."""
    model = chain(settings, settings.compared)
    still, t = Langevin(SignalToNoise(settings.snr)), torch.tensor(0.5, dtype=torch.float64)
    target = float(model.moments(0.5)[1])
    stationary = target
    for _ in range(2000):
        stationary = next_variance(still, model, t, t, stationary)
    predictor, found = ReverseDiffusion(), dict[str, list[float]]()
    found["P"] = [error(settings, n, predictor) for n in settings.steps]
    found["P2"] = [error(settings, 2 * n, predictor) for n in settings.steps]
    found["PC"] = [best(settings, n, predictor, 1) for n in settings.steps]
    found["C2"] = [best(settings, n, None, 2) for n in settings.steps]
    draw(settings.steps, found, figure)
    n, at = settings.compared, settings.steps.index(settings.compared)
    return {
        "stationary variance / target at r = 0.16": stationary / target,
        f"error of P{n}": found["P"][at],
        f"error of P{2 * n}": found["P2"][at],
        f"error of PC{n}": found["PC"][at],
        f"error of C{2 * n}": found["C2"][at],
        "PC / P2 at equal evaluations, largest over N": max(
            a / b for a, b in zip(found["PC"], found["P2"], strict=True)
        ),
        "P2 / C2 at equal evaluations, largest over N": max(
            a / b for a, b in zip(found["P2"], found["C2"], strict=True)
        ),
    }


def draw(steps: list[int], found: dict[str, list[float]], figure: Path) -> None:
    """Error against the number of levels."""
    names = {"P": "N predictor steps", "P2": "2N predictor steps", "PC": "N of both", "C2": "2N corrector steps"}
    with sheet(figure, width=5.8) as (_, (axes,)):
        for i, (name, values) in enumerate(found.items()):
            axes.plot(steps, values, "o-", color=PALETTE[i], markersize=3, label=names[name])
        axes.set(xscale="log", yscale="log", xlabel="N", ylabel="relative error of the variance")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_title("Predictors and correctors for VE, best r each")
        axes.legend()
