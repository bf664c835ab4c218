"""What scorefield costs beside the network alone: sampling, training and likelihood of the default model; its guards.

    python experiments/speed/bench.py [--run outputs/digits] [--json speed.json]

Each line sets a part of the project against the network calls it cannot do without, on the same inputs. The two are
timed in turn, so that a busy machine slows both, and the ratio is the median over the turns. The guards (against
numbers that are not finite, and for being told to stop) are on in every other step of one training run, and set against
the step that follows without them. The last two lines set a published network against the same one of diffusers, where
that is installed; see `peer.py`.
"""

import argparse
import json
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import scorefield.training  # noqa: F401 (makes pytorch_lightning importable beside any build of torch)

# isort: split

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from peer import compare
from torch import Tensor

from scorefield.cli.app import conf_dir
from scorefield.cli.runs import Parts, build, load_run, make, resolved
from scorefield.models import NetworkModel
from scorefield.noise import GlobalNoise, IndexedNoise
from scorefield.training.callbacks import Preemption, StopOnNonFinite
from scorefield.training.callbacks.samples import draw
from scorefield.training.ema import EMA

WARM_UP = 10  # training steps that are not counted: the first ones allocate

Call = tuple[Tensor, ...]  # arguments of one call of the bare network


@dataclass(frozen=True)
class Line:
    """One comparison.

    Args:
        what: what is timed.
        ours: seconds through the project, the median over the turns.
        bare: seconds of the network calls alone, likewise.
        ratio: median over the turns of ours / bare.
        unit: what the seconds are for.
        note: settings the numbers depend on.
    """

    what: str
    ours: float
    bare: float
    ratio: float
    unit: str
    note: str

    @classmethod
    def of(cls, what: str, turns: list[tuple[float, float]], unit: str, note: str) -> "Line":
        ours, bare = ([turn[i] for turn in turns] for i in (0, 1))
        return cls(what, median(ours), median(bare), median(a / b for a, b in turns), unit, note)


def compose_digits(run_dir: str, *overrides: str) -> dict[str, Any]:
    """The resolved configuration of the default experiment."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return resolved(compose("train", ["experiment=digits", f"run_dir={run_dir}", *overrides]))


def seconds(action: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of an action, with everything it has put on the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def recorded_calls(model: NetworkModel, action: Callable[[], object]) -> list[Call]:
    """The arguments of every call of the bare network that an action makes."""
    calls: list[Call] = []
    handle = model.net.register_forward_pre_hook(lambda _, args: calls.append(tuple(a.detach().clone() for a in args)))
    action()
    handle.remove()
    return calls


def sampling(model: NetworkModel, config: dict[str, Any], device: torch.device, batch: int, repeats: int) -> Line:
    """A sampling run against its network calls."""
    sampler, shape = make(config["sampler"]), tuple(config["data"]["shape"])

    def ours() -> None:
        draw(model, sampler, shape, list(range(batch)), 0, device)

    calls = recorded_calls(model, ours)

    @torch.no_grad()
    def bare() -> None:
        for args in calls:
            model.net(*args)

    bare()
    turns = [(seconds(ours, device) / batch, seconds(bare, device) / batch) for _ in range(repeats)]
    return Line.of("sampling", turns, "s/sample", f"batch {batch}, {len(calls)} network calls")


def likelihood(model: NetworkModel, config: dict[str, Any], device: torch.device, batch: int, repeats: int) -> Line:
    """Likelihoods of test images against their network calls, each with its pull-back of one probe."""
    data, flow = make(config["data"]["dataset"]), make(config["likelihood"])
    rows = data.test()[:batch].x.to(device)
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
            value = model.net(at, *rest)
            torch.autograd.grad(value, at, torch.ones_like(value))

    bare()
    turns = [(seconds(ours, device) / len(rows), seconds(bare, device) / len(rows)) for _ in range(repeats)]
    note = f"batch {len(rows)}, {float(nfe.double().mean()):.0f} evaluations per image, at most {int(nfe.max())}"
    return Line.of("likelihood", turns, "s/image", note)


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


def lightning_steps(config: dict[str, Any]) -> tuple[float, Parts]:
    """Seconds per step of a short run as `scorefield train` does it."""
    parts, times = build(config), StepTimes()
    parts.trainer.callbacks.append(times)  # type: ignore[attr-defined]
    parts.trainer.fit(parts.module, parts.data)
    return times.per_step, parts


def bare_steps(config: dict[str, Any], batch: Tensor, device: torch.device) -> float:
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


def training(config: dict[str, Any], repeats: int) -> tuple[Line, Parts]:
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
    return Line.of("training", turns, "s/step", note), parts


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


def guards(config: dict[str, Any]) -> Line:
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
    note = f"{len(watched)} guards, {len(ratios)} pairs of steps, ratio uncertain by {error:.4f}"
    return Line.of("guards", [(float(on), float(off)) for on, off in pairs], "s/step", note)


def table(lines: list[Line]) -> str:
    """The comparison as text."""
    head = f"{'':<11} {'scorefield':>11} {'bare':>11} {'ratio':>7}"
    rows = [
        f"{line.what:<11} {line.ours:>11.3g} {line.bare:>11.3g} {line.ratio:>7.4f}  {line.unit}; {line.note}"
        for line in lines
    ]
    return "\n".join([head, *rows])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run whose weights are used; without it those of the short training")
    parser.add_argument("--trainer", default="cpu", help="trainer group: cpu or gpu")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's own choice without it")
    parser.add_argument("--batch", type=int, default=128, help="samples, and test images, at once")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each comparison")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of training steps with and without the guards")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    asked = parser.parse_args()
    if asked.threads:
        torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        quiet = [
            "callbacks=none",
            "~callbacks.checkpoint",
            "callbacks.log.every=1000000",
            "+trainer.limit_val_batches=0",
        ]
        quiet += ["+trainer.enable_checkpointing=false", f"trainer={asked.trainer}", f"steps={asked.steps}"]
        config = compose_digits(folder, *quiet)
        trained, parts = training(config, asked.repeats)
        told = "+callbacks.preemption._target_=scorefield.training.callbacks.Preemption"
        guarded = guards(compose_digits(folder, *quiet, told, f"steps={WARM_UP + asked.pairs * 2 + 1}"))
    device = parts.trainer.strategy.root_device
    average = next(c.model for c in parts.trainer.callbacks if isinstance(c, EMA))  # type: ignore[attr-defined]
    model = load_run(asked.run) if asked.run else average
    assert isinstance(model, NetworkModel)
    model = model.to(device).eval()
    lines = [
        sampling(model, config, device, asked.batch, asked.repeats),
        trained,
        guarded,
        likelihood(model, config, device, asked.batch, asked.repeats),
    ]
    published = [Line.of(*line) for line in compare(asked.repeats)]
    lines += published
    print(table(lines))
    if not published:
        print("forward, step: diffusers is not installed, so no published network was compared (pip install diffusers)")
    print(f"{asked.repeats} turns, {torch.get_num_threads()} threads, {device}, torch {torch.__version__}")
    if asked.json:
        record = {"lines": [asdict(line) for line in lines], "threads": torch.get_num_threads(), "device": str(device)}
        asked.json.write_text(json.dumps({**record, "torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    main()
