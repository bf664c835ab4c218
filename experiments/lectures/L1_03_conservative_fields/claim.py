"""How far an energy model's field and a free network's field are from a gradient."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from lecture.fitting import train
from torch import Tensor, nn

from scorefield.jacobian import asymmetry, circulation, jacobian
from scorefield.metrics.truth import lattice
from scorefield.models import EnergyModel, MixtureModel, NetworkModel, Parametrization, ScoreModel
from scorefield.nets import MLP, EnergyMLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.prediction import Score
from scorefield.records.style import MUTED, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    std: float
    sigma: float
    width: int
    depth: int
    steps: int
    batch: int
    learning_rate: float
    samples: int
    points: int
    radius: float
    loop: int
    dimension: int
    matrices: int
    seed: int


class Field:
    """The score of a model as a function of x alone."""

    def __init__(self, model: ScoreModel) -> None:
        self.model = model.double()

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x, times(x)).score


def drawn_at_random(net: nn.Module) -> nn.Module:
    """The network with all its layers as torch draws them; by itself it starts from zero, a field without curl."""
    for layer in net.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return net


def random_asymmetry(dimension: int, matrices: int, noise: StreamNoise) -> float:
    """Mean squared asymmetry of the linear fields x -> A x of random matrices A."""
    a = noise.normal_like(torch.empty(matrices, dimension, dimension, dtype=torch.float64))
    x = torch.zeros(matrices, dimension, dtype=torch.float64)
    return float(asymmetry(lambda y: torch.einsum("bij,bj->bi", a, y), x).square().mean())


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Train both models alike and compare their fields."""
    torch.manual_seed(settings.seed)
    schedule = Constant(settings.sigma)
    truth = MixtureModel(schedule, settings.weights, settings.means, [settings.std**2] * 2)
    clean = MixtureModel(Constant(), settings.weights, settings.means, [settings.std**2] * 2)
    data = exact_samples(clean, settings.samples, StreamNoise(settings.seed, "data")).float()
    parametrization = Parametrization(target=Score())
    shape, embedding = (2,), Fourier(16)
    energy = EnergyModel(EnergyMLP(shape, settings.width, settings.depth, embedding), schedule, parametrization)
    free = NetworkModel(MLP(shape, settings.width, settings.depth, embedding), schedule, parametrization)
    for model in (energy, free):
        noise = StreamNoise(settings.seed, "training")
        train(model, Denoising(), data, noise, settings.steps, settings.batch, settings.learning_rate)
    untrained = NetworkModel(
        drawn_at_random(MLP(shape, settings.width, settings.depth, embedding)), schedule, parametrization
    )

    x = exact_samples(truth, settings.points, StreamNoise(settings.seed, "points"))
    angle = 2 * math.pi * torch.arange(settings.loop, dtype=torch.float64) / settings.loop
    circle = settings.radius * torch.stack([angle.cos(), angle.sin()], 1)
    fields = {"energy model": Field(energy), "free network": Field(free)}
    at_data = {name: float(asymmetry(field, x).detach().mean()) for name, field in fields.items()}
    around = {name: float(circulation(field, circle).abs()) for name, field in fields.items()}
    error = {
        f"score's mean squared error, {name}": float((field(x) - truth(x, times(x)).score).detach().square().mean())
        for name, field in fields.items()
    }
    draw(fields, at_data, truth, settings, figure)
    random = random_asymmetry(settings.dimension, settings.matrices, StreamNoise(settings.seed, "matrices"))
    return {
        "asymmetry of the energy model's Jacobian": at_data["energy model"],
        "asymmetry of the trained free network at the data": at_data["free network"],
        "asymmetry of the untrained free network": float(asymmetry(Field(untrained), x).detach().mean()),
        "circulation of the energy model": around["energy model"],
        "circulation of the trained free network": around["free network"],
        f"squared asymmetry of random {settings.dimension} x {settings.dimension} matrices": random,
    } | error


def draw(
    fields: dict[str, Field], at_data: dict[str, float], truth: MixtureModel, settings: Settings, figure: Path
) -> None:
    """The curl of both fields over the plane, on one scale."""
    side, half = 80, 5.0
    x, _ = lattice(-half, half, side)
    curl = {}
    for name, field in fields.items():
        rows = jacobian(field, x)
        curl[name] = (rows[:, 1, 0] - rows[:, 0, 1]).detach().reshape(side, side).T
    limit = float(curl["free network"].abs().quantile(0.98))
    log_density = truth.log_prob(x, times(x)).reshape(side, side).T
    axis = x.reshape(side, side, 2)[:, 0, 0]
    with sheet(figure, panels=2, width=4.2, height=3.7, shared=True) as (sheet_figure, panels):
        for axes, (name, values) in zip(panels, curl.items(), strict=True):
            picture = axes.imshow(
                values, origin="lower", extent=(-half, half, -half, half), cmap="RdBu_r", vmin=-limit, vmax=limit
            )
            axes.contour(axis, axis, log_density, levels=[-8, -5, -3], colors=MUTED, linewidths=0.7, linestyles="solid")
            axes.set(xlabel="x₁", ylabel="x₂" if axes is panels[0] else "", aspect="equal")
            axes.set_title(f"{name}: asymmetry {at_data[name]:.1g} at the data")
            axes.grid(False)
        bar = sheet_figure.colorbar(picture, ax=panels, label="curl of the score, 1 / length²", shrink=0.85)
        bar.outline.set_visible(False)
