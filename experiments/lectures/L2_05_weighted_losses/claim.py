"""Denoising losses by level under two weights, and what two networks learn by them."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples
from lecture.fitting import train
from torch import Tensor

from scorefield.models import Cond, LadderIndex, MixtureModel, NetworkModel, Parametrization, ScoreModel, UnitVariance
from scorefield.nets import MLP, Sinusoidal
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, SigmaPower, Unit, Weight
from scorefield.prediction import Prediction, Score
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.schedules import VE, Schedule
from scorefield.times import Ladder


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    sigma_min: float
    sigma_max: float
    levels: int
    samples: int
    width: int
    steps: int
    batch: int
    learning_rate: float
    data: int
    seed: int


class NoScore(ScoreModel):
    """A network as it often starts: s = 0."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, torch.zeros_like(x), Score())


def by_level(settings: Settings, schedule: VE, data: Tensor, weight: Weight) -> list[float]:
    """The loss of each level, in the paper's units: half the sum over dimensions."""
    objective, noise = Denoising(Score(), weight), StreamNoise(settings.seed, "levels")
    rows = data[torch.arange(settings.samples) % len(data)]
    losses = [
        objective.at(NoScore(schedule), rows, t.expand(len(rows)), noise.normal_like(rows)).per_sample.mean()
        for t in schedule.ladder(settings.levels)
    ]
    return [float(loss) * data.shape[1] / 2 for loss in losses]


def trained(settings: Settings, schedule: VE, data: Tensor, weight: Weight) -> ScoreModel:
    """A network whose output is the score, told the index of its level."""
    torch.manual_seed(settings.seed)
    net = MLP((2,), settings.width, 2, Sinusoidal(32))
    parametrization = Parametrization(Score(), UnitVariance(4.0), LadderIndex(settings.levels))
    model = NetworkModel(net, schedule, parametrization)
    objective = Denoising(Score(), weight, Ladder(settings.levels))
    noise = StreamNoise(settings.seed, "training")
    train(model, objective, data.float(), noise, settings.steps, settings.batch, settings.learning_rate)
    return model.double()


def error_by_level(settings: Settings, model: ScoreModel, truth: MixtureModel) -> list[float]:
    """sigma^2 E|s - exact|^2 at each level."""
    found = []
    for t in truth.schedule.ladder(settings.levels):
        x = exact_samples(truth, 4000, StreamNoise(settings.seed, "test"), float(t))
        at = t.expand(len(x))
        with torch.no_grad():
            difference = (model(x, at).score - truth(x, at).score).square().sum(1).mean()
        found.append(float(difference * truth.schedule.sigma(t).square()))
    return found


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Losses at the start and errors after training."""
    schedule = VE(settings.sigma_min, settings.sigma_max, t_min=0.0)
    truth = MixtureModel(schedule, settings.weights, settings.means, [1.0, 1.0])
    clean = MixtureModel(VE(1e-9, 1.0), settings.weights, settings.means, [1.0, 1.0])
    data = exact_samples(clean, settings.data, StreamNoise(settings.seed, "data"))
    weights = {"λ = σ²": SigmaPower(2.0), "λ = 1": Unit()}
    losses = {name: by_level(settings, schedule, data, weight) for name, weight in weights.items()}
    errors = {
        name: error_by_level(settings, trained(settings, schedule, data, weight), truth)
        for name, weight in weights.items()
    }
    draw(schedule.sigma(schedule.ladder(settings.levels)), losses, errors, figure)
    balanced, plain = losses.values()
    mean = {name: sum(values) / len(values) for name, values in errors.items()}
    return {
        "loss of a level with weight σ², mean": sum(balanced) / len(balanced),
        "largest / smallest loss with weight σ²": max(balanced) / min(balanced),
        "largest / smallest loss with weight 1": max(plain) / min(plain),
        "trained error, weight 1 / weight σ²": mean["λ = 1"] / mean["λ = σ²"],
    }


def draw(sigma: Tensor, losses: dict[str, list[float]], errors: dict[str, list[float]], figure: Path) -> None:
    """Losses and errors against the level."""
    with sheet(figure, panels=2, width=4.4) as (_, panels):
        titles = ("loss of s = 0", "σ² × squared error after training")
        for axes, values, title in zip(panels, (losses, errors), titles, strict=True):
            for i, (name, each) in enumerate(values.items()):
                axes.plot(sigma, each, "o-", color=PALETTE[i], markersize=3, label=name)
            axes.set(xscale="log", yscale="log", xlabel="noise level σ", title=title)
            plain_ticks(axes.xaxis)
            plain_ticks(axes.yaxis)
            axes.legend()
