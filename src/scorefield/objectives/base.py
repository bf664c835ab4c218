"""Training objectives: a loss per sample, with what it is worth knowing about it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from torch import Tensor, nn

from scorefield.models.base import Cond, ScoreModel
from scorefield.noise import Noise


@dataclass(frozen=True)
class Loss:
    """The loss of each sample of a batch.

    Args:
        per_sample: weighted loss, (B,); its mean is what training minimises.
        t: time at which each sample was perturbed, (B,).
        log: further values per sample worth recording, each (B,).
    """

    per_sample: Tensor
    t: Tensor
    log: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module, ABC):
    """A loss of a model on clean data. A module, so that an objective's own state is moved and checkpointed.

    What differs from process to process (chains that each of them runs) is not a parameter or buffer: it is told by
    `process_state` and taken back by `load_process_state`, and a checkpoint holds that of every process.
    """

    @abstractmethod
    def forward(self, model: ScoreModel, x: Tensor, cond: Cond | None, noise: Noise) -> Loss:
        """Loss of each clean sample x (B, *event)."""

    def process_state(self) -> dict[str, Tensor]:
        """What this process alone must find again when it goes on."""
        return {}

    def load_process_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `process_state` told."""
