"""The networks of NCSN (Song and Ermon 2019, appendix A) and NCSNv2 (Song and Ermon 2020, appendix B).

RefineNet (Lin et al. 2017) with instance normalisation that keeps what it removes: residual blocks go down a ladder of
levels, of which those with dilated convolutions keep the size of the image; a cascade of refine blocks comes back up.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scorefield.nets.layers import Recomputing
from scorefield.recipe import Remembered

_EPS = 1e-5


def _normalised(x: Tensor, alpha: Tensor) -> Tensor:
    """Instance-normalised x plus alpha times its channel means, these normalised over the channels (2019, eq. 9)."""
    means = x.mean((2, 3))
    centred = means - means.mean(1, keepdim=True)
    # The variance over channels is the unbiased one.
    standard = centred / torch.sqrt(means.var(1, keepdim=True) + _EPS)
    return F.instance_norm(x, eps=_EPS) + (alpha * standard)[:, :, None, None]


class InstanceNormPlus(nn.Module):
    """gamma ((x - mu) / s + alpha (mu - m) / v) + beta, with mu, s of each channel and m, v over the means mu.

    Song and Ermon 2019, eq. 9, with the same gamma, alpha and beta at all noise levels.

    Args:
        channels: channels of x, at least 2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.alpha = nn.Parameter(torch.empty(channels).normal_(1, 0.02))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x (B, channels, H, W) -> like x; the noise level is not looked at."""
        h = _normalised(x, self.alpha)
        return torch.addcmul(self.beta[:, None, None], h, self.gamma[:, None, None])


class ConditionalInstanceNormPlus(nn.Module):
    """`InstanceNormPlus` with gamma, alpha and beta of each noise level (Song and Ermon 2019, appendix A.1).

    In networks with classes each pair of level and class has its own, "no class" included.

    Args:
        channels: channels of x, at least 2.
        levels: number of noise levels, or of such pairs.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(levels, 3 * channels)
        with torch.no_grad():
            self.table.weight[:, : 2 * channels].normal_(1, 0.02)
            self.table.weight[:, 2 * channels :].zero_()

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        """x (B, channels, H, W), level (B,) int64 -> like x."""
        gamma, alpha, beta = self.table(index).chunk(3, 1)
        return torch.addcmul(beta[:, :, None, None], _normalised(x, alpha), gamma[:, :, None, None])


class NoNorm(nn.Module):
    """The identity, in the place of a normalisation.

    Args:
        channels: not used.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x, as it is."""
        return x


Norm = Callable[[int], nn.Module]


def _instance_norm(levels: int | None, classes: int | None) -> Norm:
    """The normalisation of a network that is told the noise level, the class, both, or neither."""
    if levels is None and classes is None:
        return InstanceNormPlus
    return partial(ConditionalInstanceNormPlus, levels=(levels or 1) * (1 + (classes or 0)))


def _class_index(class_labels: Tensor | None, classes: int | None, like: Tensor) -> Tensor:
    """0 for no class and 1 + c for class c, (B,) int64, checked; zeros for a network without classes."""
    if class_labels is None:
        return torch.zeros(len(like), dtype=torch.long, device=like.device)
    if classes is None:
        raise ValueError("class_labels were given to a network without classes; build it with classes=<number>")
    if not class_labels.is_cuda and not ((class_labels >= -1) & (class_labels < classes)).all():
        raise ValueError(f"class_labels must lie in 0 ... {classes - 1}, or be -1 for no class; got {class_labels}")
    return class_labels + 1


