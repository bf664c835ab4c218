"""Scalar networks for energy-based models.

The heads carry no bias: a constant added to an energy changes no score, so its parameter would never get a gradient
from a score loss, which distributed training refuses. All activations are smooth, since training an energy's gradient
takes second derivatives.

Both networks may tilt a Gaussian, p(x) prop. to exp(-U(x)) N(x; 0, std^2 I) (Xie et al. 2016, eq. 1): the quadratic
makes the density normalisable wherever the network has seen no data.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from scorefield.nets.embeddings import LabelEmbedding
from scorefield.nets.encoders import ImageEncoder, VectorEncoder
from scorefield.tensors import event_sum


class EnergyMLP(VectorEncoder):
    """A stack of smooth residual layers on the flattened event, with a scalar head.

    Args:
        shape: shape of one sample.
        width: length of the hidden vectors.
        depth: number of residual layers, of two linear maps each.
        embedding: features of the noise label.
        classes: number of classes, or None for a network without.
        reference_std: standard deviation of the tilted Gaussian, > 0, in units of the network's input; None for none.
    """

    def __init__(
        self,
        shape: Sequence[int],
        width: int,
        depth: int,
        embedding: LabelEmbedding,
        classes: int | None = None,
        reference_std: float | None = None,
    ) -> None:
        super().__init__(shape, width, depth, embedding, classes)
        self.reference_std = _positive(reference_std)
        self.leave = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, *shape), label (B,), class_labels (B,) int64 or None -> (B,)."""
        return self.leave(self.features(x, label, class_labels)).squeeze(1) + _reference_energy(x, self.reference_std)


class EnergyConv(ImageEncoder):
    """Residual blocks at a ladder of resolutions, each half the one before, summed over positions into a scalar.

    Args:
        shape: (C, H, W) of one image; any size that can be halved len(multipliers) - 1 times.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level, > 0.
        embedding: features of the noise label.
        condition: length of the vector that conditions the blocks; None takes 4 ``channels``.
        classes: number of classes, or None for a network without.
        reference_std: standard deviation of the tilted Gaussian, > 0, in units of the network's input; None for none.
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
        reference_std: float | None = None,
    ) -> None:
        super().__init__(shape, channels, multipliers, blocks, embedding, condition, classes)
        self.reference_std = _positive(reference_std)
        self.leave = nn.Linear(self.widths[-1], 1, bias=False)

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), label (B,), class_labels (B,) int64 or None -> (B,)."""
        h = self.features(x, label, class_labels).sum((2, 3))
        return self.leave(h).squeeze(1) + _reference_energy(x, self.reference_std)


def _positive(reference_std: float | None) -> float | None:
    if reference_std is not None and reference_std <= 0:
        raise ValueError(f"reference_std={reference_std} must be positive, or None for no Gaussian")
    return reference_std


def _reference_energy(x: Tensor, std: float | None) -> Tensor:
    """Energy of the Gaussian that is tilted, (B,)."""
    return x.new_zeros(len(x)) if std is None else event_sum((x / std).square()) / 2
