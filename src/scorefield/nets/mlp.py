"""A residual multilayer perceptron, for toys and tables."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nets.embeddings import Conditioning, LabelEmbedding
from scorefield.nets.layers import FiLM, zero_init
from scorefield.recipe import Remembered


class LayerNorm(nn.LayerNorm):
    """(h - mean) / sqrt(variance + eps) with learned scale and shift, in operations that torch differentiates.

    The second backward pass of torch's own kernel takes mean and deviation for constants, so its third derivative is
    wrong; training on the gradient of a divergence needs it (the regulariser of the score Fokker-Planck equation).
    """

    def forward(self, h: Tensor) -> Tensor:
        """h (B, width) -> (B, width)."""
        centred = h - h.mean(-1, keepdim=True)
        scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + self.eps)
        return centred * scale * self.weight + self.bias


class ResidualLayer(nn.Module):
    """h + W_2 silu(W_1 FiLM(norm(h), c)), W_2 starting at zero.

    Args:
        width: length of h and c.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.film = FiLM(width, width)
        self.inner = nn.Linear(width, width)
        self.outer = zero_init(nn.Linear(width, width))

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h (B, width), c (B, width) -> (B, width)."""
        return h + self.outer(F.silu(self.inner(self.film(self.norm(h), c))))


class MLP(Remembered, nn.Module):
    """A stack of residual layers on the flattened event; a fresh network returns 0.

    Args:
        shape: shape of one sample.
        width: length of the hidden vectors.
        depth: number of residual layers, of two linear maps each.
        embedding: features of the noise label.
        classes: number of classes, or None for a network without.
    """

    def __init__(
        self, shape: Sequence[int], width: int, depth: int, embedding: LabelEmbedding, classes: int | None = None
    ) -> None:
        super().__init__()
        if not all(n > 0 for n in shape):
            raise ValueError(f"shape={tuple(shape)} must hold positive sizes")
        if width < 1 or depth < 1:
            raise ValueError(f"width={width} and depth={depth} must be positive")
        self.shape = tuple(shape)
        size = math.prod(self.shape)
        self.conditioning = Conditioning(embedding, width, classes)
        self.enter = nn.Linear(size, width)
        self.layers = nn.ModuleList(ResidualLayer(width) for _ in range(depth))
        self.norm = LayerNorm(width)
        self.leave = zero_init(nn.Linear(width, size))

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, *shape), label (B,), class_labels (B,) int64 or None -> like x."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has events of shape {tuple(x.shape[1:])}, but this MLP was built for {self.shape}")
        c = self.conditioning(label, class_labels)
        h = self.enter(x.flatten(1))
        for layer in self.layers:
            h = layer(h, c)
        return self.leave(F.silu(self.norm(h))).reshape(x.shape)
