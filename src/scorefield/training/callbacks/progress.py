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
    """Journals the mean loss, learning rate and speed every ``every`` steps, and shows progress.

    On a terminal a bar; elsewhere one plain line per journal entry.

    Args:
        every: optimiser steps between two entries, >= 1.
    """

    def __init__(self, every: int = 100) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        self.every = every
        self._losses: list[Tensor] = []
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
        self._losses.append(outputs["per_sample"].mean())  # Lightning divides "loss" by the accumulated batches
        step = trainer.global_step
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step % self.every:
            return
        self._entry(trainer, pl_module, step)

    def _entry(self, trainer: pl.Trainer, module: ScoreModule, step: int) -> None:
        losses = self._over_processes(trainer)
        self._losses = []
        # Of steps that were left out the guard tells. This is the only read-back from the device, once per entry.
        mean = float(losses.where(losses.isfinite(), torch.nan).nanmean())
        since, first = self._since
        self._restart_clock(trainer)
        rate = (step - first) / (self._since[0] - since)
        images = step * trainer.accumulate_grad_batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        lr = float(trainer.optimizers[0].param_groups[0]["lr"])
        log_values(trainer, "train", images, {"loss": mean, "lr": lr, "steps_per_second": round(rate, 3)})
        self._show(trainer, f"step {step}  loss {mean:.4f}  {rate:.1f} steps/s")

    def _over_processes(self, trainer: pl.Trainer) -> Tensor:
        """The losses since the last entry, each the mean over all processes; all of them call this together."""
        losses = torch.stack(self._losses) if self._losses else torch.empty(0, device=trainer.strategy.root_device)
        return trainer.strategy.reduce(losses, reduce_op="mean")

    # Losses that wait for their entry go into the checkpoint, so that a resumed run journals the same mean.

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["losses"] = self._over_processes(trainer)

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._losses = list(checkpoint["losses"].to(trainer.strategy.root_device))

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
