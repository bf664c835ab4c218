"""NCSN++ and DDPM++ (Song et al. 2021, appendix H), which is also EDM's SongUNet (Karras et al. 2022, appendix F.2).

A U-Net of residual blocks whose branches are summed with a gain, in which images of every resolution may enter beside
the features on the way in (input pyramid) and be collected beside them on the way out (output pyramid).
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nets.layers import (
    SelfAttention,
    ShiftBlock,
    Stage,
    activated,
    group_norm,
    require_halvings,
    xavier_init,
    zero_init,
)
from scorefield.nets.noise_features import NoiseFeatures
from scorefield.nets.resampling import DownConv, Resampling, UpConv
from scorefield.recipe import Remembered

_EPS = 1e-6  # in every normalisation


def class_weights(class_labels: Tensor | None, batch: int, classes: int, like: Tensor) -> Tensor:
    """Classes as vectors (B, classes): of labels (B,) int64 with -1 for none, of such vectors, of None for zeros.

    Raises:
        ValueError: labels outside -1 ... classes - 1, or vectors of another length.
    """
    if class_labels is None:
        return like.new_zeros(batch, classes)
    if class_labels.ndim == 2:
        if class_labels.shape[1] != classes:
            raise ValueError(f"class_labels has shape {tuple(class_labels.shape)}, expected ({batch}, {classes})")
        return class_labels.to(like.dtype)
    # Checked on the CPU alone: on a GPU the host would wait, and the look-up itself refuses.
    if not class_labels.is_cuda and not ((class_labels >= -1) & (class_labels < classes)).all():
        raise ValueError(f"class_labels must lie in 0 ... {classes - 1}, or be -1 for no class; got {class_labels}")
    return F.one_hot(class_labels.long() + 1, classes + 1)[:, 1:].to(like.dtype)


def augmentation_features(augment_map: nn.Linear | None, augment_labels: Tensor, like: Tensor) -> Tensor:
    """A augmentation, (B, features), of the network's A and labels (B, augmentations), as precise as ``like``.

    Raises:
        ValueError: the network has no A, or labels have another length.
    """
    if augment_map is None:
        raise ValueError("augment_labels were given to a network built with augmentations=0")
    expected = (len(like), augment_map.in_features)
    if augment_labels.shape != expected:
        raise ValueError(f"augment_labels has shape {tuple(augment_labels.shape)}, expected {expected}")
    features: Tensor = augment_map(augment_labels.to(like.dtype))
    return features


class LabelledConditioning(nn.Module):
    """c = act(W_2 act(W_1 (e(label) + P sqrt(K) class + A augmentation))), K the number of classes.

    Args:
        features: e.
        width: length of c.
        activation: act.
        classes: K, or None for a network without classes.
        augmentations: length of the vector that tells how an image was augmented; 0 for a network without.
    """

    def __init__(
        self,
        features: NoiseFeatures,
        width: int,
        activation: nn.Module,
        classes: int | None = None,
        augmentations: int = 0,
    ) -> None:
        super().__init__()
        self.features = features
        self.activation = activation
        self.classes = classes or 0
        self.class_map = nn.Linear(classes, features.dim) if classes else None
        self.augment_map = nn.Linear(augmentations, features.dim, bias=False) if augmentations else None
        self.inner = nn.Linear(features.dim, width)
        self.outer = nn.Linear(width, width)

    def forward(
        self, label: Tensor, class_labels: Tensor | None = None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """Label (B,), classes (see `class_weights`), augmentation (B, augmentations) or None for none -> (B, width)."""
        e = self.features(label.to(self.inner.weight.dtype))
        if self.class_map is not None:
            e = e + self.class_map(math.sqrt(self.classes) * class_weights(class_labels, len(e), self.classes, e))
        elif class_labels is not None:
            raise ValueError("class_labels were given to a network without classes; build it with classes=<number>")
        if augment_labels is not None:
            e = e + augmentation_features(self.augment_map, augment_labels, e)
        return self.activation(self.outer(self.activation(self.inner(e))))


class InputSum(nn.Module):
    """Input skip: a 1x1 convolution of the smaller image is added to the features (appendix H.1, "sum").

    Args:
        pyramid: channels of the image that comes from the level above.
        channels: channels of the features.
        resampling: how the image is halved.
        gain: not used; residual pyramids have one.
    """

    def __init__(self, pyramid: int, channels: int, resampling: Resampling, gain: float) -> None:
        super().__init__()
        self.down = DownConv(pyramid, pyramid, resampling, conv=False)
        self.conv = nn.Conv2d(pyramid, channels, 1)
        self.pyramid, self.channels = pyramid, channels

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features and the image of the level above -> features and image of this level."""
        image = self.down(image)
        return h + self.conv(image), image


