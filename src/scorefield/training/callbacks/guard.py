"""Ending, or stepping over, a batch whose loss or gradient is not finite.

The check stands between the backward pass and the optimiser, so that on the CPU no weight is ever made from a number
that is not finite. On an accelerator reading a number back would hold up every step: there the verdict is gathered on
the device and read every ``every`` steps, and before anything is saved or evaluated.

With several processes the verdict is that of all of them together; they stop, or step over, the same step.
"""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from pytorch_lightning.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from scorefield.errors import NumericalError
from scorefield.objectives import Loss
from scorefield.records.checkpoints import write_tensors
from scorefield.records.rundir import RunDir
from scorefield.training.loggers import log_values
from scorefield.training.module import Batch, ScoreModule


class NonFiniteError(NumericalError):
    """The loss or its gradient became nan or infinite."""


@dataclass(frozen=True)
class _Watched:
    """A batch that has not been judged yet; ``gradient`` is the norm before the step, on the step's last batch."""

    step: int
    number: int
    batch: Batch
    loss: Loss
    gradient: Tensor | None = None

    def verdict(self) -> Tensor:
        """Whether everything is finite, left on its device."""
        total = self.loss.per_sample.sum()
        return total.isfinite() if self.gradient is None else total.isfinite() & self.gradient.isfinite()


class NonFiniteGuard(pl.Callback, ABC):
    """Watches loss and gradient of every batch.

    Args:
        run_dir: the run's directory; offending batches are saved in its ``logs``.
        every: steps from one reading of the verdict to the next on an accelerator, >= 1; on the CPU it is always 1.
    """

    def __init__(self, run_dir: str, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"every={every} must be at least 1")
        self.run_dir = RunDir(Path(run_dir))
        self.every = every
        self._watched: list[_Watched] = []
        self._batch: Batch | None = None

    @abstractmethod
    def refuse(self, trainer: pl.Trainer, optimizer: Optimizer | None, message: str) -> None:
        """Deal with a batch that all processes know to be bad; without ``optimizer`` its step has been made."""

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        self._batch = batch

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, ScoreModule)
        assert self._batch is not None
        assert pl_module.newest_loss is not None
        self._watched.append(
            _Watched(trainer.global_step + 1, pl_module.batch_number, self._batch, pl_module.newest_loss)
        )

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        # With loss scaling (16-mixed) infinite gradients are the scaler's daily work: it steps over them by itself.
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients and getattr(trainer.precision_plugin, "scaler", None) is None:
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            self._watched[-1] = replace(self._watched[-1], gradient=norm)
        if self._due(trainer):
            self._judge(trainer, pl_module, optimizer)

    def _due(self, trainer: pl.Trainer) -> bool:
        on_cpu = trainer.strategy.root_device.type == "cpu"
        return on_cpu or (trainer.global_step + 1) % self.every == 0

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        self._judge(trainer, pl_module, None)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._judge(trainer, pl_module, None)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._judge(trainer, pl_module, None)

    def _judge(self, trainer: pl.Trainer, module: ScoreModule, optimizer: Optimizer | None) -> None:
        """Read the verdict on everything watched since the last time; all processes call this together."""
        if not self._watched:
            return
        watched, self._watched = self._watched, []
        verdicts = torch.stack([w.verdict() for w in watched])
        ok = verdicts.all()
        if trainer.world_size > 1:
            common = ok.to(torch.int32)
            dist.all_reduce(common, dist.ReduceOp.MIN)
            ok = common.bool()
        if not ok:
            first = next((w for w, fine in zip(watched, verdicts, strict=True) if not fine), watched[-1])
            self.refuse(trainer, optimizer, self._report(trainer, module, first))

    def _report(self, trainer: pl.Trainer, module: ScoreModule, bad: _Watched) -> str:
        """Save the batch, and say what is known about it on any process."""
        who = f"process {trainer.global_rank}: " if trainer.world_size > 1 else ""
        own = f"{who}{_describe(bad)}; saved as {self._save(trainer, module, bad)}"
        finite = bool(bad.loss.per_sample.isfinite().all())
        said: list[Any] = [(finite, own)]
        if trainer.world_size > 1:
            said = [None] * trainer.world_size
            dist.all_gather_object(said, (finite, own))
        guilty = [text for finite, text in said if not finite] or [text for _, text in said]
        norm = "" if bad.gradient is None else f" (gradient norm {float(bad.gradient):.4g})"
        return "\n  ".join(
            [
                f"step {bad.step}, batch {bad.number}: the loss or its gradient is not finite{norm}",
                *guilty,
                f"usual causes: {'; '.join(_causes(trainer, module, bad))}",
            ]
        )

    def _save(self, trainer: pl.Trainer, module: ScoreModule, bad: _Watched) -> Path:
        rank = f"-process{trainer.global_rank}" if trainer.world_size > 1 else ""
        path = self.run_dir.logs / f"nonfinite-step-{bad.step:08d}{rank}.pt"
        content = {
            **{name: tensor.cpu() for name, tensor in bad.batch.items()},
            "t": bad.loss.t.cpu(),
            "per_sample": bad.loss.per_sample.cpu(),
            "noise_key": (module.seed, "objective", trainer.global_rank, bad.number),
        }
        write_tensors(path, content)
        return path


