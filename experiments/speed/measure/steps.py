"""The parts of an experiment that are timed: a training step by hand, a forward pass, a likelihood evaluation."""

from collections.abc import Callable
from typing import Any

import scorefield.training  # noqa: F401 (makes pytorch_lightning importable beside any build of torch)

# isort: split

import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from scorefield.cli.app import conf_dir
from scorefield.cli.runs import make, resolved
from scorefield.divergence import Hutchinson
from scorefield.models import NetworkModel
from scorefield.noise import GlobalNoise


def composed(*overrides: str) -> dict[str, Any]:
    """The resolved configuration of `scorefield train` with these overrides; a run_dir must be among them."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return resolved(compose("train", list(overrides)))


class Work:
    """One experiment's network on random images, with everything a step needs.

    Args:
        overrides: of `scorefield train`.
        batch: images.
        device: where.
    """

    def __init__(self, overrides: list[str], batch: int, device: torch.device) -> None:
        config = composed("run_dir=unused", *overrides)
        torch.manual_seed(0)
        self.model: NetworkModel = make(config["model"]).to(device)
        self.objective = make(config["objective"]).to(device)
        self.shape = tuple(config["data"]["shape"])
        self.x = torch.rand(batch, *self.shape, device=device) * 2 - 1
        self.t = torch.full((batch,), 0.3, device=device)
        self.weights: list[Tensor] = list(self.model.parameters())
        self.optimizer = make(config["optim"]["optimizer"])(self.weights)
        clip = config["trainer"]["gradient_clip_val"]
        self.clip = float("inf") if clip is None else float(clip)  # the norm is taken, and nothing cut
        self.averages: list[Tensor] = [w.detach().clone() for w in self.weights]
        self._probes = Hutchinson().draw(self.x, GlobalNoise())

    def backward(self) -> None:
        """The loss and its gradient."""
        self.objective(self.model, self.x, None, GlobalNoise()).per_sample.mean().backward()

    def update(self) -> None:
        """Clipping, optimiser and weight average."""
        torch.nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.weights, 0.01)

    def step(self) -> None:
        """A training step."""
        self.backward()
        self.update()
        self.optimizer.zero_grad()  # as in training: before the next activations are made

    @torch.no_grad()
    def forward(self) -> None:
        """The model on a batch."""
        self.model(self.x, self.t)

    @torch.no_grad()
    def likelihood(self) -> None:
        """Velocity and divergence by one probe, as each evaluation of a likelihood asks for them."""
        Hutchinson().along(lambda y: self.model(y, self.t).velocity, self.x, self._probes)

    def bare_forward(self) -> Callable[[], None]:
        """The network alone."""

        @torch.no_grad()
        def run() -> None:
            self.model.net(self.x, self.t)

        return run

    def bare_likelihood(self) -> Callable[[], None]:
        """The network and one pull-back through it alone."""

        def run() -> None:
            at = self.x.clone().requires_grad_()
            torch.autograd.grad(self.model.net(at, self.t), at, torch.ones_like(at))

        return run

    def operations(self) -> int:
        """Floating-point operations of a forward pass as it is computed; under compute=plain, direct sums."""
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model.net(self.x, self.t)
        return counter.get_total_flops()

    def parameter_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(w.nbytes for w in self.weights)


def training_step(net: nn.Module, call: Callable[[], Tensor]) -> Callable[[], None]:
    """Forward, backward, clipping, Adam and average of a bare network, the last three over all tensors at once."""
    weights = list(net.parameters())
    averages = [w.detach().clone() for w in weights]
    optimizer = torch.optim.Adam(weights, 1e-5, fused=True)

    def run() -> None:
        call().square().mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.01)

    return run
