"""Backward passes and time of exact and sliced score matching, and the variance of projections."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from lecture.networks import PlainMLP
from lecture.timing import cpu_seconds
from torch import Tensor

from scorefield.divergence import Exact, Gaussian, Probe, Rademacher, quadratic_forms
from scorefield.models import NetworkModel, Parametrization
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Implicit, Objective, Sliced
from scorefield.prediction import Score
from scorefield.records.style import plain_ticks, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    dimensions: list[int]
    width: int
    batch: int
    sigma: float
    turns: int
    size: int
    diagonal: float
    total: float
    antisymmetric: float
    projections: int
    seed: int


OBJECTIVES: dict[str, Objective] = {"exact": Implicit(Exact(chunk=1)), "sliced": Sliced(), "denoising": Denoising()}


def costs(settings: Settings, dimension: int) -> tuple[dict[str, int], dict[str, float]]:
    """Autograd calls and seconds of each loss with its gradient in the weights."""
    torch.manual_seed(settings.seed)
    net = PlainMLP(dimension, settings.width)
    model = NetworkModel(net, Constant(settings.sigma), Parametrization(target=Score()))
    noise = StreamNoise(settings.seed, "L1.11", dimension)
    x = noise.normal_like(torch.empty(settings.batch, dimension))

    def work(objective: Objective) -> Callable[[], None]:
        return lambda: objective(model, x, None, noise).per_sample.mean().backward()

    calls = {}
    for name, objective in OBJECTIVES.items():
        with patch("torch.autograd.grad", wraps=torch.autograd.grad) as grad:
            work(objective)()
        calls[name] = grad.call_count
    return calls, cpu_seconds({name: work(objective) for name, objective in OBJECTIVES.items()}, settings.turns)


def matrix(settings: Settings) -> Tensor:
    """A random matrix with the given squared norms of its diagonal, symmetric and antisymmetric parts."""
    a = StreamNoise(settings.seed, "matrix").normal_like(torch.empty(settings.size, settings.size, dtype=torch.float64))
    symmetric, antisymmetric = (a + a.T) / 2, (a - a.T) / 2
    diagonal = symmetric.diagonal().diag()
    parts = {
        settings.diagonal: diagonal,
        settings.total - settings.diagonal: symmetric - diagonal,
        settings.antisymmetric: antisymmetric,
    }
    return torch.stack([norm**0.5 * part / torch.linalg.matrix_norm(part) for norm, part in parts.items()]).sum(0)


def projected(a: Tensor, probe: Probe, n: int, noise: StreamNoise) -> Tensor:
    """v . A v for n probes."""
    x = torch.zeros(n, len(a), dtype=torch.float64)
    return quadratic_forms(lambda y: y @ a.T, x, [probe(x, noise)[None]])[1][0].detach()


def slope(dimensions: list[int], seconds: list[float]) -> float:
    """Least squares on logarithmic axes."""
    return float(np.polyfit(np.log(dimensions), np.log(seconds), 1)[0])


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Count, time and project."""
    calls, seconds = zip(*(costs(settings, d) for d in settings.dimensions), strict=True)
    time_of = {name: [each[name] for each in seconds] for name in OBJECTIVES}
    exact_calls, sliced_calls = [each["exact"] for each in calls], [each["sliced"] for each in calls]
    at_64 = seconds[settings.dimensions.index(64)]
    a = matrix(settings)
    forms = {
        name: projected(a, probe, settings.projections, StreamNoise(settings.seed, name))
        for name, probe in (("Rademacher", Rademacher()), ("Gaussian", Gaussian()))
    }
    found = {
        **{f"autograd calls, exact, d = {d}": count for d, count in zip(settings.dimensions, exact_calls, strict=True)},
        # one number where all dimensions agree, and none of them where not
        "autograd calls, sliced, any d": sliced_calls[0] if len(set(sliced_calls)) == 1 else float("nan"),
        "slope of log time against log d, exact": slope(settings.dimensions, time_of["exact"]),
        "slope of log time against log d, sliced": slope(settings.dimensions, time_of["sliced"]),
        "time sliced / time denoising, d = 64": at_64["sliced"] / at_64["denoising"],
        **{f"variance of {name} projections": float(values.var()) for name, values in forms.items()},
        "time exact / time sliced at the largest d": time_of["exact"][-1] / time_of["sliced"][-1],
    }
    draw(settings, exact_calls, sliced_calls, time_of, forms, a, figure)
    return found


def draw(
    settings: Settings,
    exact: list[int],
    sliced: list[int],
    time_of: dict[str, list[float]],
    forms: dict[str, Tensor],
    a: Tensor,
    figure: Path,
) -> None:
    """Calls and times against d, and the distributions of the projections."""
    with sheet(figure, panels=3, width=4.2, height=3.5) as (_, (one, two, three)):
        one.plot(settings.dimensions, exact, "o-", label="exact")
        one.plot(settings.dimensions, sliced, "o-", label="sliced")
        one.set(ylabel="autograd calls")
        one.set_title("Backward passes of a loss")
        for name, seconds in time_of.items():
            two.plot(settings.dimensions, [1e3 * each for each in seconds], "o-", label=name)
        two.set(ylabel="CPU time of loss and gradient in ms")
        two.set_title(f"Exact takes {time_of['exact'][-1] / time_of['sliced'][-1]:.0f} times sliced's at d = 256")
        for axes in (one, two):
            axes.set(xscale="log", yscale="log", xlabel="dimension d")
            plain_ticks(axes.xaxis)
            axes.set_xticks(settings.dimensions, [str(d) for d in settings.dimensions])
            plain_ticks(axes.yaxis)
            axes.legend(loc="upper left")
        edges = np.linspace(-220, 220, 89).tolist()
        for name, values in forms.items():
            label = f"{name}: variance {float(values.var()):.0f}"
            three.hist((values - a.trace()).numpy(), edges, density=True, histtype="step", linewidth=1.4, label=label)
        three.set(xlabel="v·Jv − tr J", ylabel="density", ylim=(0, 0.0115))
        three.set_title(f"Two kinds of projection, d = {settings.size}")
        three.legend(loc="upper left")
