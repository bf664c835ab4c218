"""The published CIFAR-10 networks: forward pass, training step, likelihood evaluation and memory under each setting."""

from collections.abc import Callable, Iterator

import torch

from measure.lines import Line, in_turn, seconds
from measure.machine import copy_bandwidth, matrix_rate
from measure.memory import peak, steps
from measure.steps import Work

BATCH = 4
EXPERIMENTS = ("ncsnpp_cifar10_ve", "ddpmpp_cifar10_vp", "edm_cifar10_vp")
SETTINGS = {"cpu": ("plain", "cpu", "low_memory"), "cuda": ("plain", "low_memory")}  # those of float32 products

# Seconds of forward pass, training step and drift with divergence of the authors' code on one thread of a two-core
# machine, and MiB of a step, batch 4; not measured in the same run, so that only the order of magnitude compares.
RECORDED = {
    "ncsnpp_cifar10_ve": (0.63, 2.8, 2.4, 1955),
    "ddpmpp_cifar10_vp": (0.63, 2.05, 1.7, 1783),
    "edm_cifar10_vp": (1.03, 3.28, None, 1799),
}

# Bytes that an update moves for each byte of weights: clipping reads gradients twice and writes them once, Adam reads
# weights, gradients and two moments and writes three of them, the average reads two and writes one.
TRAFFIC = 3 + 7 + 3


def limits(work: Work, rate: float, bandwidth: float) -> tuple[float, float, float]:
    """Seconds of forward pass, training step and likelihood evaluation at the machine's rates.

    A backward pass to weights and input costs two forward passes, one to the input alone costs one.
    """
    once = work.operations() / rate
    return once, 3 * once + TRAFFIC * work.parameter_bytes() / bandwidth, 2 * once


def evaluated(work: Work, call: Callable[[], None]) -> Callable[[], None]:
    """A call as an evaluation makes it: nothing is dropped, and the weights ask for no gradient."""

    def run() -> None:
        work.model.eval().requires_grad_(False)
        call()
        work.model.train().requires_grad_(True)

    return run


def action(work: Work, name: str) -> Callable[[], None]:
    """One of the three."""
    return work.step if name == "step" else evaluated(work, getattr(work, name))


def measure(repeats: int, device: torch.device) -> Iterator[Line]:
    """Against the same calls under `compute=plain`, the machine's limit, and the authors' code as recorded."""
    rate, bandwidth = matrix_rate(device), copy_bandwidth(device)
    for experiment in EXPERIMENTS:
        override = f"experiment={experiment}"
        plain = Work([override], BATCH, device)
        bound = limits(plain, rate, bandwidth)
        recorded = RECORDED[experiment]
        subject = f"{experiment}, batch {BATCH}"
        actions = ("forward", "step", "likelihood")
        for setting in SETTINGS[device.type]:
            work = plain if setting == "plain" else Work([override, f"compute={setting}"], BATCH, device)
            for i, name in enumerate(actions):
                what, unit = f"{name}, compute={setting}", "s"
                turns = in_turn(action(work, name), action(plain, name), repeats, device)
                ours = [(pair[0], bound[i]) for pair in turns]
                said = f"{1e-9 * plain.operations():.0f} GFLOP forward at the matrix rate" if i == 0 else ""
                yield Line.of(subject, what, "machine's limit", ours, unit, said)
                if setting != "plain":
                    yield Line.of(subject, what, "compute=plain", turns, unit)
                if (elsewhere := recorded[i]) is not None and device.type == "cpu":
                    yield Line.of(subject, what, "authors' code, recorded", [(a, elsewhere) for a, _ in turns], unit)
        bare = in_turn(action(plain, "likelihood"), evaluated(plain, plain.bare_likelihood()), repeats, device)
        yield Line.of(subject, "likelihood", "network and pull-back alone", bare, "s")
        bare = in_turn(action(plain, "forward"), evaluated(plain, plain.bare_forward()), repeats, device)
        yield Line.of(subject, "forward", "network alone", bare, "s")
        plain.backward()
        updates = [
            (seconds(plain.update, device), TRAFFIC * plain.parameter_bytes() / bandwidth) for _ in range(repeats)
        ]
        yield Line.of(subject, "clipping, optimiser, average", "bytes at the copy bandwidth", updates, "s")


def memory(device: torch.device) -> Iterator[Line]:
    """Peak of a training step, each in a process of its own; the authors' code was recorded on a CPU."""
    subject = f"memory of a training step, batch {BATCH}"
    for experiment in EXPERIMENTS:
        override, plain = f"experiment={experiment}", 0.0
        for setting in SETTINGS[device.type]:
            found = peak(BATCH, [override, f"compute={setting}"], device)
            most, before, weights = (found[key] / 2**20 for key in ("peak", "before", "weights"))
            plain = plain or most  # the first of the settings
            note = f"{before:.0f} of them before the model is made; weights {weights:.0f}"
            against, other = "authors' code, recorded", float(RECORDED[experiment][3] or 0)
            if device.type == "cuda":
                against, other = "compute=plain", plain
            yield Line.of(subject, f"{experiment}, compute={setting}", against, [(most, other)], "MiB", note)
            if device.type == "cpu" and setting != "low_memory":
                kept = steps(BATCH, [override, f"compute={setting}"], {})["peak"] / 2**20
                what = f"{experiment}, compute={setting}, freed memory kept"
                yield Line.of(subject, what, against, [(kept, other)], "MiB", "compute.keep_memory")
