"""How long a run has trained and validated, over all its interruptions."""

import time
from typing import Any

import pytorch_lightning as pl


class Stopwatch(pl.Callback):
    """Counts the seconds of training and of the validations in between, each without the other."""

    def __init__(self) -> None:
        self._seconds = {"train": 0.0, "validation": 0.0}
        self._running = ""
        self._since = 0.0

    def seconds(self, what: str) -> float:
        """Seconds of ``"train"`` or ``"validation"`` so far."""
        return self._seconds[what] + (time.monotonic() - self._since if self._running == what else 0.0)

    def _switch(self, to: str) -> None:
        if self._running:
            self._seconds[self._running] = self.seconds(self._running)
        self._running, self._since = to, time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._switch("train")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._switch("validation")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._switch("train" if trainer.state.fn == "fit" else "")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._switch("")

    def state_dict(self) -> dict[str, Any]:
        return {what: self.seconds(what) for what in self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seconds = dict(state_dict)
