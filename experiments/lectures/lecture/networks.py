"""Models of few parameters, and a small network, that several claims train."""

import torch
from torch import Tensor, nn

from scorefield.models import Cond, ScoreModel
from scorefield.prediction import Prediction, Score
from scorefield.schedules import Schedule


class LinearScore(ScoreModel):
    """s(x) = -theta x: the score of N(0, I / theta).

    Args:
        schedule: the schedule that perturbs the data.
        theta: where it starts.
    """

    def __init__(self, schedule: Schedule, theta: float = 0.0) -> None:
        super().__init__(schedule)
        self.theta = nn.Parameter(torch.tensor(theta, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None) -> Prediction:
        return Prediction(self.schedule, x, t, -self.theta * x, Score())


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
