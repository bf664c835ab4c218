"""One CUDA device: how much of it training reaches, what samplers add to their network calls, and the memory of a step.

Training steps are set against the operations of three forward passes (the backward pass is two) at the matrix rate of
the type in which the network runs, measured beside them: the inverse of the ratio is the model FLOP utilisation.
Samplers are set against their network calls alone, and at batch 1, where a GPU waits for the host between its kernels,
against a CUDA graph of the network, which does not wait. Each setting starts with float32 products in float32.

What does not fit is measured at half the batch, and what fails otherwise is a line that says so and costs no other.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from measure.calls import WARM_UP, captured, recorded_calls, replayed
from measure.lines import Line, in_turn, seconds
from measure.machine import matrix_rate, whole_products
from measure.memory import peak
from measure.published import EXPERIMENTS
from measure.steps import Work, composed
from scorefield.cli.runs import make
from scorefield.errors import NumericalError
from scorefield.models import NetworkModel
from scorefield.noise import GlobalNoise, IndexedNoise, Noise
from scorefield.samplers import Sampler

TRAINING = ("plain", "tensor_cores", "compiled")
SAMPLING = ("tensor_cores", "compiled")
LATENCY = ("tensor_cores", "graphs")
MEMORY = ("plain", "low_memory", "tensor_cores")
STATE = 5  # weights, gradients, Adam's two moments and the average, each of the weights' size
TARGET = 1.3  # of the latency of a call at batch 1


@dataclass(frozen=True)
class Setup:
    """What is measured, where and how often.

    Args:
        device: where. On a CPU all is measured but the CUDA graph, which the bare network stands in for.
        repeats: turns of each comparison.
        experiments: presets.
        overrides: of `scorefield train`, for all of them.
        training: images of a training step.
        sampling: images of a sampling run.
        steps: training steps of one turn.
        few: steps of a sampling run, whose seconds are scaled to the network calls of the whole one.
        dozens: steps of a sampling run at batch 1.
    """

    device: torch.device
    repeats: int = 5
    experiments: tuple[str, ...] = EXPERIMENTS
    overrides: tuple[str, ...] = ()
    training: int = 128
    sampling: int = 256
    steps: int = 10
    few: int = 5
    dozens: int = 36

    def options(self, experiment: str, setting: str) -> list[str]:
        """Overrides of one experiment under one compute setting."""
        return [f"experiment={experiment}", *self.overrides, f"compute={setting}"]


def release(device: torch.device) -> None:
    """Let go of what has been measured: its tensors, compiled code and graphs."""
    gc.collect()
    torch.compiler.reset()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def attempt(
    device: torch.device, subject: str, what: str, batch: int, measured: Callable[[int], list[Line]]
) -> list[Line]:
    """What is measured with a batch, or with half of it, a quarter, ... where memory does not suffice."""
    asked = batch
    while batch:
        release(device)
        try:
            with whole_products():
                lines = measured(batch)
        except torch.OutOfMemoryError:
            batch //= 2  # and go on outside, where the error no longer holds the tensors of its frames
        except (RuntimeError, NumericalError) as error:
            said = (str(error).strip().splitlines() or [""])[0].replace("|", "/")
            return [Line.missing(subject, what, f"{type(error).__name__}: {said}")]
        else:
            less = f"; out of memory at batch {2 * batch}" if batch < asked else ""
            return [replace(line, note=line.note + less) for line in lines]
    return [Line.missing(subject, what, f"out of memory at batch {asked}, and at every half of it down to 1")]


def warmed(action: Callable[[], object], device: torch.device) -> str:
    """Calls that are not counted, and how long they took, in words."""
    return f"first {WARM_UP} calls {sum(seconds(action, device) for _ in range(WARM_UP)):.3g} s"


def training(setup: Setup, experiment: str, setting: str, subject: str, what: str, batch: int) -> list[Line]:
    """Training steps against the operations of three forward passes at the matrix rate."""
    device = setup.device
    # Of one image under compute=plain: what a compiled network computes is not counted.
    forward = Work(setup.options(experiment, "plain"), 1, device).operations()
    work = Work(setup.options(experiment, setting), batch, device)
    dtype = torch.bfloat16 if work.model.compute.bf16 else torch.float32
    with whole_products():
        rate = matrix_rate(device, dtype)
    limit = 3 * forward * batch / rate
    first = warmed(work.step, device)

    def turn() -> None:
        for _ in range(setup.steps):
            work.step()

    turns = [(seconds(turn, device) / setup.steps, limit) for _ in range(setup.repeats)]
    line = Line.of(subject, what, "3 forward passes at the matrix rate", turns, "s/step")
    name = str(dtype).removeprefix("torch.")
    note = (
        f"batch {batch}, {batch / line.ours:.4g} images/s, utilisation {100 / line.ratio:.3g} % "
        f"of {rate / 1e12:.4g} TFLOP/s in {name}; {first}"
    )
    return [replace(line, note=note)]


@torch.no_grad()
def evaluated(setup: Setup, experiment: str, setting: str) -> tuple[NetworkModel, Sampler, tuple[int, ...]]:
    """An experiment's model as evaluations have it, its default sampler, and the shape of a sample.

    Layers that start at zero are given values: a score of zero makes the step of some samplers infinite.
    """
    config: dict[str, Any] = composed("run_dir=unused", *setup.options(experiment, setting))
    torch.manual_seed(0)
    model: NetworkModel = make(config["model"]).to(setup.device).eval().requires_grad_(False)
    for weight in model.net.parameters():
        if weight.ndim > 1 and not weight.any():
            torch.nn.init.kaiming_normal_(weight, nonlinearity="linear")
    return model, make(config["sampler"]), tuple(config["data"]["shape"])


def noises(batch: int) -> dict[str, Noise]:
    """The two places where a sampler's noise is drawn; samplers that draw none have the two lines for repetition."""
    return {"the device": GlobalNoise(), "the host, by index": IndexedNoise(0, "samples", range(batch))}


