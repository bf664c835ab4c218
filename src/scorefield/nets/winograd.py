"""3x3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4x4, 3x3).

A tile of 4x4 outputs is made from the tile d of 6x6 inputs under it and the filter w as

    Y = A^T [(G w G^T) * (B^T d B)] A,        * elementwise

(Lavin and Gray 2016, eq. 8, with the matrices of their section 4.2). Summed over channels the middle is 36 matrix
products over all tiles at once, which is where the time goes; the transforms around it are those of winograd.c.
Rounding errors are two to four times those of the direct sum. Worth it on CPUs, whose libraries sum directly; cuDNN
chooses for itself. Where tiles do not pay, sums are direct: of small images one product with the image unfolded, at up
to twice the speed of the library's loop, and else the library's.
"""

import threading
from collections.abc import Iterator
from ctypes import c_int, c_long, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F
from torch.nn.grad import conv2d_input, conv2d_weight

from scorefield.nets.native import in_threads, library

_TYPES = {torch.float32: "float", torch.float64: "double"}
_FEW = 4  # pixels for each filter, up to which an unfolded image is small beside the filters
_APART = 192  # bytes between the 36 parts of tiles: those a multiple of a page apart share a few lines of a cache
_TILES = 128  # of one block: what a block makes stays near the core, and its products are still large


def compiled(dtype: torch.dtype) -> Any:
    """The transforms for numbers of a type; `NoCompilerError` where they cannot be compiled."""
    return library(Path(__file__).with_name("winograd.c"), f"REAL={_TYPES[dtype]}")


