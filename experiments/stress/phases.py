"""Says what a run under test is doing, so that it is known where a kill has landed and a kill can be aimed.

A callback that the runs name in their configuration; SCOREFIELD_PLUGINS=experiments.stress lets a resumed run have it.
"""

from pathlib import Path
from typing import Any

import scorefield.training  # noqa: F401 (makes pytorch_lightning importable beside any build of torch)

# isort: split

import pytorch_lightning as pl


class Phase(pl.Callback):
    """Keeps the name of the present phase in a file.

    Args:
        path: the file.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def _enter(self, trainer: pl.Trainer, phase: str) -> None:
        if trainer.is_global_zero:
            self.path.write_text(phase)

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "training")

    def on_validation_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "validation")

    def on_validation_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "training")

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "saving")

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "training")

    def on_test_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "final evaluation")

    def on_test_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self._enter(trainer, "writing the record")