def start(model: NetworkModel, shape: tuple[int, ...], batch: int, device: torch.device) -> Tensor:
    """The state in which sampling begins."""
    return model.schedule.prior_like(torch.empty(batch, *shape, device=device), GlobalNoise())


def sampling(setup: Setup, experiment: str, setting: str, subject: str, what: str, batch: int) -> list[Line]:
    """The default sampler's whole run, scaled up from a short one, against its network calls alone."""
    device, lines = setup.device, []
    model, sampler, shape = evaluated(setup, experiment, setting)
    x, short = start(model, shape, batch, device), replace(sampler, steps=setup.few)
    for place, noise in noises(batch).items():
        ours = partial(short, model, x, None, noise)
        calls = recorded_calls(model, ours)
        first = warmed(ours, device)
        scale = sampler.nfe / len(calls) / batch
        turns = in_turn(ours, replayed(model, calls), setup.repeats, device)
        scaled = [(a * scale, b * scale) for a, b in turns]
        line = Line.of(subject, f"{what}, noise drawn on {place}", "its network calls", scaled, "s/image")
        note = (
            f"batch {batch}, {1 / line.ours:.4g} images/s; {len(calls)} network calls measured, "
            f"scaled to the {sampler.nfe} of the whole run; {first}"
        )
        lines.append(replace(line, note=note))
    return lines


def latency(setup: Setup, experiment: str, setting: str, subject: str, what: str, batch: int) -> list[Line]:
    """A network call within the default sampler against a CUDA graph of the network in bfloat16, replayed."""
    device, lines = setup.device, []
    model, sampler, shape = evaluated(setup, experiment, setting)
    bare, _, _ = evaluated(setup, experiment, "tensor_cores")
    x, short = start(model, shape, batch, device), replace(sampler, steps=setup.dozens)
    against = "a CUDA graph of the network alone" if device.type == "cuda" else "the network alone"
    for place, noise in noises(batch).items():
        ours = partial(short, model, x, None, noise)
        calls = recorded_calls(model, ours)
        graph = captured(replayed(bare, calls[:1]), device)

        def other(graph: Callable[[], object] = graph, n: int = len(calls)) -> None:
            for _ in range(n):
                graph()

        first = warmed(ours, device)
        turns = [(a / len(calls), b / len(calls)) for a, b in in_turn(ours, other, setup.repeats, device)]
        note = f"batch {batch}, {len(calls)} network calls a run; target {TARGET}; {first}"
        lines.append(Line.of(subject, f"{what}, noise drawn on {place}", against, turns, "s/call", note))
    return lines


def memory(setup: Setup, experiment: str, setting: str, subject: str, what: str, batch: int) -> list[Line]:
    """Peak of three training steps, in a process of its own, against what a step keeps whatever its batch."""
    found = peak(batch, setup.options(experiment, setting), setup.device)
    pairs = [((found["peak"] - found["before"]) / 2**20, STATE * found["weights"] / 2**20)]
    note = f"batch {batch}; {found['before'] / 2**20:.0f} MiB more were taken before the model was made"
    return [Line.of(subject, what, "weights, gradients, moments, average", pairs, "MiB", note)]


def every_line(setup: Setup) -> Iterator[Line]:
    """All of it, one setting after the other."""
    parts = (
        ("one GPU: a training step", training, TRAINING, setup.training),
        ("one GPU: sampling", sampling, SAMPLING, setup.sampling),
        ("one GPU: a network call while sampling one image", latency, LATENCY, 1),
        ("one GPU: memory of a training step", memory, MEMORY, setup.training),
    )
    for subject, part, settings, batch in parts:
        for experiment in setup.experiments:
            for setting in settings:
                what = f"{experiment}, compute={setting}"
                yield from attempt(
                    setup.device, subject, what, batch, partial(part, setup, experiment, setting, subject, what)
                )


def lacking(device: torch.device) -> str | None:
    """Why nothing is measured here, in a sentence, or None where there is a device."""
    told = "gpu: utilisation of training, samplers against their network calls, latency and memory on one CUDA device"
    if not torch.cuda.is_available():
        return f"{told} would be measured, but torch sees none here."
    return None if device.type == "cuda" else f"{told} are measured with --trainer gpu, and this is --trainer cpu."


def measure(repeats: int, device: torch.device) -> Iterator[Line]:
    """Everything at the published networks, or a sentence that says what is missing."""
    if (sentence := lacking(device)) is not None:
        print(sentence, flush=True)
        return
    yield from every_line(Setup(device, repeats))
