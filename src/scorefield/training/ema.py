"""Averages of the weights over training, kept beside the model and never swapped into it.

The averaged model is a second copy of the network. Evaluators ask `evaluation_model` for it, so they see the averaged
weights in whatever order the callbacks stand, and an exception inside an evaluation leaves nothing to restore.
"""

from abc import ABC, abstractmethod
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from scorefield.models import ScoreModel
from scorefield.training.module import ScoreModule


class Profile(ABC):
    """How much the average keeps of itself at each update."""

    @abstractmethod
    def decay(self, update: int) -> float:
        """beta in average <- beta average + (1 - beta) weights, at update 1, 2, ..."""


@dataclass(frozen=True)
class Exponential(Profile):
    """beta = min(rate, (1 + n) / (10 + n)) at update n: the warm-up lets short runs forget the initial weights.

    Args:
        rate: final decay per optimiser step, in [0, 1).
        warm_up: False for beta = rate from the start, as NCSNv2 was trained.
    """

    rate: float = 0.9999
    warm_up: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate={self.rate} must be in [0, 1)")

    def decay(self, update: int) -> float:
        return min(self.rate, (1 + update) / (10 + update)) if self.warm_up else self.rate


@dataclass(frozen=True)
class HalfLife(Profile):
    """beta = 2^(-1/h) at update n, with h = min(half_life, ramp (n - 1)) updates (Karras et al. 2022, their code).

    Args:
        half_life: final h, > 0, in optimiser steps: images over the batch size.
        ramp: share of the training so far that h may be, > 0; the first update takes the weights as they are.
    """

    half_life: float = 1000.0
    ramp: float = 0.05

    def __post_init__(self) -> None:
        if self.half_life <= 0 or self.ramp <= 0:
            raise ValueError(f"half_life={self.half_life} and ramp={self.ramp} must be positive")

    def decay(self, update: int) -> float:
        h = min(self.half_life, self.ramp * (update - 1))
        return 0.5 ** (1 / h) if h > 0 else 0.0


@dataclass(frozen=True)
class Power(Profile):
    """beta = (1 - 1/n)^(gamma + 1): the average's width grows with training (Karras et al. 2024, eq. 127).

    Args:
        gamma: exponent; for large gamma the average's deviation is about 1 / (gamma + 3) of the training so far.
    """

    gamma: float = 6.94

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma={self.gamma} must not be negative")

    def decay(self, update: int) -> float:
        return (1 - 1 / update) ** (self.gamma + 1)


class EMA(pl.Callback):
    """Averages the model's parameters after every optimiser step; buffers are copied.

    Args:
        profile: the decay at each update.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.updates = 0
        self.model: ScoreModel | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, pl.strategies.FSDPStrategy):
            raise ValueError("EMA keeps whole parameters and cannot average an FSDP model's shards; use ddp")
        if self.model is None:
            assert isinstance(pl_module, ScoreModule)
            copy = deepcopy(pl_module.model)
            trainer.precision_plugin.convert_module(copy)
            # Weights of 16 bits would round most of an average's small steps away.
            precision = torch.promote_types(next(copy.parameters()).dtype, torch.float32)
            self.model = copy.to(precision).requires_grad_(False).eval()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._model.to(pl_module.device)

    on_test_start = on_fit_start

    @property
    def _model(self) -> ScoreModel:
        assert self.model is not None, "the averaged copy is made in setup"
        return self.model

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.updates:  # a batch whose gradient is still being accumulated
            return
        self.updates = trainer.global_step
        averages: list[Tensor] = list(self._model.parameters())
        weights = [w.to(a.dtype) for a, w in zip(averages, pl_module.model.parameters(), strict=True)]
        torch._foreach_lerp_(averages, weights, 1 - self.profile.decay(self.updates))
        for average, buffer in zip(self._model.buffers(), pl_module.model.buffers(), strict=True):
            average.copy_(buffer)

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = {"updates": self.updates, "state_dict": self._model.state_dict()}

    def on_load_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["ema"]
        self.updates = saved["updates"]
        self._model.load_state_dict(saved["state_dict"])


def evaluation_model(trainer: pl.Trainer, module: ScoreModule) -> tuple[ScoreModel, str]:
    """The model that evaluations use, and which weights it has: ``"ema"`` or ``"raw"``."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EMA) and callback.model is not None and callback.updates > 0:
            return callback.model, "ema"
    return module.model, "raw"


def averaged_state(checkpoint: dict[str, Any]) -> dict[str, Tensor] | None:
    """State dict of the averaged model in a loaded checkpoint; None if the run kept no average."""
    saved = checkpoint.get("ema")
    return None if saved is None else saved["state_dict"]
