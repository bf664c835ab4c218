"""Trains a tiny run with a probe on every process; run as a module, so that Lightning can start it again."""

import os
import signal
import sys
from pathlib import Path

import torch

from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()

import pytorch_lightning as pl  # noqa: E402

from tests.training.tiny import energy, fit, plane  # noqa: E402


class Draws(pl.Callback):
    """Writes what a process trained on and what it ended with."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batches: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer, *_) -> None:
        if trainer.global_rank == 1 and trainer.global_step == int(os.environ.get("TELL_SECOND_AT", -1)):
            os.kill(os.getpid(), signal.SIGUSR1)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.batches.append({"t": outputs["t"], "per_sample": outputs["per_sample"], **batch})

    def on_train_end(self, trainer, pl_module) -> None:
        ema = next(c for c in trainer.callbacks if type(c).__name__ == "EMA")
        state = {
            "batches": self.batches,
            "weights": pl_module.model.state_dict(),
            "ema": ema.model.state_dict(),
            "optimizer": trainer.optimizers[0].state_dict()["state"],
        }
        torch.save(state, self.folder / f"process-{trainer.global_rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    make = energy if os.environ.get("ENERGY") else plane
    config = make(folder / "run", "trainer=ddp_cpu", "optim=adam", *sys.argv[2:])
    checkpoint = os.environ.get("RESUME_FROM")
    fit(config, Path(checkpoint) if checkpoint else None, Draws(folder))
