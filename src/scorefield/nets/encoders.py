"""From a sample and its noise label to a vector: what networks on flattened events, and scalar ones, have in common.

Activations are smooth, since gradients of what comes out are used, and trained.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nets.embeddings import Conditioning, LabelEmbedding
from scorefield.nets.layers import Downsample, FiLM, ResidualBlock, activated, group_norm
from scorefield.recipe import Remembered


class SmoothLayer(nn.Module):
    """h + W_2 silu(FiLM(W_1 h, c)): without a norm, whose value turns sharply where h is small.

    Args:
        width: length of h and c.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width)
        self.film = FiLM(width, width)
        self.outer = nn.Linear(width, width)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        """h (B, width), c (B, width) -> (B, width)."""
        return h + self.outer(F.silu(self.film(self.inner(h), c)))


class VectorEncoder(Remembered, nn.Module):
    """A stack of residual layers on the flattened event.

    Args:
        shape: shape of one sample.
        width: length of the hidden vectors.
        depth: number of residual layers, of two linear maps each.
        embedding: features of the noise label.
        classes: number of classes that the layers are told, or None for none.
        layer: makes a layer of a width, called with the hidden vectors and what they are told.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int,
        depth: int,
        embedding: LabelEmbedding,
        classes: int | None = None,
        layer: Callable[[int], nn.Module] = SmoothLayer,
    ) -> None:
        super().__init__()
        if not all(n > 0 for n in shape):
            raise ValueError(f"shape={tuple(shape)} must hold positive sizes")
        if width < 1 or depth < 1:
            raise ValueError(f"width={width} and depth={depth} must be positive")
        self.shape = tuple(shape)
        self.conditioning = Conditioning(embedding, width, classes)
        self.enter = nn.Linear(math.prod(self.shape), width)
        self.layers = nn.ModuleList(layer(width) for _ in range(depth))

    def hidden(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, *shape), label (B,), class_labels (B,) int64 or None -> what the last layer returns, (B, width)."""
        _require_shape(self, x, self.shape)
        c = self.conditioning(label, class_labels)
        h = self.enter(x.flatten(1))
        for layer in self.layers:
            h = layer(h, c)
        return h

    def features(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Activations behind the last layer, for a linear head, (B, width); arguments as for `hidden`."""
        return F.softplus(self.hidden(x, label, class_labels))


class _Blocks(nn.Module):
    """Residual blocks one after the other."""

    def __init__(self, blocks: Sequence[ResidualBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, c)
        return x


class ImageEncoder(Remembered, nn.Module):
    """Residual blocks at a ladder of resolutions, each half the one before.

    Args:
        shape: (C, H, W) of one image; any size that can be halved len(multipliers) - 1 times.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level, > 0.
        embedding: features of the noise label.
        condition: length of the vector that conditions the blocks; None takes 4 ``channels``.
        classes: number of classes that the blocks are told, or None for none.
        dropout: probability of dropping a feature, in [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        embedding: LabelEmbedding,
        condition: int | None = None,
        classes: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape) < 1:
            raise ValueError(f"shape={tuple(shape)} must be (channels, height, width), all positive")
        if channels < 1 or not multipliers or min(multipliers) < 1 or blocks < 1:
            raise ValueError(
                f"channels={channels}, multipliers={list(multipliers)} and blocks={blocks} must be positive"
            )
        self.shape = tuple(shape)
        width = 4 * channels if condition is None else condition
        self.widths = [channels * m for m in multipliers]
        self.conditioning = Conditioning(embedding, width, classes)
        self.enter = nn.Conv2d(self.shape[0], self.widths[0], 3, padding=1)
        self.levels = nn.ModuleList(
            _Blocks([ResidualBlock(here, here, width, dropout) for _ in range(blocks)]) for here in self.widths
        )
        self.downs = nn.ModuleList(Downsample(a, b) for a, b in pairwise(self.widths))
        self.norm = group_norm(self.widths[-1])

    def features(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), label (B,), class_labels (B,) int64 or None -> (B, channels, h, w) of the last level."""
        _require_shape(self, x, self.shape)
        c = self.conditioning(label, class_labels)
        h = self.enter(x)
        h = self.levels[0](h, c)
        for down, level in zip(self.downs, list(self.levels)[1:], strict=True):
            h = level(down(h), c)
        return activated(self.norm, h)


def _require_shape(net: nn.Module, x: Tensor, shape: tuple[int, ...]) -> None:
    if x.shape[1:] != shape:
        raise ValueError(
            f"x has events of shape {tuple(x.shape[1:])}, but this {type(net).__name__} was built for {shape}"
        )
