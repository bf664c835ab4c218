"""Times of training steps and of sampling runs against the number of levels."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from scorefield.grids import Ladder as LadderGrid
from scorefield.kernels import Langevin, SigmaStep
from scorefield.models import LadderIndex, NetworkModel, Parametrization, UnitVariance
from scorefield.nets import MLP, Sinusoidal
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.prediction import Noise
from scorefield.records.style import PALETTE, plain_ticks, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import VE
from scorefield.times import Ladder


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    levels: list[int]
    width: int
    batch: int
    steps: int
    runs: int
    samples: int
    seed: int


def model_of(settings: Settings, levels: int) -> NetworkModel:
    torch.manual_seed(settings.seed)
    net = MLP((2,), settings.width, 2, Sinusoidal(32))
    return NetworkModel(net, VE(0.5, 20.0, t_min=0.0), Parametrization(Noise(), UnitVariance(4.0), LadderIndex(levels)))


def seconds(action: Callable[[], object]) -> float:
    """Processor time of one call."""
    begun = time.process_time()
    action()
    return time.process_time() - begun


class Training:
    """One step at a time.

    Args:
        settings: the numbers of the experiment.
        levels: number of levels.
    """

    def __init__(self, settings: Settings, levels: int) -> None:
        self.model, self.objective = model_of(settings, levels), Denoising(times=Ladder(levels))
        self.optimiser = torch.optim.Adam(self.model.parameters())
        self.noise = StreamNoise(settings.seed, "L2.9")
        self.x = 4 * self.noise.normal_like(torch.empty(settings.batch, 2))
        self.calls = 0
        self.model.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.calls += 1

    def step(self) -> None:
        loss = self.objective(self.model, self.x, None, self.noise).per_sample.mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Median times by number of levels."""
    trainings = [Training(settings, levels) for levels in settings.levels]
    times = [[seconds(training.step) for training in trainings] for _ in range(settings.steps + 10)][10:]
    train = [statistics.median(column) for column in zip(*times, strict=True)]
    sample = []
    for levels in settings.levels:
        model, noise = model_of(settings, levels), StreamNoise(settings.seed, "sampling")
        sampler = Sampler(LadderGrid(), levels, corrector=Langevin(SigmaStep(0.16)))
        start = model.schedule.prior_like(torch.empty(settings.samples, 2), noise)
        runs = 1 if levels == max(settings.levels) else settings.runs
        sample.append(statistics.median(seconds(lambda: sampler(model, start, noise=noise)) for _ in range(runs)))  # noqa: B023
    draw(settings.levels, train, sample, figure)
    return {
        "time of a training step, largest / smallest": max(train) / min(train),
        "time of sampling, most levels / fewest": sample[-1] / sample[0],
        "network calls of a training step": trainings[-1].calls / (settings.steps + 10),
    }


def draw(levels: list[int], train: list[float], sample: list[float], figure: Path) -> None:
    """Both times against the number of levels."""
    with sheet(figure, width=5.8) as (_, (axes,)):
        for i, (name, values) in enumerate({"a training step": train, "sampling": sample}.items()):
            axes.plot(levels, [1000 * v for v in values], "o-", color=PALETTE[i], label=name)
        axes.set(xscale="log", yscale="log", xlabel="number of levels L", ylabel="milliseconds")
        plain_ticks(axes.xaxis)
        plain_ticks(axes.yaxis)
        axes.set_title("Only sampling pays for the depth")
        axes.legend()
