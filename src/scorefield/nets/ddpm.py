"""The U-Net of denoising diffusion probabilistic models (Ho et al. 2020, appendix B).

Level i works at 2^-i of the image's size. On the way in every residual block leaves its result for the way out, where
it is appended to the channels of what comes from below.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from scorefield.nets.embeddings import ClassEmbedding
from scorefield.nets.layers import SelfAttention, ShiftBlock, Stage, activated, require_halvings, xavier_init, zero_init
from scorefield.nets.noise_features import NoiseFeatures
from scorefield.nets.resampling import DownConv, Resampling, UpConv
from scorefield.recipe import Remembered


class NoiseConditioning(nn.Module):
    """c = act(W_2 act(W_1 e(label) + e(class))).

    Args:
        features: e.
        width: length of c.
        activation: act.
        classes: number of classes, or None for a network without.
    """

    def __init__(self, features: NoiseFeatures, width: int, activation: nn.Module, classes: int | None = None) -> None:
        super().__init__()
        self.features = features
        self.activation = activation
        self.inner = nn.Linear(features.dim, width)
        self.outer = nn.Linear(width, width)
        self.class_embedding = None if classes is None else ClassEmbedding(classes, width)

    def forward(self, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Label (B,) and class (B,) -> (B, width)."""
        hidden = self.inner(self.features(label.to(self.inner.weight.dtype)))
        if self.class_embedding is not None:
            hidden = hidden + self.class_embedding(class_labels, len(label))
        elif class_labels is not None:
            raise ValueError("class_labels were given to a network without classes; build it with classes=<number>")
        return self.activation(self.outer(self.activation(hidden)))


class DownLevel(nn.Module):
    """One resolution on the way in.

    Args:
        stages: residual blocks, with attention or without.
        down: to the next level; None at the last.
    """

    def __init__(self, stages: Sequence[Stage], down: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.down = down

    def forward(self, h: Tensor, c: Tensor, kept: list[Tensor]) -> Tensor:
        """Features (B, C, H, W), c (B, width) -> features of the next level; every result is put on ``kept``."""
        for stage in self.stages:
            h = stage(h, c)
            kept.append(h)
        if self.down is not None:
            h = self.down(h)
            kept.append(h)
        return h


class UpLevel(nn.Module):
    """One resolution on the way out.

    Args:
        stages: residual blocks, with attention or without; one more than on the way in.
        up: to the next level; None at the first.
    """

    def __init__(self, stages: Sequence[Stage], up: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.up = up

    def forward(self, h: Tensor, c: Tensor, kept: list[Tensor]) -> Tensor:
        """Features (B, C, H, W), c (B, width) -> features of the next level; each stage takes the last of ``kept``."""
        for stage in self.stages:
            h = stage(torch.cat((h, kept.pop()), 1), c)
        return h if self.up is None else self.up(h)


class DDPM(Remembered, nn.Module):
    """Residual blocks of `ShiftBlock` with 32 groups, attention at some levels and in the middle.

    Args:
        image_channels: channels of an image.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level on the way in, > 0; one more on the way out.
        features: features of the noise label.
        attention: levels whose residual blocks are followed by attention, counted from 0.
        resampling: how the size changes between levels.
        resample_conv: whether a convolution goes with it.
        attention_after_each: on the way out attention follows each block of such a level, not only the last.
        middle_attention: whether there is attention between the two blocks in the middle.
        head_channels: channels of one attention head; None is one head.
        groups: groups of every normalisation.
        eps: added to the variance in every normalisation.
        activation: the nonlinearity.
        dropout: probability of dropping a feature, in [0, 1).
        fused_attention: see `SelfAttention`.
        classes: number of classes, or None for a network without.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        features: NoiseFeatures,
        resampling: Resampling,
        attention: Sequence[int] = (),
        resample_conv: bool = True,
        attention_after_each: bool = False,
        middle_attention: bool = True,
        head_channels: int | None = None,
        groups: int = 32,
        eps: float = 1e-6,
        activation: nn.Module | None = None,
        dropout: float = 0.0,
        fused_attention: bool = True,
        classes: int | None = None,
    ) -> None:
        super().__init__()
        act = nn.SiLU() if activation is None else activation
        norm = partial(nn.GroupNorm, groups, eps=eps)
        condition = 4 * channels
        block = partial(ShiftBlock, condition=condition, norm=norm, activation=act, dropout=dropout)

        def attend(width: int, wanted: bool) -> SelfAttention | None:
            heads = width if head_channels is None else head_channels
            return SelfAttention(width, heads, fused_attention, norm(width)) if wanted else None

        self.conditioning = NoiseConditioning(features, condition, act, classes)
        self.enter = nn.Conv2d(image_channels, channels, 3, padding=1)
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        here, kept = channels, [channels]
        encoder = []
        for level, width in enumerate(widths):
            stages = []
            for _ in range(blocks):
                stages.append(Stage(block(here, width), attend(width, level in attention)))
                here = width
                kept.append(here)
            down = DownConv(here, here, resampling, resample_conv) if level < last else None
            kept += [here] if level < last else []
            encoder.append(DownLevel(stages, down))
        self.encoder = nn.ModuleList(encoder)
        self.middle = nn.ModuleList(
            [Stage(block(here, here), attend(here, middle_attention)), Stage(block(here, here))]
        )
        decoder = []
        for level, width in reversed(list(enumerate(widths))):
            stages = []
            for i in range(blocks + 1):
                wanted = level in attention and (attention_after_each or i == blocks)
                stages.append(Stage(block(here + kept.pop(), width), attend(width, wanted)))
                here = width
            decoder.append(UpLevel(stages, UpConv(here, here, resampling, resample_conv) if level else None))
        self.decoder = nn.ModuleList(decoder)
        self.norm = norm(here)
        self.activation = act
        self.leave = nn.Conv2d(here, image_channels, 3, padding=1)
        xavier_init(self)
        zero_init(self.leave)

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, image_channels, H, W), label (B,), class_labels (B,) int64 or None -> like x."""
        require_halvings(x, len(self.encoder) - 1)
        c = self.conditioning(label, class_labels)
        h = self.enter(x)
        kept = [h]
        for level in self.encoder:
            h = level(h, c, kept)
        for stage in self.middle:
            h = stage(h, c)
        for level in self.decoder:
            h = level(h, c, kept)
        return self.leave(activated(self.norm, h, self.activation))
