"""Calls of torch.autograd.grad in one evaluation of each loss."""

from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from scorefield.divergence import Exact
from scorefield.models import EnergyModel, NetworkModel, Parametrization, ScoreModel
from scorefield.nets import MLP, EnergyMLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Implicit, Objective, Sliced
from scorefield.prediction import Score
from scorefield.records.style import PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    dimension: int
    width: int
    batch: int
    sigma: float
    seed: int


def backward_passes(objective: Objective, model: ScoreModel, settings: Settings) -> int:
    """Calls of torch.autograd.grad in one evaluation of the loss."""
    noise = StreamNoise(settings.seed, "L1.4")
    x = noise.normal_like(torch.empty(settings.batch, settings.dimension))
    with patch("torch.autograd.grad", wraps=torch.autograd.grad) as grad:
        objective(model, x, None, noise)
    return grad.call_count


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Count for both kinds of model and the three losses."""
    torch.manual_seed(settings.seed)
    shape, schedule, parametrization = (settings.dimension,), Constant(settings.sigma), Parametrization(target=Score())
    models = {
        "score network": NetworkModel(MLP(shape, settings.width, 1, Fourier(8)), schedule, parametrization),
        "energy": EnergyModel(EnergyMLP(shape, settings.width, 1, Fourier(8)), schedule, parametrization),
    }
    objectives = {"denoising": Denoising(), "sliced": Sliced(), "implicit": Implicit(Exact(chunk=1))}
    calls = {
        f"{loss}, {name}": backward_passes(objective, model, settings)
        for name, model in models.items()
        for loss, objective in objectives.items()
    }
    draw(calls, list(objectives), list(models), settings.dimension, figure)
    return {name: float(count) for name, count in calls.items()}


def draw(calls: dict[str, int], losses: list[str], models: list[str], dimension: int, figure: Path) -> None:
    """Bars for each loss, one for each kind of model."""
    with sheet(figure) as (_, (axes,)):
        for i, model in enumerate(models):
            counts = [calls[f"{loss}, {model}"] for loss in losses]
            bars = axes.bar(np.arange(3) + 0.36 * (i - 0.5), counts, 0.34, color=PALETTE[i], label=model)
            axes.bar_label(bars, fontsize=9)
        axes.set_xticks(range(3), losses)
        axes.set(ylabel="backward passes for the loss", ylim=(0, 10.5))
        axes.grid(False, axis="x")
        axes.set_title(f"Only the exact trace pays for each of the d = {dimension} dimensions")
        axes.legend(loc="upper left")
