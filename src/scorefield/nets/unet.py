"""A convolutional network that sees an image at several resolutions (Ronneberger et al. 2015; Ho et al. 2020)."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from scorefield.nets.embeddings import Conditioning, LabelEmbedding
from scorefield.nets.layers import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Stage,
    Upsample,
    activated,
    group_norm,
    zero_init,
)
from scorefield.recipe import Remembered


class Bottom(nn.Module):
    """The stages at the lowest resolution.

    Args:
        stages: run one after the other.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, width) -> like x."""
        for stage in self.stages:
            x = stage(x, c)
        return x


class Level(nn.Module):
    """One resolution, and inside it everything at lower resolutions.

    Args:
        encoder: stages on the way in; the result of each is kept.
        down: to the next resolution.
        inside: the network at lower resolutions.
        up: back to this one.
        decoder: as many stages on the way out; each also sees the result of its counterpart in the encoder.
    """

    def __init__(
        self,
        encoder: Sequence[Stage],
        down: Downsample,
        inside: nn.Module,
        up: Upsample,
        decoder: Sequence[Stage],
    ) -> None:
        super().__init__()
        self.encoder = nn.ModuleList(encoder)
        self.down = down
        self.inside = inside
        self.up = up
        self.decoder = nn.ModuleList(decoder)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, C, H, W), c (B, width) -> like x."""
        kept = []
        for stage in self.encoder:
            x = stage(x, c)
            kept.append(x)
        x = self.up(self.inside(self.down(x), c), x.shape[2:])
        for stage, skip in zip(self.decoder, reversed(kept), strict=True):
            x = stage(torch.cat((x, skip), 1), c)
        return x


class UNet(Remembered, nn.Module):
    """Residual blocks at a ladder of resolutions, each half the one before; a fresh network returns 0.

    Level i works at height ceil(H / 2^i), width ceil(W / 2^i) with channels * multipliers[i] channels; it has blocks[i]
    residual blocks on the way in and as many on the way out, the last level blocks[-1] in all.

    Args:
        shape: (C, H, W) of one image; any size that can be halved len(multipliers) - 1 times.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level, > 0; one number stands for all levels.
        embedding: features of the noise label.
        attention: levels whose residual blocks are followed by self-attention, counted from 0.
        head_channels: channels of one attention head.
        condition: length of the vector that conditions the blocks; None takes 4 ``channels``.
        dropout: probability of dropping a feature in the residual blocks, in [0, 1).
        classes: number of classes, or None for a network without.
        fused_attention: see `SelfAttention`.
    """

    def __init__(
        self,
        shape: Sequence[int],
        channels: int,
        multipliers: Sequence[int],
        blocks: int | Sequence[int],
        embedding: LabelEmbedding,
        attention: Sequence[int] = (),
        head_channels: int = 32,
        condition: int | None = None,
        dropout: float = 0.0,
        classes: int | None = None,
        fused_attention: bool = False,
    ) -> None:
        super().__init__()
        counts = [blocks] * len(multipliers) if isinstance(blocks, int) else list(blocks)
        _check(shape, channels, multipliers, counts, attention)
        self.shape = tuple(shape)
        width = 4 * channels if condition is None else condition
        widths = [channels * m for m in multipliers]
        self.conditioning = Conditioning(embedding, width, classes)
        self.enter = nn.Conv2d(self.shape[0], widths[0], 3, padding=1)

        def stages(level: int, first: int, others: int) -> Iterator[Stage]:
            for i in range(counts[level]):
                block = ResidualBlock(first if i == 0 else others, widths[level], width, dropout)
                attend = SelfAttention(widths[level], head_channels, fused_attention) if level in attention else None
                yield Stage(block, attend)

        last = len(widths) - 1
        body: nn.Module = Bottom(list(stages(last, widths[last], widths[last])))
        for level in reversed(range(last)):
            here, below = widths[level], widths[level + 1]
            body = Level(
                encoder=list(stages(level, here, here)),
                down=Downsample(here, below),
                inside=body,
                up=Upsample(below, here),
                decoder=list(stages(level, 2 * here, 2 * here)),
            )
        self.body = body
        self.norm = group_norm(widths[0])
        self.leave = zero_init(nn.Conv2d(widths[0], self.shape[0], 3, padding=1))

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, C, H, W), label (B,), class_labels (B,) int64 or None -> like x."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"x has events of shape {tuple(x.shape[1:])}, but this UNet was built for {self.shape}")
        c = self.conditioning(label, class_labels)
        h = self.body(self.enter(x), c)
        return self.leave(activated(self.norm, h))


def _check(
    shape: Sequence[int], channels: int, multipliers: Sequence[int], blocks: Sequence[int], attention: Sequence[int]
) -> None:
    """Refuse what cannot be built, in the user's words."""
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} must be (channels, height, width), all positive")
    if channels < 1 or not multipliers or min(multipliers) < 1:
        raise ValueError(f"channels={channels} and multipliers={list(multipliers)} must be positive, one per level")
    if len(blocks) != len(multipliers) or min(blocks) < 1:
        raise ValueError(f"blocks={list(blocks)} must hold a positive number for each of {len(multipliers)} levels")
    if not all(0 <= level < len(multipliers) for level in attention):
        raise ValueError(f"attention={list(attention)} must name levels from 0 to {len(multipliers) - 1}")
    halvings = len(multipliers) - 1
    if min(shape[1:]) <= 2 ** (halvings - 1):
        raise ValueError(
            f"an image of {shape[1]}x{shape[2]} cannot be halved {halvings} times: a side of one pixel would be left "
            f"before the last; use fewer multipliers"
        )
