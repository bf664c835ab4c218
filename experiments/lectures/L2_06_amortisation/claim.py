"""One conditional network against a network for each level, at the same number of steps in all."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples
from lecture.fitting import train
from torch import Tensor

from scorefield.models import LadderIndex, MixtureModel, NetworkModel, Parametrization, ScoreModel, UnitVariance
from scorefield.nets import MLP, Sinusoidal
from scorefield.noise import Noise as Source
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.prediction import Noise
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.schedules import VE, Schedule
from scorefield.times import Ladder, TimeLaw


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[list[float]]
    sigma_min: float
    sigma_max: float
    levels: int
    width: int
    steps: int
    batch: int
    learning_rate: float
    data: int
    seed: int


@dataclass(frozen=True)
class OneLevel(TimeLaw):
    """Always the same time."""

    t: float

    def quantile(self, u: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        return torch.full_like(u, self.t), torch.ones_like(u)


def fresh(settings: Settings, schedule: VE) -> NetworkModel:
    net = MLP((2,), settings.width, 2, Sinusoidal(32))
    return NetworkModel(net, schedule, Parametrization(Noise(), UnitVariance(4.0), LadderIndex(settings.levels)))


def fit(settings: Settings, model: NetworkModel, times: TimeLaw, data: Tensor, steps: int, noise: Source) -> ScoreModel:
    train(model, Denoising(times=times), data, noise, steps, settings.batch, settings.learning_rate)
    return model.double()


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Errors by level of the joint network and of one network for each level."""
    torch.manual_seed(settings.seed)
    schedule = VE(settings.sigma_min, settings.sigma_max, t_min=0.0)
    truth = MixtureModel(schedule, settings.weights, settings.means, [1.0, 1.0])
    clean = MixtureModel(VE(1e-9, 1.0), settings.weights, settings.means, [1.0, 1.0])
    data = exact_samples(clean, settings.data, StreamNoise(settings.seed, "data")).float()
    times, noise = schedule.ladder(settings.levels), StreamNoise(settings.seed, "L2.6")
    joint = fit(settings, fresh(settings, schedule), Ladder(settings.levels), data, settings.steps, noise)
    steps = settings.steps // settings.levels
    alone = [fit(settings, fresh(settings, schedule), OneLevel(float(t)), data, steps, noise) for t in times]
    errors: dict[str, list[float]] = {"one network": [], "a network for each level": []}
    for t, own in zip(times, alone, strict=True):
        x = exact_samples(truth, 4000, StreamNoise(settings.seed, "test"), float(t))
        at = t.expand(len(x))
        exact, sigma = truth(x, at).score, schedule.sigma(t)
        for name, model in zip(errors, (joint, own), strict=True):
            with torch.no_grad():
                errors[name].append(float((sigma * (model(x, at).score - exact)).square().sum(1).mean()))
    draw(schedule.sigma(times), errors, figure)
    one, many = (sum(values) for values in errors.values())
    size = sum(p.numel() for p in joint.parameters())
    return {
        "error of ten networks / error of one": many / one,
        "parameters of one / of ten": size / sum(p.numel() for model in alone for p in model.parameters()),
    }


def draw(sigma: Tensor, errors: dict[str, list[float]], figure: Path) -> None:
    """Error against the level."""
    with sheet(figure, width=5.8) as (_, (axes,)):
        for i, (name, values) in enumerate(errors.items()):
            axes.plot(sigma, values, "o-", color=PALETTE[i], markersize=3, label=name)
        axes.set(xscale="log", yscale="log", xlabel="noise level σ", ylabel="σ² × squared error of the score")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_title("The same number of training steps in all")
        axes.legend()
