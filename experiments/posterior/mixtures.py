"""Posterior sampling and guidance on mixtures, where the truth is known: tables of every method's bias.

    python experiments/posterior/mixtures.py             writes table.md and its pictures beside itself
    python experiments/posterior/mixtures.py --samples 100 --seeds 2 --output outputs/posterior

The score of the prior is exact, so what is wrong is the method's. For y = A x + std n the posterior of a mixture is a
mixture; samples of each method are compared with its mean, covariance and weights. Guidance is compared on a line with
the density p(x) p(c|x)^w, which one might think it samples.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from scorefield.constraints import Constraint, Projection, Replacement
from scorefield.errors import NumericalError
from scorefield.grids import LogRatio, Resampled
from scorefield.kernels import DPMSolver2M
from scorefield.metrics.two_sample import sliced_wasserstein
from scorefield.models import (
    DPS,
    ExactPosterior,
    Guided,
    MixtureLaw,
    MixtureModel,
    MomentMatching,
    NormalisedDPS,
    NullSpace,
    PiGDM,
    ScoreModel,
)
from scorefield.noise import StreamNoise
from scorefield.ode import DormandPrince
from scorefield.operators import Dense, LinearOperator
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.figures import scatter2d
from scorefield.records.files import write_atomically
from scorefield.records.style import INK, PALETTE, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import EDM

HERE = Path(__file__).parent
SCHEDULE = EDM(0.01, 20.0)
STEPS = 200  # of every sampler, in ln sigma
OBSERVATIONS = 4  # of each problem, drawn from the model itself


@dataclass(frozen=True)
class Problem:
    """A prior and an observation of it.

    Args:
        name: what the table calls it.
        prior: a mixture.
        operator: A.
        std: deviation of the observation's noise.
    """

    name: str
    prior: MixtureModel
    operator: LinearOperator
    std: float

    @property
    def data_std(self) -> float:
        """Root mean variance of a coordinate of the prior, which PiGDM is told."""
        return float(self.prior.moments(0.0)[1].diagonal().mean().sqrt())


@dataclass(frozen=True)
class Method:
    """A way to sample the posterior.

    Args:
        model: what is sampled, of a problem.
        constraint: what the sampler is held by, of an operator.
        repeats: how often RePaint's grid walks its steps.
    """

    model: Callable[[Problem], ScoreModel] = lambda problem: problem.prior
    constraint: Callable[[LinearOperator], Constraint] | None = None
    repeats: int = 1


METHODS: dict[str, Method] = {
    "exact score": Method(lambda p: ExactPosterior(p.prior, p.operator, p.std)),
    "moment matching": Method(lambda p: MomentMatching(p.prior, p.operator, p.std, 3)),
    "ΠGDM": Method(lambda p: PiGDM(p.prior, p.operator, p.std, p.data_std)),
    "DPS": Method(lambda p: DPS(p.prior, p.operator, p.std)),
    "DPS, normalised": Method(lambda p: NormalisedDPS(p.prior, p.operator, p.std, scale=2.0)),
    "null space": Method(lambda p: NullSpace(p.prior, p.operator)),
    "replacement": Method(constraint=Replacement),
    "replacement, RePaint × 5": Method(constraint=Replacement, repeats=5),
    "projection, w = 0.5": Method(constraint=lambda operator: Projection(operator, 0.5)),
}


PICTURES = {
    "posterior_scores": ["exact", "moment matching", "ΠGDM", "DPS", "DPS, normalised"],
    "posterior_constraints": ["exact", "null space", "replacement", "replacement, RePaint × 5", "projection, w = 0.5"],
}


def problems() -> list[Problem]:
    """Three modes in the plane, seen across the axes with much and little noise, and five modes in eight dimensions."""
    plane = MixtureModel(
        SCHEDULE, [0.5, 0.3, 0.2], [[-1.2, 0.8], [1.0, 1.0], [0.3, -1.3]], [[0.2, 0.05], [0.06, 0.25], [0.15, 0.1]]
    )
    across = Dense(torch.tensor([[0.8, 0.6]], dtype=torch.float64))
    noise = StreamNoise(0, "problem")
    means, spread = (noise.normal_like(torch.empty(n, 8, dtype=torch.float64)) for n in (5, 5))
    many = MixtureModel(SCHEDULE, [0.3, 0.25, 0.2, 0.15, 0.1], means, 0.1 * (0.7 * spread).exp())
    rows = torch.linalg.qr(noise.normal_like(torch.empty(8, 3, dtype=torch.float64)))[0].T
    return [
        Problem("plane, std 0.3", plane, across, 0.3),
        Problem("plane, std 0.05", plane, across, 0.05),
        Problem("8 dimensions, 3 seen, std 0.2", many, Dense(rows), 0.2),
    ]


def prior_samples(problem: Problem, n: int, key: str) -> Tensor:
    like = torch.empty(n, len(problem.prior.means[0]), dtype=torch.float64)
    return problem.prior.sample_like(like, torch.full((n,), SCHEDULE.t_min, dtype=torch.float64), StreamNoise(0, key))


def observations(problem: Problem) -> Tensor:
    """y of some samples of the prior, (OBSERVATIONS, m)."""
    seen = problem.operator.forward(prior_samples(problem, OBSERVATIONS, "observed"))
    return seen + problem.std * StreamNoise(0, "observation").normal_like(seen)


def exact_samples(law: MixtureLaw, n: int, seed: int) -> Tensor:
    """n samples of each of the B posteriors, (B, n, d)."""
    noise = StreamNoise(seed, "exact")
    b, _, d = law.means.shape
    level = noise.uniform_like(torch.empty(b, n, dtype=torch.float64))
    component = torch.searchsorted(law.weights.cumsum(1).contiguous(), level).clamp(max=law.weights.shape[1] - 1)
    values, vectors = torch.linalg.eigh(law.covariances)
    roots = vectors * values.clamp(min=0).sqrt()[..., None, :]
    eps = noise.normal_like(torch.empty(b, n, d, dtype=torch.float64))
    row = torch.arange(b)[:, None]
    return law.means[row, component] + (roots[row, component] @ eps[..., None])[..., 0]


def weights_of(law: MixtureLaw, x: Tensor) -> Tensor:
    """Mean probability of each mode given the samples (B, n, d): on exact samples it is the mode's weight, (B, K)."""
    jitter = 1e-9 * torch.eye(x.shape[2], dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(law.means[:, None], (law.covariances + jitter)[:, None])
    joint = normal.log_prob(x[:, :, None]) + law.weights.clamp(min=1e-300).log()[:, None]
    return torch.softmax(joint, 2).mean(1)


def errors(law: MixtureLaw, truth: Tensor, x: Tensor) -> list[float]:
    """Of the mean, the covariance, its trace, the weights and the whole, averaged over the observations."""
    mean, covariance = law.moments()
    found = []
    for b in range(len(x)):
        cov = x[b].T.cov()
        found.append(
            [
                float((x[b].mean(0) - mean[b]).norm()),
                float((cov - covariance[b]).norm() / covariance[b].norm()),
                float(cov.trace() / covariance[b].trace()),
                float((weights_of(law, x)[b] - law.weights[b]).abs().sum() / 2),
                sliced_wasserstein(x[b], truth[b], order=1.0),
            ]
        )
    return torch.tensor(found).mean(0).tolist()


def run(problem: Problem, method: Method, y: Tensor, n: int, seed: int) -> Tensor:
    """n samples of each observation, (B, n, d)."""
    observed = y.repeat_interleave(n, 0)
    constraint = None if method.constraint is None else method.constraint(problem.operator)
    grid = LogRatio() if method.repeats == 1 else Resampled(LogRatio(), 10, method.repeats)
    sampler = Sampler(grid, STEPS, DPMSolver2M(eta=1.0), denoise_last=constraint is None, constraint=constraint)
    start = SCHEDULE.prior_like(
        torch.empty(len(observed), len(problem.prior.means[0])).double(), StreamNoise(seed, "x")
    )
    x = sampler(method.model(problem), start, {"observed": observed}, StreamNoise(seed, "steps")).x
    return x.unflatten(0, (len(y), n))


HEADS = ("error of the mean", "error of the covariance", "trace ratio", "error of the weights", "sliced W1")


def cells(values: Tensor) -> str:
    """Mean over seeds with its standard error, for each of the errors (seeds, 5)."""
    mean, error = values.mean(0), values.std(0) / len(values) ** 0.5
    return " | ".join(f"{m:.3f} ± {e:.3f}" for m, e in zip(mean.tolist(), error.tolist(), strict=True))


def posterior_table(n: int, seeds: int, output: Path) -> list[str]:
    """Every method on every problem, as Markdown."""
    lines: list[str] = []
    for problem in problems():
        y = observations(problem)
        law = ExactPosterior(problem.prior, problem.operator, problem.std).law(y)
        truth = exact_samples(law, 4 * n, -1)
        lines += ["", f"### {problem.name}", "", "| method | " + " | ".join(HEADS) + " |", "|---" * 6 + "|"]
        rows: dict[str, Tensor | None] = {}
        rows["exact samples"] = torch.tensor([errors(law, truth, exact_samples(law, n, s)) for s in range(seeds)])
        drawn = {"exact": exact_samples(law, n, 0)}
        for name, method in METHODS.items():
            try:
                sets = [run(problem, method, y, n, seed) for seed in range(seeds)]
            except NumericalError:
                rows[name] = None
            else:
                drawn[name] = sets[0]
                rows[name] = torch.tensor([errors(law, truth, x) for x in sets])
            print(f"{problem.name}: {name}", flush=True)
        lines += [
            f"| {name} | " + ("diverges" + " | –" * 4 if values is None else cells(values)) + " |"
            for name, values in rows.items()
        ]
        if problem.name == "plane, std 0.05":
            for picture, names in PICTURES.items():
                shown = {name: drawn[name][0] for name in names if name in drawn}
                scatter2d(output / f"{picture}.png", shown, (-2.5, 2.5, -2.5, 2.5))
    return lines


def guidance_table(output: Path) -> list[str]:
    """The density that guided flows make of two classes on a line, and the tilted one."""
    line = MixtureModel(EDM(0.02, 80.0), [0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    axis = torch.linspace(-6, 14, 801, dtype=torch.float64)
    cell, t = float(axis[1] - axis[0]), torch.full((len(axis),), 0.02, dtype=torch.float64)
    cond, posterior = {"label": torch.ones(len(axis), dtype=torch.long)}, line.responsibilities(axis[:, None], t)[:, 1]
    flow = ProbabilityFlow(DormandPrince(1e-7, 1e-7))
    lines, shown = [], {}
    for scale, low, high in [(w, 0.0, float("inf")) for w in (0.0, 0.5, 1.0, 1.25, 2.0, 4.0)] + [(2.0, 0.5, 2.0)]:
        ours = flow.log_prob(Guided(line, scale, low, high), axis[:, None], cond).exp()
        tilted = (line.log_prob(axis[:, None], t) + scale * posterior.log()).exp()
        tilted = tilted / (tilted.sum() * cell)
        moments = []
        for density in (ours, tilted):
            mean = float((density * axis).sum() * cell)
            moments += [mean, float((density * (axis - mean).square()).sum() * cell) ** 0.5]
        variation = float((ours - tilted).abs().sum() * cell / 2)
        name = f"{scale:g}" if low == 0 else f"{scale:g}, {low:g} ≤ σ/α ≤ {high:g}"
        lines.append(
            f"| {name} | {moments[0]:.3f} ± {moments[1]:.3f} | {moments[2]:.3f} ± {moments[3]:.3f} | {variation:.3f} |"
        )
        shown[name] = (ours, tilted)
    with sheet(output / "guidance.png", panels=3, width=3.2, height=2.8, shared=True) as (_, panels):
        for axes, name in zip(panels, ("1", "2", "4"), strict=True):
            for density, label, colour in zip(
                shown[name], ("guided flow", "p(x) p(c|x)^w"), (PALETTE[0], INK), strict=True
            ):
                axes.plot(axis, density, color=colour, label=label, linestyle="-" if colour != INK else "--")
            axes.set(title=f"w = {name}", xlabel="x", xlim=(-3, 8))
        panels[0].legend()
    return lines


INTRODUCTION = """<!-- written by `python experiments/posterior/mixtures.py` -->
# Posterior sampling and guidance where the truth is known

## Posteriors of mixtures

For an observation y = A x + std n, A of orthonormal rows, the posterior of a Gaussian mixture is a mixture in closed
form. Each method draws {n} samples for each of {observations} observations, with the exact score of the prior, {steps}
steps of SDE-DPM-Solver++ (2M) from σ = 20 to 0.01; means over {seeds} seeds ± standard error. The error of the mean is
a distance, that of the covariance relative in the Frobenius norm, the trace ratio that of the sampled covariance to the
exact one (below 1: too narrow), the error of the weights a total variation, and sliced W1 the distance to exact
samples.
Two rows are no method: exact samples show what the numbers are at this n, the exact posterior score what the sampler
adds.

Every bias shown is the method's, not the prior's:

- Moment matching and ΠGDM take p(x | x_t) for one Gaussian. That is nearly right in the plane; where an observation
  decides between modes that are far apart, as in eight dimensions, they decide too late, and modes that the
  observation rules out keep some weight.
- DPS takes x for known given x_t. The observation then pulls too hard at large noise: early decisions, which suit the
  eight dimensions, too narrow a result, and with small noise steps that overshoot.
- Normalised DPS and the null space do not know the observation's noise; the strength of the first is a free number.
- Replacement and projection move the observed part and leave the rest to follow. They fit the observation exactly,
  noise and all, so they are too narrow along it, and the rest may settle in a wrong mode before it follows. RePaint's
  repetitions mend part of that for so many times the cost.
"""

GUIDANCE = """
## What classifier-free guidance samples

Two unit Gaussians at −1 and 1 on a line, the class on the right asked for. At every level the guided score is that of
p_t(x) p_t(c|x)^w, exactly. The flow of these scores does not end in p(x) p(c|x)^w unless w is 0 or 1: both densities by
quadrature, the first from the change of variables along the flow. Mean ± deviation of each, and the total variation
between them.

| w | guided flow | p(x) p(c\\|x)^w | total variation |
|---|---|---|---|
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=250, help="samples of each observation (default: 250)")
    parser.add_argument("--seeds", type=int, default=4, help="sets of samples (default: 4)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of table.md and the pictures")
    given = parser.parse_args(arguments)
    if given.samples < 10 or given.seeds < 2:
        parser.error("--samples must be at least 10 and --seeds at least 2, for a standard error")
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    guided = guidance_table(given.output)
    posterior = posterior_table(given.samples, given.seeds, given.output)
    head = INTRODUCTION.format(n=given.samples, observations=OBSERVATIONS, steps=STEPS, seeds=given.seeds)
    text = head + "\n".join(posterior) + "\n" + GUIDANCE + "\n".join(guided) + "\n"
    write_atomically(given.output / "table.md", text.encode())
    print(given.output / "table.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
