"""Pieces of convolutional networks: conditional residual blocks, attention, learned resampling.

All keep x (B, C, H, W) free of in-place operations, so that they can be differentiated twice.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from scorefield.nets.group_norm import ActivatedGroupNorm

Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def zero_init(layer: Layer) -> Layer:
    """The layer, with weight and bias zero: what it feeds starts out without it."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int, eps: float = 1e-5) -> nn.GroupNorm:
    """Group normalisation with at most 32 groups, of at least four channels each where there are four."""
    largest = max(1, min(32, channels // 4))
    return nn.GroupNorm(max(g for g in range(1, largest + 1) if channels % g == 0), channels, eps)


class FiLM(nn.Module):
    """y = (1 + scale(c)) x + shift(c), per channel (Perez et al. 2018, eq. 1-2).

    Args:
        channels: channels of x.
        condition: length of c.
    """

    def __init__(self, channels: int, condition: int) -> None:
        super().__init__()
        self.linear = nn.Linear(condition, 2 * channels)

    def of(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """1 + scale and shift (B, channels) of c (B, condition)."""
        scale, shift = self.linear(c).chunk(2, 1)
        return 1 + scale, shift

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, channels, ...), c (B, condition) -> like x."""
        factor, shift = (a.reshape(*a.shape, *(1,) * (x.ndim - 2)) for a in self.of(c))
        return torch.addcmul(shift, x, factor)


def activated(
    norm: nn.Module,
    x: Tensor,
    activation: Callable[[Tensor], Tensor] = F.silu,
    film: tuple[FiLM, Tensor] | None = None,
) -> Tensor:
    """activation(norm(x)), or of FiLM with a condition activation(film(norm(x), c)), in one pass where there is one."""
    silu = activation is F.silu or isinstance(activation, nn.SiLU)
    if isinstance(norm, ActivatedGroupNorm) and silu and norm.takes(x):
        return norm.silu(x) if film is None else norm.silu(x, *film[0].of(film[1]))
    h = norm(x)
    return activation(h if film is None else film[0](h, film[1]))


class Dropout(nn.Dropout):
    """x with features dropped in training, as in `torch.nn.Dropout` and with the same random numbers.

    What is kept for the backward pass is which features, not the factor of each: a quarter of the memory on a CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape -> like x."""
        return torch.native_dropout(x, self.p, True)[0] if self.training and self.p > 0 else x


class Recomputing(nn.Module):
    """A block that can do without its activations between the forward and the backward pass (Chen et al. 2016).

    With ``recompute`` they are computed again when they are needed, from the block's input and with the same dropout.
    """

    recompute = False

    def __call__(self, *args: Any) -> Any:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(super().__call__, *args, use_reentrant=False)
        return super().__call__(*args)


class ResidualBlock(Recomputing):
    """x W + conv(dropout(silu(FiLM(norm(conv(silu(norm(x)))), c)))), the second convolution starting at zero.

    The pre-norm block of Dhariwal and Nichol 2021 (adaptive group normalisation, section 3). W is a 1x1 convolution
    where the number of channels changes, and the identity elsewhere. A block that resamples does so to x, and to what
    its first convolution sees.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        condition: length of c.
        dropout: probability of dropping a feature, in [0, 1).
        resample: changes the size of the image, or None.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        condition: int,
        dropout: float = 0.0,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.resample = nn.Identity() if resample is None else resample
        self.norm_in = group_norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm_out = group_norm(channels_out)
        self.film = FiLM(channels_out, condition)
        self.dropout = Dropout(dropout)
        self.conv_out = zero_init(nn.Conv2d(channels_out, channels_out, 3, padding=1))
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """x (B, channels_in, H, W), c (B, condition) -> (B, channels_out, H, W), or of the size it is resampled to."""
        h = self.conv_in(self.resample(activated(self.norm_in, x)))
        h = self.conv_out(self.dropout(activated(self.norm_out, h, F.silu, (self.film, c))))
        return self.shortcut(self.resample(x)) + h


class ShiftBlock(Recomputing):
    """g (x W + conv(dropout(act(norm(conv(act(norm(x))) + V c))))), the second convolution starting at zero.

    The residual block of Ho et al. 2020 (g = 1) and, with g = 1 / sqrt(2), of Song et al. 2021 (appendix H.1). W is a
    1x1 convolution where the number of channels or the size changes, and the identity elsewhere. A block that resamples
    does so to x, and to what its first convolution sees (Brock et al. 2019, figure 15).

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
        condition: length of c.
        norm: makes the normalisation of a number of channels.
        activation: act.
        dropout: probability of dropping a feature, in [0, 1).
        gain: g.
        resample: changes the size of the image, or None.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        condition: int,
        norm: Callable[[int], nn.Module],
        activation: nn.Module,
        dropout: float = 0.0,
        gain: float = 1.0,
        resample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.activation = activation
        self.gain = gain
        self.resample = nn.Identity() if resample is None else resample
        self.norm_in = norm(channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.shift = nn.Linear(condition, channels_out)
        self.norm_out = norm(channels_out)
        self.dropout = Dropout(dropout)
        self.conv_out = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out and resample is None
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """x (B, channels_in, H, W), c (B, condition) or None for no shift -> (B, channels_out, H', W')."""
        h = self.conv_in(self.resample(activated(self.norm_in, x, self.activation)))
        if c is not None:
            h = h + self.shift(c)[:, :, None, None]
        h = self.conv_out(self.dropout(activated(self.norm_out, h, self.activation)))
        h = self.shortcut(self.resample(x)) + h
        return h if self.gain == 1 else self.gain * h


class SelfAttention(Recomputing):
    """g (x + W softmax(q k^T / sqrt(d)) v) over all positions, pre-norm, W starting at zero.

    Vaswani et al. 2017, eq. 1.

    Args:
        channels: channels of x, a multiple of ``head_channels``.
        head_channels: d, channels of one head.
        fused: allow the fused kernels. They are faster on large images, but can be differentiated only once, which
            rules out scores by autograd, divergences in an objective and forward-mode derivatives.
        norm: the normalisation; None takes `group_norm`.
        gain: g.
    """

    def __init__(
        self,
        channels: int,
        head_channels: int,
        fused: bool = False,
        norm: nn.Module | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        if channels % head_channels:
            raise ValueError(f"channels={channels} must be a multiple of head_channels={head_channels}")
        self.heads = channels // head_channels
        self.fused = fused
        self.gain = gain
        self.norm = group_norm(channels) if norm is None else norm
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels, H, W) -> like x."""
        tokens = self.qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, 3 C)
        # (B, heads, HW, d) each; contiguous, since the fused kernels pass over any other layout.
        q, k, v = tokens.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).contiguous()
        with nullcontext() if self.fused else sdpa_kernel(SDPBackend.MATH):
            a = F.scaled_dot_product_attention(q, k, v)
        h = x + self.out(a.permute(0, 1, 3, 2).reshape(x.shape))
        return h if self.gain == 1 else self.gain * h


