"""Samples of ODE and SDE, latent codes, and the way there and back."""

from dataclasses import dataclass
from pathlib import Path

import torch
from lecture.draws import exact_samples
from scipy import stats
from torch import Tensor

from scorefield.grids import Uniform
from scorefield.kernels import EulerMaruyama
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.ode import DormandPrince
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.style import MUTED, PALETTE, sheet
from scorefield.samplers import FlowSampler, Sampler
from scorefield.schedules import VP


@dataclass(frozen=True)
class Settings:
    """The numbers of config.yaml."""

    weights: list[float]
    means: list[float]
    std: float
    samples: int
    steps: int
    tolerance: float
    tight: float
    round_trips: int
    seed: int


def measure(settings: Settings, figure: Path) -> dict[str, float]:
    """Tests of the marginals, and errors of the round trip."""
    schedule = VP()
    model = MixtureModel(schedule, settings.weights, [[m] for m in settings.means], [settings.std**2] * 2)

    def noise(what: str) -> StreamNoise:
        return StreamNoise(settings.seed, "L2.15", what)

    like = torch.empty(settings.samples, 1, dtype=torch.float64)
    data = exact_samples(model, settings.samples, noise("data"), schedule.t_min)
    solver = DormandPrince(settings.tolerance, settings.tolerance)
    ode = FlowSampler(solver)(model, schedule.prior_like(like, noise("ode")))
    sde = Sampler(Uniform(), settings.steps, EulerMaruyama())(
        model, schedule.prior_like(like, noise("start")), noise=noise("sde")
    )
    flow, few = ProbabilityFlow(solver), data[: settings.round_trips]
    code, _ = flow.transport(model, data, schedule.t_min, schedule.t_max)
    errors = {}
    for tolerance in (settings.tolerance, settings.tight):
        way = ProbabilityFlow(DormandPrince(tolerance, tolerance))
        there, _ = way.transport(model, few, schedule.t_min, schedule.t_max)
        errors[f"round trip at tolerance {tolerance:.0e}".replace("e-0", "e-")] = float(
            (way.decode(model, there) - few).abs().max()
        )
    draw(data, {"ODE": ode.x, "SDE": sde.x}, code, figure)
    flat = {name: x[:, 0].numpy() for name, x in {"data": data, "ode": ode.x, "sde": sde.x, "code": code}.items()}
    return {
        "p of ODE samples against exact ones": float(stats.ks_2samp(flat["ode"], flat["data"]).pvalue),
        "p of ODE samples against SDE samples": float(stats.ks_2samp(flat["ode"], flat["sde"]).pvalue),
        "p of codes of data against N(0, 1)": float(stats.kstest(flat["code"], "norm").pvalue),
        **errors,
        "network evaluations of an ODE sample": ode.nfe,
    }


def draw(data: Tensor, samples: dict[str, Tensor], code: Tensor, figure: Path) -> None:
    """Quantiles against quantiles."""
    levels = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    with sheet(figure, panels=2, width=3.8, height=3.6) as (_, (left, right)):
        exact = torch.quantile(data[:, 0], levels)
        left.plot(exact, exact, color=MUTED, linewidth=1)
        for i, (name, x) in enumerate(samples.items()):
            left.plot(exact, torch.quantile(x[:, 0], levels), "o", color=PALETTE[i], markersize=2.5, label=name)
        left.set(xlabel="quantiles of exact samples", ylabel="quantiles of samples", title="The same marginals")
        left.legend()
        normal = torch.special.ndtri(levels)
        right.plot(normal, normal, color=MUTED, linewidth=1)
        right.plot(normal, torch.quantile(code[:, 0], levels), "o", color=PALETTE[2], markersize=2.5)
        right.set(xlabel="quantiles of N(0, 1)", ylabel="quantiles of codes", title="Codes of data")
