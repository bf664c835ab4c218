"""Jacobians of fields, and how far a field is from the gradient of a function.

A score model with free output is any field; the score of a density is a gradient, so its Jacobian is symmetric and its
integral around a loop is zero (Salimans & Ho 2021, section 2).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from scorefield.divergence import Field, Probe, Rademacher, basis, pull_backs
from scorefield.noise import Noise
from scorefield.tensors import event_size


def jacobian(function: Field, x: Tensor, chunk: int | None = None) -> Tensor:
    """J[b, i, j] = d function(x)_i / d x_j of each sample, (B, d, d): d backward passes, ``chunk`` of them at once.

    Args:
        function: acts on each sample by itself, (B, *event) -> (B, *event).
        x: (B, *event).
        chunk: rows computed at once, >= 1; None takes all. Bounds the memory, not the result.
    """
    d = event_size(x)
    _, rows = pull_backs(function, x, basis(x, chunk))
    return rows.flatten(2).transpose(0, 1).reshape(len(x), d, d)


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Values of a function and its gradients, (B,) and (B, *event): one forward pass, one backward pass.

    Works under `torch.no_grad` and `torch.inference_mode`; with gradients enabled both can be differentiated.

    Args:
        function: acts on each sample by itself, (B, *event) -> (B,).
        x: (B, *event).
    """
    value, rows = pull_backs(function, x, [x.new_ones(1, len(x))])
    return value, rows[0]


def asymmetry(function: Field, x: Tensor, chunk: int | None = None) -> Tensor:
    """|J - J^T| / |J| of each sample in the Frobenius norm, (B,): 0 for a gradient, at most 2; d backward passes.

    A matrix of independent entries has sqrt(2 (d - 1) / d) on average, up to fluctuations.

    Args:
        function: acts on each sample by itself, (B, *event) -> (B, *event).
        x: (B, *event).
        chunk: rows of the Jacobian computed at once.
    """
    rows = jacobian(function, x, chunk)
    return torch.linalg.matrix_norm(rows - rows.mT) / torch.linalg.matrix_norm(rows)


def estimated_asymmetry(
    function: Field, x: Tensor, noise: Noise, k: int = 8, probe: Probe | None = None
) -> tuple[Tensor, Tensor]:
    """Estimates (|J - J^T|^2, |J|^2), both (B,), from k probes v: E|(J - J^T) v|^2 and E|J^T v|^2, each unbiased.

    Two passes a probe, whatever the dimension: v^T J by a backward pass and J v by a second one through the first
    (Pearlmutter 1994). The ratio of the two sums over many samples is the squared asymmetry of the field.

    Args:
        function: acts on each sample by itself, (B, *event) -> (B, *event), twice differentiable.
        x: (B, *event).
        noise: randomness of the probes.
        k: probes per sample, >= 1.
        probe: distribution of the probes, with E[v v^T] = I; None takes `Rademacher`.
    """
    if k < 1:
        raise ValueError(f"k={k} must be at least 1")
    draw = Rademacher() if probe is None else probe
    antisymmetric, total = torch.zeros(2, len(x), dtype=x.dtype, device=x.device)
    with torch.inference_mode(False), torch.enable_grad():
        at = x.detach().clone().requires_grad_()
        value = function(at)
        if not value.requires_grad:
            raise ValueError("the field's value carries no gradient with respect to x, so it has no Jacobian")
        for _ in range(k):
            v = draw(x, noise).clone()
            # v^T J is linear in v; its derivative along v^T J . w with respect to v is J w.
            u = torch.zeros_like(v).requires_grad_()
            (pulled,) = torch.autograd.grad(value, at, u, create_graph=True, retain_graph=True)
            (pushed,) = torch.autograd.grad(pulled, u, v, retain_graph=True)
            (back,) = torch.autograd.grad(value, at, v, retain_graph=True)
            antisymmetric += (pushed - back).detach().flatten(1).square().sum(1)
            total += back.detach().flatten(1).square().sum(1)
    return antisymmetric / k, total / k


def circulation(function: Field, loop: Tensor) -> Tensor:
    """Integral of the field around a closed loop, a scalar: 0 for a gradient.

    The loop is a closed curve by its points at equal parameter steps. Its tangent is taken spectrally and the integral
    by the trapezoidal rule, so for a smooth loop the error falls faster than any power of 1 / n.

    Args:
        function: (B, *event) -> (B, *event).
        loop: n points in order, the last one step before the first, (n, *event).
    """
    n = len(loop)
    frequency = torch.fft.fftfreq(n, 1 / n, dtype=loop.dtype, device=loop.device)
    spectrum = torch.fft.fft(loop.flatten(1), dim=0)
    tangent = torch.fft.ifft(1j * frequency[:, None] * spectrum, dim=0).real
    with torch.no_grad():
        value = function(loop).flatten(1)
    return (value * tangent).sum() * (2 * torch.pi / n)
