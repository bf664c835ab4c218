"""The stationary variance of Langevin dynamics against its step, without and with a Metropolis test."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from scorefield.grids import Uniform
from scorefield.kernels import FixedStep, Kernel, Langevin, Mala
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    epsilons: list[float]
    time: float
    chains: int
    seed: int


def variance(kernel: Kernel, epsilon: float, settings: Settings) -> float:
    """Variance of the chains at the end; they start from the target, so that only the step's error moves them."""
    model, noise = MixtureModel(Constant(), [1.0], [[0.0]], [1.0]), StreamNoise(settings.seed, str(kernel))
    start = model.schedule.prior_like(torch.empty(settings.chains, 1, dtype=torch.float64), noise)
    sampler = Sampler(Uniform(), math.ceil(settings.time / epsilon), kernel)
    return float(sampler(model, start, noise=noise).x.var())


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """The variance at each step, and once with the test."""
    # The lecture's step is twice the library's.
    found = {e: variance(Langevin(FixedStep(e / 2)), e, settings) for e in settings.epsilons}
    tested = variance(Mala(FixedStep(0.4 / 2)), 0.4, settings)
    draw(found, tested, figure)
    return {f"variance at ε = {e:g}": value for e, value in found.items()} | {
        "variance at ε = 0.4 with a Metropolis test": tested
    }


def draw(found: dict[float, float], tested: float, figure: Path) -> None:
    """Variance against the step."""
    fine = np.linspace(0, max(found) * 1.05, 100)
    with sheet(figure) as (_, (axes,)):
        axes.plot(fine, 1 / (1 - fine / 4), color=PALETTE[0], label="1 / (1 − ε/4)")
        axes.plot(list(found), list(found.values()), "o", color=PALETTE[1], label="Langevin, measured")
        axes.plot(0.4, tested, "s", color=PALETTE[2], label="with a Metropolis test")
        axes.axhline(1, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="target")
        axes.set(xlabel="step ε in squared units of x", ylabel="stationary variance", xlim=(0, None))
        axes.set_title(f"Too wide by {100 * (found[0.4] - 1):.0f} % at ε = 0.4")
        axes.legend(loc="upper left")
