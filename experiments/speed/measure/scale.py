"""Time and memory of a training step of NCSN++ against batch, pixels and width, with and without recomputing."""

from collections.abc import Iterator

import torch

from measure.lines import Line
from measure.memory import peak

BASE = "ncsnpp_cifar10_ve"
BLOCKS = "net.blocks=1"  # one block a level, so that the table takes minutes; every level is there
POINTS = {
    "batch 1": (1, ()),
    "batch 2": (2, ()),
    "batch 4": (4, ()),
    "batch 8": (8, ()),
    "16x16 pixels": (4, ("data.shape=[3,16,16]",)),
    "64x64 pixels": (4, ("data.shape=[3,64,64]",)),
    "64 channels": (4, ("net.channels=64",)),
    "192 channels": (4, ("net.channels=192",)),
}


def measure(device: torch.device) -> Iterator[Line]:
    """Each point plain and with `compute=low_memory`: bytes above those before the model was made, and seconds."""
    for name, (batch, changes) in POINTS.items():
        overrides = [f"experiment={BASE}", BLOCKS, *changes]
        plain, less = (peak(batch, [*overrides, f"compute={setting}"], device) for setting in ("plain", "low_memory"))
        subject = "scale: a step of NCSN++ with one block a level, compute=low_memory against compute=plain"
        above = [(one["peak"] - one["before"]) / 2**20 for one in (less, plain)]
        note = f"weights {plain['weights'] / 2**20:.0f} MiB"
        yield Line.of(subject, f"memory, {name}", "compute=plain", [(above[0], above[1])], "MiB", note)
        yield Line.of(subject, f"time, {name}", "compute=plain", [(less["seconds"], plain["seconds"])], "s", "")
