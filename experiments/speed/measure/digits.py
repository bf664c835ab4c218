"""The default model: sampling, training and likelihood against the network calls inside them, and the guards' cost.

Each line sets a part of the project against the network calls it cannot do without, on the same inputs. The guards
(against numbers that are not finite, and for being told to stop) are on in every other step of one training run, and
set against the step that follows without them.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from measure.calls import recorded_calls, replayed
from measure.lines import Line, in_turn, seconds
from measure.steps import composed
from scorefield.cli.runs import Parts, build, load_run, make
from scorefield.models import NetworkModel
from scorefield.noise import GlobalNoise, IndexedNoise
from scorefield.training.callbacks import Preemption, StopOnNonFinite
from scorefield.training.ema import EMA

SUBJECT = "the default model (digits)"
WARM_UP = 10  # training steps that are not counted: the first ones allocate
STEPS, REPEATS, PAIRS, BATCH = 40, 5, 200, 128

# Every kernel that asks a network for its score, on a short grid; what a sampler costs is paid at each step.
SHORT = ("sampler.steps=10", "sampler.denoise_last=false")
SAMPLERS = {
    **dict.fromkeys(("edm_heun", "edm_churn", "euler", "ddim", "ancestral", "dpmpp_2m", "dpmpp_2m_sde"), SHORT),
    **dict.fromkeys(("dpmpp_3m", "unipc", "dpm_2", "dpm_3", "euler_maruyama", "reverse_diffusion", "pc"), SHORT),
    "annealed_langevin": ("sampler.corrections=2", "sampler.steps=5"),
    "consistent": (*SHORT, "sampler.predictor.eta=0.7"),
    "flow": ("sampler.denoise_last=false",),
}

Config = dict[str, Any]


def sampling(
    model: NetworkModel, sampler: Any, shape: tuple[int, ...], device: torch.device, repeats: int, what: str
) -> Line:
    """A sampling run, from the state it starts in, against its network calls."""
    indices = range(BATCH)
    start = model.schedule.prior_like(torch.empty(BATCH, *shape, device=device), IndexedNoise(0, "start", indices))
    noise = IndexedNoise(0, "samples", indices)

    def ours() -> None:
        sampler(model, start, None, noise)

    calls = recorded_calls(model, ours)
    turns = in_turn(ours, replayed(model, calls), repeats, device)
    per_sample = [(a / BATCH, b / BATCH) for a, b in turns]
    note = f"batch {BATCH}, {len(calls)} network calls"
    return Line.of(SUBJECT, what, "its network calls", per_sample, "s/sample", note)


def likelihood(model: NetworkModel, config: Config, device: torch.device, repeats: int) -> Line:
    """Likelihoods of test images against their network calls, each with its pull-back of one probe."""
    data, flow = make(config["data"]["dataset"]), make(config["likelihood"])
    rows = data.test()[:BATCH].x.to(device)
    indices = list(range(len(rows)))
    nfe = torch.zeros(0)

    def ours() -> None:
        nonlocal nfe
        y = data.to_model(rows, IndexedNoise(0, "dequantise/0", indices))
        nfe = flow.encode(model, y, noise=IndexedNoise(0, "probes/0", indices)).nfe

    calls = recorded_calls(model, ours)

    def bare() -> None:
        for x, *rest in calls:
            at = x.requires_grad_()
            value = model.compute.call(model.net, at, *rest)
            torch.autograd.grad(value, at, torch.ones_like(value))

    turns = [(a / len(rows), b / len(rows)) for a, b in in_turn(ours, bare, repeats, device)]
    note = f"batch {len(rows)}, {float(nfe.double().mean()):.0f} evaluations per image, at most {int(nfe.max())}"
    return Line.of(SUBJECT, "likelihood", "its network calls and pull-backs", turns, "s/image", note)


class StepTimes(pl.Callback):
    """The moment at which each training step begins."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())

    @property
    def per_step(self) -> float:
        starts = torch.tensor(self.starts[WARM_UP:], dtype=torch.float64)
        return float(starts.diff().median())


def lightning_steps(config: Config) -> tuple[float, Parts]:
    """Seconds per step of a short run as `scorefield train` does it."""
    parts, times = build(config), StepTimes()
    parts.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    parts.trainer.fit(parts.module, parts.data)
    return times.per_step, parts


def bare_steps(config: Config, batch: Tensor, device: torch.device) -> float:
    """Seconds per step of forward, backward, clipping, optimiser and weight average on one given batch."""
    parts = build(config)
    model, objective, noise = parts.module.model.to(device), parts.module.objective.to(device), GlobalNoise()
    averages = [p.detach().clone() for p in model.parameters()]
    weights: list[Tensor] = list(model.parameters())
    optimizer = make(config["optim"]["optimizer"])(weights)
    clip = float(config["trainer"]["gradient_clip_val"])

    def step() -> None:
        loss = objective(model, batch, None, noise).per_sample.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, clip)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.01)

    taken: list[float] = [seconds(step, device) for _ in range(config["steps"])]
    return median(taken[WARM_UP:])


