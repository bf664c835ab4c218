"""Log-densities along the probability flow, exact, by fixed steps and of a trained network."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from torch import Tensor

from scorefield.models import LogRatio, MixtureModel, NetworkModel, Parametrization, UnitVariance
from scorefield.nets import MLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.ode import HEUN, DormandPrince, FixedGrid, Solver
from scorefield.prediction import Noise
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.style import INK, PALETTE, sheet
from scorefield.schedules import VP
from scorefield.times import Importance, Stratified


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    half_width: float
    nodes: int
    tight: float
    tolerance: float
    heun: list[int]
    plane_means: list[list[float]]
    width: int
    data: int
    steps: int
    batch: int
    learning_rate: float
    ema: float
    test: int
    seed: int


def log_prob(model: MixtureModel, x: Tensor, solver: Solver) -> Tensor:
    """log p at t_min from the exact density at t_max."""
    code = ProbabilityFlow(solver).encode(model, x)
    return model.log_prob(code.z, times(x, model.schedule.t_max)) + code.log_abs_det


def trained(settings: Settings, data: Tensor, schedule: VP) -> NetworkModel:
    """A network trained by denoising, with its weights averaged."""
    torch.manual_seed(settings.seed)
    net = MLP((2,), settings.width, 2, Fourier(64, 0.5))
    model = NetworkModel(net, schedule, Parametrization(Noise(), UnitVariance(2.1), LogRatio(0.5)))
    average, noise = deepcopy(model), StreamNoise(settings.seed, "L2.17")
    objective = Denoising(times=Stratified(Importance()))
    optimiser = torch.optim.Adam(model.parameters(), lr=settings.learning_rate)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, settings.steps)
    for _ in range(settings.steps):
        rows = (noise.uniform_like(torch.empty(settings.batch, dtype=torch.float64)) * len(data)).long()
        loss = objective(model, data[rows], None, noise).per_sample.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
        with torch.no_grad():
            for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(now, 1 - settings.ema)
    return average.double()


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Errors of log-densities on the line, and the network's likelihood in the plane."""
    schedule = VP()
    line = MixtureModel(schedule, settings.weights, [[m] for m in settings.means], [settings.std**2] * 2)
    x = torch.linspace(-settings.half_width, settings.half_width, settings.nodes, dtype=torch.float64)[:, None]
    exact = line.log_prob(x, times(x, schedule.t_min))
    inside = exact > -12  # where there is data
    errors = {
        tolerance: (log_prob(line, x, DormandPrince(tolerance, tolerance)) - exact)[inside].abs().max()
        for tolerance in (settings.tight, settings.tolerance)
    }
    found = ProbabilityFlow(DormandPrince(settings.tight, settings.tight)).log_prob(line, x)
    tight = log_prob(line, x, DormandPrince(settings.tight, settings.tight))
    nll, with_prior, entropy = (-float(torch.trapezoid(exact.exp() * each, x[:, 0])) for each in (tight, found, exact))
    heun = []
    for steps in settings.heun:
        by_heun = log_prob(line, x, FixedGrid(HEUN, steps))
        heun.append(float(torch.trapezoid(exact.exp() * (by_heun - exact).abs(), x[:, 0])))

    plane = MixtureModel(schedule, settings.weights, settings.plane_means, [settings.std**2] * 2)
    data = exact_samples(plane, settings.data, StreamNoise(settings.seed, "data"), schedule.t_min).float()
    network = trained(settings, data, schedule)
    test = exact_samples(plane, settings.test, StreamNoise(settings.seed, "test"), schedule.t_min)
    truth = plane.log_prob(test, times(test, schedule.t_min))
    with torch.no_grad():
        of_network = ProbabilityFlow(DormandPrince(1e-4, 1e-4)).log_prob(network, test)
    excess = float((truth - of_network).mean())
    draw(x[:, 0], exact, found, truth, of_network, figure)
    return {
        "largest error of log p at tolerance 1e-8": float(errors[settings.tight]),
        "largest error of log p at tolerance 1e-5": float(errors[settings.tolerance]),
        "mean negative log-likelihood less the exact one": nll - entropy,
        "the same with N(0, 1) for the density at t = 1": with_prior - entropy,
        "error at 50 Heun steps / error at 100": heun[0] / heun[1],
        "error at 100 Heun steps / error at 200": heun[1] / heun[2],
        "trained network less truth, nats": excess,
        "trained network less truth, nats per dimension": excess / 2,
        "exact mean negative log-likelihood": entropy,
        "mean absolute difference at a point, nats": float((truth - of_network).abs().mean()),
    }


def draw(x: Tensor, exact: Tensor, found: Tensor, truth: Tensor, of_network: Tensor, figure: Path) -> None:
    """The log-density on the line, and the network's against the truth in the plane."""
    with sheet(figure, panels=2, width=4.0, height=3.6) as (_, (left, right)):
        left.plot(x, exact, color=INK, linewidth=3, alpha=0.3, label="exact")
        left.plot(x, found, color=PALETTE[0], linewidth=1, label="along the flow, from N(0, 1)")
        left.set(xlabel="x", ylabel="log p(x)", title="Exact score")
        left.legend(loc="lower center")
        right.plot(truth, truth, color=INK, linewidth=1)
        right.plot(truth[:1500], of_network[:1500], ".", color=PALETTE[1], markersize=2)
        right.set(xlabel="exact log p(x)", ylabel="log p(x) of the network", title="Trained network, plane")
