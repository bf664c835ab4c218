"""Posterior moments by the score against quadratures of Bayes' rule."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples, times
from torch import Tensor

from scorefield.metrics.truth import lattice
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.schedules import Constant
from scorefield.tweedie import posterior_covariance, posterior_mean


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    sigma: float
    half_width: float
    nodes: int
    points: int
    plane_means: list[list[float]]
    plane_half_width: float
    plane_side: int
    plane_points: int
    seed: int


def by_bayes(prior: MixtureModel, sigma: float, y: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (B, d) and covariance (B, d, d) of x given y, from the prior and the kernel on equal cells."""
    distance = torch.cdist(y, nodes, compute_mode="donot_use_mm_for_euclid_dist")
    log_joint = prior.log_prob(nodes, times(nodes)) - distance.square() / (2 * sigma**2)
    posterior = torch.softmax(log_joint, 1)
    mean = posterior @ nodes
    apart = nodes - mean[:, None]
    return mean, torch.einsum("bn,bni,bnj->bij", posterior, apart, apart)


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Largest errors of the moments over points of the line and of the plane."""
    variances = [settings.std**2] * 2
    levels = Constant(), Constant(settings.sigma)
    prior, model = (MixtureModel(s, settings.weights, [[m] for m in settings.means], variances) for s in levels)
    y = torch.linspace(-5, 5, settings.points, dtype=torch.float64)[:, None]
    half = settings.half_width
    mean, _ = by_bayes(
        prior, settings.sigma, y, torch.linspace(-half, half, settings.nodes, dtype=torch.float64)[:, None]
    )
    line = posterior_mean(model, y, times(y)) - mean

    plane_prior, plane = (MixtureModel(s, settings.weights, settings.plane_means, variances) for s in levels)
    z = exact_samples(plane, settings.plane_points, StreamNoise(settings.seed, "plane"))
    nodes, _ = lattice(-settings.plane_half_width, settings.plane_half_width, settings.plane_side)
    # A few points at a time: every one of them is paired with every node.
    moments = [by_bayes(plane_prior, settings.sigma, part, nodes) for part in z.split(20)]
    plane_mean, plane_covariance = (torch.cat(parts) for parts in zip(*moments, strict=True))

    draw(settings, model, figure)
    return {
        "|posterior mean - quadrature|, line": float(line.abs().max()),
        "|posterior mean - quadrature|, plane": float((posterior_mean(plane, z, times(z)) - plane_mean).abs().max()),
        "|posterior covariance - quadrature|, plane": float(
            (posterior_covariance(plane, z, times(z)) - plane_covariance).detach().abs().max()
        ),
    }


def draw(settings: Settings, model: MixtureModel, figure: Path) -> None:
    """Posterior mean against y, with the correction as arrows."""
    y = torch.linspace(-5, 5, settings.points, dtype=torch.float64)[:, None]
    some = exact_samples(model, 60, StreamNoise(settings.seed, "figure"))
    found = posterior_mean(model, some, times(some))
    with sheet(figure, width=5.8, height=4.0) as (_, (axes,)):
        axes.plot(y, y, color=MUTED, linestyle=(0, (4, 3)), linewidth=1, label="y left as it is")
        axes.plot(y, posterior_mean(model, y, times(y)), color=PALETTE[0], label="E[x | y] = y + σ² ∇log q(y)")
        arrows = (some[:, 0], some[:, 0], torch.zeros(len(some)), (found - some)[:, 0])
        axes.quiver(*arrows, angles="xy", scale_units="xy", scale=1, width=0.0025, color=PALETTE[1], alpha=0.7)
        axes.plot(some, found, "o", color=PALETTE[1], markersize=3.5, label="samples, with the score's correction")
        axes.set(xlabel="noisy sample y", ylabel="clean sample x", xlim=(-5, 5), ylim=(-5, 5))
        axes.set_title("The best denoiser steps along the score")
        axes.legend(loc="upper left")