class _Room(threading.local):
    """Memory for tiles and transformed filters, one piece for each purpose, used again by each sum of this thread.

    What was just written is still in the cache, which fresh memory is not, and tiles are small beside it.
    """

    def __init__(self) -> None:
        self.pieces: dict[tuple[str, torch.dtype], Tensor] = {}

    def tiles(self, purpose: str, rows: int, channels: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised (36, rows, channels), for what a transform writes."""
        stride = rows * channels + _APART // dtype.itemsize
        flat = self._piece(purpose, 36 * stride, dtype).view(36, stride)
        return flat[:, : rows * channels].view(36, rows, channels)

    def products(self, purpose: str, rows: int, channels: int, dtype: torch.dtype) -> Tensor:
        """Uninitialised (36, rows, channels), for what products write, which the library wants without gaps."""
        return self._piece(purpose, 36 * rows * channels, dtype).view(36, rows, channels)

    def _piece(self, purpose: str, numbers: int, dtype: torch.dtype) -> Tensor:
        piece = self.pieces.get((purpose, dtype))
        if piece is None or piece.numel() < numbers:
            with torch.inference_mode(False):  # else it could not be used outside again
                piece = self.pieces[purpose, dtype] = torch.empty(numbers, dtype=dtype)
        return piece[:numbers]


_room = _Room()


def _run(transform: str, arrays: list[Tensor | None], tiles: Tensor, rows: int, *sizes: int) -> None:
    """Transform so many images or filters, in as many threads as torch has."""
    function, stride = getattr(compiled(tiles.dtype), transform), c_long(tiles.stride(0))
    places = [c_void_p(None if a is None else a.data_ptr()) for a in arrays]

    def part(first: int, last: int) -> None:
        function(*places, stride, *(c_int(n) for n in (first, last, *sizes)))

    in_threads(part, rows)


def _pixels(x: Tensor) -> Tensor:
    """x (B, C, H, W) as (B, H, W, C), channels side by side in memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def _image_blocks(*images: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same images of each (B, H, W, C), as many at a time as have about `_TILES` tiles for each thread."""
    _, height, width, _ = images[0].shape
    at_once = max(1, _TILES * torch.get_num_threads() // (height * width // 16))
    yield from zip(*(x.split(at_once) for x in images), strict=True)


def _to_tiles(transform: str, images: Tensor) -> Tensor:
    """The tiles of images (b, H, W, C) after a transform: (36, tiles, C)."""
    b, height, width, c = images.shape
    tiles = _room.tiles(transform, b * height * width // 16, c, images.dtype)
    _run(transform, [images, tiles], tiles, b, height, width, c)
    return tiles


def _filters(weight: Tensor, turned: bool) -> Tensor:
    """G w G^T of filters (K, C, 3, 3), of each turned around where asked for: (36, K, C)."""
    k, c = weight.shape[:2]
    tiles = _room.tiles("filters", k, c, weight.dtype)
    _run("filters_to_tiles", [_pixels(weight), tiles], tiles, k, c, turned)
    return tiles


def _filtered(x: Tensor, filters: Tensor, bias: Tensor | None = None) -> Tensor:
    """Images x (B, C, H, W) after transformed filters (36, C, K), and a bias (K): (B, K, H, W)."""
    x = _pixels(x)
    y = x.new_empty(*x.shape[:3], filters.shape[2])
    for block, out in _image_blocks(x, y):
        seen = _to_tiles("image_to_tiles", block)
        tiles = _room.products("products", seen.shape[1], filters.shape[2], x.dtype)
        torch.bmm(seen, filters, out=tiles)
        _run("tiles_to_image", [tiles, bias, out], tiles, *out.shape)
    return y.permute(0, 3, 1, 2)


def _unfolded(x: Tensor) -> Tensor:
    """What every pixel of x (B, C, H, W) sees of it: (B H W, 9 C)."""
    around = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)
    return around.permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[1])


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (b, _, height, width), k = x.shape, len(weight)
    if pays(x, k):
        return _filtered(x, _filters(weight, turned=False).mT, None if bias is None else bias.contiguous())
    if not _small(x, k):
        return F.conv2d(x, weight, bias, padding=1)
    y = F.linear(_unfolded(x), _pixels(weight).reshape(k, -1), bias)
    return y.reshape(b, height, width, k).permute(0, 3, 1, 2)


def _convolve_back(g: Tensor, weight: Tensor) -> Tensor:
    (b, k, height, width), c = g.shape, weight.shape[1]
    if pays(g, c):
        return _filtered(g, _filters(weight, turned=True))
    if not _small(g, c):
        return conv2d_input((b, c, height, width), weight, g, padding=1)
    seen = (_pixels(g).reshape(-1, k) @ _pixels(weight).reshape(k, -1)).reshape(b, height, width, 3, 3, c)
    x = g.new_zeros(b, height + 2, width + 2, c)
    for i in range(3):
        for j in range(3):
            x[:, i : i + height, j : j + width] += seen[..., i, j, :]
    return _pixels(x[:, 1:-1, 1:-1].permute(0, 3, 1, 2)).permute(0, 3, 1, 2)


def _correlate(x: Tensor, g: Tensor) -> Tensor:
    c, k = x.shape[1], g.shape[1]
    if pays(x, k):
        return _correlate_tiles(x, g)
    if not _small(x, k):
        return conv2d_weight(x, torch.Size((k, c, 3, 3)), g, padding=1)
    return (_pixels(g).reshape(-1, k).T @ _unfolded(x)).reshape(k, 3, 3, c).permute(0, 3, 1, 2)


def _correlate_tiles(x: Tensor, g: Tensor) -> Tensor:
    c, k = x.shape[1], g.shape[1]
    total = _room.products("filters", k, c, x.dtype)
    for i, (block, its) in enumerate(_image_blocks(_pixels(x), _pixels(g))):
        spread, seen = _to_tiles("gradient_to_tiles", its).mT, _to_tiles("image_to_tiles", block)
        torch.baddbmm(total, spread, seen, beta=float(i > 0), out=total)
    weight = x.new_empty(k, 3, 3, c)
    _run("tiles_to_filters", [total, weight], total, k, c)
    return weight.permute(0, 3, 1, 2)


class _Trilinear(Function):
    """A part of sum(g (x * w)), which is linear in x, g and w each; its gradients are the other parts.

    What is kept for the backward pass are the two arguments alone, as for the direct sum.
    """

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.save_for_forward(*inputs[:2])

    @classmethod
    def tangent(cls, ctx: Any, first: Tensor | None, second: Tensor | None, *others: Tensor) -> Tensor:
        """The derivative along a change of either argument, and other terms."""
        one, two = ctx.saved_tensors
        changes = [] if first is None else [cls.apply(first, two)]
        changes += [] if second is None else [cls.apply(one, second)]
        changes += others
        return sum(changes[1:], changes[0])

    @classmethod
    def batched(cls, of: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """Of several arguments at once: more images, where all else is the same, and else one after another."""
        if dims[0] is not None and set(dims[1:]) == {None} and cls is not _Correlation:
            images = inputs[0].movedim(dims[0], 0)
            return cls.apply(images.flatten(0, 1), *inputs[1:]).unflatten(0, images.shape[:2]), 0
        rows = (
            [a if d is None else a.select(d, i) for a, d in zip(inputs, dims, strict=True)]
            for i in range(of.batch_size)
        )
        return torch.stack([cls.apply(*row) for row in rows]), 0


class _Convolution(_Trilinear):
    """x * w: its gradient for g. A bias, where there is one, is added while the sums are at hand."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return _convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), (to_x, to_weight, *to_bias) = ctx.saved_tensors, ctx.needs_input_grad
        return (
            _Transposed.apply(g, weight) if to_x else None,
            _Correlation.apply(x, g) if to_weight else None,
            *(g.sum((0, 2, 3)) if needed else None for needed in to_bias),
        )

    @staticmethod
    def jvp(ctx: Any, dx: Tensor | None, dweight: Tensor | None, dbias: Tensor | None = None) -> Tensor:
        x, _ = ctx.saved_tensors
        shifts = [] if dbias is None else [dbias[:, None, None].expand(len(x), -1, *x.shape[2:]).contiguous()]
        return _Convolution.tangent(ctx, dx, dweight, *shifts)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _Convolution.batched(info, in_dims, *inputs)


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

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *both: Tensor) -> tuple[Tensor, int]:
        return _Transposed.batched(info, in_dims, *both)


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

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, int | None], *both: Tensor) -> tuple[Tensor, int]:
        return _Correlation.batched(info, in_dims, *both)


