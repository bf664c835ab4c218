"""Watching the energies of data and chains while an energy-based model is trained by contrastive divergence."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from scorefield.errors import NumericalError
from scorefield.training.callbacks.guard import end_run


class DivergedError(NumericalError):
    """The energies of data and chains have run apart."""


class EnergyGapGuard(pl.Callback):
    """Ends a run whose energy gap, E(data) - E(chains), has run away, before its numbers overflow.

    In a healthy run the gap hovers around zero. When the chains cannot follow the energy any more, its running mean
    |gap| grows from step to step; no later step brings it back, and only an earlier checkpoint is of use.

    Args:
        limit: largest running mean of |gap|, > 0, in nats.
        window: steps of the running mean (its time constant), >= 1.
        every: steps from one reading to the next, >= 1; a reading holds up an accelerator.
    """

    def __init__(self, limit: float = 100.0, window: int = 50, every: int = 10) -> None:
        if limit <= 0:
            raise ValueError(f"limit={limit} nats must be positive")
        if window < 1 or every < 1:
            raise ValueError(f"window={window} and every={every} count steps and must be at least 1")
        self.limit, self.window, self.every = limit, window, every
        self._mean: Tensor | None = None

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        gap = pl_module.newest_loss.log.get("energy_gap")
        if gap is None:
            return
        newest = gap.detach().mean().abs().double()
        self._mean = newest if self._mean is None else self._mean + (newest - self._mean) / self.window
        if (batch_idx + 1) % self.every == 0:
            self._judge(trainer, pl_module)

    def _judge(self, trainer: pl.Trainer, module: Any) -> None:
        """Read the mean over all processes; they call this together."""
        assert self._mean is not None
        mean = float(trainer.strategy.reduce(self._mean, reduce_op="mean"))
        if mean <= self.limit:
            return
        told = {name: float(values.mean()) for name, values in module.newest_loss.log.items()}
        lr = trainer.optimizers[0].param_groups[0]["lr"]
        end_run(
            trainer,
            DivergedError(
                f"step {trainer.global_step}: training diverges, the mean energy gap |E(data) - E(chains)| is "
                f"{mean:.4g} nats and the limit {self.limit:.4g}; of the newest batch: "
                + ", ".join(f"{name} {value:.4g}" for name, value in told.items())
                + f"\n  what helps, in this order: a smaller learning rate (now {lr:.3g}), more chain steps "
                "(objective.k), a penalty on the energies (objective.penalty), smooth activations, persistent chains "
                "(objective=pcd); then go on from an earlier checkpoint, or start anew with another seed"
            ),
        )

    def state_dict(self) -> dict[str, Any]:
        return {} if self._mean is None else {"mean": float(self._mean)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if "mean" in state_dict:
            self._mean = torch.tensor(state_dict["mean"], dtype=torch.float64)
