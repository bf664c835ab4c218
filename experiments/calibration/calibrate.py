"""Every sampler on every schedule, with the exact score of a mixture: what is left is the sampler's own error.

    python experiments/calibration/calibrate.py             all of them; writes table.md and calibration.png
    python experiments/calibration/calibrate.py --samples 1000 --output outputs/calibration

All start from the exact marginal at t_max, so that neither network nor prior is in the error. Two errors are measured
on the samples: the sliced Wasserstein distance (order 1) to exact ones, and that of the weight of the heavier mode;
below the floor, two sets of exact samples, they say nothing. For deterministic samplers the order is fitted to the
distance of each sample from the exact flow out of its own start; for stochastic ones to the sliced distance, where at
least three points are above twice the floor.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from scorefield.grids import Grid, Karras, Ladder, LogRatio, Uniform
from scorefield.kernels import (
    Ancestral,
    BatchSignalToNoise,
    Consistent,
    DPMSolver2M,
    DPMSolver3M,
    Euler,
    EulerMaruyama,
    Heun,
    Kernel,
    Langevin,
    ReverseDiffusion,
    SigmaStep,
)
from scorefield.metrics.two_sample import sliced_wasserstein
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.ode import DormandPrince
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.files import write_atomically
from scorefield.records.style import INK, PALETTE, plain_ticks, sheet
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VE, VP, Linear, Schedule, SubVP

HERE = Path(__file__).parent
WEIGHTS, MEANS, STD = [0.2, 0.8], [[-2.0, -2.0], [2.0, 2.0]], 0.5
EVALUATIONS = (10, 20, 40, 80, 160, 320)
SCHEDULES: dict[str, Schedule] = {
    "VE": VE(0.01, 50.0, t_min=0.0),
    "VP": VP(t_min=1e-3),
    "sub-VP": SubVP(t_min=1e-2),
    "linear": Linear(1e-2, 0.99),
    "EDM": EDM(0.01, 50.0),
}


@dataclass(frozen=True)
class Method:
    """A sampler at any number of evaluations.

    Args:
        grid: its times.
        predictor: its predictor; None stays.
        corrector: its corrector; None for none.
        corrections: corrector steps at each time.
    """

    grid: Grid
    predictor: Kernel | None = None
    corrector: Kernel | None = None
    corrections: int = 1

    def sampler(self, evaluations: int) -> Sampler | None:
        """The sampler of so many network evaluations, or None where there is no such."""
        predictor = {} if self.predictor is None else {"predictor": self.predictor}
        one = Sampler(self.grid, 1, corrector=self.corrector, corrections=self.corrections, **predictor)
        steps = evaluations // one.nfe
        return replace(one, steps=steps) if steps >= 2 else None

    def order(self) -> int | None:
        return None if self.predictor is None or self.corrector is not None else self.predictor.order


# With norms over the batch, as published: in the plane a single score can be near 0, and a step relative to it endless.
SNR = Langevin(BatchSignalToNoise(0.16))
METHODS: dict[str, Method] = {
    "Euler": Method(Karras(), Euler()),
    "DDIM": Method(LogRatio(), Ancestral(eta=0.0)),
    "Heun": Method(Karras(), Heun()),
    "DPM-Solver++ 2M": Method(LogRatio(), DPMSolver2M()),
    "DPM-Solver++ 3M": Method(LogRatio(), DPMSolver3M()),
    "Heun, churn": Method(Karras(), Heun(churn=20.0)),
    "SDE-DPM-Solver++ 2M": Method(LogRatio(), DPMSolver2M(eta=1.0)),
    "ancestral": Method(LogRatio(), Ancestral()),
    "Euler-Maruyama": Method(LogRatio(), EulerMaruyama()),
    "reverse diffusion": Method(LogRatio(), ReverseDiffusion()),
    "predictor-corrector": Method(LogRatio(), ReverseDiffusion(), SNR),
    "corrector only": Method(Ladder(), None, SNR, 2),
    "annealed Langevin": Method(Ladder(), None, Langevin(SigmaStep(0.3)), 5),
    "consistent, η = 0.5": Method(LogRatio(), Consistent(0.5)),
    "reverse diffusion, uniform": Method(Uniform(), ReverseDiffusion()),
}


@dataclass(frozen=True)
class Row:
    """What one method does on one schedule.

    Args:
        method: its name.
        schedule: the schedule's name.
        evaluations: network evaluations, as many as could be made.
        distance: sliced Wasserstein distance at each.
        weight: error of the heavier mode's weight at each.
        order: fitted, or nan.
        declared: order that the kernel declares; None for a stochastic one.
    """

    method: str
    schedule: str
    evaluations: list[int]
    distance: list[float]
    weight: list[float]
    order: float
    declared: int | None


def share(x: Tensor) -> float:
    return float((x.sum(1) > 0).double().mean())


def slope(evaluations: list[int], errors: list[float]) -> float:
    """Minus the slope of a line through the last points on logarithmic axes; nan for fewer than three."""
    if len(errors) < 3:
        return float("nan")
    return -float(np.polyfit(np.log(evaluations[-3:]), np.log(errors[-3:]), 1)[0])


def run(name: str, where: str, method: Method, schedule: Schedule, samples: int) -> Row | None:
    """One method on one schedule, at all numbers of evaluations that its grid allows."""
    model = MixtureModel(schedule, WEIGHTS, MEANS, [STD**2] * 2)
    like = torch.empty(samples, 2, dtype=torch.float64)

    def exact(t: float, what: str) -> Tensor:
        return model.sample_like(like, torch.full((samples,), t, dtype=torch.float64), StreamNoise(0, what))

    start, data = exact(schedule.t_max, "start"), exact(schedule.t_min, "data")
    floor = sliced_wasserstein(exact(schedule.t_min, "floor"), data, order=1.0)
    few = start[:200]
    truth = ProbabilityFlow(DormandPrince(1e-9, 1e-9)).decode(model, few) if method.order() is not None else None
    evaluations, distances, weights, errors = [], [], [], []
    for wanted in EVALUATIONS:
        sampler = method.sampler(wanted)
        if sampler is None:
            continue
        try:
            x = sampler(model, start, noise=StreamNoise(0, "steps")).x
        except (ValueError, ArithmeticError):  # the grid is too coarse for the step, or the steps too large
            continue
        evaluations.append(sampler.nfe)
        distances.append(sliced_wasserstein(x, data, order=1.0))
        weights.append(abs(share(x) - share(data)))
        if truth is not None:
            errors.append(float((x[:200] - truth).square().mean().sqrt()))
    if not evaluations:
        return None
    if truth is None:
        above = [(n, d) for n, d in zip(evaluations, distances, strict=True) if d > 2 * floor]
        order = slope([n for n, _ in above], [d for _, d in above])
    else:
        order = slope(evaluations, errors)
    return Row(name, where, evaluations, distances, weights, order, method.order())


def floors(samples: int) -> tuple[float, float]:
    """Both errors of exact samples against exact samples: the mean over ten pairs."""
    model = MixtureModel(SCHEDULES["VP"], WEIGHTS, MEANS, [STD**2] * 2)
    like, t = torch.empty(samples, 2, dtype=torch.float64), torch.full((samples,), 1e-3, dtype=torch.float64)
    pairs = [[model.sample_like(like, t, StreamNoise(k, i)) for i in range(2)] for k in range(10)]
    distance = sum(sliced_wasserstein(a, b, order=1.0) for a, b in pairs) / 10
    return distance, sum(abs(share(a) - share(b)) for a, b in pairs) / 10


def table(rows: Sequence[Row], floor: tuple[float, float], samples: int) -> str:
    """The rows as Markdown: distance and error of the weight at each number of evaluations."""
    head = " | ".join(str(n) for n in EVALUATIONS)
    lines = [
        "<!-- written by `python experiments/calibration/calibrate.py` -->",
        "# Samplers with the exact score",
        "",
        f"A mixture of two modes in the plane, {samples} samples from the exact marginal at t_max. Each cell: sliced "
        "Wasserstein distance to exact samples, and the error of the heavier mode's weight, at about so many network "
        f"evaluations. Two sets of exact samples differ by {floor[0]:.3f} and {floor[1]:.3f}; numbers as small say "
        "nothing. The order is fitted to the last three points, for deterministic samplers on the distance to the "
        "exact flow, with the declared one behind it.",
        "",
        "Correctors and annealed Langevin dynamics take a fixed step relative to the level, consistent sampling a "
        "fixed η: the error of that step is left, however many levels there are.",
        "",
        f"| sampler | schedule | order | {head} |",
        "|---|---|---|" + "---|" * len(EVALUATIONS),
    ]
    for row in rows:
        found = dict.fromkeys(EVALUATIONS, "–")
        for n, distance, weight in zip(row.evaluations, row.distance, row.weight, strict=True):
            wanted = min((w for w in EVALUATIONS if w >= n), default=EVALUATIONS[-1])
            found[wanted] = f"{distance:.3f} / {weight:.3f}"
        order = "–" if np.isnan(row.order) else f"{row.order:.2f}"
        order += f" ({row.declared})" if row.declared is not None else ""
        lines.append(f"| {row.method} | {row.schedule} | {order} | " + " | ".join(found.values()) + " |")
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[Row], floor: float, path: Path) -> None:
    """Distance against evaluations, a panel for each schedule."""
    names = list(METHODS)
    with sheet(path, panels=len(SCHEDULES), width=3.3, height=4.6, shared=True) as (figure, panels):
        for axes, where in zip(panels, SCHEDULES, strict=True):
            for row in (r for r in rows if r.schedule == where):
                i = names.index(row.method)
                style = ("-", "--", ":")[i // len(PALETTE)]
                axes.plot(
                    row.evaluations, row.distance, style, color=PALETTE[i % len(PALETTE)], marker="o", markersize=2.5,
                    linewidth=1.2, label=row.method,
                )  # fmt: skip
            axes.axhline(floor, color=INK, linewidth=1)
            axes.set(xscale="log", yscale="log", xlabel="network evaluations", title=where)
            plain_ticks(axes.xaxis)
            plain_ticks(axes.yaxis)
        panels[0].set_ylabel("sliced Wasserstein distance")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=8)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4000, help="samples of each run (default: 4000)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of table.md and calibration.png")
    given = parser.parse_args(arguments)
    if given.samples < 200:
        parser.error(f"--samples {given.samples} must be at least 200, of which the order is fitted")
    torch.set_num_threads(1)
    floor, rows = floors(given.samples), []
    for name, method in METHODS.items():
        for where, schedule in SCHEDULES.items():
            row = run(name, where, method, schedule, given.samples)
            if row is not None:
                rows.append(row)
        print(f"{name} done", flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output / "table.md", table(rows, floor, given.samples).encode())
    draw(rows, floor[0], given.output / "calibration.png")
    print(f"{given.output / 'table.md'}, {given.output / 'calibration.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
