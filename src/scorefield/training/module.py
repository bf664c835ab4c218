"""The LightningModule: wires a model, an objective and an optimiser, and nothing else."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from scorefield.errors import UserError
from scorefield.models import ScoreModel
from scorefield.models.guidance import drop_labels
from scorefield.noise import Noise, StreamNoise, key_of
from scorefield.objectives import Loss, Objective

# "x" (B, *event) in model space, "index" (B,), "label" (B,) where the data have classes, and "augment_labels" (B, k)
# where images were augmented.
Batch = dict[str, Tensor]


def match_layouts(optimizer: Optimizer) -> None:
    """Lay out an optimiser's state in memory as the parameters it belongs to.

    A checkpoint brings the state in the layout that it was saved in. On a CPU, torch's fused kernels go through all of
    them as they lie in memory, and would give a parameter the moments of others.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class ScoreModule(pl.LightningModule):
    """Trains a score model.

    All randomness of a training step comes from streams keyed by (seed, purpose, rank, batch number): ranks differ,
    evaluation cannot shift it, and a resumed run draws what the interrupted one would have drawn.

    Args:
        model: the model that is trained.
        objective: its loss.
        optimizer: makes the optimiser from the parameters.
        lr_schedule: makes the learning-rate schedule, stepped once per optimiser step; None keeps the rate constant.
        seed: seed of the training randomness.
        conditional: whether class labels in a batch are passed to the model.
        label_dropout: probability with which a training step leaves out the label of an example, in [0, 1).

    Raises:
        ValueError: ``label_dropout`` is out of range, or there are no labels to leave out.
    """

    def __init__(
        self,
        model: ScoreModel,
        objective: Objective,
        optimizer: Callable[[Iterable[Parameter]], Optimizer],
        lr_schedule: Callable[[Optimizer], LRScheduler] | None = None,
        seed: int = 0,
        conditional: bool = False,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_dropout < 1 or (label_dropout and not conditional):
            raise ValueError(
                f"label_dropout={label_dropout} must be in [0, 1), and 0 for a model that is told no labels "
                f"(conditional={conditional})"
            )
        self.model = model
        self.objective = objective
        self.seed = seed
        self.conditional = conditional
        self.label_dropout = label_dropout
        self.newest_loss: Loss | None = None  # of the latest training batch, for whoever watches it
        self._loaded_step = 0
        self._make_optimizer = optimizer
        self._make_lr_schedule = lr_schedule

    def conditions(self, batch: Batch) -> dict[str, Tensor] | None:
        """What the model is told besides x_t."""
        cond = {"label": batch["label"]} if self.conditional else {}
        if "augment_labels" in batch:
            cond["augment_labels"] = batch["augment_labels"]
        return cond or None

    def loss(self, model: ScoreModel, batch: Batch, noise: Noise) -> Loss:
        """The objective on one batch, some of its labels left out, with the given randomness."""
        cond = drop_labels(self.conditions(batch), self.label_dropout, noise)
        loss: Loss = self.objective(model, batch["x"], cond, noise)
        return loss

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            match_layouts(optimizer)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # Dropout draws from the global generator; keyed here, it too survives evaluation and resuming.
        torch.manual_seed(key_of(self.seed, "layers", self.global_rank, self.batch_number) & (2**63 - 1))

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        noise = StreamNoise(self.seed, "objective", self.global_rank, self.batch_number)
        loss = self.loss(self.model, batch, noise)
        self.newest_loss = replace(loss, per_sample=loss.per_sample.detach())
        return {"loss": loss.per_sample.mean(), "per_sample": self.newest_loss.per_sample, "t": loss.t}

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()  # now, and not before the next backward pass: the next activations take their place

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = self.objective.process_state()
        if not own:  # the same on every process: an objective has such a state or not
            return
        states: list[Any] = [own]
        if self.trainer.world_size > 1:
            states = [None] * self.trainer.world_size
            dist.all_gather_object(states, {name: tensor.cpu() for name, tensor in own.items()})
        checkpoint["processes"] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._loaded_step = checkpoint["global_step"]
        states = checkpoint.get("processes")
        if states is None or not self.trainer.training:
            return
        if len(states) != self.trainer.world_size:
            raise UserError(
                f"the checkpoint holds the chains of {len(states)} processes, and this run has "
                f"{self.trainer.world_size}; go on with trainer.devices={len(states)} on one machine, or start anew"
            )
        self.objective.load_process_state(states[self.global_rank])

    @property
    def steps_done(self) -> int:
        """Optimiser steps that made the present weights, also where they were loaded to be evaluated only."""
        return max(self.trainer.global_step, self._loaded_step)

    @property
    def batch_number(self) -> int:
        """Number of the current training batch since the start of the run, counted across resumptions."""
        return self.trainer.fit_loop.total_batch_idx

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Nothing per batch: evaluators run at the end of validation, each on the data and weights it states."""

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Nothing per batch, as in validation."""

    def configure_optimizers(self) -> Any:
        optimizer = self._make_optimizer(p for p in self.model.parameters() if p.requires_grad)
        if self._make_lr_schedule is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self._make_lr_schedule(optimizer), "interval": "step"},
        }
