"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).

A tile of 4x4 outputs is made from the tile d of 6x6 inputs under it and the filter g as

    Y = A^T [(G g G^T) * (B^T d B)] A,        * elementwise

(Lavin and Gray 2016, eq. 8, with the matrices of their section 4.2). Summed over channels the middle is 36 matrix
products over all tiles at once, which is where the time goes. Rounding errors are two to four times those of the direct
sum. Worth it on CPUs, whose libraries sum directly; cuDNN chooses for itself. Where tiles do not pay, sums are direct,
and the filters' gradient of small images is one product with the image unfolded.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))

_FEW = 4  # pixels for each filter, up to which an unfolded image is small beside the filters
_TILES = 64  # of one block: what a block makes stays near the core, and its products are still large


def _both_axes(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The map X -> M X M^T of a square of pixels, as a matrix on its entries row by row."""
    m = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(m, m).to(like)


def _blocks(*images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same images of each (B, C, H, W), as many at a time as have about `_TILES` tiles."""
    height, width = images[0].shape[2:]
    at_once = max(1, _TILES // (height * width // 16))
    yield from zip(*(x.split(at_once) for x in images), strict=True)


def _seen(x: Tensor, map_in: Tensor) -> Tensor:
    """B^T d B of every tile of x (b, C, H, W), with the map (36, 36) of B on both axes: (36, tiles, C)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    tiles = padded.unfold(1, 6, 4).unfold(2, 6, 4).permute(4, 5, 0, 1, 2, 3).reshape(36, -1)
    return (map_in @ tiles).reshape(36, -1, x.shape[1])


def _filters(weight: Tensor) -> Tensor:
    """G g G^T of every filter of weight (K, C, 3, 3): (K, 36, C), channels side by side in memory as they are used."""
    k, c = weight.shape[:2]
    return _both_axes(_G, weight) @ weight.permute(0, 2, 3, 1).reshape(k, 9, c)


def _filtered(x: Tensor, filters: Tensor) -> Tensor:
    """Images x (B, C, H, W) after transformed filters (36, C, K): (B, K, H, W)."""
    (_, _, height, width), out = x.shape, []
    map_in, map_out = _both_axes(_B, x), _both_axes(_A, x)
    for (block,) in _blocks(x):
        products = torch.bmm(_seen(block, map_in), filters).reshape(36, -1)
        tiles = (map_out @ products).reshape(4, 4, len(block), height // 4, width // 4, -1)
        out.append(tiles.permute(2, 3, 0, 4, 1, 5).reshape(len(block), height, width, -1))
    return torch.cat(out).permute(0, 3, 1, 2)


def _convolve(x: Tensor, weight: Tensor) -> Tensor:
    if not pays(x, len(weight)):
        return F.conv2d(x, weight, padding=1)
    return _filtered(x, _filters(weight).permute(1, 2, 0))


def _convolve_back(g: Tensor, weight: Tensor) -> Tensor:
    if not pays(g, weight.shape[1]):
        return conv2d_input((len(g), weight.shape[1], *g.shape[2:]), weight, g, padding=1)
    return _filtered(g, _filters(weight.flip(2, 3)).transpose(0, 1))


def _correlate(x: Tensor, g: Tensor) -> Tensor:
    c, k = x.shape[1], g.shape[1]
    if pays(x, k):
        return _correlate_tiles(x, g)
    if not _small(x, k):
        return conv2d_weight(x, torch.Size((k, c, 3, 3)), g, padding=1)
    # One matrix product, at nearly twice the speed of the library's loop.
    around = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    columns = around.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * c)
    return (g.permute(0, 2, 3, 1).reshape(-1, k).T @ columns).reshape(k, 3, 3, c).permute(0, 3, 1, 2)


def _correlate_tiles(x: Tensor, g: Tensor) -> Tensor:
    (_, c, height, width), k = x.shape, g.shape[1]
    map_in, map_out = _both_axes(_B, x), _both_axes(_A, g)
    total: Tensor | None = None
    for block, its in _blocks(x, g):
        tiles = its.permute(0, 2, 3, 1).reshape(len(its), height // 4, 4, width // 4, 4, k)
        spread = (map_out.T @ tiles.permute(2, 4, 0, 1, 3, 5).reshape(16, -1)).reshape(36, -1, k).mT
        seen = _seen(block, map_in)
        total = torch.bmm(spread, seen) if total is None else torch.baddbmm(total, spread, seen)
    assert total is not None
    return (_both_axes(_G, x).T @ total.transpose(0, 1)).reshape(k, 3, 3, c).permute(0, 3, 1, 2)


class _Trilinear(Function):
    """A part of sum(g (x * w)), which is linear in x, g and w each; its gradients are the other parts.

    What is kept for the backward pass are the two arguments alone, as for the direct sum.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @classmethod
    def tangent(cls, ctx: Any, first: Tensor | None, second: Tensor | None) -> Tensor:
        """The derivative along a change of either argument."""
        one, two = ctx.saved_tensors
        changes = [] if first is None else [cls.apply(first, two)]
        changes += [] if second is None else [cls.apply(one, second)]
        return sum(changes[1:], changes[0])


class _Convolution(_Trilinear):
    """x * w: its gradient for g."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return _convolve(x, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, weight), (to_x, to_weight) = ctx.saved_tensors, ctx.needs_input_grad
        return _Transposed.apply(g, weight) if to_x else None, _Correlation.apply(x, g) if to_weight else None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None) -> Tensor:
        return _Convolution.tangent(ctx, dx, dweight)


class _Transposed(_Trilinear):
    """Its gradient for x."""

    @staticmethod
    def forward(g: Tensor, weight: Tensor) -> Tensor:
        return _convolve_back(g, weight)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (g, weight), (to_g, to_weight) = ctx.saved_tensors, ctx.needs_input_grad
        return _Convolution.apply(h, weight) if to_g else None, _Correlation.apply(h, g) if to_weight else None

    @staticmethod
    def jvp(ctx: Any, dg: Tensor | None, dweight: Tensor | None) -> Tensor:
        return _Transposed.tangent(ctx, dg, dweight)


class _Correlation(_Trilinear):
    """Its gradient for w."""

    @staticmethod
    def forward(x: Tensor, g: Tensor) -> Tensor:
        return _correlate(x, g)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (x, g), (to_x, to_g) = ctx.saved_tensors, ctx.needs_input_grad
        return _Transposed.apply(g, h) if to_x else None, _Convolution.apply(x, h) if to_g else None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dg: Tensor | None) -> Tensor:
        return _Correlation.tangent(ctx, dx, dg)


def _small(x: Tensor, filters: int) -> bool:
    """Whether x (B, C, H, W) unfolded for the gradient of so many filters is small beside them."""
    return x.numel() // x.shape[1] <= _FEW * filters


def pays(x: Tensor, filters: int) -> bool:
    """Whether tiles of x (B, C, H, W) are whole, and products with so many filters at most 0.4 of the direct ones.

    The transforms count too, so that few channels or few tiles are summed directly.
    """
    (b, c, height, width), k = x.shape, filters
    if height % 4 or width % 4:
        return False
    tiles = b * height * width // 16
    transforms = tiles * (36 * 36 * c + 36 * 16 * k) + 36 * 9 * c * k
    return transforms + 36 * tiles * c * k <= 0.4 * 9 * 16 * tiles * c * k


class WinogradConv2d(nn.Conv2d):
    """A convolution of a 3x3 filter, stride 1 and one row of zeros around, by F(4x4, 3x3) wherever that `pays`.

    Elsewhere, and off the CPU, it is the direct sum.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, K, H, W)."""
        k = self.out_channels
        if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or not (_small(x, k) or pays(x, k)):
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, self.weight)
        return y if self.bias is None else y + self.bias[:, None, None]

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is a convolution of this kind."""
        return (
            isinstance(module, nn.Conv2d)
            and (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
            == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and module.padding_mode == "zeros"
        )
