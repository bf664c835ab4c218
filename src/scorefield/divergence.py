"""Divergence of a field, exactly or by random probes.

Both are sums of quadratic forms v . J v of the field's Jacobian J: over the d basis vectors the sum is the trace, over
random probes with E[v v^T] = I the mean is an unbiased estimate of it (Hutchinson 1990; Skilling 1989). The field's
value comes out of the same forward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.noise import Noise
from scorefield.tensors import event_norm, event_size, per_sample

Field = Callable[[Tensor], Tensor]


def quadratic_forms(function: Field, x: Tensor, probes: Tensor, chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """The field's value at x and v . J v for each probe: one forward pass, one backward pass per probe.

    Works under `torch.no_grad` and `torch.inference_mode`, where nothing of the graph is kept; with gradients enabled
    the result can be differentiated once more.

    Args:
        function: acts on each sample by itself, (B, *event) -> (B, *event).
        x: (B, *event).
        probes: v, (k, B, *event).
        chunk: probes that are pulled back at once; None takes all. Bounds the memory, not the result.

    Returns:
        value (B, *event) and forms (k, B).
    """
    differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode cannot enter a graph, copies of them can.
        at = x if x.requires_grad and differentiable else x.detach().clone().requires_grad_()
        value = function(at)
        forms = []
        for part in probes.split(chunk or len(probes)):
            part = part.clone() if part.is_inference() else part
            pulled = _pull_back(value, at, part, differentiable)
            forms.append((pulled * part).flatten(2).sum(2))
        total = torch.cat(forms)
    return (value, total) if differentiable else (value.detach(), total.detach())


def _pull_back(value: Tensor, x: Tensor, probes: Tensor, create_graph: bool) -> Tensor:
    """v^T J for every probe, (k, B, *event)."""
    if len(probes) == 1:
        (row,) = torch.autograd.grad(value, x, probes[0], retain_graph=True, create_graph=create_graph)
        return row[None]
    (rows,) = torch.autograd.grad(
        value, x, probes, retain_graph=True, create_graph=create_graph, is_grads_batched=True
    )
    return rows


class Divergence(ABC):
    """A way to compute the divergence of a field."""

    @abstractmethod
    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        """Probes (k, B, *event) for samples like x; drawn once and held along a path, they make one smooth integrand."""

    @abstractmethod
    def along(self, function: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """The field's value (B, *event) and its divergence (B,) by the given probes."""

    def __call__(self, function: Field, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.along(function, x, self.draw(x, noise))


@dataclass(frozen=True)
class Exact(Divergence):
    """The trace of the Jacobian: d backward passes.

    Args:
        chunk: rows of the Jacobian that are computed at once; None takes all.
    """

    chunk: int | None = None

    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        basis = torch.eye(event_size(x), dtype=x.dtype, device=x.device)
        return basis.reshape(-1, 1, *x.shape[1:]).expand(-1, len(x), *x.shape[1:])

    def along(self, function: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        value, forms = quadratic_forms(function, x, probes, self.chunk)
        return value, forms.sum(0)


class Probe(ABC):
    """A distribution of probe vectors with E[v v^T] = I."""

    @abstractmethod
    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """One probe for each sample, (B, *event)."""


@dataclass(frozen=True)
class Rademacher(Probe):
    """Signs: the least variance, 2 (|A|^2 - sum_i A_ii^2) for a symmetric Jacobian A."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        return noise.signs_like(x)


@dataclass(frozen=True)
class Gaussian(Probe):
    """Standard normal: variance 2 |A|^2."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        return noise.normal_like(x)


@dataclass(frozen=True)
class Sphere(Probe):
    """Uniform on the sphere of radius sqrt(d)."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        v = noise.normal_like(x)
        return v * per_sample(event_size(x) ** 0.5 / event_norm(v), v)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """The mean of v . J v over k random probes: k backward passes (Hutchinson 1990; Grathwohl et al. 2019, eq. 7).

    Args:
        probe: distribution of the probes.
        k: probes per sample, >= 1.
    """

    probe: Probe = field(default_factory=Rademacher)
    k: int = 1

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")

    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        return torch.stack([self.probe(x, noise) for _ in range(self.k)])

    def along(self, function: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        value, forms = quadratic_forms(function, x, probes)
        return value, forms.mean(0)
