"""The fraction of the likelihood's gradient that contrastive divergence sees, and score matching without any chain."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.draws import exact_samples
from lecture.fitting import newton
from torch import Tensor, nn

from scorefield.kernels import FixedStep, Langevin
from scorefield.models import EnergyModel, MixtureModel, Parametrization
from scorefield.noise import StreamNoise
from scorefield.objectives import ContrastiveDivergence, Implicit
from scorefield.prediction import Score
from scorefield.records.style import MUTED, PALETTE, plain_ticks, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    theta: float
    data_std: float
    epsilon: float
    chain_steps: list[int]
    samples: list[int]
    seed: int


class Quadratic(nn.Module):
    """The energy theta |x|^2 / 2: a Gaussian of precision theta."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.theta * x.square().sum(1) / 2


def fraction(k: np.ndarray, epsilon: float, data_variance: float) -> np.ndarray:
    """The fraction of the gradient that k steps leave, at theta = 1."""
    stationary = 1 / (1 - epsilon / 2)
    return (1 - (1 - epsilon) ** (2 * k)) * (stationary - data_variance) / (1 - data_variance)


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Gradients of contrastive divergence at theta for each length of chain, and both estimates of theta."""
    clean = Constant()
    truth = MixtureModel(clean, [1.0], [[0.0]], [settings.data_std**2])
    net = Quadratic(settings.theta)
    model = EnergyModel(net, clean, Parametrization(target=Score()))

    found = {}
    for k, n in zip(settings.chain_steps, settings.samples, strict=True):
        noise = StreamNoise(settings.seed, "L1.1", k)
        x = exact_samples(truth, n, noise)
        objective = ContrastiveDivergence(Langevin(FixedStep(settings.epsilon)), k)
        (gradient,) = torch.autograd.grad(objective(model, x, None, noise).per_sample.mean(), net.theta)
        # Minus the log-likelihood theta E x^2 / 2 - ln(theta) / 2 at the true second moment.
        exact = (settings.data_std**2 - 1 / settings.theta) / 2
        found[k] = float(gradient) / exact

    likelihood = 1 / x.square().mean()
    matched = newton(lambda: Implicit()(model, x, None, noise).per_sample.mean(), net.theta)
    draw(settings, found, figure)
    return {f"CD-{k} gradient / ML gradient": value for k, value in found.items()} | {
        "|θ of score matching - θ of maximum likelihood|": float((matched - likelihood).abs())
    }


def draw(settings: Settings, found: dict[int, float], figure: Path) -> None:
    """Fraction of the gradient against the length of the chain."""
    k = np.geomspace(1, max(settings.chain_steps), 200)
    with sheet(figure) as (_, (axes,)):
        axes.axhline(1, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="score matching, no chain")
        axes.plot(k, fraction(k, settings.epsilon, settings.data_std**2), color=PALETTE[0], label="closed form")
        axes.plot(list(found), list(found.values()), "o", color=PALETTE[1], label="measured")
        axes.set(xscale="log", xlabel="chain steps k", ylabel="fraction of the likelihood's gradient")
        plain_ticks(axes.xaxis)
        axes.set_title(f"One chain step keeps {100 * found[settings.chain_steps[0]]:.0f} % of the gradient")
        axes.legend(loc="center right")
