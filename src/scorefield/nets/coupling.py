"""An invertible map of one image given another, for densities in closed form."""

import torch
from torch import Tensor, nn

from scorefield.nets.layers import zero_init


class ConditionalCouplings(nn.Module):
    """Affine couplings on a checkerboard: y -> y exp(s) + m on one half, s and m read from the other half and from c.

    (Dinh et al. 2017, eq. 7-9, with the squares changing sides from one coupling to the next.) The log-determinant is
    the sum of s. Before training it is the identity.

    Args:
        shape: shape (C, H, W) of y and of c.
        width: channels of the networks that give s and m.
        couplings: number of couplings, even, so that each half has as many.

    Raises:
        ValueError: if the shape is not an image's, or couplings is odd.
    """

    squares: Tensor

    def __init__(self, shape: tuple[int, ...], width: int = 32, couplings: int = 4) -> None:
        super().__init__()
        if len(shape) != 3:
            raise ValueError(f"shape={tuple(shape)} must be an image's, (C, H, W)")
        if couplings < 2 or couplings % 2:
            raise ValueError(f"couplings={couplings} must be an even number of at least 2")
        channels, height, w = shape
        rows, columns = torch.arange(height)[:, None], torch.arange(w)[None]
        self.register_buffer("squares", ((rows + columns) % 2).bool(), persistent=False)
        self.nets = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(2 * channels, width, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(width, width, 3, padding=1),
                nn.SiLU(),
                zero_init(nn.Conv2d(width, 2 * channels, 3, padding=1)),
            )
            for _ in range(couplings)
        )

    def forward(self, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """y and c, (B, C, H, W) -> the image of y, like y, and the log-determinant, (B,)."""
        log_det = y.new_zeros(len(y))
        for i, net in enumerate(self.nets):
            moved = self.squares if i % 2 else ~self.squares
            s, m = net(torch.cat([y.masked_fill(moved, 0.0), c], 1)).chunk(2, 1)
            # Within (-2, 2): a single coupling cannot overflow, and four reach a factor of e^8.
            s = (2 * torch.tanh(s / 2)).masked_fill(~moved, 0.0)
            y = torch.where(moved, y * s.exp() + m, y)
            log_det = log_det + s.flatten(1).sum(1)
        return y, log_det
