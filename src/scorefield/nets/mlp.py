"""A residual multilayer perceptron, for toys and tables."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nets.embeddings import LabelEmbedding
from scorefield.nets.encoders import VectorEncoder
from scorefield.nets.layers import FiLM, zero_init


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


class MLP(VectorEncoder):
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
        super().__init__(shape, width, depth, embedding, classes, ResidualLayer)
        self.norm = LayerNorm(width)
        self.leave = zero_init(nn.Linear(width, self.enter.in_features))

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, *shape), label (B,), class_labels (B,) int64 or None -> like x."""
        return self.leave(F.silu(self.norm(self.hidden(x, label, class_labels)))).reshape(x.shape)