class StopOnNonFinite(NonFiniteGuard):
    """Ends the run at the first loss or gradient that is not finite; the last checkpoint stays as it is."""

    def refuse(self, trainer: pl.Trainer, optimizer: Optimizer | None, message: str) -> None:
        end_run(trainer, NonFiniteError(message))


class SkipNonFinite(NonFiniteGuard):
    """Makes no step from a loss or gradient that is not finite, and counts these steps in the journal.

    The verdict is needed before each step: on an accelerator this holds up the step by one reading.

    Args:
        run_dir: the run's directory; offending batches are saved in its ``logs``.
        limit: steps that may be left out in the whole run, >= 1; one more ends it.
    """

    def __init__(self, run_dir: str, limit: int = 10) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit} must be at least 1")
        super().__init__(run_dir, every=1)
        self.limit = limit
        self.skipped = 0

    def refuse(self, trainer: pl.Trainer, optimizer: Optimizer | None, message: str) -> None:
        self.skipped += 1
        assert optimizer is not None, "with every=1 each batch is judged before its step"
        if self.skipped > self.limit:
            end_run(trainer, NonFiniteError(f"{message}\n  limit={self.limit} steps have been left out already"))
        _say(f"{message}\n  this step is left out, number {self.skipped} of at most {self.limit}")
        optimizer.zero_grad(set_to_none=True)  # an optimiser passes over parameters without gradient
        images = trainer.global_step * trainer.accumulate_grad_batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
        log_values(trainer, "train", images, {"skipped": self.skipped})

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


@rank_zero_only
def _say(message: str) -> None:
    print(f"scorefield: {message}", file=sys.stderr, flush=True)


def end_run(trainer: pl.Trainer, error: NumericalError) -> NoReturn:
    """End the run with an error that all processes have agreed on; the first of them tells it."""
    # The first process watches the others, and would be killed if one ended with an error before it has.
    if not trainer.is_global_zero:
        raise SystemExit(0)
    raise error


def _describe(bad: _Watched) -> str:
    """How many samples are bad, and at which times."""
    wrong = ~bad.loss.per_sample.isfinite()
    t = bad.loss.t
    whole = f"t from {float(t.min()):.4g} to {float(t.max()):.4g}"
    if not wrong.any():
        return f"the loss of all {len(t)} samples is finite, {whole}"
    among = f"t from {float(t[wrong].min()):.4g} to {float(t[wrong].max()):.4g}"
    return f"the loss of {int(wrong.sum())} of {len(t)} samples is not finite, {among} (the batch: {whole})"


def _causes(trainer: pl.Trainer, module: ScoreModule, bad: _Watched) -> list[str]:
    """What to look at first, by what is seen."""
    if not bad.batch["x"].isfinite().all():
        return ["the data: x itself is not finite"]
    if not all(p.isfinite().all() for p in module.model.parameters()):
        return ["weights that are not finite already: go back to an earlier checkpoint"]
    lr = trainer.optimizers[0].param_groups[0]["lr"]
    causes = [f"a learning rate too high (now {lr:.3g})", f"numbers too short (precision {trainer.precision})"]
    if not bad.loss.per_sample.isfinite().all():
        causes.append("training times that reach sigma = 0, where a target or weight is infinite")
    return causes
