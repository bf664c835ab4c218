"""One energy network, trained by score matching and by contrastive divergence, against the known density."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from lecture.fitting import train
from torch import Tensor

from scorefield.kernels import FixedStep, Langevin
from scorefield.metrics.truth import fisher_divergence, lattice, normalised, total_variation
from scorefield.models import DensityModel, EnergyModel, MixtureModel, Parametrization
from scorefield.nets import EnergyMLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import ContrastiveDivergence, Implicit, Objective
from scorefield.prediction import Score
from scorefield.records.style import sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    variances: list[float]
    samples: int
    width: int
    depth: int
    reference_std: float
    batch: int
    learning_rate: float
    steps: int
    chain_steps: list[int]
    chain_updates: int
    epsilon: float
    test_samples: int
    half_width: float
    side: int
    seed: int


def trained(objective: Objective, steps: int, data: Tensor, settings: Settings) -> EnergyModel:
    """A network of the same first weights, trained with the same batches."""
    torch.manual_seed(settings.seed)
    net = EnergyMLP((2,), settings.width, settings.depth, Fourier(8), reference_std=settings.reference_std)
    model = EnergyModel(net, Constant(), Parametrization(target=Score()))
    noise = StreamNoise(settings.seed, "training")
    train(model, objective, data, noise, steps, settings.batch, settings.learning_rate)
    return model.double()


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Train in each way and compare the scores and the normalised densities."""
    truth = MixtureModel(Constant(), settings.weights, settings.means, settings.variances)
    data = exact_samples(truth, settings.samples, StreamNoise(settings.seed, "data")).float()
    test = exact_samples(truth, settings.test_samples, StreamNoise(settings.seed, "test"))
    score = truth(test, times(test)).score
    models: dict[str, DensityModel] = {"truth": truth}
    models["score matching"] = trained(Implicit(), settings.steps, data, settings)
    for k in settings.chain_steps:
        objective = ContrastiveDivergence(Langevin(FixedStep(settings.epsilon)), k)
        models[f"contrastive divergence, k = {k}"] = trained(objective, settings.chain_updates, data, settings)

    cells, area = lattice(-settings.half_width, settings.half_width, settings.side)
    with torch.no_grad():
        density = {name: normalised(model.energy(cells, times(cells)), area) for name, model in models.items()}
        fisher = {
            name: float(fisher_divergence(model(test, times(test)).score, score).mean())
            for name, model in models.items()
            if model is not truth
        }
    apart = {name: total_variation(density[name], density["truth"], area) for name in fisher}
    draw(settings, density, apart, figure)
    return {
        **{f"total variation, {name}": value for name, value in apart.items()},
        **{f"Fisher divergence, {name}": value for name, value in fisher.items()},
    }


def draw(settings: Settings, density: dict[str, Tensor], apart: dict[str, float], figure: Path) -> None:
    """All densities on one scale."""
    half, shown = settings.half_width, 4.2
    top = max(float(values.max()) for values in density.values())
    with sheet(figure, panels=len(density), width=3.1, height=3.4, shared=True) as (drawing, panels):
        for axes, (name, values) in zip(panels, density.items(), strict=True):
            square = values.reshape(settings.side, settings.side).T
            picture = axes.imshow(square, origin="lower", extent=(-half, half, -half, half), vmin=0, vmax=top)
            axes.set(xlim=(-shown, shown), ylim=(-shown, shown), xlabel="x₁", ylabel="" if apart.get(name) else "x₂")
            brief = name.replace("contrastive divergence, k = ", "CD-")
            axes.set_title(brief if name not in apart else f"{brief}: TV {apart[name]:.3f}")
            axes.grid(False)
        bar = drawing.colorbar(picture, ax=panels, label="density in 1 / area", shrink=0.8)
        bar.outline.set_visible(False)
