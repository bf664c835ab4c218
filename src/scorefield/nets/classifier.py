"""Networks from a perturbed sample and its noise label to the logits of its class."""

from collections.abc import Sequence

from torch import Tensor, nn

from scorefield.nets.embeddings import LabelEmbedding
from scorefield.nets.encoders import ImageEncoder, VectorEncoder


class ClassifierMLP(VectorEncoder):
    """A stack of smooth residual layers on the flattened event.

    Args:
        shape: shape of one sample.
        width: length of the hidden vectors.
        depth: number of residual layers, of two linear maps each.
        embedding: features of the noise label.
        classes: number of classes to tell apart, >= 2.
    """

    def __init__(self, shape: Sequence[int], width: int, depth: int, embedding: LabelEmbedding, classes: int) -> None:
        super().__init__(shape, width, depth, embedding)
        self.leave = _head(width, classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (B, *shape), label (B,) -> logits (B, classes)."""
        return self.leave(self.features(x, label))


class ClassifierConv(ImageEncoder):
    """Residual blocks at a ladder of resolutions, averaged over positions: the encoder of a U-Net with a linear head.

    Args:
        shape: (C, H, W) of one image; any size that can be halved len(multipliers) - 1 times.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level, > 0.
        embedding: features of the noise label.
        classes: number of classes to tell apart, >= 2.
        dropout: probability of dropping a feature, in [0, 1).
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        embedding: LabelEmbedding,
        classes: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(shape, channels, multipliers, blocks, embedding, dropout=dropout)
        self.leave = _head(self.widths[-1], classes)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (B, C, H, W), label (B,) -> logits (B, classes)."""
        return self.leave(self.features(x, label).mean((2, 3)))


def _head(width: int, classes: int) -> nn.Linear:
    if classes < 2:
        raise ValueError(f"classes={classes} must be at least 2: there is nothing to tell apart")
    return nn.Linear(width, classes)
