"""How a network's calls are carried out: precision, memory layout, compilation, what is kept for the backward pass.

Nothing here changes what is computed beyond rounding, nor a parameter's name. Times, coefficients, states and losses
stay in their own precision; only the network runs in a lower one.
"""

import ctypes
import platform
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.nets import group_norm, winograd
from scorefield.nets.group_norm import ActivatedGroupNorm
from scorefield.nets.layers import Recomputing
from scorefield.nets.native import NoCompilerError
from scorefield.nets.pointwise import PointwiseConv2d
from scorefield.nets.winograd import WinogradConv2d

# Of mallopt (malloc.h): M_MMAP_THRESHOLD, arrays up to a GiB come from the heap; M_TRIM_THRESHOLD, which never shrinks.
_KEEPING = {-3: 2**30, -1: -1}


def _compiled(switch: str, compile_it: Callable[[], Any]) -> None:
    """Compile, or say which switch wanted it.

    Raises:
        ValueError: there is no compiler that can.
    """
    try:
        compile_it()
    except NoCompilerError as error:
        raise ValueError(f"compute.{switch}=true: {error}; or take compute=plain") from None


@dataclass(frozen=True)
class Compute:
    """Settings of a network's calls.

    Args:
        bf16: run the network under autocast to bfloat16; its parameters stay as they are.
        compiled: compile the network in place by torch.compile, at its first call.
        graphs: replay the compiled network as one CUDA graph for each shape of its input, which spares a GPU the wait
            for the host between its kernels (torch.compile's mode "reduce-overhead"); wants ``compiled``. A backward
            pass has to follow its forward pass before the network is called again. On a CPU there are no such graphs.
        recompute: forget the activations of blocks after the forward pass and compute them again in the backward pass
            (Chen et al. 2016): less memory for one more forward pass.
        channels_last: keep the channels of an image side by side in memory, as fast convolutions want them.
        winograd: on a CPU, 3x3 convolutions by Winograd's filtering where that pays, see `WinogradConv2d`, and 1x1
            convolutions as one product; wants ``channels_last`` and a C compiler.
        fused_norms: on a CPU, group normalisations with the SiLU after them in one pass where a network has such, see
            `ActivatedGroupNorm`; wants ``channels_last`` and a C compiler.
        keep_memory: let this process keep the memory that arrays leave behind for the next ones, where its C library is
            glibc; by itself that gives large ones back at once, and waits for each page of the next anew.
        tf32: let float32 products of this process round their factors to TF32, on GPUs that have it.

    Raises:
        ValueError: from `prepare`, where a setting means nothing for a network.
    """

    bf16: bool = False
    compiled: bool = False
    graphs: bool = False
    recompute: bool = False
    channels_last: bool = False
    winograd: bool = False
    fused_norms: bool = False
    keep_memory: bool = False
    tf32: bool = False

    def prepare(self, net: nn.Module) -> None:
        """Set a network up, once."""
        if self.graphs and not self.compiled:
            raise ValueError("compute.graphs=true replays a compiled network and needs compute.compiled=true")
        for switch, chosen in (("winograd", self.winograd), ("fused_norms", self.fused_norms)):
            if chosen and self.compiled:
                raise ValueError(
                    f"compute.{switch}=true and compute.compiled=true exclude each other: torch.compile cannot trace "
                    "what is in C; on a CPU compute=cpu alone is the faster one"
                )
        blocks = [module for module in net.modules() if isinstance(module, Recomputing)]
        if self.recompute and not blocks:
            raise ValueError(
                f"compute.recompute=true, but {type(net).__name__} has no block that can be computed again"
            )
        for block in blocks:
            block.recompute = self.recompute
        if self.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if self.winograd:
            convolutions = [module for module in net.modules() if WinogradConv2d.fits(module)]
            if not convolutions or not self.channels_last:
                raise ValueError(
                    f"compute.winograd=true needs 3x3 convolutions, of which {type(net).__name__} has "
                    f"{len(convolutions)}, and compute.channels_last=true"
                )
            _compiled("winograd", lambda: winograd.compiled(torch.float32))
            for module in convolutions:
                module.__class__ = WinogradConv2d  # the same parameters under the same names, also in a copy
            for module in net.modules():
                if PointwiseConv2d.fits(module):
                    module.__class__ = PointwiseConv2d
        if self.fused_norms:
            if not self.channels_last:
                raise ValueError("compute.fused_norms=true needs compute.channels_last=true")
            _compiled("fused_norms", group_norm.compiled)
            for module in net.modules():
                if ActivatedGroupNorm.fits(module):
                    module.__class__ = ActivatedGroupNorm
        if self.keep_memory and platform.libc_ver()[0] == "glibc":
            for option, value in _KEEPING.items():
                ctypes.CDLL(None).mallopt(option, value)
        if self.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True

    def call(self, net: nn.Module, x: Tensor, *others: Tensor | None) -> Tensor:
        """net(x, *others), of the type of x."""
        if self.compiled and net._compiled_call_impl is None:
            # Here, since a copy of a network, as the averaged one is, comes without.
            net.compile(mode="reduce-overhead" if self.graphs else None)
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            out: Tensor = net(x, *others)
        return out.to(x.dtype, copy=self.graphs)  # the next replay writes over its output
