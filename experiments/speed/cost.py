"""What the paper-scale experiments cost on 1, 8 and 64 GPUs, predicted from counts that are made here.

    python experiments/speed/cost.py                                          writes experiments/speed/cost.md
    python experiments/speed/cost.py --rate 300e12 --utilisation 0.4 --out my.md

Counted: the operations of a forward pass of each preset's network, its parameters, and the bytes that autograd keeps of
one image for the backward pass, with and without `compute=low_memory`. Assumed, and printed with the result: the GPU's
matrix rate, the share of it that is reached, and the bandwidths between GPUs. Nothing here was measured on a GPU; run
`bench.py gpu --trainer gpu` there for the two numbers to put in.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import torch
from measure.steps import Work, composed

PRESETS = {
    "ncsn_cifar10": 50_000,
    "ncsnv2_cifar10": 50_000,
    "ddpm_cifar10": 50_000,
    "ncsnpp_cifar10_ve": 50_000,
    "ncsnpp_deep_cifar10_ve": 50_000,
    "ddpmpp_cifar10_vp": 50_000,
    "ddpmpp_deep_cifar10_vp": 50_000,
    "edm_cifar10_vp": 50_000,
    "edm_imagenet64_adm": 1_281_167,
}  # training images of each
GPUS = (1, 8, 64)
SAMPLES, TESTED, EVALUATIONS = 50_000, 10_000, 150  # of an FID, of bits/dim, and network evaluations of one likelihood
STATE = 4 + 4 + 8 + 4  # bytes a parameter in float32: weight, gradient, Adam's two moments, average


@dataclass(frozen=True)
class Counted:
    """What an experiment asks for.

    Args:
        name: the preset.
        steps: optimiser steps.
        batch: images of a step, over all GPUs.
        parameters: of the network.
        operations: floating-point operations of a forward pass of one image.
        kept: bytes kept of one image for the backward pass, in float32.
        recomputed: the same with `compute=low_memory`.
        calls: network calls of one sample by the preset's sampler.
        pixels: bytes of the training images as they are stored.
    """

    name: str
    steps: int
    batch: int
    parameters: int
    operations: float
    kept: int
    recomputed: int
    calls: float
    pixels: int


def kept(action: Callable[[], object], weights: list[torch.Tensor]) -> int:
    """Bytes of the storages that autograd keeps while an action runs, but for the weights' own."""
    theirs = {w.untyped_storage().data_ptr() for w in weights}
    found: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in theirs:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        action()
    return sum(found.values())


def counted(preset: str) -> Counted:
    """Count one preset, on the CPU with a single image."""
    config = composed("run_dir=unused", f"experiment={preset}")
    sizes, operations, parameters = [], 0, 0
    for setting in ("low_memory", "plain"):
        work = Work([f"experiment={preset}", f"compute={setting}"], 1, torch.device("cpu"))
        sizes.append(kept(lambda work=work: work.model(work.x, work.t), work.weights))  # type: ignore[misc]
        operations, parameters = work.operations(), sum(w.numel() for w in work.weights)
        del work
        gc.collect()
    recomputed, plain = sizes
    sampler = config["sampler"]
    steps, corrector = sampler.get("steps", 100), sampler.get("corrector")
    predictor = 0 if sampler.get("predictor") is None else 2 if "Heun" in str(sampler["predictor"]) else 1
    calls = steps * (predictor + (sampler.get("corrections", 1) if corrector else 0))
    shape = config["data"]["shape"]
    pixels = PRESETS[preset] * shape[0] * shape[1] * shape[2]
    batch = config["data"]["batch_size"] * config["trainer"].get("accumulate_grad_batches", 1)
    return Counted(preset, config["steps"], batch, parameters, operations, plain, recomputed, calls, pixels)


@dataclass(frozen=True)
class Assumed:
    """What a cluster does.

    Args:
        rate: matrix rate of a GPU in bfloat16, operations/s.
        utilisation: share of it that is reached.
        inside: bandwidth between GPUs of a machine, bytes/s.
        between: bandwidth of a GPU to other machines, bytes/s.
    """

    rate: float
    utilisation: float
    inside: float
    between: float

    def step(self, one: Counted, gpus: int) -> tuple[float, float]:
        """Seconds of computing and of exchanging gradients, of one training step.

        A step is three forward passes (the backward pass is two); a ring exchanges 2 (n - 1) / n gradients.
        """
        computing = 3 * one.operations * one.batch / gpus / (self.rate * self.utilisation)
        bandwidth = self.inside if gpus <= 8 else self.between
        return computing, 2 * (gpus - 1) / gpus * 4 * one.parameters / bandwidth

    def hours(self, operations: float) -> float:
        """GPU-hours of so many operations."""
        return operations / (self.rate * self.utilisation) / 3600


