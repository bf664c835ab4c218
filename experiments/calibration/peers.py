"""The samplers of the calibration beside other libraries' implementations of the same methods, with the exact score.

    pip install azula && pip install --no-deps k-diffusion torchdiffeq torchsde trampoline boltons
    python experiments/calibration/peers.py          writes peers.md; exits with 1 if one of ours is worse

Same start, same times, same exact denoiser, as many network calls. A deterministic sampler is judged by the distance of
its samples from the exact flow out of their own start, and must not be more than 1 % further; a stochastic one by the
sliced Wasserstein distance to exact samples, the mean of several seeds, and must not be more than three standard errors
of the difference further. Methods that only share a name with one of ours are left out.
"""

import argparse
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from calibrate import HERE, MEANS, METHODS, SCHEDULES, STD, WEIGHTS
from torch import Tensor

from scorefield.grids import Grid
from scorefield.kernels import Kernel
from scorefield.metrics.two_sample import sliced_wasserstein
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.ode import DormandPrince
from scorefield.probability_flow import ProbabilityFlow
from scorefield.records.files import write_atomically
from scorefield.samplers import Sampler

EVALUATIONS = (20, 40, 80)
# (model, start, times, seed) -> samples
Peer = Callable[[MixtureModel, Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class Pair:
    """One method here and elsewhere.

    Args:
        method: its name in the calibration.
        kernel: ours.
        grid: times of both.
        peer: who it is compared with.
        run: theirs.
        schedules: where both are the same method.
        stochastic: whether samples are random given their start.
    """

    method: str
    kernel: Kernel
    grid: Grid
    peer: str
    run: Peer
    schedules: tuple[str, ...] = tuple(SCHEDULES)
    stochastic: bool = False


def k_diffusion(name: str, **arguments: Any) -> Peer:
    """One of its functions. Its package imports tools for training; only the module of the samplers is wanted."""
    if "k_diffusion" not in sys.modules:
        package = importlib.util.find_spec("k_diffusion")
        assert package is not None
        assert package.submodule_search_locations is not None
        sys.modules["k_diffusion"] = types.ModuleType("k_diffusion")
        sys.modules["k_diffusion"].__path__ = list(package.submodule_search_locations)
    sampling = importlib.import_module("k_diffusion.sampling")
    function = getattr(sampling, name)

    def run(model: MixtureModel, start: Tensor, times: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        drawn = {"noise_sampler": lambda *_: torch.randn_like(start)} if "eta" in arguments else {}
        denoiser = lambda x, sigma: model(x, sigma).data  # noqa: E731
        found: Tensor = function(denoiser, start, times, disable=True, **arguments, **drawn)
        return found

    return run


def azula(name: str, **arguments: Any) -> Peer:
    """One of its classes, whose time runs over the numbers of ours."""
    from azula import sample
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):
        def __init__(self, model: MixtureModel) -> None:
            super().__init__()
            self.model = model

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.model.schedule.alpha(t), self.model.schedule.sigma(t)

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(mean=self.model(x_t, t.expand(len(x_t))).data)

    def run(model: MixtureModel, start: Tensor, times: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        sampler, x = getattr(sample, name)(Exact(model), **arguments), start
        with torch.no_grad():
            for t, s in pairwise(times):
                x = sampler.step(x, t, s)
        return x

    return run


def pairs() -> list[Pair]:
    """What there is to compare with; libraries that are not installed are left out."""
    has_azula, has_k_diffusion = (importlib.util.find_spec(name) for name in ("azula", "k_diffusion"))
    found = []
    kernels = {name: method.predictor for name, method in METHODS.items()}

    def add(method: str, peer: str, run: Peer, schedules: tuple[str, ...] = tuple(SCHEDULES), **other: Any) -> None:
        kernel = kernels[method]
        assert kernel is not None
        found.append(Pair(method, kernel, METHODS[method].grid, peer, run, schedules, **other))

    if has_azula:
        add("DDIM", "azula DDIMSampler", azula("DDIMSampler"))
        add("Heun", "azula HeunSampler", azula("HeunSampler"), ("EDM",))
        add("ancestral", "azula DDPMSampler", azula("DDPMSampler"), stochastic=True)
    if has_k_diffusion:
        edm = ("EDM",)
        add("Euler", "k-diffusion sample_euler", k_diffusion("sample_euler"), edm)
        add("Heun", "k-diffusion sample_heun", k_diffusion("sample_heun"), edm)
        add("DPM-Solver++ 2M", "k-diffusion sample_dpmpp_2m", k_diffusion("sample_dpmpp_2m"), edm)
        third = k_diffusion("sample_dpmpp_3m_sde", eta=0.0)
        add("DPM-Solver++ 3M", "k-diffusion sample_dpmpp_3m_sde, eta 0", third, edm)
        churned = k_diffusion("sample_heun", s_churn=20.0)
        add("Heun, churn", "k-diffusion sample_heun, s_churn 20", churned, edm, stochastic=True)
        random = k_diffusion("sample_euler_ancestral", eta=1.0)
        add("ancestral", "k-diffusion sample_euler_ancestral", random, edm, stochastic=True)
        sde = k_diffusion("sample_dpmpp_2m_sde", eta=1.0, solver_type="midpoint")
        add("SDE-DPM-Solver++ 2M", "k-diffusion sample_dpmpp_2m_sde", sde, edm, stochastic=True)
    return found


@dataclass(frozen=True)
class Row:
    """Both errors of one method on one schedule at one number of evaluations, with their standard errors (0 for none).

    Args:
        pair: the two.
        schedule: the schedule's name.
        nfe: network evaluations.
        ours: error of our samples.
        theirs: error of theirs.
        standard_error: of the difference; None for a deterministic sampler.
    """

    pair: Pair
    schedule: str
    nfe: int
    ours: float
    theirs: float
    standard_error: float | None

    @property
    def worse(self) -> bool:
        allowed = 0.01 * self.theirs if self.standard_error is None else 3 * self.standard_error
        return self.ours - self.theirs > allowed + 1e-9


def compare(pair: Pair, where: str, wanted: int, samples: int, seeds: int) -> Row:
    """Both at as many evaluations; stochastic ones with several seeds."""
    schedule = SCHEDULES[where]
    model = MixtureModel(schedule, WEIGHTS, MEANS, [STD**2] * 2)
    like = torch.empty(samples, 2, dtype=torch.float64)

    def exact(t: float, what: str, seed: int) -> Tensor:
        return model.sample_like(like, torch.full((samples,), t, dtype=torch.float64), StreamNoise(seed, what))

    sampler = Sampler(pair.grid, wanted // pair.kernel.calls, predictor=pair.kernel)
    times = pair.grid(schedule, sampler.steps)
    errors = []
    for seed in range(seeds if pair.stochastic else 1):
        start = exact(schedule.t_max, "start", seed)
        found = sampler(model, start, noise=StreamNoise(seed, "steps")).x, pair.run(model, start, times, seed)
        if pair.stochastic:
            data = exact(schedule.t_min, "data", seed)
            errors.append([sliced_wasserstein(x, data, order=1.0) for x in found])
        else:
            truth = ProbabilityFlow(DormandPrince(1e-9, 1e-9)).decode(model, start)
            errors.append([float((x - truth).square().mean().sqrt()) for x in found])
    both = torch.tensor(errors, dtype=torch.float64)
    ours, theirs = both.mean(0).tolist()
    spread = float((both[:, 0] - both[:, 1]).std() / len(both) ** 0.5) if pair.stochastic else None
    return Row(pair, where, sampler.nfe, ours, theirs, spread)


def table(rows: Sequence[Row], samples: int, seeds: int) -> str:
    """The rows as Markdown."""
    lines = [
        "<!-- written by `python experiments/calibration/peers.py` -->",
        "# Samplers beside other implementations",
        "",
        "The mixture of [table.md](table.md), the exact score, the same starts, times and numbers of evaluations. "
        "Deterministic samplers: root mean square distance of each sample from the exact flow out of its own start "
        f"({samples} starts). Stochastic ones, marked ~: sliced Wasserstein distance to exact samples, the mean of "
        f"{seeds} seeds of {samples} samples, and the standard error of the difference.",
        "",
        "DPM-Solver++ 3M is not the same formula in both: the second difference enters ours with the weight that "
        "integrates a parabola exactly, which gives order 3 ([table.md](table.md)), and k-diffusion's with half of it.",
        "",
        "| method | schedule | peer | evaluations | ours | theirs | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        error = "" if row.standard_error is None else f" (difference ± {row.standard_error:.1g})"
        verdict = "worse" if row.worse else "equal" if abs(row.ours - row.theirs) <= 1e-6 * row.theirs else "not worse"
        name = row.pair.method + (" ~" if row.pair.stochastic else "")
        cells = name, row.schedule, row.pair.peer, str(row.nfe), f"{row.ours:.4g}", f"{row.theirs:.4g}{error}", verdict
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=2000, help="samples of each run (default: 2000)")
    parser.add_argument("--seeds", type=int, default=8, help="seeds of a stochastic sampler, at least 2 (default: 8)")
    parser.add_argument("--output", type=Path, default=HERE, help="folder of peers.md")
    given = parser.parse_args(arguments)
    for name, least in (("samples", 1), ("seeds", 2)):
        if getattr(given, name) < least:
            parser.error(f"--{name} {getattr(given, name)} must be at least {least}")
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    found = pairs()
    if not found:
        parser.error("none of the other libraries is installed; see the top of this file")
    rows = []
    for pair in found:
        for where in pair.schedules:
            for wanted in EVALUATIONS:
                rows.append(compare(pair, where, wanted, given.samples, given.seeds))
        print(f"{pair.method}, {pair.peer}: done", flush=True)
    given.output.mkdir(parents=True, exist_ok=True)
    write_atomically(given.output / "peers.md", table(rows, given.samples, given.seeds).encode())
    worse = [
        f"{r.pair.method} on {r.schedule} at {r.nfe}: {r.ours:.4g} against {r.theirs:.4g}" for r in rows if r.worse
    ]
    print(*(worse or ["none of ours is worse"]), str(given.output / "peers.md"), sep="\n")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