class PooledConv(nn.Module):
    """A convolution followed by 2x2 means.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        size: side of the convolution's kernel, odd.
    """

    def __init__(self, channels_in: int, channels_out: int, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels_in, H, W) -> (B, channels_out, H // 2, W // 2)."""
        return F.avg_pool2d(self.conv(x), 2)


class RefineResidual(Recomputing):
    """S x + conv(act(norm(conv(act(norm(x)))))): the residual block of a level.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        norm: makes a normalisation.
        activation: act.
        dilation: of the convolutions.
        enters: whether the block is the first of a level below the top: it changes to ``channels_out`` in its second
            convolution and, undilated, halves the size.
    """

    def __init__(
        self, channels_in: int, channels_out: int, norm: Norm, activation: nn.Module, dilation: int, enters: bool
    ) -> None:
        super().__init__()
        conv = partial(nn.Conv2d, kernel_size=3, padding=dilation, dilation=dilation)
        middle = channels_in if enters else channels_out
        self.activation = activation
        self.norm_in = norm(channels_in)
        self.conv_in = conv(channels_in, middle)
        self.norm_out = norm(middle)
        self.conv_out: nn.Module
        self.shortcut: nn.Module
        if enters and dilation == 1:
            self.conv_out = PooledConv(middle, channels_out, 3)
            self.shortcut = PooledConv(channels_in, channels_out, 1)
        else:
            self.conv_out = conv(middle, channels_out)
            self.shortcut = conv(channels_in, channels_out) if enters else nn.Identity()

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x (B, channels_in, H, W), noise level (B,) or None -> (B, channels_out, H', W')."""
        h = self.conv_in(self.activation(self.norm_in(x, index)))
        h = self.conv_out(self.activation(self.norm_out(h, index)))
        return self.shortcut(x) + h


class ConvUnit(Recomputing):
    """x + conv(act(norm(conv(act(norm(x)))))), convolutions without bias (Lin et al. 2017, section 3.2).

    Args:
        channels: channels of x.
        norm: makes a normalisation.
        activation: act.
    """

    def __init__(self, channels: int, norm: Norm, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x (B, channels, H, W), noise level (B,) or None -> like x."""
        h = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            h = conv(self.activation(norm(h, index)))
        return x + h


class Fusion(nn.Module):
    """Sum of inputs of several sizes, each convolved and interpolated to the largest (Lin et al. 2017, section 3.2).

    Args:
        channels: channels of each input.
        channels_out: channels of the result.
        norm: makes a normalisation.
    """

    def __init__(self, channels: Sequence[int], channels_out: int, norm: Norm) -> None:
        super().__init__()
        self.norms = nn.ModuleList(norm(c) for c in channels)
        self.convs = nn.ModuleList(nn.Conv2d(c, channels_out, 3, padding=1) for c in channels)

    def forward(self, inputs: Sequence[Tensor], index: Tensor | None) -> Tensor:
        """Inputs (B, C_i, H_i, W_i), the first the largest, noise level (B,) or None -> (B, channels_out, H_1, W_1)."""
        size = inputs[0].shape[2:]
        total: Tensor | None = None
        for x, norm, conv in zip(inputs, self.norms, self.convs, strict=True):
            h = conv(norm(x, index))
            if h.shape[2:] != size:
                h = F.interpolate(h, size=size, mode="bilinear", align_corners=True)
            total = h if total is None else total + h
        assert total is not None
        return total


class ChainedPooling(Recomputing):
    """act(x) plus two more terms, each the convolved 5x5 pooling of the one before (Lin et al. 2017, section 3.2).

    Args:
        channels: channels of x.
        norm: makes a normalisation.
        activation: act.
        pool: the pooling.
    """

    def __init__(self, channels: int, norm: Norm, activation: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        self.activation = activation
        self.pool = pool
        self.norms = nn.ModuleList(norm(channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))

    def forward(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x (B, channels, H, W), noise level (B,) or None -> like x."""
        term = total = self.activation(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            term = conv(self.pool(norm(term, index)))
            total = total + term
        return total


class Refine(nn.Module):
    """Convolution units on each input, their fusion, chained pooling, and convolution units again.

    Args:
        channels: channels of each input; one input needs no fusion.
        channels_out: channels of the result.
        norm: makes a normalisation.
        activation: the nonlinearity.
        pool: the pooling.
        units: convolution units at the end.
    """

    def __init__(
        self,
        channels: Sequence[int],
        channels_out: int,
        norm: Norm,
        activation: nn.Module,
        pool: nn.Module,
        units: int,
    ) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(nn.ModuleList(ConvUnit(c, norm, activation) for _ in range(2)) for c in channels)
        self.fusion = Fusion(channels, channels_out, norm) if len(channels) > 1 else None
        self.pooling = ChainedPooling(channels_out, norm, activation, pool)
        self.units = nn.ModuleList(ConvUnit(channels_out, norm, activation) for _ in range(units))

    def forward(self, inputs: Sequence[Tensor], index: Tensor | None) -> Tensor:
        """Inputs (B, C_i, H_i, W_i), noise level (B,) or None -> (B, channels_out, H_1, W_1)."""
        adapted = []
        for x, units in zip(inputs, self.adapt, strict=True):
            for unit in cast(nn.ModuleList, units):
                x = unit(x, index)
            adapted.append(x)
        h = adapted[0] if self.fusion is None else self.fusion(adapted, index)
        h = self.pooling(h, index)
        for unit in self.units:
            h = unit(h, index)
        return h


class RefineNet(Remembered, nn.Module):
    """Levels of two residual blocks, and a refine block for each on the way back.

    Args:
        image_channels: channels of an image.
        channels: channels at multiplier 1.
        multipliers: channels of each level, in units of ``channels``; the first is 1.
        dilations: dilation of each level's convolutions; below the top a level without dilation halves the size.
        norm: makes the normalisations of the residual blocks and of the end.
        refine_norm: makes those of the refine blocks.
        pool: the pooling of the refine blocks.
        activation: the nonlinearity.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        multipliers: Sequence[int],
        dilations: Sequence[int],
        norm: Norm,
        refine_norm: Norm,
        pool: nn.Module,
        activation: nn.Module,
    ) -> None:
        super().__init__()
        if len(multipliers) != len(dilations) or not multipliers or multipliers[0] != 1 or dilations[0] != 1:
            raise ValueError(
                f"multipliers={list(multipliers)} and dilations={list(dilations)} must name as many levels, the first 1"
            )
        widths = [channels * m for m in multipliers]
        self.enter = nn.Conv2d(image_channels, channels, 3, padding=1)
        self.levels = nn.ModuleList()
        for level, (above, width, dilation) in enumerate(zip([channels, *widths], widths, dilations, strict=False)):
            first = RefineResidual(above, width, norm, activation, dilation, enters=level > 0)
            second = RefineResidual(width, width, norm, activation, dilation, enters=False)
            self.levels.append(nn.ModuleList([first, second]))
        ends = [*reversed(widths[:-1]), channels]  # what each refine block hands on has the channels of the next level
        refine = partial(Refine, norm=refine_norm, activation=activation, pool=pool)
        self.refine = nn.ModuleList([refine([widths[-1]], ends[0], units=1)])
        for width, (_, out) in zip(reversed(widths[:-1]), pairwise(ends), strict=True):
            self.refine.append(refine([width, width], out, units=1 if len(self.refine) < len(widths) - 1 else 3))
        self.norm = norm(channels)
        self.activation = activation
        self.leave = nn.Conv2d(channels, image_channels, 3, padding=1)

    def refined(self, x: Tensor, index: Tensor | None) -> Tensor:
        """x (B, image_channels, H, W), noise level (B,) int64 or None -> like x."""
        h = self.enter(x)
        kept = []
        for blocks in self.levels:
            for block in cast(nn.ModuleList, blocks):
                h = block(h, index)
            kept.append(h)
        h = self.refine[0]([kept.pop()], index)
        for refine in self.refine[1:]:
            h = refine([kept.pop(), h], index)
        return self.leave(self.activation(self.norm(h, index)))


class NCSN(RefineNet):
    """The noise-conditional score network: every normalisation knows the noise level (Song and Ermon 2019, appendix A).

    Args:
        image_channels: channels of an image.
        channels: channels of the first level.
        levels: number of noise levels; None for the network of one level, the paper's baseline, whose label is not
            looked at.
        multipliers: channels of each level of the network, in units of ``channels``.
        dilations: dilation of each level's convolutions.
        activation: the nonlinearity; None takes ELU.
        classes: number of classes, or None for a network without.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        levels: int | None,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        activation: nn.Module | None = None,
        classes: int | None = None,
    ) -> None:
        norm = _instance_norm(levels, classes)
        pool = nn.AvgPool2d(5, 1, 2)
        act = nn.ELU() if activation is None else activation
        super().__init__(image_channels, channels, multipliers, dilations, norm, norm, pool, act)
        self.noise_levels = levels
        self.classes = classes

    def forward(self, x: Tensor, label: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """x (B, image_channels, H, W), noise level (B,), 0 the largest, class_labels (B,) int64 or None -> like x."""
        index = _class_index(class_labels, self.classes, x)
        if self.noise_levels is None:
            return self.refined(x, index)
        level = label.round().long() if label.is_floating_point() else label
        if level.device.type == "cpu" and not ((level >= 0) & (level < self.noise_levels)).all():
            raise ValueError(
                f"label must lie in 0 ... {self.noise_levels - 1}, the index of a noise level; got {label}"
            )
        # The levels without a class come first, so that a network without classes has the published table.
        return self.refined(x, level + self.noise_levels * index)


class NCSNv2(RefineNet):
    """The network that is not told the noise level: its output is the score times sigma (Song and Ermon 2020, eq. 5).

    The deeper networks of appendix B are multipliers (1, 2, 2, 4, 4) with dilations (1, 1, 1, 2, 4) for 96 to 128
    pixels, and (1, 2, 2, 2, 4, 4) with (1, 1, 1, 1, 2, 4) for 256.

    Args:
        image_channels: channels of an image.
        channels: channels of the first level.
        multipliers: channels of each level of the network, in units of ``channels``.
        dilations: dilation of each level's convolutions.
        activation: the nonlinearity; None takes ELU.
        classes: number of classes, whose index then takes the place of NCSN's noise level; None for a network without.
    """

    def __init__(
        self,
        image_channels: int,
        channels: int,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 2, 4),
        activation: nn.Module | None = None,
        classes: int | None = None,
    ) -> None:
        pool = nn.MaxPool2d(5, 1, 2)
        act = nn.ELU() if activation is None else activation
        norm = _instance_norm(None, classes)
        super().__init__(image_channels, channels, multipliers, dilations, norm, NoNorm, pool, act)
        self.classes = classes

    def forward(self, x: Tensor, label: Tensor | None = None, class_labels: Tensor | None = None) -> Tensor:
        """x (B, image_channels, H, W), class_labels (B,) int64 or None -> like x; the label is not looked at."""
        return self.refined(x, _class_index(class_labels, self.classes, x))
