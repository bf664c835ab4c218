"""Denoising against explicit score matching over models, and the score of q as an average of kernels' scores."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from torch import Tensor

from scorefield.metrics.truth import fisher_divergence
from scorefield.models import EnergyModel, MixtureModel, NetworkModel, Parametrization, ScoreModel
from scorefield.nets import MLP, EnergyMLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising
from scorefield.prediction import Score
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.schedules import Constant


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    std: float
    sigma: float
    samples: int
    width: int
    weights: list[float]
    means: list[float]
    mixture_std: float
    half_width: float
    nodes: int
    points: int
    seed: int


def models(settings: Settings) -> dict[str, ScoreModel]:
    """Models that have nothing in common but the schedule."""
    schedule, shape = Constant(settings.sigma), (2,)
    at = {
        "narrow Gaussian": ([0.0, 0.0], 0.3),
        "wide Gaussian": ([0.0, 0.0], 4.0),
        "shifted Gaussian": ([1.0, -1.0], 1.0),
    }
    return {
        **{name: MixtureModel(schedule, [1.0], [mean], [variance]) for name, (mean, variance) in at.items()},
        "mixture": MixtureModel(schedule, [0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], [0.5, 0.5]),
        "score network": NetworkModel(MLP(shape, settings.width, 1, Fourier(8)), schedule, Parametrization.edm(0.5)),
        "energy": EnergyModel(
            EnergyMLP(shape, settings.width, 1, Fourier(8)), schedule, Parametrization(target=Score())
        ),
    }


@torch.no_grad()
def losses(settings: Settings) -> dict[str, tuple[float, float]]:
    """Explicit and denoising loss of each model, by the same samples."""
    schedule, noise = Constant(settings.sigma), StreamNoise(settings.seed, "L1.5")
    clean = MixtureModel(Constant(), [1.0], [[0.0, 0.0]], [settings.std**2])
    perturbed = MixtureModel(schedule, [1.0], [[0.0, 0.0]], [settings.std**2])
    x = exact_samples(clean, settings.samples, noise)
    t, eps = times(x), noise.normal_like(x)
    x_t = schedule.perturb(x, t, eps)
    truth = perturbed(x_t, t).score
    # The objective averages over the d = 2 dimensions; half the sum is d / 2 times that.
    half_sum = x.shape[1] / 2
    denoising = Denoising(view=Score())
    return {
        name: (
            float(fisher_divergence(model(x_t, t).score, truth).mean()),
            half_sum * float(denoising.at(model, x, t, eps).per_sample.mean()),
        )
        for name, model in models(settings).items()
    }


def averaged_kernels(settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Points y, the score of q_sigma there, and the posterior mean of the kernel's score by quadrature."""
    means, variances = [[m] for m in settings.means], [settings.mixture_std**2] * 2
    clean, perturbed = (
        MixtureModel(s, settings.weights, means, variances) for s in (Constant(), Constant(settings.sigma))
    )
    y = torch.linspace(-5, 5, settings.points, dtype=torch.float64)
    x = torch.linspace(-settings.half_width, settings.half_width, settings.nodes, dtype=torch.float64)
    _, per_noise = Score().coefficients(perturbed.schedule, times(y))
    eps = (y[:, None] - x) / settings.sigma
    log_joint = clean.log_prob(x[:, None], times(x)) - eps.square() / 2
    posterior = torch.softmax(log_joint, 1)  # equal steps: the width of the cells cancels
    return y, perturbed(y[:, None], times(y)).score[:, 0], (posterior * per_noise[:, None] * eps).sum(1)


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """The gap between the two losses for each model, and the largest error of the averaged kernels."""
    torch.manual_seed(settings.seed)
    found = losses(settings)
    gaps = torch.tensor([denoising - explicit for explicit, denoising in found.values()], dtype=torch.float64)
    y, score, averaged = averaged_kernels(settings)
    constant = settings.std**2 / (settings.sigma**2 * (settings.std**2 + settings.sigma**2))
    draw(found, constant, y, score, averaged, figure)
    return {
        "denoising - explicit, mean over models": float(gaps.mean()),
        "denoising - explicit, least of all models": float(gaps.min()),
        "denoising - explicit, largest of all models": float(gaps.max()),
        "|score of q - posterior mean of the kernel's score|": float((score - averaged).abs().max()),
    }


def draw(
    found: dict[str, tuple[float, float]], constant: float, y: Tensor, score: Tensor, averaged: Tensor, figure: Path
) -> None:
    """Left denoising against explicit, right both sides of the linearity."""
    with sheet(figure, panels=2, width=4.7) as (_, (one, two)):
        reach = 1.15 * max(explicit for explicit, _ in found.values())
        one.plot([0, reach], [constant, constant + reach], color=MUTED, label=f"slope 1, intercept {constant:g}")
        for i, (name, (explicit, denoising)) in enumerate(found.items()):
            one.plot(explicit, denoising, "o", color=PALETTE[i % len(PALETTE)], label=name)
        one.set(xlabel="explicit: ½E|s − ∇log q|²", ylabel="denoising: ½E|s − (x − x̃)/σ²|²", ylim=(0, None))
        one.set_title(f"Every model lies {constant:g} above")
        one.legend(loc="lower right", ncols=2)
        two.plot(y, score, label="score of q, closed form")
        two.plot(y[::6], averaged[::6], "o", color=PALETTE[1], markersize=4, label="E[(x − y)/σ² | y], quadrature")
        two.set(xlabel="y", ylabel="1 / length")
        two.set_title(f"The averaged kernel score is the score, to {float((score - averaged).abs().max()):.0e}")
        two.legend(loc="upper right")
