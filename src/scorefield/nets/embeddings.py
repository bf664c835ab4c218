"""What a network is told besides its input: the noise label and, where there are classes, the class.

A label is a number per sample, whatever the parametrisation made it (ln(sigma) / 4, 999 t, an index of a ladder, ...).
An embedding turns it into features whose inner products depend on the difference of two labels only; `Conditioning`
mixes them with the class and hands one vector to every block of a network.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.recipe import Remembered


class LabelEmbedding(Remembered, nn.Module, ABC):
    """e(t) = sqrt(2) (cos w_1 t, ..., cos w_h t, sin w_1 t, ..., sin w_h t): mean square 1, h = dim / 2.

    Args:
        dim: number of features, even and > 0.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"dim={dim} must be even and positive: features come as pairs of cosine and sine")
        self.dim = dim
        self.register_buffer("frequencies", self.draw(dim // 2))

    @abstractmethod
    def draw(self, n: int) -> Tensor:
        """The n angular frequencies w; called once."""

    def forward(self, label: Tensor) -> Tensor:
        """Labels (B,) -> features (B, dim)."""
        angle = label[:, None] * self.frequencies
        return math.sqrt(2) * torch.cat((angle.cos(), angle.sin()), 1)


class Sinusoidal(LabelEmbedding):
    """Frequencies w_i = max_period^(-i / h), i = 0 ... h - 1, in geometric order (Vaswani et al. 2017, section 3.5).

    Args:
        dim: number of features, even and > 0.
        max_period: 1 / the smallest frequency, approached as dim grows; > 1. Labels should differ by about 1.
    """

    def __init__(self, dim: int, max_period: float = 10_000.0) -> None:
        if max_period <= 1:
            raise ValueError(f"max_period={max_period} must be above 1, the period of the fastest pair over 2 pi")
        self.max_period = max_period
        super().__init__(dim)

    def draw(self, n: int) -> Tensor:
        return torch.exp(-math.log(self.max_period) * torch.arange(n) / n)


class Fourier(LabelEmbedding):
    """Frequencies w_i ~ N(0, (2 pi scale)^2), drawn once and frozen (Tancik et al. 2020, section 3; Song et al. 2021).

    Inner products of two labels approach dim exp(-(2 pi scale difference)^2 / 2) as dim grows.

    Args:
        dim: number of features, even and > 0.
        scale: standard deviation of w / 2 pi; the label is resolved down to about 1 / (2 pi scale).
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        if scale <= 0:
            raise ValueError(f"scale={scale} must be positive")
        self.scale = scale
        super().__init__(dim)

    def draw(self, n: int) -> Tensor:
        return 2 * math.pi * self.scale * torch.randn(n)


class ClassEmbedding(nn.Module):
    """A learned vector for each class, and one more for "no class".

    Args:
        classes: number of classes, > 0; labels are 0 ... classes - 1, and -1 means no class.
        dim: length of the vectors.
    """

    def __init__(self, classes: int, dim: int) -> None:
        super().__init__()
        if classes < 1:
            raise ValueError(f"classes={classes} must be positive; leave it None for a network without classes")
        self.classes = classes
        self.table = nn.Embedding(1 + classes, dim)

    def forward(self, class_labels: Tensor | None, batch: int) -> Tensor:
        """Labels (B,) int64, or None for no class at all -> vectors (B, dim)."""
        if class_labels is None:
            return self.table.weight[:1].expand(batch, -1)
        # Row 0 is "no class". Anything outside is refused here on the CPU, and by the look-up itself on a GPU, where a
        # check would make the host wait.
        if not class_labels.is_cuda and not ((class_labels >= -1) & (class_labels < self.classes)).all():
            raise ValueError(
                f"class_labels must lie in 0 ... {self.classes - 1}, or be -1 for no class; "
                f"got values from {int(class_labels.min())} to {int(class_labels.max())}"
            )
        return self.table(class_labels + 1)


class Conditioning(nn.Module):
    """c = silu(W_2 silu(W_1 e(label) + e(class))): what every block of a network is conditioned on.

    Args:
        embedding: features of the noise label.
        width: length of c.
        classes: number of classes, or None for a network without.
    """

    def __init__(self, embedding: LabelEmbedding, width: int, classes: int | None = None) -> None:
        super().__init__()
        self.embedding = embedding
        self.inner = nn.Linear(embedding.dim, width)
        self.outer = nn.Linear(width, width)
        self.class_embedding = None if classes is None else ClassEmbedding(classes, width)

    def forward(self, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Label (B,) and class (B,) -> (B, width)."""
        hidden = self.inner(self.embedding(label))
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(class_labels, len(label))
        elif class_labels is not None:
            raise ValueError("class_labels were given to a network without classes; build it with classes=<number>")
        return F.silu(self.outer(F.silu(hidden)))
