"""A tiny run that meets bad numbers; as a module it is what two processes run."""

import sys
from pathlib import Path

import torch

from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()

import pytorch_lightning as pl  # noqa: E402

from scorefield.cli.exits import answered  # noqa: E402
from tests.training.tiny import fit, plane  # noqa: E402


class Poison(pl.Callback):
    """Makes one example of some batches nan, some gradients infinite, or some losses nan whose gradients stay finite.

    Keeps the weights after every step.
    """

    def __init__(self, batches=(), gradients=(), losses=(), rank=0) -> None:
        self.batches, self.gradients, self.losses, self.rank = batches, gradients, losses, rank
        self.weights: list[dict[str, torch.Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if pl_module.batch_number in self.batches and trainer.global_rank == self.rank:
            batch["x"][5, 0] = torch.nan

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if pl_module.batch_number in self.losses and trainer.global_rank == self.rank:
            pl_module.newest_loss.per_sample[5] = torch.nan

    def on_after_backward(self, trainer, pl_module) -> None:
        if pl_module.batch_number in self.gradients:
            next(pl_module.model.parameters()).grad.view(-1)[0] = torch.inf

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.weights.append({name: tensor.clone() for name, tensor in pl_module.model.state_dict().items()})


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kind = Path(sys.argv[1]), sys.argv[2]
    poison = Poison(**{kind: (2,)}, rank=1)
    with answered():
        parts = fit(plane(folder / "run", "trainer=ddp_cpu", "optim=adam", *sys.argv[3:]), None, poison)
        torch.save(poison.weights, folder / f"weights-{parts.trainer.global_rank}.pt")
