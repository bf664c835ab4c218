"""Annealed Langevin dynamics between two distant modes, from ladders with several largest levels."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorefield.grids import Ladder
from scorefield.kernels import Langevin, SigmaStep
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.records.style import MUTED, PALETTE, sheet
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
    sweep: list[float]
    seed: int


def annealed(settings: Settings, sigma_max: float) -> tuple[Tensor, MixtureModel]:
    """Samples by the ladder from a largest level down, and the density they should have."""
    # Points with the noise of the last level are the mixture of unit variances itself.
    model = MixtureModel(VE(settings.sigma_min, sigma_max, t_min=0.0), settings.weights, settings.means, [0.0, 0.0])
    noise = StreamNoise(settings.seed, "L2.3")
    start = settings.half_width * (2 * noise.uniform_like(torch.empty(settings.chains, 2, dtype=torch.float64)) - 1)
    step = Langevin(SigmaStep.ncsn(settings.epsilon / 2, settings.sigma_min))
    sampler = Sampler(Ladder(), settings.levels, corrector=step, corrections=settings.corrections)
    return sampler(model, start, noise=noise).x, model


def bound(distance: float, sigma: float) -> float:
    """1/2 exp(-d^2 / (8 sigma^2))."""
    return 0.5 * math.exp(-(distance**2) / (8 * sigma**2))


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Shares of the heavier mode by largest level, and the spread within a mode."""
    shares: dict[float, float] = {}
    for sigma_max in settings.sweep:
        x, model = annealed(settings, sigma_max)
        nearest = torch.cdist(x, model.means).argmin(1)
        shares[sigma_max] = float((nearest == 1).double().mean())
    heavy = x[nearest == 1] - model.means[1]
    draw(settings, x, shares, figure)
    found = {f"share at largest level {sigma:g}": value for sigma, value in shares.items()}
    return {
        "share of the heavier mode, annealed": shares[settings.sigma_max],
        "standard deviation within a mode": float(heavy.std()),
        "bound of the overlap at level 5": bound(float((model.means[1] - model.means[0]).norm()), 5.0),
        **found,
    }


def draw(settings: Settings, x: Tensor, shares: dict[float, float], figure: Path) -> None:
    """Samples of the full ladder, and share against the largest level."""
    with sheet(figure, panels=2, width=4.2, height=3.6) as (_, (left, right)):
        left.scatter(x[:2000, 0], x[:2000, 1], s=3, color=PALETTE[0], alpha=0.5, linewidths=0)
        left.set(xlabel="x₁", ylabel="x₂", xlim=(-9, 9), ylim=(-9, 9), aspect="equal")
        left.set_title(f"annealed from σ₁ = {settings.sigma_max:g}: {100 * shares[settings.sigma_max]:.0f} % right")
        sigmas = list(shares)
        distance = float(torch.dist(*torch.tensor(settings.means, dtype=torch.float64)))
        right.plot(sigmas, list(shares.values()), "o-", label="share of the heavier mode")
        right.plot(sigmas, [bound(distance, s) for s in sigmas], "--", color=PALETTE[1], label="½ exp(−d²/8σ₁²)")
        right.axhline(0.8, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        right.set(xlabel="largest level σ₁", ylabel="share, bound", ylim=(0, 1))
        right.set_title("The largest level must reach the other mode")
        right.legend(loc="lower right")
