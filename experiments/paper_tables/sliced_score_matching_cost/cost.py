"""What a score matching loss and its gradient cost as the dimension grows: backward passes and CPU time.

python experiments/paper_tables/sliced_score_matching_cost/cost.py --objective=exact --seed=0 --out=outputs/cost
"""

import argparse
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

from scorefield.divergence import Exact
from scorefield.models import NetworkModel, Parametrization
from scorefield.nets import MLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Implicit, Objective, Sliced
from scorefield.prediction import Score
from scorefield.records.result import Measurement, Result, git_state, versions
from scorefield.records.rundir import RunDir
from scorefield.schedules import Constant

DIMENSIONS = (16, 32, 64, 128, 256)
WIDTH, BATCH, TURNS = 512, 128, 5
OBJECTIVES: dict[str, Objective] = {"exact": Implicit(Exact(chunk=1)), "sliced": Sliced(), "denoising": Denoising()}


def work_of(objective: Objective, dimension: int, seed: int) -> Callable[[], None]:
    """One loss with its gradient in the weights, as a call without arguments."""
    torch.manual_seed(seed)
    net = MLP((dimension,), WIDTH, 1, Fourier(16))
    model = NetworkModel(net, Constant(0.5), Parametrization(target=Score()))
    noise = StreamNoise(seed, "cost", dimension)
    x = noise.normal_like(torch.empty(BATCH, dimension))
    return lambda: objective(model, x, None, noise).per_sample.mean().backward()


def cost_of(work: Callable[[], None]) -> tuple[int, float]:
    """Backward passes of the loss and of its gradient, and the least CPU time of several turns in milliseconds."""
    with patch("torch.autograd.grad", wraps=torch.autograd.grad) as grad:
        work()
    times = []
    for _ in range(TURNS):
        begun = time.process_time()
        work()
        times.append(time.process_time() - begun)
    return grad.call_count + 1, 1e3 * min(times)


def slope(values: list[float]) -> float:
    """Least squares of log value against log dimension."""
    return float(np.polyfit(np.log(DIMENSIONS), np.log(values), 1)[0])


def main() -> None:
    """Measure one loss at all dimensions and leave result.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--objective", choices=OBJECTIVES, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    calls, milliseconds = zip(
        *(cost_of(work_of(OBJECTIVES[asked.objective], d, asked.seed)) for d in DIMENSIONS), strict=True
    )
    protocol = {"dimensions": list(DIMENSIONS), "width": WIDTH, "batch": BATCH, "turns": TURNS, "threads": 1}
    metrics = {
        "calls": Measurement(calls[-1], {**protocol, "each": list(calls)}),
        "milliseconds": Measurement(milliseconds[-1], {**protocol, "each": [round(each, 3) for each in milliseconds]}),
        "calls_slope": Measurement(0.0 if len(set(calls)) == 1 else slope([float(each) for each in calls]), protocol),
        "time_slope": Measurement(slope(list(milliseconds)), protocol),
    }
    assert all(math.isfinite(metric.value) for metric in metrics.values())
    Result(
        experiment=f"cost_{asked.objective}",
        seed=asked.seed,
        config_hash="",
        metrics=metrics,
        cost={"evaluation_seconds": round(time.monotonic() - begun, 2)},
        versions=versions(),
        git=git_state(),
        command=shlex.join(["python", *sys.argv]),
    ).write(RunDir(asked.out).result)


if __name__ == "__main__":
    main()
