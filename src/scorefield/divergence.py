"""Divergence of a field, exactly or by random probes.

Both are sums of quadratic forms v . J v of the field's Jacobian J: over the d basis vectors the sum is the trace, over
random probes with E[v v^T] = I the mean is an unbiased estimate of it (Hutchinson 1990; Skilling 1989). The field's
value comes out of the same forward pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scorefield.noise import Noise
from scorefield.tensors import event_norm, event_size, per_sample

Field = Callable[[Tensor], Tensor]
Probe = Callable[[Tensor, Noise], Tensor]  # samples x (B, *event) -> one probe for each, with E[v v^T] = I


def pull_backs(function: Field, x: Tensor, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The field's value at x and the rows v^T J for each probe v: one forward pass, one backward pass per probe.

    Args, conditions and errors are those of `quadratic_forms`.

    Returns:
        value (B, *event) and the rows of all blocks (k, B, *event).
    """
    return _along(function, x, blocks, lambda row, v: row)


def quadratic_forms(function: Field, x: Tensor, blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """The field's value at x and v . J v for each probe v: one forward pass, one backward pass per probe.

    Works under `torch.no_grad` and `torch.inference_mode`, where nothing of the graph is kept; with gradients enabled
    the result can be differentiated once more.

    Args:
        function: acts on each sample by itself, (B, *event) -> (B, *event).
        x: (B, *event).
        blocks: probes v in blocks (k, B, *event). A block is pulled back at once; its size bounds the memory.

    Returns:
        value (B, *event) and the forms of all blocks (k, B).

    Raises:
        ValueError: if the field's value carries no gradient.
    """
    return _along(function, x, blocks, lambda row, v: (row * v).flatten(2).sum(2))


def _along(
    function: Field, x: Tensor, blocks: Iterable[Tensor], keep: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The field's value, and what ``keep`` makes of each block of rows v^T J and its probes."""
    differentiable = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        # Tensors made in inference mode cannot enter a graph, copies of them can.
        at = x if x.requires_grad and differentiable else x.detach().clone().requires_grad_()
        value = function(at)
        if not value.requires_grad:
            raise ValueError(
                "the field's value carries no gradient with respect to x, so it has no divergence; remove no_grad, "
                "inference_mode and detach from the field"
            )
        # The last of a list frees the graph as it goes, so that its memory is used again while it is still at hand.
        last = len(blocks) - 1 if isinstance(blocks, Sized) else None
        kept = []
        for i, block in enumerate(blocks):
            probes = block.clone() if block.is_inference() else block
            kept.append(keep(_pull_back(value, at, probes, differentiable, retain_graph=i != last), probes))
        total = torch.cat(kept)
    return (value, total) if differentiable else (value.detach(), total.detach())


def _pull_back(value: Tensor, x: Tensor, probes: Tensor, create_graph: bool, retain_graph: bool) -> Tensor:
    """v^T J for every probe, (k, B, *event)."""

    def row_of(probe: Tensor) -> Tensor:
        retain = create_graph or retain_graph
        return torch.autograd.grad(value, x, probe, retain_graph=retain, create_graph=create_graph)[0]

    # One axis less for a single probe: kernels under vmap are not always those of a plain call.
    return row_of(probes[0])[None] if len(probes) == 1 else torch.vmap(row_of)(probes)


def basis(x: Tensor, chunk: int | None = None) -> Iterator[Tensor]:
    """The d basis vectors, the same for every sample, in blocks (chunk, B, *event); one block exists at a time.

    Args:
        x: (B, *event).
        chunk: vectors in a block, >= 1; None puts all into one.
    """
    d = event_size(x)
    for first in range(0, d, chunk or d):
        hot = torch.arange(first, min(first + (chunk or d), d), device=x.device)
        block = torch.nn.functional.one_hot(hot, d).to(x.dtype)
        yield block.reshape(-1, 1, *x.shape[1:]).expand(-1, *x.shape)


class Divergence(ABC):
    """A way to compute the divergence of a field.

    Along a path, as in a likelihood, the probes are drawn once and held: ``draw`` once, then ``along`` at every time.
    """

    @abstractmethod
    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        """Probes (k, B, *event) for samples like x; k is 0 where none are needed."""

    @abstractmethod
    def along(self, function: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        """The field's value (B, *event) and its divergence (B,) by the given probes.

        Args:
            function: acts on each sample by itself, (B, *event) -> (B, *event).
            x: (B, *event).
            probes: what ``draw`` returned, or its columns ``probes[:, rows]`` for a part of the batch.
        """

    def __call__(self, function: Field, x: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        return self.along(function, x, self.draw(x, noise))


@dataclass(frozen=True)
class Exact(Divergence):
    """The trace of the Jacobian: d backward passes.

    Args:
        chunk: rows of the Jacobian that are computed at once, >= 1; None takes all. Bounds the memory, not the result.
    """

    chunk: int | None = None

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"chunk={self.chunk} must be at least 1, or None for all rows at once")

    def draw(self, x: Tensor, noise: Noise) -> Tensor:
        return x.new_empty(0, *x.shape)

    def along(self, function: Field, x: Tensor, probes: Tensor) -> tuple[Tensor, Tensor]:
        value, forms = quadratic_forms(function, x, basis(x, self.chunk))
        return value, forms.sum(0)


@dataclass(frozen=True)
class Rademacher:
    """Signs: the least variance, 2 (|A|^2 - sum_i A_ii^2) with A the symmetric part of the Jacobian."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        return noise.signs_like(x)


@dataclass(frozen=True)
class Gaussian:
    """Standard normal: variance 2 |A|^2 with A the symmetric part of the Jacobian."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        return noise.normal_like(x)


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius sqrt(d): variance 2 d / (d + 2) (|A|^2 - (tr A)^2 / d)."""

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        v = noise.normal_like(x)
        return v * per_sample(event_size(x) ** 0.5 / event_norm(v), v)


@dataclass(frozen=True)
class Hutchinson(Divergence):
    """The mean of v . J v over k random probes: k backward passes (Hutchinson 1990; Grathwohl et al. 2019, eq. 7).

    The single estimates, for a standard error over probes, are ``quadratic_forms(function, x, [probes])``.

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
        value, forms = quadratic_forms(function, x, [probes])
        return value, forms.mean(0)
