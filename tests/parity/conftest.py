"""What the recorded numbers were made with: three SDEs, one mixture, and noise that is read from a file."""

import math

import torch
from torch import Tensor

from scorefield.models import Cond, MixtureModel, ScoreModel
from scorefield.prediction import Prediction, Score, Target
from scorefield.schedules import VE, VP, Schedule, SubVP, Tabulated
from tests.conftest import MIXTURE


def continuous_sde(name: str) -> Schedule:
    return {"ve": VE(0.01, 50.0), "vp": VP(0.1, 20.0), "subvp": SubVP(0.1, 20.0)}[name]


def exact_model(name: str) -> MixtureModel:
    return MixtureModel(continuous_sde(name), **MIXTURE)


def chain(name: str, n: int) -> Tabulated:
    """The discrete chain of n levels that the reference discretises VE (SMLD) and VP (DDPM) by."""
    if name == "ve":
        return Tabulated([1.0] * n, torch.logspace(-2, math.log10(50.0), n, dtype=torch.float64).tolist())
    return Tabulated.ddpm(torch.linspace(0.1 / n, 20 / n, n, dtype=torch.float64).tolist())


class ReadAt(ScoreModel):
    """The score of one model, asked at other times and used under another schedule.

    The reference moves along a discrete chain but asks its network at continuous times.

    Args:
        schedule: the schedule that the kernel sees.
        model: answers.
        clock: the model's time as a function of the kernel's, (B,) -> (B,).
    """

    def __init__(self, schedule: Schedule, model: ScoreModel, clock) -> None:
        super().__init__(schedule)
        self.model, self.clock = model, clock

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, self.model(x, self.clock(t), cond).score, Score())


class Pixels(ScoreModel):
    """The product density of the recorded batch: the two channels of each pixel are a draw of the 2-D mixture.

    Args:
        model: the mixture of two dimensions.
        target: what the network predicts.
        gain: multiplies the network's output.
        shift: added to the network's output.
    """

    def __init__(self, model: MixtureModel, target: Target, gain: float, shift: float) -> None:
        super().__init__(model.schedule)
        self.model, self.target, self.gain, self.shift = model, target, gain, shift

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        b, c, *pixels = x.shape
        each = x.movedim(1, -1).reshape(-1, c)
        out = self.model(each, t.repeat_interleave(len(each) // b)).view(self.target)
        out = out.reshape(b, *pixels, c).movedim(-1, 1)
        return Prediction(self.schedule, x, t, self.gain * out + self.shift, self.target)


def pixels(schedule: Schedule, target: Target, gain: float = 1.0, shift: float = 0.0) -> Pixels:
    return Pixels(MixtureModel(schedule, **MIXTURE), target, gain, shift)


class Replay:
    """Noise that gives the recorded draws in their order."""

    def __init__(self, draws) -> None:
        self.draws = iter(draws)

    def _next(self, x: Tensor) -> Tensor:
        return next(self.draws).to(x).reshape(x.shape)

    normal_like = uniform_like = signs_like = _next


def zeros(x: Tensor) -> Replay:
    return Replay([torch.zeros_like(x)])


def ones(x: Tensor) -> Replay:
    return Replay([torch.ones_like(x)])
