"""What every evaluation during and after training has in common."""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytorch_lightning as pl
import torch

from scorefield.data import Split
from scorefield.errors import NumericalError
from scorefield.models import ClassifierGuided, Cond, ScoreModel
from scorefield.records.checkpoints import write_tensors
from scorefield.records.result import Measurement
from scorefield.records.rundir import RunDir
from scorefield.training.datamodule import DataModule
from scorefield.training.ema import evaluation_model
from scorefield.training.loggers import log_values
from scorefield.training.module import ScoreModule


@dataclass(frozen=True)
class Occasion:
    """Where and when an evaluation takes place.

    Args:
        trainer: gives processes, device and loggers.
        module: the module in training.
        model: the model to evaluate, averaged if the run keeps an average.
        weights: which weights those are, ``"ema"`` or ``"raw"``.
        data: data set and splits.
        final: whether this is the evaluation at the end, which feeds result.json.
    """

    trainer: pl.Trainer
    module: ScoreModule
    model: ScoreModel
    weights: str
    data: DataModule
    final: bool

    @property
    def device(self) -> torch.device:
        return self.trainer.strategy.root_device

    @property
    def step(self) -> int:
        return self.module.steps_done

    def wanted(self, indices: list[int], guidance: Callable[..., ScoreModel] | None = None) -> Cond | None:
        """Conditions of samples to draw: class i mod classes at sample i, of a model that is told classes or steered.

        Args:
            indices: of the samples.
            guidance: how the model is guided; a classifier steers a model that knows no classes itself.
        """
        classes = self.data.data.classes
        steered = getattr(guidance, "func", None) is ClassifierGuided
        if not (self.module.conditional or steered) or classes is None:
            return None
        return {"label": torch.tensor(indices, dtype=torch.long, device=self.device) % classes}

    def given(self, examples: Split) -> Cond | None:
        """Conditions of known examples: their classes, where the model is told them."""
        if not self.module.conditional or examples.labels is None:
            return None
        return {"label": examples.labels.to(self.device)}


class Evaluator(pl.Callback, ABC):
    """Runs at every ``every``-th validation and at the final test; all processes take part.

    Args:
        every: number of validations from one evaluation to the next; 0 leaves only the final one.
    """

    def __init__(self, every: int = 1) -> None:
        if every < 0:
            raise ValueError(f"every={every} must be >= 0; 0 evaluates at the end only")
        self.every = every
        self.metrics: dict[str, Measurement] = {}  # of the final evaluation
        self._validations = 0

    @abstractmethod
    def evaluate(self, occasion: Occasion) -> dict[str, Measurement]:
        """Evaluate on this occasion; the same result on every process."""

    def _run(self, trainer: pl.Trainer, module: pl.LightningModule, final: bool) -> dict[str, Measurement]:
        assert isinstance(module, ScoreModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        model, weights = evaluation_model(trainer, module)
        was_training = model.training
        model.eval()
        start = time.monotonic()
        try:
            metrics = self.evaluate(Occasion(trainer, module, model, weights, data, final))
        except NumericalError as error:
            path = self._save(error, trainer, module)
            raise error.within(
                f"{type(self).__name__} at step {module.steps_done}, {weights} weights ({path})"
            ) from None
        finally:
            model.train(was_training)
        seconds = round(time.monotonic() - start, 3)
        common = {"weights": weights, "step": module.steps_done, "seconds": seconds}
        metrics = {name: replace(m, protocol={**m.protocol, **common}) for name, m in metrics.items()}
        if metrics:
            images = module.steps_done * trainer.accumulate_grad_batches * data.batch_size
            values = {name: metric.value for name, metric in metrics.items()}
            log_values(trainer, "final" if final else "validation", images, {**values, "weights": weights})
        return metrics

    def _save(self, error: NumericalError, trainer: pl.Trainer, module: ScoreModule) -> Path:
        """Keep what the computation failed on, as plain tensors."""
        name = f"nonfinite-{type(self).__name__}-step-{module.steps_done:08d}-process{trainer.global_rank}.pt"
        path = RunDir(Path(trainer.default_root_dir)).logs / name
        write_tensors(path, error.tensors)
        return path

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or self.every == 0:
            return
        batches = trainer.fit_loop.total_batch_idx + 1
        if batches % (self.every * (validation_interval(trainer) or 1)) == 0 or trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._run(trainer, pl_module, final=False)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.metrics = self._run(trainer, pl_module, final=True)


def validation_interval(trainer: pl.Trainer) -> int | None:
    """Batches from one validation to the next; None where the trainer does not count them."""
    interval = trainer.val_check_batch
    return int(interval) if interval is not None and math.isfinite(interval) else None
