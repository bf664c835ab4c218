"""The error of ever deeper samplers, and the calls that training and sampling make."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lecture.draws import exact_samples

from scorefield.grids import LogRatio
from scorefield.kernels import Euler
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.ode import DormandPrince
from scorefield.prediction import Score
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import VP


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    steps: list[int]
    samples: int
    seed: int


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Errors by depth, and calls."""
    schedule = VP(t_min=1e-3)
    model = MixtureModel(schedule, settings.weights, [[m] for m in settings.means], [settings.std**2] * 2)
    noise, calls = StreamNoise(settings.seed, "L2.14"), []
    start = exact_samples(model, settings.samples, noise, schedule.t_max)
    exact = ProbabilityFlow(DormandPrince(1e-10, 1e-10)).decode(model, start)
    model.register_forward_hook(lambda *_: calls.append(1))
    errors, depths = [], []
    for steps in settings.steps:
        calls.clear()
        errors.append(float((Sampler(LogRatio(), steps, Euler())(model, start).x - exact).square().mean().sqrt()))
        depths.append(len(calls))
    calls.clear()
    Denoising(Score())(model, exact, None, noise)
    slope = np.polyfit(np.log(settings.steps), np.log(errors), 1)[0]
    draw(settings.steps, errors, depths, len(calls), figure)
    return {
        "slope of the error of Euler steps": float(slope),
        "network calls of a training step": len(calls),
        "network calls of the deepest sampler": depths[-1],
    }


def draw(steps: list[int], errors: list[float], depths: list[int], training: int, figure: Path) -> None:
    """Error and calls against depth."""
    with sheet(figure, panels=2, width=4.2) as (_, (left, right)):
        left.plot(steps, errors, "o-")
        left.set(xscale="log", yscale="log", xlabel="steps N", ylabel="error of the samples", title="Deeper is better")
        right.plot(steps, depths, "o-", color=PALETTE[1], label="sampling")
        right.plot(steps, [training] * len(steps), "o-", color=PALETTE[2], label="a training step")
        right.set(xscale="log", yscale="log", xlabel="steps N", ylabel="network calls", title="and free in training")
        for axes in (left, right):
            plain_ticks(axes.xaxis)
            plain_ticks(axes.yaxis)
        right.legend()
