"""Paths of flow and SDE from the same starts, and the order they keep."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from scipy import stats
from torch import Tensor

from scorefield.grids import LogRatio
from scorefield.kernels import EulerMaruyama
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.ode import DormandPrince
from scorefield.records.style import INK, PALETTE, sheet
from scorefield.samplers import FlowSampler, Sampler
from scorefield.samplers import Path as Trajectory
from scorefield.schedules import VP


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    samples: int
    steps: int
    tolerance: float
    tight: float
    shown: int
    stops: int
    seed: int


def distribution(model: MixtureModel, x: Tensor, t: float) -> Tensor:
    """F_t(x) of a mixture on the line, (B,)."""
    time = times(x, t)
    alpha, sigma = model.schedule.alpha(time)[:, None], model.schedule.sigma(time)[:, None]
    deviation = (alpha.square() * model.variances[:, 0] + sigma.square()).sqrt()
    return (torch.special.ndtr((x - alpha * model.means[:, 0]) / deviation) * model.weights).sum(1)


def quantile(model: MixtureModel, level: Tensor, t: float) -> Tensor:
    """The inverse of `distribution`, by bisection, (B, 1)."""
    low, high = torch.full((len(level), 1), -10.0).double(), torch.full((len(level), 1), 10.0).double()
    for _ in range(60):
        middle = (low + high) / 2
        below = (distribution(model, middle, t) < level)[:, None]
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Order after the flow and after the SDE."""
    schedule = VP()
    model = MixtureModel(schedule, settings.weights, [[m] for m in settings.means], [settings.std**2] * 2)
    start = exact_samples(model, settings.samples, StreamNoise(settings.seed, "start"), schedule.t_max).sort(0).values
    solver = DormandPrince(settings.tolerance, settings.tolerance)
    ode = FlowSampler(solver)(model, start).x
    # Neighbours among so many starts are nearer to each other than the solver's error at the tolerance above.
    tight = FlowSampler(DormandPrince(settings.tight, settings.tight))(model, start).x
    euler, noise = Sampler(LogRatio(), settings.steps, EulerMaruyama()), StreamNoise(settings.seed, "sde")
    sde = euler(model, start, noise=noise).x
    by_quantile = quantile(model, distribution(model, start, schedule.t_max), schedule.t_min)
    agreement = stats.kendalltau(start[:, 0].numpy(), sde[:, 0].numpy()).statistic
    shown = start[:: settings.samples // settings.shown]
    paths = {"probability flow": Trajectory(), "reverse SDE": Trajectory(every=4)}
    FlowSampler(solver, stops=settings.stops)(model, shown, trace=paths["probability flow"])
    euler(model, shown, noise=StreamNoise(settings.seed, "shown"), trace=paths["reverse SDE"])
    draw(model, paths, figure)
    error = (ode - by_quantile).abs()
    return {
        "inversions of the flow": int((tight[:, 0].diff() < 0).sum()),
        "pairs that the SDE turns round": float(1 - agreement) / 2,
        "largest distance of the flow to the map of quantiles": float(error.max()),
        "mean distance of the flow to the map of quantiles": float(error.mean()),
    }


def draw(model: MixtureModel, paths: dict[str, Trajectory], figure: Path) -> None:
    """Both kinds of paths over the density of each time."""
    x = torch.linspace(-4, 4, 161, dtype=torch.float64)[:, None]
    with sheet(figure, panels=2, width=4.4, height=3.6, shared=True) as (_, panels):
        for axes, (name, path) in zip(panels, paths.items(), strict=True):
            t, states = path.t, path.x[..., 0]
            density = torch.stack([model.log_prob(x, times(x, float(at))).exp() for at in t], 1)
            order = t.argsort()
            axes.pcolormesh(t[order], x[:, 0], density[:, order], cmap="Greys", vmax=1.0, shading="gouraud", alpha=0.6)
            axes.plot(t, states, color=PALETTE[0 if name == "probability flow" else 1], linewidth=0.8)
            axes.plot(t[:1].expand(states.shape[1]), states[0], ".", color=INK, markersize=3)
            axes.set(xlabel="t", ylabel="x" if name == "probability flow" else "", ylim=(-4, 4), xlim=(1, 0))
            axes.set_title(name)
            axes.grid(False)
