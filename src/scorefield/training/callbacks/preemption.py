"""Leaving cleanly when the machine is taken away."""

import signal
import sys
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist

from scorefield.errors import Exit
from scorefield.training.callbacks.checkpoint import Checkpoint


class PreemptedError(SystemExit):
    """The run was asked to stop, has saved itself and can be resumed; exit code 75, or 130 for Ctrl-C."""


class Preemption(pl.Callback):
    """On SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C: finish the step, save a checkpoint when all processes agree, and exit.

    While it trains, the handler only raises a flag, so a signal can neither interrupt a step nor a save, and a second
    one changes nothing; but a second Ctrl-C stops at once, with the checkpoints that there are. Processes compare their
    flags every ``every`` steps; whoever was told, all stop at the same step. Before the first step and after the last
    one there is nothing to save, and the run ends at once. The exit code is 75, or 130 for Ctrl-C.

    Args:
        every: optimiser steps from one comparison to the next, >= 1; matters with several processes only.
    """

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def __init__(self, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        self.every = every
        self._told: int | None = None  # by which signal first
        self._agreed = False
        self._training = False
        self._before: dict[int, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._before = {number: signal.signal(number, self._handle) for number in self.signals}

    def _take_over(self) -> None:
        """Once more, after Lightning has put its own handler before this one; it talks to others in mid-step."""
        for number in self.signals:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT == self._told:
            raise KeyboardInterrupt
        self._told = number if self._told is None else self._told
        if not self._training:
            self._end()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._training = True
        self._take_over()

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._take_over()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        between = (batch_idx + 1) % trainer.accumulate_grad_batches  # half an accumulated gradient cannot be saved
        if between or trainer.global_step % self.every:
            return
        self._agreed = self._any_told(trainer)
        if self._agreed and not self._checkpoint(trainer).waits_for_validation(trainer):
            self._leave(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._training and (self._agreed or self._any_told(trainer)):  # a validation may take longer than many steps
            self._leave(trainer)

    def _any_told(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return self._told is not None
        flag = torch.tensor(float(self._told is not None), device=trainer.strategy.root_device)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag)

    @staticmethod
    def _checkpoint(trainer: pl.Trainer) -> Checkpoint:
        return next(c for c in trainer.callbacks if isinstance(c, Checkpoint))  # type: ignore[attr-defined]

    def _leave(self, trainer: pl.Trainer) -> None:
        self._checkpoint(trainer).save(trainer)
        if trainer.is_global_zero:
            print(
                f"told to stop: saved at step {trainer.global_step}; the same command, or scorefield resume, goes on",
                file=sys.stderr,
                flush=True,
            )
            self._end()
        # The first process watches the others, and would be ended if one ended with an error before it has.
        self._end(Exit.FINISHED)

    def _end(self, code: Exit | None = None) -> None:
        for number in self.signals:
            signal.signal(number, signal.SIG_IGN)  # there is nothing left to save, and the exit code must get out
        self._before = {}
        raise PreemptedError(code if code is not None else self._code)

    @property
    def _code(self) -> Exit:
        return Exit.INTERRUPTED if self._told == signal.SIGINT else Exit.PREEMPTED

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._training = False
        if self._told is not None:  # during the last step, or while it was saved
            self._end()
        self._restore_handlers()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
