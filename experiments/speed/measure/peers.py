"""The same networks and samplers of other public libraries, where they are installed; both do the same arithmetic.

diffusers' UNet2DModel takes the same weights as this project's DDPM, so that seconds are seconds per operation.
azula's samplers are run with a network that costs nothing, so that seconds are the sampler's own. `songunet` has the
networks of CIFAR-10.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from measure import songunet
from measure.lines import Line, in_turn
from measure.steps import training_step
from scorefield.checkpoints import load
from scorefield.grids import LogRatio
from scorefield.kernels import Ancestral
from scorefield.models import Compute, NetworkModel, Parametrization
from scorefield.nets.winograd import WinogradConv2d
from scorefield.samplers import Sampler
from scorefield.schedules import VP
from scorefield.torchvision_ops import declare_missing_operators

CHANNELS, SIZE, BATCH, STEPS = 64, 32, 4, 50


def diffusers_pair(diffusers: Any) -> tuple[nn.Module, nn.Module]:
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
    return peer, copy.deepcopy(ours).requires_grad_(True)


def forward(call: Callable[[], Tensor]) -> Callable[[], object]:
    """A call without gradients."""

    @torch.no_grad()
    def run() -> None:
        call()

    return run


def networks(diffusers: Any, repeats: int) -> Iterator[Line]:
    """A U-Net as it is, and under `compute=cpu`."""
    diffusers.utils.logging.set_verbosity_error()
    peer, plain = diffusers_pair(diffusers)
    fast = copy.deepcopy(plain)
    Compute(channels_last=True, winograd=True).prepare(fast)
    assert any(isinstance(module, WinogradConv2d) for module in fast.modules())
    x, t = torch.randn(BATCH, 3, SIZE, SIZE), torch.rand(BATCH) * 999
    last = x.contiguous(memory_format=torch.channels_last)
    parameters = sum(p.numel() for p in plain.parameters())
    note = f"batch {BATCH} of 3x{SIZE}x{SIZE}, {parameters:,} parameters"
    theirs = lambda: peer(x, t).sample  # noqa: E731
    calls = {"plain": lambda: plain(x, t), "cpu": lambda: fast(last, t)}
    against = f"diffusers {diffusers.__version__}"
    for setting, call in calls.items():
        difference = float((call() - theirs()).detach().abs().max())
        assert difference < 1e-3, f"the two networks differ by {difference}"
        turns = in_turn(forward(call), forward(theirs), repeats)
        yield Line.of("peers", f"forward, compute={setting}", against, turns, "s", note)
    for setting, net in (("plain", plain), ("cpu", fast)):  # from here on weights go their own ways
        turns = in_turn(training_step(net, calls[setting]), training_step(peer, theirs), repeats)
        yield Line.of("peers", f"training step, compute={setting}", against, turns, "s", note)


class Zero(nn.Module):
    """A network without work: 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """0 of the shape of x."""
        return self.weight * x


def samplers(azula: Any, repeats: int) -> Iterator[Line]:
    """DDIM's and DDPM's own cost a step, with a network that costs nothing."""
    noise, sample, denoise = (import_module(f"azula.{part}") for part in ("noise", "sample", "denoise"))
    x = torch.randn(BATCH, 3, SIZE, SIZE)
    ours = NetworkModel(Zero(), VP(0.1, 20.0), Parametrization.edm(1.0)).eval()
    theirs = denoise.KarrasDenoiser(Zero(), noise.VPSchedule()).eval()
    for name, eta, kind in (("DDIM", 0.0, "DDIMSampler"), ("DDPM", 1.0, "DDPMSampler")):
        mine = Sampler(LogRatio(), STEPS, Ancestral(eta=eta))
        other = getattr(sample, kind)(theirs, steps=STEPS, silent=True)
        turns = in_turn(lambda mine=mine: mine(ours, x), torch.no_grad()(lambda other=other: other(x)), repeats)  # type: ignore[misc]
        per_step = [(a / STEPS, b / STEPS) for a, b in turns]
        note = f"batch {BATCH} of 3x{SIZE}x{SIZE}, {STEPS} steps, a network that costs nothing"
        yield Line.of("peers", f"a step of {name}", "azula", per_step, "s/step", note)


def measure(repeats: int) -> Iterator[Line]:
    """Whatever can be imported; what cannot is named, with the reason."""
    warnings.filterwarnings("ignore")
    declare_missing_operators()  # they import torchvision
    for name, lines in PEERS.items():
        try:
            peer = import_module(name)
        except ImportError as error:
            yield Line.missing("peers", f"beside {name.split('.')[0]}", f"it cannot be imported: {error}")
        else:
            yield from lines(peer, repeats)


PEERS: dict[str, Callable[[Any, int], Iterator[Line]]] = {
    "diffusers": networks,
    "azula": samplers,
    "physicsnemo.models.diffusion_unets.song_unet": songunet.measure,
}
