"""Half the weighted Fisher divergence along a diffusion against the Kullback-Leibler divergence."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.integrate import simpson
from torch import Tensor

from scorefield.models import MixtureModel
from scorefield.objectives import Likelihood
from scorefield.records.style import INK, PALETTE, sheet
from scorefield.schedules import VP


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    variances: list[float]
    nodes: int
    t_min: float


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(N(0, p) || N(0, q)), with p / q - 1 small or large."""
    ratio = (p - q) / q
    return 0.5 * (ratio - torch.log1p(ratio))


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """The integral, what is left, and the closed form."""
    schedule = VP(t_min=settings.t_min)
    t = torch.linspace(0, 1, settings.nodes, dtype=torch.float64)
    p, q = (MixtureModel(schedule, [1.0], [[0.0]], [v]) for v in settings.variances)
    one = torch.ones(settings.nodes, 1, dtype=torch.float64)
    # At x = 1 the score of N(0, v_t) is -1 / v_t; E x^2 under p_t is v_t of p.
    at_one = [model(one, t).score[:, 0] for model in (p, q)]
    spread = -1 / at_one[0]
    integrand = 0.5 * Likelihood()(schedule, t) * spread * (at_one[0] - at_one[1]).square()
    total = float(simpson(integrand.numpy(), x=t.numpy()))
    end = divergence(*(-1 / score[-1:] for score in at_one))
    draw(t, integrand, settings, figure)
    return {
        "KL by the Fisher divergences": total + float(end),
        "KL that is left at the prior": float(end),
        "KL in closed form": 0.5 * (0.25 - 1 + math.log(4)),
    }


def draw(t: Tensor, integrand: Tensor, settings: Settings, figure: Path) -> None:
    """The cumulative integral reaches the divergence."""
    cumulative = torch.cumulative_trapezoid(integrand, t)
    with sheet(figure, width=5.8) as (_, (axes,)):
        axes.plot(t[1:], cumulative, color=PALETTE[0], label="½ ∫ g² Fisher dt from 0 to t")
        axes.axhline(float(divergence(*torch.tensor(settings.variances).double())), color=INK, linewidth=1, label="KL")
        axes.set(xlabel="t", ylabel="nats", ylim=(0, None), xticks=np.linspace(0, 1, 6))
        axes.set_title("KL divergence and Fisher divergences along the diffusion")
        axes.legend(loc="lower right")
