"""Told to stop, a run ends at a step with everything saved, and goes on as if it had not been stopped."""

import os
import signal

import pytest
import pytorch_lightning as pl
from omegaconf import OmegaConf

from scorefield.cli import train
from scorefield.cli.runs import newest_checkpoint
from scorefield.errors import Exit
from scorefield.records.rundir import RunDir
from scorefield.training.callbacks import Evaluator, Preemption
from tests.training.test_resume import same_run
from tests.training.tiny import differences, fit, journal, metrics, plane

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
QUIET = ["callbacks.likelihood=null", "callbacks.checkpoint.every=99"]


class Told(pl.Callback):
    """Sends a signal to its own process in the middle of a step, and another one while the checkpoint is written."""

    def __init__(self, step: int, number: int = signal.SIGTERM, hook: str = "on_before_optimizer_step") -> None:
        self.step, self.number = step, number
        setattr(self, hook, self._tell)

    def _tell(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)

    def on_save_checkpoint(self, trainer, *_) -> None:
        os.kill(os.getpid(), signal.SIGTERM if self.number == signal.SIGINT else self.number)


@pytest.fixture(autouse=True)
def handlers():
    """A run that has been stopped takes no more signals; the tests that follow do."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def stopped(config, *callbacks) -> int:
    with pytest.raises(SystemExit) as left:
        fit(config, None, *callbacks)
    return left.value.code


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_in_a_step_and_another_while_it_saves(tmp_path, number):
    """It is the fourth step that ends; nothing else is a multiple of the checkpoints' own interval."""
    fit(plane(tmp_path / "whole", *QUIET))
    config = plane(tmp_path / "told", *QUIET)
    code = stopped(config, Told(5, number))
    assert code == (130 if number == signal.SIGINT else 75)
    run = RunDir(tmp_path / "told")
    assert [p.name for p in run.checkpoint(6).parent.iterdir()] == ["step-00000006.ckpt"]
    fit(config, newest_checkpoint(run))
    same_run(tmp_path / "whole", tmp_path / "told")


class Interrupted(pl.Callback):
    """Ctrl-C in the middle of a step, so many times."""

    def __init__(self, step: int, times: int) -> None:
        self.step, self.times = step, times

    def on_before_optimizer_step(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_saves_and_says_so(tmp_path, capsys):
    config = plane(tmp_path, *QUIET)
    assert stopped(config, Interrupted(5, 1)) == Exit.INTERRUPTED == 130
    assert newest_checkpoint(RunDir(tmp_path)) == RunDir(tmp_path).checkpoint(6)
    assert "saved at step 6; the same command, or scorefield resume, goes on" in capsys.readouterr().err


def test_ctrl_c_twice_stops_at_once(tmp_path):
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        fit(plane(tmp_path, *QUIET), None, Interrupted(5, 2))
    assert RunDir(tmp_path).checkpoints() == []


def test_under_slurm_it_is_the_same(tmp_path, monkeypatch):
    """Lightning would save a checkpoint of its own in mid-step and ask for the job to be queued again."""
    job = {"JOB_ID": "7", "JOB_NAME": "run", "NTASKS": "1", "NTASKS_PER_NODE": "1", "NNODES": "1"}
    for name, value in {**job, "PROCID": "0", "LOCALID": "0", "NODEID": "0", "NODELIST": "here"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f"#!/bin/sh\ntouch {tmp_path / 'asked'}\n")
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=os.pathsep)
    told = Told(5, signal.SIGUSR1)
    assert stopped(plane(tmp_path / "run", *QUIET), told) == Exit.PREEMPTED
    run = RunDir(tmp_path / "run")
    assert [p.name for p in run.path.rglob("*.ckpt")] == ["step-00000006.ckpt"]
    assert not (tmp_path / "asked").exists()


CASES = {
    "in the step before a validation": (["trainer.val_check_interval=6"], Told(5), 6),
    "in a validation": (["trainer.val_check_interval=6"], Told(6, hook="on_validation_epoch_end"), 6),
    "in half an accumulated step": (
        ["trainer.accumulate_grad_batches=2", "trainer.val_check_interval=4"],
        Told(4, hook="on_after_backward"),
        5,
    ),
    "in the last step": ([], Told(11), 12),
    "after the last step, while it is saved": ([], Told(12, hook="on_train_end"), 12),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_ends_between_steps_and_loses_no_validation(tmp_path, case):
    overrides, told, saved_at = CASES[case]
    overrides = ["callbacks.checkpoint.every=99", "callbacks.loss_by_noise.every=1", *overrides]
    fit(plane(tmp_path / "whole", *overrides))
    config = plane(tmp_path / "told", *overrides)
    assert stopped(config, told) == Exit.PREEMPTED
    run = RunDir(tmp_path / "told")
    assert newest_checkpoint(run) == run.checkpoint(saved_at)
    fit(config, newest_checkpoint(run))
    same_run(tmp_path / "whole", tmp_path / "told")


class ToldInTheEnd(Evaluator):
    """Sends a signal in the final evaluation."""

    def evaluate(self, occasion):
        if occasion.final:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}


def test_in_the_final_evaluation_it_ends_at_once_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    config = plane(tmp_path / "run", "steps=4", "callbacks.likelihood.n_final=3")
    build = train.build

    def told(config):
        parts = build(config)
        parts.trainer.callbacks.insert(0, ToldInTheEnd())
        return parts

    monkeypatch.setattr(train, "build", told)
    with pytest.raises(SystemExit) as left:
        train.main(OmegaConf.create(config))
    assert left.value.code == Exit.PREEMPTED
    monkeypatch.undo()
    run = RunDir(tmp_path / "run")
    assert newest_checkpoint(run) == run.checkpoint(4)
    assert not [line for line in journal(run.path) if line["phase"] == "final"]
    train.main(OmegaConf.create(config))
    assert "resuming step-00000004.ckpt" in capsys.readouterr().out
    train.main(OmegaConf.create(plane(tmp_path / "whole", "steps=4", "callbacks.likelihood.n_final=3")))
    assert differences(metrics(tmp_path / "run"), metrics(tmp_path / "whole")) == []
    same_run(tmp_path / "run", tmp_path / "whole")


def test_handlers_are_given_back(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    fit(plane(tmp_path, *QUIET, "steps=1"))
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_before_the_first_step_there_is_nothing_to_save(tmp_path):
    told = Told(0, hook="on_fit_start")
    assert stopped(plane(tmp_path, *QUIET), told) == Exit.PREEMPTED
    assert RunDir(tmp_path).checkpoints() == []


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="every=0 must be at least 1"):
        Preemption(every=0)
