"""Explicit against implicit score matching, and a Kullback-Leibler divergence as an integral of Fisher divergences."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.draws import times
from torch import Tensor

from scorefield.metrics.truth import fisher_divergence
from scorefield.models import MixtureModel
from scorefield.objectives import Implicit
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.schedules import VP, Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    model_means: list[float]
    model_stds: list[float]
    half_width: float
    nodes: int
    model_std: float
    beta_min: float
    beta_max: float
    time_nodes: int


def gaussian(mean: float, std: float, schedule: Constant | VP) -> MixtureModel:
    """One component."""
    return MixtureModel(schedule, [1.0], [[mean]], [std**2])


class Losses:
    """Both losses of a model on a density in one dimension, by the trapezoidal rule."""

    def __init__(self, truth: MixtureModel, half_width: float, nodes: int) -> None:
        self.x = torch.linspace(-half_width, half_width, nodes, dtype=torch.float64)[:, None]
        self.t = times(self.x)
        self.mass = truth.log_prob(self.x, self.t).exp() * (2 * half_width / (nodes - 1))
        self.score = truth(self.x, self.t).score

    def explicit(self, model: MixtureModel) -> float:
        """The Fisher divergence."""
        return float(self.mass @ fisher_divergence(model(self.x, self.t).score, self.score))

    def implicit(self, model: MixtureModel) -> float:
        """The loss that does without the density's score."""
        objective, noise = Implicit(), torch.empty(0, *self.x.shape)
        return float(self.mass @ objective.at(model, self.x, self.t, noise).per_sample.detach())


def fisher_along(settings: Settings) -> tuple[Tensor, Tensor, float]:
    """Times, the terms g^2 E|..|^2 / 2 dt of the integral at them, and the divergence that is left at the end."""
    schedule = VP(settings.beta_min, settings.beta_max)
    p, q = gaussian(0.0, 1.0, schedule), gaussian(0.0, settings.model_std, schedule)
    node, width = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(settings.time_nodes))
    t, width = (node + 1) / 2, width / 2
    # p_t is N(0, 1) at all times; the squared difference of two linear scores is integrated exactly.
    x, mass = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(8))
    at, where = t.repeat_interleave(len(x)), x.repeat(len(t))[:, None]
    fisher = fisher_divergence(q(where, at).score, p(where, at).score).reshape(len(t), len(x)) @ (mass / mass.sum())
    variance = float(q.moments(1.0)[1])
    return t, width * schedule.diffusion_sq(t) * fisher, (math.log(variance) + 1 / variance - 1) / 2


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """The constant between the two losses, and the divergence by the integral."""
    clean = Constant()
    truth = MixtureModel(clean, settings.weights, [[m] for m in settings.means], [settings.std**2] * 2)
    losses = Losses(truth, settings.half_width, settings.nodes)
    models = [gaussian(m, s, clean) for m, s in zip(settings.model_means, settings.model_stds, strict=True)]
    gaps = torch.tensor([losses.explicit(m) - losses.implicit(m) for m in models], dtype=torch.float64)
    t, terms, left = fisher_along(settings)
    draw(losses, t, terms, left, float(gaps.mean()), figure)
    return {
        "explicit - implicit, mean over models": float(gaps.mean()),
        "explicit - implicit, spread over models": float(gaps.max() - gaps.min()),
        "KL by Fisher divergences along the diffusion": float(terms.sum()) + left,
        "KL left at the end of the diffusion": left,
    }


def draw(losses: Losses, t: Tensor, terms: Tensor, left: float, gap: float, figure: Path) -> None:
    """Left both losses against the model's mean, right the integral up to each time."""
    means = torch.linspace(-3, 5, 41)
    models = [gaussian(float(m), 1.5, Constant()) for m in means]
    with sheet(figure, panels=2, width=4.7) as (_, (one, two)):
        one.plot(means, [losses.explicit(m) for m in models], label="explicit, ½E|s − ∇log p|²")
        one.plot(means, [losses.implicit(m) for m in models], label="implicit, E[½|s|² + s′]")
        one.set(xlabel="mean of the model (standard deviation 1.5)", ylabel="loss in 1 / length²")
        one.set_title(f"A constant apart: {gap:.6f} for every model")
        one.legend(loc="upper center")
        total = float(terms.sum()) + left
        two.axhline(total, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label=f"KL = {total:.7f}")
        two.plot(t, terms.cumsum(0), color=PALETTE[2], label="½ ∫₀ᵗ g² Fisher")
        two.set(xlabel="diffusion time t", ylabel="nats", ylim=(0, 1.12 * total))
        two.set_title("The KL divergence is Fisher divergence along the diffusion")
        two.legend(loc="lower right")
