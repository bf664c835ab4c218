"""A published network against the same network of another library: forward pass and training step, on one thread.

    python experiments/speed/peer.py

diffusers' UNet2DModel and this project's DDPM with its weights do the same arithmetic, so that seconds are seconds per
operation. Without the library there is nothing to compare with, and one line says so.
"""

import copy
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints import load
from scorefield.torchvision_ops import declare_missing_operators

CHANNELS, SIZE, BATCH = 64, 32, 4


def library() -> Any | None:
    """diffusers, where it is installed."""
    declare_missing_operators()  # the library imports torchvision
    try:
        import diffusers
    except ImportError:
        return None
    return diffusers


def pair(diffusers: Any) -> tuple[nn.Module, nn.Module]:
    """The library's network, and ours with its weights."""
    kinds = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")
    peer = diffusers.UNet2DModel(
        sample_size=SIZE,
        block_out_channels=(CHANNELS, 2 * CHANNELS, 2 * CHANNELS),
        down_block_types=kinds,
        up_block_types=tuple(kind.replace("Down", "Up") for kind in reversed(kinds)),
        attention_head_dim=CHANNELS,
    )
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        ours = load("diffusers", Path(folder)).net
    return peer, copy.deepcopy(ours).requires_grad_(True).to(memory_format=torch.channels_last)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def forward(call: Callable[[], Tensor]) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        call()

    return run


def training_step(net: nn.Module, call: Callable[[], Tensor]) -> Callable[[], object]:
    """Forward, backward, Adam and an average of the weights, the last two over all tensors at once."""
    weights = list(net.parameters())
    optimizer = torch.optim.Adam(weights, 1e-4, foreach=True)
    averages = [w.detach().clone() for w in weights]

    def run() -> None:
        optimizer.zero_grad()
        call().square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.01)

    return run


def compare(repeats: int) -> list[tuple[str, list[tuple[float, float]], str, str]]:
    """What is timed, seconds of ours and of the peer in turn, unit and note; nothing where there is no peer."""
    diffusers = library()
    if diffusers is None:
        return []
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    peer, ours = pair(diffusers)
    x, t = torch.randn(BATCH, 3, SIZE, SIZE), torch.rand(BATCH) * 999
    last = x.contiguous(memory_format=torch.channels_last)
    calls = (lambda: ours(last, t), lambda: peer(x, t).sample)
    difference = float((calls[0]() - calls[1]()).detach().abs().max())
    assert difference < 1e-3, f"the two networks differ by {difference}"
    note = f"batch {BATCH} of 3x{SIZE}x{SIZE}, {sum(p.numel() for p in ours.parameters()):,} parameters, one thread, "
    note += f"against diffusers {diffusers.__version__}"
    lines = []
    for what, actions in (
        ("forward", [forward(call) for call in calls]),
        ("step", [training_step(net, call) for net, call in zip((ours, peer), calls, strict=True)]),
    ):
        for action in actions:
            action()  # the first one allocates
        turns = [(timed(actions[0]), timed(actions[1])) for _ in range(repeats)]
        lines.append((what, turns, "s/batch", note))
    torch.set_num_threads(threads)
    return lines


def main() -> None:
    """Measure and print."""
    lines = compare(9)
    for what, turns, unit, note in lines:
        ours, theirs = (median(turn[i] for turn in turns) for i in (0, 1))
        ratio = median(a / b for a, b in turns)
        print(f"{what:<11} {ours:>11.3g} {theirs:>11.3g} {ratio:>7.3f}  {unit}; {note}")
    if not lines:
        print("diffusers is not installed: no peer to compare with (pip install diffusers)")


if __name__ == "__main__":
    main()