class InputCat(InputSum):
    """Input skip whose convolution is put before the features as further channels ("cat"); arguments as `InputSum`."""

    def __init__(self, pyramid: int, channels: int, resampling: Resampling, gain: float) -> None:
        super().__init__(pyramid, channels, resampling, gain)
        self.channels = 2 * channels

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features and the image of the level above -> features and image of this level."""
        image = self.down(image)
        return torch.cat((self.conv(image), h), 1), image


class InputResidual(nn.Module):
    """Residual input pyramid: a convolution joined with the halving, plus the features, is both from here on.

    Args:
        pyramid: channels of what comes from the level above.
        channels: channels of the features.
        resampling: how it is halved.
        gain: factor of the sum.
    """

    def __init__(self, pyramid: int, channels: int, resampling: Resampling, gain: float) -> None:
        super().__init__()
        self.down = DownConv(pyramid, channels, resampling)
        self.gain = gain
        self.pyramid = self.channels = channels

    def forward(self, h: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        """Features and the pyramid of the level above -> features and pyramid of this level, which are one."""
        h = self.gain * (self.down(image) + h)
        return h, h


class OutputSkip(nn.Module):
    """Output skip: each level adds its own image to the doubled image from below (Karras et al. 2020, figure 7).

    Args:
        below: channels of the pyramid at the level below; None at the lowest.
        channels: channels of the features.
        image_channels: channels of an image.
        resampling: how the image is doubled.
        activation: the nonlinearity before the convolution.
        gain: not used; residual pyramids have one.
    """

    makes_images = True

    def __init__(
        self,
        below: int | None,
        channels: int,
        image_channels: int,
        resampling: Resampling,
        activation: nn.Module,
        gain: float,
    ) -> None:
        super().__init__()
        self.up = None if below is None else UpConv(below, below, resampling, conv=False)
        self.norm = group_norm(channels, _EPS)
        self.activation = activation
        self.conv = nn.Conv2d(channels, image_channels, 3, padding=1)
        self.channels = image_channels

    def forward(self, h: Tensor, image: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features and the image from below -> the features, and the image with this level's added."""
        own = self.conv(activated(self.norm, h, self.activation))
        return h, own if self.up is None else self.up(image) + own


