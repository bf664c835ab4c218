"""A tiny run of two processes of which one dies in the third step; run as a module, so that Lightning can repeat it."""

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


def raises() -> None:
    raise DyingError("this process has had enough")


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def leaves() -> None:
    os._exit(9)


class Death(pl.Callback):
    """Lets one process die: in a step, or at start-up while the other waits for it or has not come yet."""

    def __init__(self, how: str, rank: int, when: str) -> None:
        self.how, self.rank, self.when = how, rank, when

    def _die(self, trainer: pl.Trainer, when: str) -> None:
        if when == self.when and trainer.global_rank == self.rank:
            globals()[self.how]()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if batch_idx == 2:
            self._die(trainer, "step")
            if self.when == "step" and "alone" in sys.argv:  # the other process waits for nobody and cannot notice
                time.sleep(600)


class Dying(Evaluator):
    """Dies in an evaluation, while the other process waits for its share."""

    def __init__(self, how: str, rank: int) -> None:
        super().__init__()
        self.how, self.rank = how, rank

    def evaluate(self, occasion):
        if occasion.trainer.global_rank == self.rank:
            globals()[self.how]()
        return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, how, rank, when = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    if when == "start" and int(os.environ.get("LOCAL_RANK", 0)) == rank == 1:
        globals()[how]()
    callback = Dying(how, rank) if when == "evaluation" else Death(how, rank, when)
    fit(plane(folder / "run", "trainer=ddp_cpu", "optim=adam"), None, callback)
