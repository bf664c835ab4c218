"""What a person sees while a run trains, and the journal's training lines."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_only
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from scorefield.training.loggers import log_values
from scorefield.training.module import ScoreModule


class TrainingLog(pl.Callback):
    """Journals the mean loss with whatever the objective tells, learning rate and speed, and shows progress.

    On a terminal a bar; elsewhere one plain line per journal entry.

    Args:
        every: optimiser steps between two entries, >= 1.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        self.every = every
        self._told: dict[str, list[Tensor]] = {}  # batch means since the last entry: the loss, and Loss.log by name
        self._since = (0.0, 0)  # when the clock of the speed was started, and at which step
        self._bar: Progress | None = None
        self._task: Any = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart_clock(trainer)
        self._start_bar(trainer)

    def _restart_clock(self, trainer: pl.Trainer) -> None:
        self._since = time.monotonic(), trainer.global_step

    @rank_zero_only
    def _start_bar(self, trainer: pl.Trainer) -> None:
        if sys.stderr.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
            )
            self._bar = Progress(*columns)
            total = None if trainer.max_steps < 0 else trainer.max_steps
            self._task = self._bar.add_task("training", total=total, completed=trainer.global_step, status="")
            self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        newest = pl_module.newest_loss  # Lightning divides its own "loss" by the accumulated batches
        for name, values in {"loss": newest.per_sample, **newest.log}.items():
            self._told.setdefault(name, []).append(values.detach().mean())
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step % self.every:
            return
        self._entry(trainer, pl_module, step)

    def _entry(self, trainer: pl.Trainer, module: ScoreModule, step: int) -> None:
        told = self._over_processes(trainer)
        self._told = {}
        # Of steps that were left out the guard tells. This is the only read-back from the device, once per entry.
        means = {name: float(values.where(values.isfinite(), torch.nan).nanmean()) for name, values in told.items()}
        since, first = self._since
        self._restart_clock(trainer)
        rate = (step - first) / (self._since[0] - since)
        images = step * trainer.accumulate_grad_batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        log_values(trainer, "train", images, {**means, "lr": lr, "steps_per_second": round(rate, 3)})
        self._show(trainer, f"step {step}  loss {means['loss']:.4f}  {rate:.1f} steps/s")

    def _over_processes(self, trainer: pl.Trainer) -> dict[str, Tensor]:
        """What was told since the last entry, the mean over all processes; all of them call this together."""
        stacked = {name: torch.stack(values) for name, values in self._told.items()}
        return {name: trainer.strategy.reduce(values, reduce_op="mean") for name, values in stacked.items()}

    # What waits for its entry goes into the checkpoint, so that a resumed run journals the same means.

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["told"] = self._over_processes(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        device = trainer.strategy.root_device
        self._told = {name: list(values.to(device)) for name, values in checkpoint.get("told", {}).items()}

    @rank_zero_only
    def _show(self, trainer: pl.Trainer, status: str) -> None:
        if self._bar is not None:
            self._bar.update(self._task, status=status)
        else:
            print(status, flush=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restart_clock(trainer)

    def _stop_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_bar()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._stop_bar()
