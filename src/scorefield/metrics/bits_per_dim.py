"""Bits per dimension, and its mean over a data set with a standard error."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics import Metric


def bits_per_dim(log_prob: Tensor, dims: int) -> Tensor:
    """-log2 p(x) / d, (B,).

    Args:
        log_prob: log-density in data space, where a grey level is an interval of length one, in nats, (B,).
        dims: number of dimensions d of one example.
    """
    if dims < 1:
        raise ValueError(f"dims={dims} must be at least 1")
    return -log_prob / (dims * math.log(2))


class Estimate(NamedTuple):
    """A mean over examples.

    Args:
        mean: the mean.
        standard_error: its standard error, from the spread over examples; nan for a single example.
        n: number of examples.
    """

    mean: Tensor
    standard_error: Tensor
    n: Tensor


class BitsPerDim(Metric):
    """Mean bits/dim over all examples of all processes, from float64 sums.

    Args:
        dims: number of dimensions d of one example.
    """

    full_state_update = False
    n: Tensor
    total: Tensor
    squares: Tensor

    def __init__(self, dims: int) -> None:
        super().__init__()
        self.dims = dims
        self.add_state("n", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("squares", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_prob: Tensor) -> None:
        """Add examples by their log-density in data space, in nats, (B,)."""
        bits = bits_per_dim(log_prob.to(self.total.device, torch.float64), self.dims)
        self.n = self.n + len(bits)
        self.total = self.total + bits.sum()
        self.squares = self.squares + bits.square().sum()

    def compute(self) -> Estimate:
        """Mean, standard error and number of examples."""
        if int(self.n) == 0:
            raise ValueError("no example was added: call update first")
        mean = self.total / self.n
        variance = (self.squares - self.n * mean.square()).clamp(min=0) / (self.n - 1)
        return Estimate(mean, (variance / self.n).sqrt(), self.n)
