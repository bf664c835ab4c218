"""Arithmetic on batches: the one place that knows that the batch comes first.

States ``x`` have shape (B, *event); times and every other per-sample value have shape (B,). The event may be a
vector, an image or anything else; nothing outside this module counts its axes.
"""

import torch
from torch import Tensor


def per_sample(value: Tensor, x: Tensor) -> Tensor:
    """Append singleton axes to ``value`` (B,), so that it broadcasts against ``x`` (B, *event)."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))


def event_sum(x: Tensor) -> Tensor:
    """Sum over all event axes: (B, *event) -> (B,)."""
    return x.flatten(1).sum(1)


def event_mean(x: Tensor) -> Tensor:
    """Mean over all event axes: (B, *event) -> (B,)."""
    return x.flatten(1).mean(1)


def event_dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of each pair of samples: (B, *event), (B, *event) -> (B,)."""
    return event_sum(x * y)


def event_norm(x: Tensor) -> Tensor:
    """Euclidean norm of each sample: (B, *event) -> (B,)."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1)


def event_size(x: Tensor) -> int:
    """Number of dimensions of one sample, d."""
    return x[0].numel()
