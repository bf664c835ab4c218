"""What lies around the network: starting, making batches, the Fréchet distance."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator

import torch

from measure.lines import Line, in_turn
from measure.steps import composed
from scorefield.cli.runs import make
from scorefield.data import Split
from scorefield.metrics.frechet import FeatureStatistics, frechet_distance
from scorefield.noise import StreamNoise
from scorefield.training.datamodule import TrainingStream

SUBJECT = "around the network"
STARTS = 5  # turns of what takes a process of its own

# What no run can do without: the two libraries, and the data.
BARE = (
    "import scorefield.torchvision_ops as ops; ops.declare_missing_operators(); import torch, pytorch_lightning; "
    "from sklearn.datasets import load_digits; load_digits()"
)


def python(*arguments: str) -> None:
    """A run of this interpreter that must succeed."""
    subprocess.run([sys.executable, "-W", "ignore", *arguments], check=True, capture_output=True)


def starting(repeats: int) -> Iterator[Line]:
    """--help, and `train` until its first step is done, against the imports alone."""
    bare = lambda: python("-c", BARE)  # noqa: E731
    note = "torch, pytorch_lightning and scikit-learn imported, digits loaded"
    asked = lambda: python("-m", "scorefield.cli.main", "--help")  # noqa: E731
    yield Line.of(SUBJECT, "scorefield --help", "imports and data alone", in_turn(asked, bare, repeats), "s", note)

    def one_step() -> None:
        with tempfile.TemporaryDirectory() as folder:
            quiet = ("callbacks=none", "~callbacks.checkpoint", "steps=1", "+trainer.limit_val_batches=0", "ema=none")
            python("-m", "scorefield.cli.main", "train", f"run_dir={folder}/run", *quiet)

    turns = in_turn(one_step, bare, repeats)
    yield Line.of(SUBJECT, "scorefield train, one step and its record", "imports and data alone", turns, "s", note)


def batches(repeats: int, device: torch.device) -> Iterator[Line]:
    """A batch of CIFAR-10's shape: indexed, dequantised, flipped, in model space; against a copy of its pixels."""
    config = composed("experiment=cifar10", "run_dir=unused")
    data, size = make(config["data"]["dataset"]), config["data"]["batch_size"]
    pixels = torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8, device=device)
    stream = TrainingStream(data, Split(pixels), size, seed=0)
    batch = stream.batch(0)["x"]
    target = torch.empty_like(batch)
    number = 0

    def ours() -> None:
        nonlocal number
        number += 1
        stream.batch(number)

    turns = in_turn(ours, lambda: target.copy_(batch), max(repeats, 20), device)
    yield Line.of(SUBJECT, "a training batch", "a copy of it", turns, "s/batch", f"batch {size} of 3x32x32 of 50,000")
    noise = StreamNoise(0)
    turns = in_turn(ours, lambda: noise.uniform_like(batch), max(repeats, 20), device)
    yield Line.of(SUBJECT, "a training batch", "its random numbers alone", turns, "s/batch", f"batch {size}")


def distances(repeats: int, device: torch.device) -> Iterator[Line]:
    """The Fréchet distance of 10,000 feature vectors of Inception's length, against its one matrix product."""
    x = torch.randn(10_000, 2048, device=device)
    reference = FeatureStatistics.of(torch.randn(10_000, 2048, device=device))
    wide = x.double()
    turns = in_turn(
        lambda: frechet_distance(FeatureStatistics.of(x), reference), lambda: wide.T @ wide, min(repeats, 3), device
    )
    note = "10,000 vectors of 2048; the rest are two symmetric eigenvalue problems"
    yield Line.of(SUBJECT, "Fréchet distance", "one float64 product of the features", turns, "s", note)


def measure(repeats: int, device: torch.device) -> Iterator[Line]:
    """All of it."""
    yield from batches(repeats, device)
    yield from distances(repeats, device)
    yield from starting(min(repeats, STARTS))