class Stage(nn.Module):
    """A residual block, followed by attention where asked for.

    Args:
        block: the residual block.
        attention: what follows it, or None.
    """

    def __init__(self, block: nn.Module, attention: SelfAttention | None = None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention

    def forward(self, x: Tensor, c: Tensor | None) -> Tensor:
        """x (B, C, H, W), c (B, width) -> (B, C', H, W)."""
        x = self.block(x, c)
        return x if self.attention is None else self.attention(x)


def xavier_init(net: nn.Module) -> None:
    """Draw the weights of a U-Net as Ho et al. 2020 do: Glorot's uniform law, zero biases, branches that start at zero.

    The variance of query, key and value is a tenth of Glorot's for each of the three (here drawn as one matrix, whose
    own law has half of it).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in net.modules():
        if isinstance(module, SelfAttention):
            nn.init.xavier_uniform_(module.qkv.weight, gain=math.sqrt(0.2))
            zero_init(module.out)
        elif isinstance(module, ShiftBlock):
            zero_init(module.conv_out)


def require_halvings(x: Tensor, halvings: int) -> None:
    """Refuse images that cannot be halved so many times without remainder.

    Raises:
        ValueError: with the sizes that can.
    """
    step = 2**halvings
    if x.ndim != 4 or x.shape[2] % step or x.shape[3] % step:
        raise ValueError(
            f"x has shape {tuple(x.shape)}; a network of {halvings + 1} levels takes (B, C, H, W) with H and W "
            f"multiples of {step}"
        )


class Downsample(nn.Module):
    """A 3x3 convolution of stride 2: height and width H become ceil(H / 2).

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, channels_in, H, W) -> (B, channels_out, ceil(H / 2), ceil(W / 2))."""
        return self.conv(x)


class Upsample(nn.Module):
    """Each pixel becomes 2x2 pixels by its own linear map (Shi et al. 2016, eq. 4); odd sizes lose the last row.

    Args:
        channels_in: channels of x.
        channels_out: channels of the result.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, 4 * channels_out, 1)
        # The four positions start with the same map: nearest-neighbour interpolation.
        with torch.no_grad():
            for parameter in self.conv.parameters():
                parameter.copy_(parameter[::4].repeat_interleave(4, 0))

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        """x (B, channels_in, h, w) -> (B, channels_out, *size) with size = (2 h or 2 h - 1, 2 w or 2 w - 1)."""
        return F.pixel_shuffle(self.conv(x), 2)[..., : size[0], : size[1]]