def training(config: Config, repeats: int) -> tuple[Line, Parts]:
    """Steps through the trainer against the same arithmetic in a plain loop; and the last run's parts."""
    turns = []
    for _ in range(repeats):
        ours, parts = lightning_steps(config)
        device = parts.trainer.strategy.root_device
        rows = parts.data.train_split[: parts.data.batch_size].x.to(device)
        batch = parts.data.data.to_model(rows, GlobalNoise())
        turns.append((ours, bare_steps(config, batch, device)))
    rate = 1 / median(ours for ours, _ in turns)
    note = f"batch {config['data']['batch_size']}, {config['steps']} steps a turn, {rate:.1f} steps/s"
    return Line.of(SUBJECT, "training step through Lightning", "the same in a plain loop", turns, "s/step", note), parts


class EveryOther(pl.Callback):
    """Callbacks that take part in every other batch, from the first one on."""

    def __init__(self, callbacks: Sequence[pl.Callback]) -> None:
        self.callbacks = callbacks
        self._number = -1

    def _pass_on(self, hook: str, *args: Any) -> None:
        if self._number % 2 == 0:
            for callback in self.callbacks:
                getattr(callback, hook)(*args)

    def on_train_batch_start(self, *args: Any) -> None:
        self._number += 1
        self._pass_on("on_train_batch_start", *args)

    def on_after_backward(self, *args: Any) -> None:
        self._pass_on("on_after_backward", *args)

    def on_before_optimizer_step(self, *args: Any) -> None:
        self._pass_on("on_before_optimizer_step", *args)

    def on_train_batch_end(self, *args: Any) -> None:
        self._pass_on("on_train_batch_end", *args)


def guards(config: Config) -> Line:
    """Training steps with the guards against the steps between them, in the same run."""
    parts, times = build(config), StepTimes()
    callbacks = parts.trainer.callbacks  # type: ignore[attr-defined]
    watched = [c for c in callbacks if isinstance(c, Preemption | StopOnNonFinite)]
    others = [c for c in callbacks if c not in watched]
    parts.trainer.callbacks = [times, EveryOther(watched), *others]  # type: ignore[attr-defined]
    parts.trainer.fit(parts.module, parts.data)
    steps = torch.tensor(times.starts, dtype=torch.float64).diff()[WARM_UP:]
    pairs = steps[: len(steps) // 2 * 2].reshape(-1, 2)
    ratios = pairs[:, 0] / pairs[:, 1]
    # Of a median: 1.25 deviations over the root, the deviation by the median distance, which a busy machine moves less.
    error = 1.25 * 1.48 * float((ratios - ratios.median()).abs().median()) / len(ratios) ** 0.5
    note = f"{len(watched)} guards, {len(ratios)} pairs of steps, median uncertain by {error:.4f}"
    turns = [(float(on), float(off)) for on, off in pairs]
    return Line.of(SUBJECT, "training step with guards", "the next one without", turns, "s/step", note)


QUIET = (
    "experiment=digits",
    "callbacks=none",
    "~callbacks.checkpoint",
    "callbacks.log.every=1000000",
    "+trainer.limit_val_batches=0",
    "+trainer.enable_checkpointing=false",
)


def measure(repeats: int, trainer: str, run: Path | None) -> Iterator[Line]:
    """Training first; then the weights it leaves, or those of a run, are sampled from and evaluated."""
    with tempfile.TemporaryDirectory() as folder:
        quiet = [*QUIET, f"trainer={trainer}", f"run_dir={folder}"]
        config = composed(*quiet, f"steps={STEPS}")
        line, parts = training(config, repeats)
        yield line
        told = "+callbacks.preemption._target_=scorefield.training.callbacks.Preemption"
        yield guards(composed(*quiet, told, f"steps={WARM_UP + PAIRS * 2 + 1}"))
    device = parts.trainer.strategy.root_device
    average = next(c.model for c in parts.trainer.callbacks if isinstance(c, EMA))  # type: ignore[attr-defined]
    model = load_run(run) if run else average
    assert isinstance(model, NetworkModel)
    model = model.to(device).eval()
    shape = tuple(config["data"]["shape"])
    yield likelihood(model, config, device, repeats)
    yield sampling(model, make(config["sampler"]), shape, device, 3 * repeats, "sampling, the default sampler")
    for name, changes in SAMPLERS.items():
        sampler = make(composed(*quiet, f"sampler={name}", *changes)["sampler"])
        yield sampling(model, sampler, shape, device, 3 * repeats, f"sampler={name}")
