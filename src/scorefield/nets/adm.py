"""The ablated diffusion model ADM (Dhariwal and Nichol 2021, section 3), as EDM trains it (its DhariwalUNet).

A U-Net of residual blocks with adaptive group normalisation, in which the size changes inside residual blocks and
attention has heads of 64 channels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nets.layers import (
    ResidualBlock,
    SelfAttention,
    Stage,
    activated,
    group_norm,
    require_halvings,
    zero_init,
)
from scorefield.nets.ncsnpp import augmentation_features, class_weights
from scorefield.nets.noise_features import NoiseFeatures
from scorefield.nets.resampling import Box, DownConv, UpConv
from scorefield.recipe import Remembered


class ADMConditioning(nn.Module):
    """c = silu(W_2 silu(W_1 (e(label) + A augmentation)) + L class).

    Args:
        features: e.
        width: length of c.
        classes: number of classes, or None for a network without.
        augmentations: length of the vector that tells how an image was augmented; 0 for a network without.
    """

    def __init__(self, features: NoiseFeatures, width: int, classes: int | None, augmentations: int) -> None:
        super().__init__()
        self.features = features
        self.classes = classes or 0
        self.augment_map = zero_init(nn.Linear(augmentations, features.dim, bias=False)) if augmentations else None
        self.inner = nn.Linear(features.dim, width)
        self.outer = nn.Linear(width, width)
        self.class_map = nn.Linear(classes, width, bias=False) if classes else None
        if self.class_map is not None:
            nn.init.normal_(self.class_map.weight)

    def forward(
        self, label: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Label (B,), classes (see `class_weights`), augmentation (B, augmentations) or None for none -> (B, width)."""
        e = self.features(label.to(self.inner.weight.dtype))
        if augment_labels is not None:
            e = e + augmentation_features(self.augment_map, augment_labels, e)
        c = self.outer(F.silu(self.inner(e)))
        if self.class_map is not None:
            c = c + self.class_map(class_weights(class_labels, len(c), self.classes, c))
        elif class_labels is not None:
            raise ValueError("class_labels were given to a network without classes; build it with classes=<number>")
        return F.silu(c)


class ADMDown(nn.Module):
    """One resolution on the way in.

    Args:
        stages: residual blocks, with attention or without.
        down: residual block to the next level; None at the last.
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
            h = self.down(h, c)
            kept.append(h)
        return h


class ADMUp(nn.Module):
    """One resolution on the way out.

    Args:
        stages: residual blocks, with attention or without; one more than on the way in.
        up: residual block to the next level; None at the first.
    """

    def __init__(self, stages: Sequence[Stage], up: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.up = up

    def forward(self, h: Tensor, c: Tensor, kept: list[Tensor]) -> Tensor:
        """Features (B, C, H, W), c (B, width) -> features of the next level; each stage takes the last of ``kept``."""
        for stage in self.stages:
            h = stage(torch.cat((h, kept.pop()), 1), c)
        return h if self.up is None else self.up(h, c)


class ADM(Remembered, nn.Module):
    """Residual blocks with adaptive group normalisation and multi-head attention; a fresh network returns 0.

    Args:
        image_channels: channels of an image.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level on the way in, > 0; one more on the way out.
        features: features of the noise label.
        attention: levels whose residual blocks are followed by attention, counted from 0.
        head_channels: least number of channels of an attention head; where there are fewer, there is no attention.
        condition: length of the vector that conditions the blocks; None takes 4 ``channels``.
        classes: number of classes, or None for a network without.
        augmentations: length of the augmentation labels; 0 for a network without.
        dropout: probability of dropping a feature, in [0, 1).
        fused_attention: see `SelfAttention`.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        features: NoiseFeatures,
        attention: Sequence[int] = (),
        head_channels: int = 64,
        condition: int | None = None,
        classes: int | None = None,
        augmentations: int = 0,
        dropout: float = 0.0,
        fused_attention: bool = True,
    ) -> None:
        super().__init__()
        width = 4 * channels if condition is None else condition
        resampling = Box()

        def stage(channels_in: int, channels_out: int, wanted: bool) -> Stage:
            heads = channels_out // head_channels if wanted else 0
            attend = SelfAttention(channels_out, channels_out // heads, fused_attention) if heads else None
            return Stage(ResidualBlock(channels_in, channels_out, width, dropout), attend)

        self.conditioning = ADMConditioning(features, width, classes, augmentations)
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        here = widths[0]
        self.enter = nn.Conv2d(image_channels, here, 3, padding=1)
        kept = [here]
        encoder = []
        for level, out in enumerate(widths):
            stages = []
            for _ in range(blocks):
                stages.append(stage(here, out, level in attention))
                here = out
                kept.append(here)
            halve = DownConv(here, here, resampling, conv=False)
            down = ResidualBlock(here, here, width, dropout, halve) if level < last else None
            kept += [here] if level < last else []
            encoder.append(ADMDown(stages, down))
        self.encoder = nn.ModuleList(encoder)
        self.middle = nn.ModuleList([stage(here, here, True), stage(here, here, False)])
        decoder = []
        for level, out in reversed(list(enumerate(widths))):
            stages = []
            for _ in range(blocks + 1):
                stages.append(stage(here + kept.pop(), out, level in attention))
                here = out
            double = UpConv(here, here, resampling, conv=False)
            decoder.append(ADMUp(stages, ResidualBlock(here, here, width, dropout, double) if level else None))
        self.decoder = nn.ModuleList(decoder)
        self.norm = group_norm(here)
        self.leave = zero_init(nn.Conv2d(here, image_channels, 3, padding=1))

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x (B, image_channels, H, W), label (B,), classes (B,) int64 or (B, classes), augmentations -> like x."""
        require_halvings(x, len(self.encoder) - 1)
        c = self.conditioning(label, class_labels, augment_labels)
        h = self.enter(x)
        kept = [h]
        for level in self.encoder:
            h = level(h, c, kept)
        for stage in self.middle:
            h = stage(h, c)
        for level in self.decoder:
            h = level(h, c, kept)
        return self.leave(activated(self.norm, h))
