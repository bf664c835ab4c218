"""Group normalisation and the SiLU after it in one pass over memory, which on a CPU is what both wait for."""

from collections.abc import Callable
from ctypes import c_float, c_int, c_void_p
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from scorefield.nets.native import in_threads, library

_LANES = 16  # numbers of a vector in group_norm.c


def compiled() -> Any:
    """The functions of group_norm.c; `NoCompilerError` where they cannot be compiled."""
    return library(Path(__file__).with_name("group_norm.c"))


def _run(function: str, arrays: list[Tensor], eps: float, groups: int) -> None:
    """Call a function of C for the images x (B, C, H, W) that its arrays are about, of which x is one."""
    b, c, height, width = arrays[0].shape
    call, places = getattr(compiled(), function), [c_void_p(a.data_ptr()) for a in arrays]

    def part(first: int, last: int) -> None:
        call(*places, c_float(eps), *(c_int(n) for n in (first, last, height * width, c, groups)))

    in_threads(part, b)


def _along_channels(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _plain(groups: int, eps: float) -> Callable[..., Tensor]:
    """The same by the library, as a function of x, weight and bias."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        normal = F.group_norm(x, groups, eps=eps)
        return F.silu(weight[..., None, None] * normal + bias[..., None, None])

    return function


def _plain_gradients(groups: int, eps: float) -> Callable[..., tuple[Tensor, ...]]:
    """Its gradients by the library, as a function of g, x, weight and bias."""
    return lambda g, *others: torch.func.vjp(_plain(groups, eps), *others)[1](g)


class _Fused(Function):
    """A function by C of tensors (B, ...), the number of groups and eps, that is differentiated backwards."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        *tensors, groups, eps = inputs
        ctx.of = groups, eps
        ctx.save_for_backward(*tensors)

    @staticmethod
    def flat(times: int, dims: tuple[int | None, ...], *inputs: Any) -> list[Any]:
        """The inputs of so many calls as those of one, for more images."""
        *tensors, groups, eps = inputs
        rows = (
            a.expand(times, *a.shape) if d is None else a.movedim(d, 0) for a, d in zip(tensors, dims, strict=False)
        )
        return [*(a.flatten(0, 1) for a in rows), groups, eps]


class _Activated(_Fused):
    """silu(weight norm(x) + bias) of images x (B, C, H, W), weight and bias (B, C); x is kept for the backward pass."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x = _along_channels(x)
        y = torch.empty_like(x)
        _run("activated", [x, weight.contiguous(), bias.contiguous(), y], eps, groups)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_Gradients.apply(g, *ctx.saved_tensors, *ctx.of), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        y: Tensor = _Activated.apply(*_Fused.flat(info.batch_size, in_dims, *inputs))
        return y.unflatten(0, (info.batch_size, -1)), 0


class _Gradients(_Fused):
    """From the gradient g for it, those for x, weight and bias."""

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        g, x, weight, bias = _along_channels(g), _along_channels(x), weight.contiguous(), bias.contiguous()
        found = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        _run("pulled_back", [g, x, weight, bias, *found], eps, groups)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *torch.func.vjp(_plain_gradients(*ctx.of), *ctx.saved_tensors)[1](gradients), None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], int]:
        found = _Gradients.apply(*_Fused.flat(info.batch_size, in_dims, *inputs))
        return tuple(a.unflatten(0, (info.batch_size, -1)) for a in found), 0


class ActivatedGroupNorm(nn.GroupNorm):
    """Group normalisation that can be asked for the SiLU of itself, which costs little more than itself alone."""

    def takes(self, x: Tensor) -> bool:
        """Whether it can for x: images in single precision on a CPU, with their channels side by side."""
        on_cpu = x.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
        single = x.dtype == self.weight.dtype == torch.float32
        return on_cpu and single and x.ndim == 4 and x.stride(1) == 1

    def silu(self, x: Tensor, factor: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """silu(factor norm(x) + shift) of x (B, C, H, W), factor and shift (B, C); None for one and zero."""
        weight, bias = self.weight.expand(len(x), -1), self.bias.expand(len(x), -1)
        if factor is not None:
            weight, bias = weight * factor, bias * factor
        if shift is not None:
            bias = bias + shift
        y: Tensor = _Activated.apply(x, weight, bias, self.num_groups, self.eps)
        return y

    @staticmethod
    def fits(module: nn.Module) -> bool:
        """Whether a module is a normalisation of this kind."""
        return isinstance(module, nn.GroupNorm) and module.affine and module.num_channels % _LANES == 0
