"""The CIFAR-10 networks against physicsnemo's SongUNet, which descends from the authors' code, on this machine.

Both hold the same weights and answer the same. Around the peer stands what the authors' loops do: Adam and the weight
average one tensor after another, and a likelihood evaluation of two forward passes and one pull-back, the drift and the
divergence apart. Around ours stands what is done here.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from measure.lines import Line, in_turn
from measure.steps import training_step
from scorefield.checkpoints import from_state
from scorefield.models import Compute

BATCH, SIZE = 4, 32

# Settings in the names of EDM's configuration, which are those of the peer's arguments too.
NETWORKS: dict[str, dict[str, Any]] = {
    "NCSN++": {
        "channel_mult": [1, 2, 2, 2],
        "embedding_type": "fourier",
        "encoder_type": "residual",
        "channel_mult_noise": 2,
        "resample_filter": [1, 3, 3, 1],
    },
    "DDPM++": {"channel_mult": [1, 2, 2, 2], "embedding_type": "positional"},
    "EDM's DDPM++": {"channel_mult": [2, 2, 2], "embedding_type": "positional", "dropout": 0.13},
}


def pair(peers: Any, settings: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """The peer with random weights, none of them zero, and ours with the same."""
    torch.manual_seed(0)
    peer = peers.SongUNet(SIZE, 3, 3, **settings)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    state = {}
    for name, tensor in peer.state_dict().items():
        published = name.replace(".attn.norm.", ".norm2.").replace(".attn.", ".")
        if published != "map_noise.freqs" or settings["embedding_type"] == "fourier":
            state[published] = tensor
    config = {"model_type": "SongUNet", "img_resolution": SIZE, "img_channels": 3, "label_dim": 0, **settings}
    ours: Any = from_state("edm", state, config)
    return peer, ours.net.requires_grad_(True)


def their_step(net: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
    """`training_step` as the authors write it: one tensor after another, gradients freed before the backward pass."""
    weights = list(net.parameters())
    averages = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, 1e-5)

    def run() -> None:
        optimizer.zero_grad()
        call().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        with torch.no_grad():
            for average, weight in zip(averages, weights, strict=True):
                average.copy_(weight.lerp(average, 0.99))

    return run


def pulled_back(net: Callable[[Tensor, Tensor], Tensor], x: Tensor, label: Tensor) -> None:
    """A forward pass and one probe pulled back to x."""
    at = x.clone().requires_grad_()
    torch.autograd.grad(net(at, label), at, torch.ones_like(at))


def networks(name: str, peers: Any, repeats: int) -> Iterator[Line]:
    """Forward pass, likelihood evaluation and training step of one network, plain and under `compute=cpu`."""
    peer, plain = pair(peers, NETWORKS[name])
    fast = copy.deepcopy(plain)
    Compute(channels_last=True, winograd=True).prepare(fast)
    x, label = torch.randn(BATCH, 3, SIZE, SIZE), torch.rand(BATCH)
    last = x.contiguous(memory_format=torch.channels_last)

    def theirs(at: Tensor = x, level: Tensor = label) -> Tensor:
        return peer(at, level, None)

    def apart() -> None:
        with torch.no_grad():
            theirs()
        pulled_back(theirs, x, label)

    subject, against = f"peers: {name}, batch {BATCH} of 3x{SIZE}x{SIZE}", "physicsnemo's SongUNet"
    sets = {"plain": (plain, x), "cpu": (fast, last)}
    for net in (peer, plain, fast):
        net.eval()
    with torch.no_grad():
        expected = theirs()
        for net, at in sets.values():
            error = float((net(at, label) - expected).abs().max() / expected.abs().max())
            assert error < 1e-3, f"the two networks differ by {error} of the largest output"
    for setting, (net, at) in sets.items():
        turns = in_turn(torch.no_grad()(lambda n=net, y=at: n(y, label)), torch.no_grad()(theirs), repeats)
        yield Line.of(subject, f"forward, compute={setting}", against, turns, "s")
    for setting, (net, at) in sets.items():
        net.requires_grad_(False)
        turns = in_turn(lambda n=net, y=at: pulled_back(n, y, label), apart, repeats)
        net.requires_grad_(True)
        yield Line.of(subject, f"likelihood, compute={setting}", f"{against}, drift and divergence apart", turns, "s")
    for net in (peer, plain, fast):
        net.train()
    other = their_step(peer, theirs)
    for setting, (net, at) in sets.items():
        turns = in_turn(training_step(net, lambda n=net, y=at: n(y, label)), other, repeats)
        yield Line.of(subject, f"training step, compute={setting}", f"{against} in the authors' loop", turns, "s")


def measure(peers: Any, repeats: int) -> Iterator[Line]:
    """All three, with the peer's module."""
    for name in NETWORKS:
        yield from networks(name, peers, repeats)
