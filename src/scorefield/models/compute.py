"""How a network's calls are carried out: precision, memory layout, compilation, what is kept for the backward pass.

Nothing here changes what is computed beyond rounding, nor a parameter's name. Times, coefficients, states and losses
stay in their own precision; only the network runs in a lower one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scorefield.nets.layers import Recomputing
from scorefield.nets.winograd import WinogradConv2d


@dataclass(frozen=True)
class Compute:
    """Settings of a network's calls.

    Args:
        bf16: run the network under autocast to bfloat16; its parameters stay as they are.
        compiled: compile the network in place by torch.compile, at its first call.
        recompute: forget the activations of blocks after the forward pass and compute them again in the backward pass
            (Chen et al. 2016): less memory for one more forward pass.
        channels_last: keep the channels of an image side by side in memory, as fast convolutions want them.
        winograd: on a CPU, 3x3 convolutions by Winograd's filtering where that pays, see `WinogradConv2d`; wants
            ``channels_last``.
        tf32: let float32 products of this process round their factors to TF32, on GPUs that have it.

    Raises:
        ValueError: from `prepare`, where a setting means nothing for a network.
    """

    bf16: bool = False
    compiled: bool = False
    recompute: bool = False
    channels_last: bool = False
    winograd: bool = False
    tf32: bool = False

    def prepare(self, net: nn.Module) -> None:
        """Set a network up, once."""
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
            for module in convolutions:
                module.__class__ = WinogradConv2d  # the same parameters under the same names, also in a copy
        if self.tf32:
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = True

    def call(self, net: nn.Module, x: Tensor, *others: Tensor) -> Tensor:
        """net(x, *others), of the type of x."""
        if self.compiled and net._compiled_call_impl is None:
            net.compile()  # here, since a copy of a network, as the averaged one is, comes without
        if self.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if not self.bf16:
            out: Tensor = net(x, *others)
            return out
        with torch.autocast(x.device.type, torch.bfloat16):
            out = net(x, *others)
        return out.to(x.dtype)