HEAD = """# What the paper-scale experiments cost

<!-- written by `python experiments/speed/cost.py`; do not edit -->

**Counted here**: operations of a forward pass, parameters, bytes kept of an image for the backward pass (float32; half
of it under `compute=tensor_cores`, where most are bfloat16). **Assumed**: a GPU of {rate:.0f} TFLOP/s in bfloat16 of
which {share:.0%} is reached, {inside:.0f} GB/s between the GPUs of a machine and {between:.0f} GB/s to others.
**Extrapolated** is everything else; nothing was measured on a GPU. `bench.py gpu --trainer gpu` measures the rate and
the share there, and `cost.py --rate R --utilisation U` makes this page again. Times grow as 1 / (rate x share).

| experiment | parameters | GFLOP an image | steps x batch | training, GPU-h | 50,000 samples (calls) | {bits} |
|---|---|---|---|---|---|---|
"""
CLOCK = """
A likelihood is taken as {evaluations} evaluations, each a forward pass and a pull-back to the image.

## Hours by the clock, on 1, 8 and 64 GPUs

Training alone. In brackets the share of a step that the exchange of gradients would take if nothing of it were hidden
behind the backward pass: a batch of 128 gives 64 GPUs two images each, and they wait for one another. Where few images
are left for a GPU, the share of the rate, too, falls below the one assumed; how far, only a measurement says.

"""
MEMORY = """
## Memory of a GPU

{state} bytes a parameter (weight, gradient, two moments, average) and what is kept of each image. Gradients accumulate
where the whole batch does not fit (`trainer.accumulate_grad_batches`). The training images themselves take the last
column where they are resident (`data.resident=true`).

| experiment | parameters, GiB | MiB an image | low_memory | GiB, whole batch, bfloat16 | low_memory | images, GiB |
|---|---|---|---|---|---|---|
"""


def page(rows: list[Counted], assumed: Assumed) -> str:
    """The page in Markdown."""
    giga, gib = 1e9, 2**30
    said = HEAD.format(
        rate=assumed.rate / 1e12,
        share=assumed.utilisation,
        inside=assumed.inside / giga,
        between=assumed.between / giga,
        bits=f"bits/dim of {TESTED:,}, GPU-h",
    )
    for one in rows:
        training = assumed.hours(3 * one.operations * one.batch * one.steps)
        samples = assumed.hours(one.operations * one.calls * SAMPLES)
        bits = assumed.hours(2 * one.operations * EVALUATIONS * TESTED)
        said += (
            f"| `{one.name}` | {one.parameters / 1e6:.1f} M | {one.operations / giga:.1f} "
            f"| {one.steps:,} x {one.batch} | {training:.1f} | {samples:.2f} ({one.calls:.0f}) | {bits:.2f} |\n"
        )
    said += CLOCK.format(evaluations=EVALUATIONS)
    said += "| experiment | " + " | ".join(f"{n} GPU{'s' * (n > 1)}: hours, images a GPU" for n in GPUS) + " |\n"
    said += "|---|" + "---|" * len(GPUS) + "\n"
    for one in rows:
        cells = []
        for n in GPUS:
            computing, exchanging = assumed.step(one, n)
            hours = one.steps * (computing + exchanging) / 3600
            cells.append(f"{hours:.1f}, {one.batch // n} ({exchanging / (computing + exchanging):.0%})")
        said += f"| `{one.name}` | " + " | ".join(cells) + " |\n"
    said += MEMORY.format(state=STATE)
    for one in rows:
        state = STATE * one.parameters / gib
        plain, less = (state + one.batch * size / 2 / gib for size in (one.kept, one.recomputed))
        said += (
            f"| `{one.name}` | {state:.2f} | {one.kept / 2**20:.0f} | {one.recomputed / 2**20:.0f} | {plain:.1f} | "
            f"{less:.1f} | {one.pixels / gib:.2f} |\n"
        )
    return said


def main() -> int:
    """Count, predict, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rate", type=float, default=989e12, help="matrix rate in bfloat16, operations/s (an H100 SXM's)"
    )
    parser.add_argument("--utilisation", type=float, default=0.3, help="share of it that is reached, in (0, 1]")
    parser.add_argument("--inside", type=float, default=300e9, help="bytes/s between GPUs of a machine")
    parser.add_argument("--between", type=float, default=25e9, help="bytes/s of a GPU to other machines")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "cost.md", help="the page")
    asked = parser.parse_args()
    if min(asked.rate, asked.inside, asked.between) <= 0 or not 0 < asked.utilisation <= 1:
        parser.error("rates must be positive, and --utilisation in (0, 1]")
    rows = []
    for preset in PRESETS:
        rows.append(counted(preset))
        print(f"{preset}: {rows[-1].operations / 1e9:.1f} GFLOP an image", flush=True)
    asked.out.write_text(page(rows, Assumed(asked.rate, asked.utilisation, asked.inside, asked.between)))
    print(asked.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
