"""Checkpoints that are whole or absent, and the newest of which is known by its step."""

import os
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Checkpoint as LightningCheckpoint

from scorefield.records.rundir import RunDir, step_of
from scorefield.training.callbacks.evaluator import validation_interval
from scorefield.training.loggers import RunLogger


class Checkpoint(LightningCheckpoint):
    """Saves every ``every`` optimiser steps and at the end, and keeps the newest ``keep``.

    A file is written under a temporary name, flushed to disk and renamed, so that a name ``step-*.ckpt`` always stands
    for a whole checkpoint. Where a validation is due at the same step the checkpoint is saved after it: a resumed run
    then neither repeats nor skips one.

    Args:
        run_dir: the run's directory.
        every: optimiser steps between checkpoints, >= 1.
        keep: how many of the newest are kept, >= 1.
    """

    def __init__(self, run_dir: str, every: int = 1000, keep: int = 2) -> None:
        if every < 1 or keep < 1:
            raise ValueError(f"every={every} and keep={keep} must be at least 1")
        self.run_dir = RunDir(Path(run_dir))
        self.every = every
        self.keep = keep
        self._saved = -1

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._saved = trainer.global_step
        self._rewind(trainer, trainer.global_step)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._rewind(trainer, pl_module.steps_done)  # an interrupted final evaluation may have left its first lines

    @staticmethod
    def _rewind(trainer: pl.Trainer, step: int) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.rewind(step)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        due = trainer.global_step % self.every == 0 and trainer.global_step != self._saved
        if due and not self.waits_for_validation(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        due = trainer.global_step % self.every == 0 and trainer.global_step != self._saved
        if due and not trainer.sanity_checking and trainer.state.fn == "fit":
            self.save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step != self._saved:
            self.save(trainer)

    def waits_for_validation(self, trainer: pl.Trainer) -> bool:
        """Whether Lightning runs a validation after the batch that has just ended, so that saving must wait for it."""
        interval = validation_interval(trainer)
        enabled = interval is not None and trainer.enable_validation
        return enabled and (trainer.fit_loop.total_batch_idx + 1) % int(interval or 1) == 0

    def save(self, trainer: pl.Trainer) -> None:
        """Save now, at a step boundary; all processes call this together."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        path = self.run_dir.checkpoint(trainer.global_step)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)
            if trainer.is_global_zero:
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
                temporary.replace(path)
        except OSError:  # a full disk is given back what half a file has taken
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
            raise
        if trainer.is_global_zero:
            # A newer one is damaged, or the run would have been resumed there: it does not count among those kept.
            older = [old for old in self.run_dir.checkpoints() if step_of(old) < trainer.global_step]
            for old in older[: max(0, len(older) + 1 - self.keep)]:
                old.unlink()
        self._saved = trainer.global_step
