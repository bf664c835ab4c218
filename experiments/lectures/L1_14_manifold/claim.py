"""Gradient descent on the implicit loss for data on a line, with and without noise."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from scorefield.models import Cond, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.objectives import Implicit
from scorefield.prediction import Prediction, Score
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    angle: float
    sigma: float
    learning_rate: float
    steps: int
    shown: list[int]
    samples: int
    test_samples: int
    seed: int


class LinearScore(ScoreModel):
    """s(x) = W x."""

    def __init__(self, schedule: Constant, dimension: int) -> None:
        super().__init__(schedule)
        self.weight = nn.Parameter(torch.zeros(dimension, dimension, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, x @ self.weight.T, Score())


def on_the_line(n: int, angle: float, noise: StreamNoise) -> Tensor:
    """n points of N(0, 1) along the line, (n, 2)."""
    direction = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    return noise.normal_like(torch.empty(n, 1, dtype=torch.float64)) * direction


def descend(model: LinearScore, x: Tensor, settings: Settings) -> list[float]:
    """The loss before each step of gradient descent, and after the last."""
    objective, noise = Implicit(), StreamNoise(settings.seed, "noise")
    optimiser = torch.optim.SGD(model.parameters(), lr=settings.learning_rate)
    losses = []
    for _ in range(settings.steps + 1):
        loss = objective(model, x, None, noise).per_sample.mean()
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return losses


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Both descents, and the repaired loss on fresh samples."""
    x = on_the_line(settings.samples, settings.angle, StreamNoise(settings.seed, "data"))
    clean, noisy = LinearScore(Constant(), 2), LinearScore(Constant(settings.sigma), 2)
    losses = {"without noise": descend(clean, x, settings), "with noise": descend(noisy, x, settings)}
    test = StreamNoise(settings.seed, "test")
    fresh = on_the_line(settings.test_samples, settings.angle, test)
    repaired = float(Implicit()(noisy, fresh, None, test).per_sample.mean().detach())
    draw(settings, losses, repaired, figure)
    return {
        **{f"loss without noise after {k} steps": losses["without noise"][k] for k in settings.shown},
        "steps at which the loss without noise rose": float((np.diff(losses["without noise"]) > 0).sum()),
        "loss with noise": repaired,
    }


def draw(settings: Settings, losses: dict[str, list[float]], repaired: float, figure: Path) -> None:
    """Both losses against the step."""
    level = -(1 / (1 + settings.sigma**2) + 1 / settings.sigma**2) / 2
    with sheet(figure, width=5.8) as (_, (axes,)):
        axes.plot(losses["without noise"], color=PALETTE[1], label="without noise")
        axes.plot(losses["with noise"], color=PALETTE[0], linewidth=1, label=f"with noise, σ = {settings.sigma:g}")
        axes.axhline(level, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=f"its minimum, −{-level:.3f}")
        axes.set(xlabel="step of gradient descent", ylabel="implicit loss in 1 / length²")
        axes.set_title(f"Without noise the loss falls for ever; with it, it stops at −{-repaired:.1f}")
        axes.legend(loc="lower left")