class OutputResidual(nn.Module):
    """Residual output pyramid: a convolution joined with the doubling, plus the features, is both from here on.

    Args:
        below: channels of the pyramid at the level below; None at the lowest, whose features start the pyramid.
        channels: channels of the features.
        image_channels: not used.
        resampling: how it is doubled.
        activation: the nonlinearity before the first convolution.
        gain: factor of the sum.
    """

    makes_images = False

    def __init__(
        self,
        below: int | None,
        channels: int,
        image_channels: int,
        resampling: Resampling,
        activation: nn.Module,
        gain: float,
    ) -> None:
        super().__init__()
        self.up = None if below is None else UpConv(below, channels, resampling)
        self.norm = group_norm(channels, _EPS) if below is None else None
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if below is None else None
        self.activation = activation
        self.gain = gain
        self.channels = channels

    def forward(self, h: Tensor, pyramid: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features and the pyramid from below -> features and pyramid of this level."""
        if self.up is None:
            assert self.conv is not None
            assert self.norm is not None
            return h, self.conv(activated(self.norm, h, self.activation))
        h = self.gain * (self.up(pyramid) + h)
        return h, h


class EncoderLevel(nn.Module):
    """One resolution on the way in.

    Args:
        stages: residual blocks, with attention or without.
        down: to the next level; None at the last.
        join: lets the image enter at the next level; None without an input pyramid.
    """

    def __init__(self, stages: Sequence[Stage], down: nn.Module | None, join: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.down = down
        self.join = join

    def forward(self, h: Tensor, c: Tensor | None, image: Tensor, kept: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Features and the input pyramid -> those of the next level; every result of features is put on ``kept``."""
        for stage in self.stages:
            h = stage(h, c)
            kept.append(h)
        if self.down is not None:
            h = self.down(h, c)
            if self.join is not None:
                h, image = self.join(h, image)
            kept.append(h)
        return h, image


class DecoderLevel(nn.Module):
    """One resolution on the way out.

    Args:
        stages: residual blocks, the last with attention or without; one more than on the way in.
        collect: this level's part of the output pyramid, or None.
        up: to the next level; None at the first.
    """

    def __init__(self, stages: Sequence[Stage], collect: nn.Module | None, up: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.collect = collect
        self.up = up

    def forward(
        self, h: Tensor, c: Tensor | None, collected: Tensor | None, kept: list[Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Features and the output pyramid -> those of the next level; each stage takes the last of ``kept``."""
        for stage in self.stages:
            h = stage(torch.cat((h, kept.pop()), 1), c)
        if self.collect is not None:
            h, collected = self.collect(h, collected)
        return h if self.up is None else self.up(h, c), collected


class NCSNpp(Remembered, nn.Module):
    """Residual blocks with FIR resampling, pyramids and attention (Song et al. 2021, appendix H; EDM's SongUNet).

    Args:
        image_channels: channels of an image.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``.
        blocks: residual blocks of each level on the way in, > 0; one more on the way out.
        features: features of the noise label; None for a network that is not told the noise level.
        resampling: how the size changes between levels and in the pyramids.
        attention: levels with attention, counted from 0: after each block on the way in, after the last on the way out.
        residual_resampling: between levels stands a residual block that resamples (BigGAN's), not a plain resampling.
        resample_conv: whether a convolution goes with a plain resampling.
        input_pyramid: `InputSum`, `InputCat` or `InputResidual`; None for none.
        output_pyramid: `OutputSkip` or `OutputResidual`; None for none.
        gain: factor of every sum of two branches: 1 / sqrt(2), or 1 to leave them as they are.
        condition: length of the vector that conditions the blocks; None takes 4 ``channels``.
        classes: number of classes, or None for a network without.
        augmentations: length of the augmentation labels; 0 for a network without.
        activation: the nonlinearity; None takes SiLU.
        dropout: probability of dropping a feature, in [0, 1).
        fused_attention: see `SelfAttention`.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        features: NoiseFeatures | None,
        resampling: Resampling,
        attention: Sequence[int] = (),
        residual_resampling: bool = True,
        resample_conv: bool = True,
        input_pyramid: Callable[..., nn.Module] | None = None,
        output_pyramid: Callable[..., nn.Module] | None = None,
        gain: float = math.sqrt(0.5),
        condition: int | None = None,
        classes: int | None = None,
        augmentations: int = 0,
        activation: nn.Module | None = None,
        dropout: float = 0.0,
        fused_attention: bool = True,
    ) -> None:
        super().__init__()
        act = nn.SiLU() if activation is None else activation
        norm = partial(group_norm, eps=_EPS)
        width = 4 * channels if condition is None else condition
        block = partial(ShiftBlock, condition=width, norm=norm, activation=act, dropout=dropout, gain=gain)

        def attend(c: int, wanted: bool) -> SelfAttention | None:
            return SelfAttention(c, c, fused_attention, norm(c), gain) if wanted else None

        def change(c: int, kind: type[DownConv] | type[UpConv]) -> nn.Module:
            if residual_resampling:
                return block(c, c, resample=kind(c, c, resampling, conv=False))
            return kind(c, c, resampling, resample_conv)

        self.conditioning = (
            None if features is None else LabelledConditioning(features, width, act, classes, augmentations)
        )
        self.enter = nn.Conv2d(image_channels, channels, 3, padding=1)
        widths = [channels * m for m in multipliers]
        last = len(widths) - 1
        here, kept, pyramid = channels, [channels], image_channels
        encoder = []
        for level, out in enumerate(widths):
            stages = []
            for _ in range(blocks):
                stages.append(Stage(block(here, out), attend(out, level in attention)))
                here = out
                kept.append(here)
            down = join = None
            if level < last:
                down = change(here, DownConv)
                if input_pyramid is not None:
                    join = input_pyramid(pyramid, here, resampling, gain)
                    pyramid, here = join.pyramid, join.channels  # type: ignore[assignment]
                kept.append(here)
            encoder.append(EncoderLevel(stages, down, join))
        self.encoder = nn.ModuleList(encoder)
        self.middle = nn.ModuleList([Stage(block(here, here), attend(here, True)), Stage(block(here, here))])
        decoder = []
        below: int | None = None
        for level, out in reversed(list(enumerate(widths))):
            stages = []
            for i in range(blocks + 1):
                stages.append(Stage(block(here + kept.pop(), out), attend(out, level in attention and i == blocks)))
                here = out
            collect = None
            if output_pyramid is not None:
                collect = output_pyramid(below, here, image_channels, resampling, act, gain)
                below = collect.channels  # type: ignore[assignment]
            decoder.append(DecoderLevel(stages, collect, change(here, UpConv) if level else None))
        self.decoder = nn.ModuleList(decoder)
        self.activation = act
        self.residual_resampling = residual_resampling
        ends_in_image = getattr(decoder[-1].collect, "makes_images", False)
        self.norm = None if ends_in_image else norm(here)
        self.leave = None if ends_in_image else nn.Conv2d(here, image_channels, 3, padding=1)
        xavier_init(self)
        for layer in [self, *(level.collect for level in decoder if ends_in_image)]:
            last_conv = getattr(layer, "leave" if layer is self else "conv")
            if last_conv is not None:
                zero_init(last_conv)

    def forward(
        self,
        x: Tensor,
        label: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x (B, image_channels, H, W), label (B,), classes (B,) int64 or (B, classes), augmentations -> like x."""
        require_halvings(x, len(self.encoder) - 1)
        c = None if self.conditioning is None else self.conditioning(label, class_labels, augment_labels)
        image, h = x, self.enter(x)
        kept = [h]
        for level in self.encoder:
            h, image = level(h, c, image, kept)
        for stage in self.middle:
            h = stage(h, c)
        collected: Tensor | None = None
        for level in self.decoder:
            h, collected = level(h, c, collected, kept)
        if self.leave is None or self.norm is None:
            assert collected is not None
            return collected
        return self.leave(activated(self.norm, h, self.activation))
