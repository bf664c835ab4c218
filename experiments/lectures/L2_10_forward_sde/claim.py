"""Forward SDEs by Euler-Maruyama against the schedules' closed forms."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scorefield.noise import StreamNoise
from scorefield.records.style import PALETTE, sheet
from scorefield.schedules import VE, VP, Schedule, SubVP


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    beta_min: float
    beta_max: float
    sigma_min: float
    sigma_max: float
    steps: int
    paths: int
    start: float
    seed: int


def forward(schedule: Schedule, settings: Settings, start: float) -> tuple[Tensor, Tensor]:
    """Times and mean and variance (steps + 1, 2) of Euler-Maruyama paths from one point."""
    noise, h = StreamNoise(settings.seed, "L2.10", repr(schedule)), 1 / settings.steps
    x = torch.full((settings.paths,), start, dtype=torch.float64)
    times, kept = torch.arange(settings.steps + 1, dtype=torch.float64) * h, [torch.tensor([start, 0.0])]
    for t in times[:-1]:
        f, g_sq = schedule.drift(t[None]), schedule.diffusion_sq(t[None])
        x = x + h * f * x + (h * g_sq).sqrt() * noise.normal_like(x)
        kept.append(torch.stack([x.mean(), x.var()]))
    return times, torch.stack([value.double() for value in kept])


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Moments at t = 1, and the figure of mean and band."""
    schedules = {
        "VP": VP(settings.beta_min, settings.beta_max),
        "sub-VP": SubVP(settings.beta_min, settings.beta_max),
        "VE": VE(settings.sigma_min, settings.sigma_max),
    }
    found = {name: forward(schedule, settings, settings.start) for name, schedule in schedules.items()}
    ends = {name: moments[-1] for name, (_, moments) in found.items()}
    draw(schedules, {name: forward(s, settings, 2.0) for name, s in schedules.items()}, figure)
    one = torch.ones(1, dtype=torch.float64)
    return {
        "VP, coefficient of the mean": float(ends["VP"][0]) / settings.start,
        "VP, variance": float(ends["VP"][1]),
        "sub-VP, variance": float(ends["sub-VP"][1]),
        "VE, standard deviation": float(ends["VE"][1].sqrt()),
        "VP, coefficient of the mean, of the schedule": float(schedules["VP"].alpha(one)),
    }


def draw(schedules: dict[str, Schedule], found: dict[str, tuple[Tensor, Tensor]], figure: Path) -> None:
    """Mean and one deviation of paths from x = 2, and the schedule's alpha and sigma."""
    with sheet(figure, panels=3, width=3.2, height=3.0) as (_, panels):
        for axes, (name, (times, moments)) in zip(panels, found.items(), strict=True):
            mean, deviation = moments[:, 0], moments[:, 1].sqrt()
            axes.fill_between(times, mean - deviation, mean + deviation, color=PALETTE[0], alpha=0.2, linewidth=0)
            axes.plot(times, mean, color=PALETTE[0], label="mean and deviation of paths")
            alpha, sigma = schedules[name].alpha(times), schedules[name].sigma(times)
            for sign in (-1, 1):
                label = "α x₀ ± σ" if sign == 1 else None
                axes.plot(times, 2 * alpha + sign * sigma, "--", color=PALETTE[1], linewidth=1, label=label)
            axes.set(xlabel="t", ylabel="x" if name == "VP" else "", title=name)
        panels[2].legend(loc="upper left")