def _small(x: Tensor, filters: int) -> bool:
    """Whether x (B, C, H, W) unfolded is small beside so many filters."""
    return x.numel() // x.shape[1] <= _FEW * filters


def pays(x: Tensor, filters: int) -> bool:
    """Whether tiles of x (B, C, H, W) are whole, and with so many filters cost at most 0.7 of the direct products.

    The transforms count too, so that few channels or few tiles are summed directly. In the time of one multiplication
    with its addition, an entry of a channel's tile or of a filter takes about twenty, as measured on one core.
    """
    (b, c, height, width), k = x.shape, filters
    if height % 4 or width % 4:
        return False
    tiles = b * height * width // 16
    transforms = 20 * 36 * (tiles * (c + k) + c * k)
    return transforms + 36 * tiles * c * k <= 0.7 * 9 * 16 * tiles * c * k


class WinogradConv2d(nn.Conv2d):
    """A convolution of a 3x3 filter, stride 1 and one row of zeros around, by F(4x4, 3x3) wherever that `pays`.

    Elsewhere, and off the CPU, it is the direct sum.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) -> (B, K, H, W)."""
        k = self.out_channels
        direct = x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.dtype not in _TYPES
        if direct or not (_small(x, k) or pays(x, k)):
            return super().forward(x)
        y: Tensor = _Convolution.apply(x, self.weight, self.bias)
        return y

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is a convolution of this kind."""
        return (
            isinstance(module, nn.Conv2d)
            and (module.kernel_size, module.stride, module.padding, module.dilation, module.groups)
            == ((3, 3), (1, 1), (1, 1), (1, 1), 1)
            and module.padding_mode == "zeros"
        )
