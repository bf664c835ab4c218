"""Brownian motion, Ito's formula and the Ornstein-Uhlenbeck process, by simulation."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from scorefield.records.style import INK, PALETTE, sheet


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    paths: int
    steps: int
    horizon: float
    start: float
    seed: int


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """The facts of the primer."""
    generator, h = np.random.default_rng(settings.seed), settings.horizon / settings.steps
    increments = np.sqrt(h) * generator.standard_normal((settings.steps, settings.paths))
    w = np.vstack([np.zeros(settings.paths), increments.cumsum(0)])
    ito = 2 * (w[:-1] * np.diff(w, axis=0)).cumsum(0)
    gap = w[-1] ** 2 - ito[-1]
    x = np.full(settings.paths, settings.start)
    kept = [x]
    for step in increments:
        # The exact transition of dx = -x dt + sqrt 2 dw, driven by the same noise.
        x = np.exp(-h) * x + np.sqrt((1 - np.exp(-2 * h)) / h) * step
        kept.append(x)
    times, quarter = h * np.arange(settings.steps + 1), settings.steps // 4
    draw(times, w, np.array(kept), figure)
    return {
        "variance of increments / Δt": float((w[2 * quarter] - w[quarter]).var()) / (h * quarter),
        "mean of w² at t = 4": float((w[-1] ** 2).mean()),
        "w² less the sum of 2w Δw, mean at t = 4": float(gap.mean()),
        "deviation of w² less the sum of 2w Δw": float(gap.std()),
        "stationary variance of Ornstein-Uhlenbeck": float(x.var()),
    }


def draw(times: np.ndarray, w: np.ndarray, x: np.ndarray, figure: Path) -> None:
    """A few paths of both processes, with their deviations."""
    with sheet(figure, panels=2, width=4.2) as (_, (left, right)):
        left.plot(times, w[:, :12], color=PALETTE[0], linewidth=0.7, alpha=0.7)
        for sign in (-1, 1):
            left.plot(times, sign * np.sqrt(times), color=INK, linewidth=1)
        left.set(xlabel="t", ylabel="w", title="Brownian motion and ±√t")
        right.plot(times, x[:, :12], color=PALETTE[1], linewidth=0.7, alpha=0.7)
        mean, deviation = x[0, 0] * np.exp(-times), np.sqrt(1 - np.exp(-2 * times))
        for sign in (-1, 1):
            right.plot(times, mean + sign * deviation, color=INK, linewidth=1)
        right.set(xlabel="t", ylabel="x", title="Ornstein–Uhlenbeck and its band")
