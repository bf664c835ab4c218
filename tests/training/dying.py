"""A tiny run of two processes of which one dies; run as a module, so that Lightning can repeat it."""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from scorefield.torchvision_ops import declare_missing_operators

declare_missing_operators()

import pytorch_lightning as pl  # noqa: E402

from scorefield.training.callbacks import Evaluator  # noqa: E402
from tests.training.tiny import fit, plane  # noqa: E402


class DyingError(RuntimeError):
    """What a process raises that dies of an exception."""


def die(how: str, folder: Path) -> None:
    """Die, and leave the time of death."""
    (folder / "death.txt").write_text(f"{time.time()}\n")
    if how == "raises":
        raise DyingError("this process has had enough")
    os.kill(os.getpid(), signal.SIGKILL)


class InStep(pl.Callback):
    """Lets one process die in the third step; with ``alone`` the other one waits for nobody and cannot notice."""

    def __init__(self, how: str, folder: Path, rank: int, alone: bool) -> None:
        self.how, self.folder, self.rank, self.alone = how, folder, rank, alone

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2 and trainer.global_rank == self.rank:
            die(self.how, self.folder)
        if batch_idx == 2 and self.alone:
            time.sleep(600)


class InEvaluation(Evaluator):
    """Lets one process die in an evaluation, while the other waits for its share."""

    def __init__(self, how: str, folder: Path, rank: int) -> None:
        super().__init__()
        self.how, self.folder, self.rank = how, folder, rank

    def evaluate(self, occasion):
        if occasion.trainer.global_rank == self.rank:
            die(self.how, self.folder)
        return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, how, rank, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    in_step = InStep(how, folder, rank, "alone" in sys.argv)
    death = in_step if when == "step" else InEvaluation(how, folder, rank)
    fit(plane(folder / "run", "trainer=ddp_cpu", "optim=adam", "callbacks.likelihood=null"), None, death)
