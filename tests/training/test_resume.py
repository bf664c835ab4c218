"""N + M steps in one go are N steps, an interruption, and M more: bit for bit, on one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from scorefield.cli.runs import build, newest_checkpoint
from scorefield.cli.train import execute
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks import stopwatch
from tests.training.tiny import checkpoint, differences, digits, fit, journal, plane

STATE = ("state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step", "told")


class InterruptedRunError(RuntimeError):
    pass


class Interruption(pl.Callback):
    """Ends a run after a step, or inside the validation that follows it."""

    def __init__(self, step: int, validating: bool = False) -> None:
        self.step, self.validating = step, validating

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step and not self.validating:
            raise InterruptedRunError

    def on_validation_epoch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step and self.validating:
            raise InterruptedRunError


def same_run(a: Path, b: Path) -> None:
    """Two runs left the same weights, averages, optimiser, learning rate, journal and sample grids."""
    ours, theirs = checkpoint(a), checkpoint(b)
    assert [d for key in STATE for d in differences(ours[key], theirs[key], key)] == []
    assert journal(a) == journal(b)
    grids = RunDir(a).sample_grids()
    assert [g.name for g in grids] == [g.name for g in RunDir(b).sample_grids()]
    assert all(g.read_bytes() == (RunDir(b).sample_folder / g.name).read_bytes() for g in grids)


def interrupted_is_uninterrupted(
    make: Callable[[Path], Any], folder: Path, step: int = 5, validating: bool = False
) -> Path | None:
    """Of one configuration a run in one go, in whole/, and one that is stopped and gone on with, in broken/.

    They leave the same. Returns the checkpoint from which it went on.
    """
    fit(make(folder / "whole"))
    config = make(folder / "broken")
    with pytest.raises(InterruptedRunError):
        fit(config, None, Interruption(step, validating))
    newest = newest_checkpoint(RunDir(folder / "broken"))
    fit(config, newest)
    same_run(folder / "whole", folder / "broken")
    return newest


# plane: validations at batches 4, 8, 12; a journal entry every 3 steps.
CASES = {
    "no validation is due at the checkpoint": (plane, ["callbacks.checkpoint.every=5"], 7, False, 5),
    "a validation is due at the checkpoint": (
        plane,
        ["callbacks.checkpoint.every=4", "callbacks.samples.every=1", "callbacks.loss_by_noise.every=2"],
        6,
        False,
        4,
    ),
    "inside the validation that the checkpoint waits for": (plane, ["callbacks.checkpoint.every=4"], 8, True, 4),
    "before any checkpoint": (plane, [], 4, False, None),
    "accumulated gradients": (
        plane,
        ["trainer.accumulate_grad_batches=2", "callbacks.checkpoint.every=3"],
        5,
        False,
        3,
    ),
    "accumulated gradients, validation due": (
        plane,
        ["trainer.accumulate_grad_batches=2", "callbacks.checkpoint.every=2"],
        5,
        False,
        4,
    ),
    "dropout": (digits, ["++net.dropout=0.5", "callbacks.checkpoint.every=3"], 5, False, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_interrupted_and_resumed_is_uninterrupted(tmp_path, case):
    make, overrides, step, validating, resumes_at = CASES[case]
    newest = interrupted_is_uninterrupted(lambda path: make(path, *overrides), tmp_path, step, validating)
    assert newest == (None if resumes_at is None else RunDir(tmp_path / "broken").checkpoint(resumes_at))


def test_resuming_at_every_step(tmp_path):
    every = ["callbacks.checkpoint.every=1", "callbacks.checkpoint.keep=99", "steps=6", "trainer.val_check_interval=2"]
    fit(plane(tmp_path / "whole", *every))
    config = plane(tmp_path / "broken", *every)
    for step in range(2, 6):
        with pytest.raises(InterruptedRunError):
            fit(config, newest_checkpoint(RunDir(tmp_path / "broken")), Interruption(step))
    fit(config, newest_checkpoint(RunDir(tmp_path / "broken")))
    same_run(tmp_path / "whole", tmp_path / "broken")
    assert len(RunDir(tmp_path / "whole").checkpoints()) == 6


def test_resuming_in_another_layout_keeps_each_weight_its_moments(tmp_path):
    """A run goes on with channels side by side in memory, by the step of an optimiser that minds no layout."""
    every = ["callbacks.checkpoint.every=4", "trainer.val_check_interval=8", "optim=adam", "optim.optimizer.lr=1e-3"]
    every.append("trainer.gradient_clip_val=0")  # else the other optimiser would see gradients before clipping
    fit(digits(tmp_path, *every, "steps=4"))
    saved = checkpoint(tmp_path)["optimizer_states"][0]
    parts = build(digits(tmp_path, *every, "steps=8", "compute.channels_last=true"))

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, module, optimizer) -> None:
            if trainer.global_step == 4:
                weights = optimizer.param_groups[0]["params"]
                self.copies = [w.detach().clone().contiguous().requires_grad_() for w in weights]
                for copy, weight in zip(self.copies, weights, strict=True):
                    copy.grad = weight.grad.clone(memory_format=torch.contiguous_format)
                other = torch.optim.Adam(self.copies)
                other.load_state_dict(saved)
                other.param_groups[0].update(fused=False, foreach=False, lr=optimizer.param_groups[0]["lr"])
                other.step()

        def on_train_batch_end(self, trainer, module, *_) -> None:
            if trainer.global_step == 5:
                self.found = [w.detach().clone() for w in trainer.optimizers[0].param_groups[0]["params"]]

    watch = Watch()
    parts.trainer.callbacks.append(watch)
    parts.trainer.fit(parts.module, parts.data, ckpt_path=newest_checkpoint(RunDir(tmp_path)))
    assert any(not w.is_contiguous() for w in watch.found)
    for weight, expected in zip(watch.found, watch.copies, strict=True):
        assert torch.allclose(weight, expected, rtol=1e-5, atol=1e-8)  # some roundings; a wrong moment is off by 1e-4


def test_longer_training_goes_on_from_the_last_checkpoint(tmp_path):
    constant = ["optim=adam", "callbacks.checkpoint.every=4"]
    fit(plane(tmp_path / "whole", *constant, "steps=12"))
    fit(plane(tmp_path / "longer", *constant, "steps=8"))
    run = RunDir(tmp_path / "longer")
    fit(plane(tmp_path / "longer", *constant, "steps=12"), newest_checkpoint(run))
    same_run(tmp_path / "whole", tmp_path / "longer")


def test_a_final_evaluation_that_was_interrupted_leaves_no_lines(tmp_path):
    class Broken(pl.Callback):
        def on_test_epoch_end(self, *_) -> None:
            raise InterruptedRunError

    config = plane(tmp_path, "callbacks.likelihood=null")
    parts = fit(config)
    parts.trainer.callbacks.append(Broken())
    with pytest.raises(InterruptedRunError):
        parts.trainer.test(parts.module, parts.data, verbose=False)
    assert [line["phase"] for line in journal(tmp_path)].count("final") == 1
    execute(config, RunDir(tmp_path))
    assert [line["phase"] for line in journal(tmp_path)].count("final") == 1


def test_checkpoints_hold_plain_values_and_tensors_only(tmp_path):
    fit(plane(tmp_path))
    for path in RunDir(tmp_path).checkpoints():
        assert torch.load(path, weights_only=True)["global_step"] in (10, 12)


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    fit(plane(tmp_path))
    run = RunDir(tmp_path)
    run.checkpoint(99).with_suffix(".tmp").write_bytes(run.checkpoint(12).read_bytes()[:100])
    assert newest_checkpoint(run) == run.checkpoint(12)


def test_the_newest_checkpoints_are_kept_by_step(tmp_path):
    fit(plane(tmp_path, "callbacks.checkpoint.every=3", "callbacks.checkpoint.keep=3"))
    assert RunDir(tmp_path).checkpoints() == [RunDir(tmp_path).checkpoint(step) for step in (6, 9, 12)]


def test_no_checkpoint_appears_under_its_name_before_it_is_whole(tmp_path, monkeypatch):
    parts = build(plane(tmp_path))

    def dies(path, *_, **__):
        Path(path).write_bytes(b"half")
        raise RuntimeError("killed in mid-file")

    monkeypatch.setattr(parts.trainer, "save_checkpoint", dies)
    with pytest.raises(RuntimeError, match="mid-file"):
        parts.trainer.fit(parts.module, parts.data)
    assert RunDir(tmp_path).checkpoints() == []


def test_seconds_are_counted_over_interruptions(tmp_path, monkeypatch):
    """A clock that moves by one second in each step and by ten in each validation."""
    now = [0.0]
    monkeypatch.setattr(stopwatch.time, "monotonic", lambda: now[0])

    class Clock(pl.Callback):
        def on_train_batch_start(self, *_) -> None:
            now[0] += 1

        def on_validation_epoch_end(self, *_) -> None:
            now[0] += 10

    config = plane(tmp_path, "callbacks.checkpoint.every=5")
    with pytest.raises(InterruptedRunError):
        fit(config, None, Clock(), Interruption(6))
    now[0] += 1000  # the run is not going on
    parts = fit(config, newest_checkpoint(RunDir(tmp_path)), Clock())
    watch = next(c for c in parts.trainer.callbacks if isinstance(c, stopwatch.Stopwatch))
    assert (watch.seconds("train"), watch.seconds("validation")) == (12, 30)
