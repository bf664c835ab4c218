"""Residuals of the score Fokker-Planck equation of an exact, a perturbed and a trained score."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples
from lecture.fitting import train
from torch import Tensor

from scorefield.fokker_planck import residual
from scorefield.models import Cond, LogRatio, MixtureModel, NetworkModel, Parametrization, ScoreModel, UnitVariance
from scorefield.nets import MLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.prediction import Noise, Prediction, Score
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.schedules import VE
from scorefield.times import Uniform


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    sigma_min: float
    sigma_max: float
    sigmas: list[float]
    points: int
    error: float
    width: int
    steps: int
    batch: int
    learning_rate: float
    data: int
    seed: int


class Perturbed(ScoreModel):
    """The score of another model times 1 + sqrt(2) error sin(x): in the root mean square off by the error."""

    def __init__(self, model: ScoreModel, error: float) -> None:
        super().__init__(model.schedule)
        self.model, self.error = model, error

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        score = (1 + 2**0.5 * self.error * x.sin()) * self.model(x, t).score
        return Prediction(self.schedule, x, t, score, Score())


def relative(model: ScoreModel, truth: MixtureModel, sigma: float, settings: Settings) -> float:
    """The relative residual at one level, at samples of that level."""
    t = float(truth.schedule.time_at(torch.tensor([sigma], dtype=torch.float64)))
    x = exact_samples(truth, settings.points, StreamNoise(settings.seed, "points"), t)
    with torch.no_grad():
        return residual(model, x, torch.full((len(x),), t, dtype=torch.float64)).relative()


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Residuals by level of three models."""
    torch.manual_seed(settings.seed)
    schedule = VE(settings.sigma_min, settings.sigma_max, t_min=0.0)
    truth = MixtureModel(schedule, settings.weights, settings.means, [1.0, 1.0])
    net = MLP((2,), settings.width, 2, Fourier(32, 1.0))
    network = NetworkModel(net, schedule, Parametrization(Noise(), UnitVariance(4.0), LogRatio(0.25)))
    clean = MixtureModel(VE(1e-9, 1.0), settings.weights, settings.means, [1.0, 1.0])
    data = exact_samples(clean, settings.data, StreamNoise(settings.seed, "data")).float()
    noise = StreamNoise(settings.seed, "L2.4")
    train(network, Denoising(times=Uniform()), data, noise, settings.steps, settings.batch, settings.learning_rate)
    network.double()
    models = {"exact": truth, "off by 5 %": Perturbed(truth, settings.error), "network": network}
    found = {name: [relative(m, truth, s, settings) for s in settings.sigmas] for name, m in models.items()}
    fine = torch.logspace(-0.2, 1.2, 12, dtype=torch.float64).tolist()
    draw(fine, {name: [relative(m, truth, s, settings) for s in fine] for name, m in models.items()}, figure)
    return {
        "relative residual of the exact score, largest": max(found["exact"]),
        "relative residual of the perturbed score, smallest": min(found["off by 5 %"]),
        **{
            f"relative residual of the network at σ = {s:g}": value
            for s, value in zip(settings.sigmas, found["network"], strict=True)
        },
    }


def draw(sigmas: list[float], found: dict[str, list[float]], figure: Path) -> None:
    """Residual against the level."""
    with sheet(figure, width=5.8) as (_, (axes,)):
        for i, (name, values) in enumerate(found.items()):
            axes.plot(sigmas, [max(v, 1e-16) for v in values], "o-", color=PALETTE[i], markersize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel="noise level σ", ylabel="residual / rate of the score")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_title("Levels that fit together, and levels that do not")
        axes.legend(loc="center right")
