"""The minimisers of the denoising and the implicit loss: the score of the perturbed density."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lecture.draws import exact_samples, times
from lecture.fitting import newton
from lecture.networks import LinearScore
from torch import Tensor

from scorefield.metrics.truth import fisher_divergence
from scorefield.models import MixtureModel, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Implicit
from scorefield.prediction import Score
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    std: float
    sigma: float
    slopes: list[float]
    nodes: int
    samples: int
    seed: int


class Losses:
    """The three losses by a Gauss-Hermite rule over the clean sample and the noise."""

    def __init__(self, settings: Settings) -> None:
        node, mass = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(settings.nodes))
        both = torch.cartesian_prod(node, node)
        self.schedule = Constant(settings.sigma)
        self.mass = torch.outer(mass, mass).flatten() / mass.sum() ** 2
        self.x, self.eps = settings.std * both[:, :1], both[:, 1:]
        self.t = times(self.x)
        self.x_t = self.schedule.perturb(self.x, self.t, self.eps)
        truth = MixtureModel(self.schedule, [1.0], [[0.0]], [settings.std**2])
        self.score = truth(self.x_t, self.t).score

    def explicit(self, model: ScoreModel) -> Tensor:
        """Half the squared error to the score of q."""
        return self.mass @ fisher_divergence(model(self.x_t, self.t).score, self.score)

    def denoising(self, model: ScoreModel) -> Tensor:
        """Half the squared error to the kernel's score."""
        return self.mass @ Denoising(view=Score()).at(model, self.x, self.t, self.eps).per_sample / 2

    def implicit(self, model: ScoreModel) -> Tensor:
        """From the perturbed sample alone."""
        return self.mass @ Implicit().at(model, self.x_t, self.t, self.x.new_empty(0, *self.x.shape)).per_sample


def minimiser(loss: Callable[[ScoreModel], Tensor], model: LinearScore) -> float:
    """The slope at which a loss is least."""
    return float(newton(lambda: loss(model), model.theta))


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Constant and minimisers by quadrature, and one minimiser by samples."""
    losses = Losses(settings)
    models = [LinearScore(losses.schedule, theta) for theta in settings.slopes]
    gaps = torch.stack([losses.denoising(m) - losses.explicit(m) for m in models]).detach()
    at = {
        "denoising": minimiser(losses.denoising, LinearScore(losses.schedule)),
        "implicit": minimiser(losses.implicit, LinearScore(losses.schedule)),
    }

    noise = StreamNoise(settings.seed, "L1.8")
    x = exact_samples(MixtureModel(Constant(), [1.0], [[0.0]], [settings.std**2]), settings.samples, noise)
    sampled, t, eps = LinearScore(losses.schedule), times(x), noise.normal_like(x)
    fitted = newton(lambda: Denoising(view=Score()).at(sampled, x, t, eps).per_sample.mean(), sampled.theta)
    draw(settings, losses, at, figure)
    return {
        "slope that minimises the denoising loss, quadrature": at["denoising"],
        "slope that minimises the implicit loss, quadrature": at["implicit"],
        "denoising - explicit, quadrature": float(gaps.mean()),
        "denoising - explicit, spread over slopes": float(gaps.max() - gaps.min()),
        "slope that minimises the denoising loss, samples": float(fitted),
    }


def draw(settings: Settings, losses: Losses, at: dict[str, float], figure: Path) -> None:
    """The losses against the slope, each with its minimum."""
    theta = np.linspace(settings.slopes[0] - 0.8, settings.slopes[-1] + 0.8, 61)
    named = {
        "denoising": losses.denoising,
        "explicit, on the perturbed density": losses.explicit,
        "implicit, on the perturbed density": losses.implicit,
    }
    best = at["denoising"]
    with sheet(figure, width=5.8) as (_, (axes,)):
        for i, (name, loss) in enumerate(named.items()):
            values = [float(loss(LinearScore(losses.schedule, float(each))).detach()) for each in theta]
            axes.plot(theta, values, color=PALETTE[i], label=name)
            axes.plot(best, float(loss(LinearScore(losses.schedule, best)).detach()), "o", color=PALETTE[i])
        clean, dashes = 1 / settings.std**2, (0, (4, 3))
        axes.axvline(clean, color=MUTED, linestyle=dashes, linewidth=1, ymax=0.62, label="the clean score's slope")
        axes.set(xlabel="slope θ of the model s(x) = −θx", ylabel="loss in 1 / length²", ylim=(-0.8, 4.4))
        axes.set_title(f"All are minimised at θ = {best:.3f} = 1/(1 + σ²), not at 1")
        axes.legend(loc="upper right")
