"""Small networks that several claims train."""

from torch import Tensor, nn


class PlainMLP(nn.Module):
    """Three linear maps and softplus, told of no noise level: a toy network of Song & Ermon 2019 (appendix B.1).

    Args:
        dimension: of a sample.
        width: of the hidden vectors.
    """

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(dimension, width),
            nn.Softplus(),
            nn.Linear(width, width),
            nn.Softplus(),
            nn.Linear(width, dimension),
        )

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (B, dimension), label (B,) -> like x."""
        out: Tensor = self.layers(x)
        return out
