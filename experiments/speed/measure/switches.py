"""What each setting changes: the optimiser's kernel and the compute settings, on networks of two sizes."""

import gc
from collections.abc import Iterator

import torch

from measure.lines import Line, in_turn
from measure.memory import steps
from measure.steps import Work

NETWORKS = {"digits": ("experiment=digits", 128), "NCSN++": ("experiment=ncsnpp_cifar10_ve", 4)}
FOREACH = ("optim.optimizer.fused=false", "+optim.optimizer.foreach=true")
OPTIMIZERS = {"fused": (), "one tensor at a time": ("optim.optimizer.fused=false", "+optim.optimizer.foreach=false")}


def optimizers(name: str, override: str, batch: int, repeats: int, device: torch.device) -> Iterator[Line]:
    """The update with Adam's other kernels against the one over all tensors at once (foreach)."""
    plain = Work([override, *FOREACH], batch, device)
    plain.backward()
    for what, changes in OPTIMIZERS.items():
        work = Work([override, *changes], batch, device)
        work.backward()
        turns = in_turn(work.update, plain.update, repeats, device)
        yield Line.of("settings", f"{name}: update, Adam {what}", "Adam over all tensors at once", turns, "s")
        del work
        gc.collect()


def settings(name: str, override: str, batch: int, repeats: int, device: torch.device) -> Iterator[Line]:
    """A training step under each part of the compute settings by itself."""
    plain = Work([override], batch, device)
    for what, changes in (
        ("channels_last", ["compute.channels_last=true"]),
        ("channels_last and winograd", ["compute.channels_last=true", "compute.winograd=true"]),
        ("channels_last and fused_norms", ["compute.channels_last=true", "compute.fused_norms=true"]),
        ("recompute", ["compute.recompute=true"]),
        ("bf16", ["compute.bf16=true"]),
    ):
        if what == "bf16" and device.type == "cpu" and batch == 4:
            continue  # where the processor has no such arithmetic, a step of NCSN++ takes minutes
        if what.startswith("channels_last and") and device.type == "cuda":
            continue  # C for the CPU; cuDNN has its own
        work = Work([override, *changes], batch, device)
        turns = in_turn(work.step, plain.step, repeats, device)
        yield Line.of("settings", f"{name}: training step, {what}", "compute=plain", turns, "s", f"batch {batch}")
        del work
        gc.collect()


def of_the_process(repeats: int) -> Iterator[Line]:
    """What holds for a whole process, so that each step has one of its own: huge pages, and memory that is kept."""

    def seconds(name: str, compute: str, pages: str = "0", keep: str = "true") -> float:
        override, batch = NETWORKS[name]
        overrides = [override, f"compute={compute}", f"compute.keep_memory={keep}"]
        return float(steps(batch, overrides, {"THP_MEM_ALLOC_ENABLE": pages})["seconds"])

    for name, compute, change in (
        ("NCSN++", "cpu", {"pages": "1"}),
        ("NCSN++", "cpu", {"keep": "false"}),
        ("NCSN++", "plain", {"keep": "false"}),
        ("digits", "plain", {"keep": "false"}),
    ):
        said = "THP_MEM_ALLOC_ENABLE=1" if "pages" in change else "compute.keep_memory=false"
        turns = [(seconds(name, compute, **change), seconds(name, compute)) for _ in range(repeats)]
        what, note = f"{name}: training step, compute={compute} and {said}", f"batch {NETWORKS[name][1]}"
        yield Line.of("settings", what, f"compute={compute}", turns, "s", f"{note}, a process each")


def measure(repeats: int, device: torch.device) -> Iterator[Line]:
    """Both, for both networks."""
    for name, (override, batch) in NETWORKS.items():
        yield from optimizers(name, override, batch, repeats, device)
        yield from settings(name, override, batch, repeats, device)
    if device.type == "cpu":
        yield from of_the_process(repeats)
