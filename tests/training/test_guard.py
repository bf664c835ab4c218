"""Numbers that are not finite stop the run, or are stepped over, before any weight is made from them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefield.cli.exits import answered
from scorefield.errors import Exit
from scorefield.noise import StreamNoise
from scorefield.records.rundir import RunDir
from scorefield.samplers import NonFiniteSamplesError
from scorefield.training.callbacks import NonFiniteError, SkipNonFinite, StopOnNonFinite
from scorefield.training.callbacks.guard import NonFiniteGuard
from tests.training.guarded import Poison
from tests.training.tiny import checkpoint, differences, fit, journal, plane

ROOT = Path(__file__).parents[2]
QUIET = ["callbacks.likelihood=null", "callbacks.samples=null", "callbacks.loss_by_noise=null", "optim=adam"]


def stopped(run_dir, poison, *overrides):
    with pytest.raises(NonFiniteError) as error:
        fit(plane(run_dir, *QUIET, *overrides), None, poison)
    return str(error.value)


def offending(run_dir, step, suffix=""):
    return torch.load(RunDir(run_dir).logs / f"nonfinite-step-{step:08d}{suffix}.pt", weights_only=True)


def test_a_bad_loss_stops_the_run_before_the_weights_know(tmp_path):
    poison = Poison(batches=(3,))
    message = stopped(tmp_path, poison, "callbacks.checkpoint.every=2")
    assert "step 4, batch 3" in message
    assert "1 of 16 samples" in message
    assert "x itself is not finite" in message
    assert checkpoint(tmp_path)["global_step"] == 2  # the last one, whole
    assert [p.name for p in RunDir(tmp_path).checkpoint_folder.iterdir()] == ["step-00000002.ckpt"]
    assert len(poison.weights) == 3
    assert all(tensor.isfinite().all() for tensor in poison.weights[-1].values())


def test_the_saved_batch_is_all_that_is_needed_to_see_it_again(tmp_path):
    poison = Poison(batches=(3,))
    config = plane(tmp_path, *QUIET)
    message = stopped(tmp_path, poison)
    saved = offending(tmp_path, 4)
    assert saved["x"].isfinite().sum() == saved["x"].numel() - 1
    assert str(RunDir(tmp_path).logs / "nonfinite-step-00000004.pt") in message
    whole = Poison()
    parts = fit({**config, "run_dir": str(tmp_path / "whole")}, None, whole)
    parts.module.model.load_state_dict(poison.weights[-1])
    assert saved["index"].tolist() == parts.data.train_dataloader().indices(3).tolist()
    again = parts.module.loss(parts.module.model, {"x": saved["x"]}, StreamNoise(*saved["noise_key"]))
    assert torch.equal(again.t, saved["t"])
    assert torch.equal(again.per_sample.nan_to_num(), saved["per_sample"].nan_to_num())
    assert saved["per_sample"].isnan().nonzero().tolist() == [[5]]
    low, high = (f"{float(saved['t'][5]):.4g}", f"{float(saved['t'].max()):.4g}")
    assert f"t from {low} to {low} (the batch: t from" in message
    assert f"to {high})" in message


def test_a_bad_gradient_behind_a_good_loss_stops_too(tmp_path):
    message = stopped(tmp_path, Poison(gradients=(2,)))
    assert "step 3, batch 2" in message
    assert "gradient norm inf" in message
    assert "the loss of all 16 samples is finite" in message
    assert offending(tmp_path, 3)["per_sample"].isfinite().all()


def test_a_learning_rate_too_high_is_named_as_the_cause(tmp_path):
    message = stopped(tmp_path, Poison(), "optim.optimizer.lr=1e30")
    assert "step 2" in message
    assert "learning rate too high (now 1e+30)" in message
    assert "sigma = 0" in message


def test_an_accumulated_batch_is_named_itself(tmp_path):
    accumulate = ["trainer.accumulate_grad_batches=3", "trainer.val_check_interval=6"]
    assert "step 2, batch 4" in stopped(tmp_path, Poison(batches=(4,)), *accumulate)  # batches 3, 4, 5 make step 2


def test_a_skipped_step_leaves_weights_and_optimiser_as_they_were(tmp_path):
    seen = []

    class Steps(Poison):
        def on_train_batch_end(self, trainer, *args) -> None:
            super().on_train_batch_end(trainer, *args)
            state = trainer.optimizers[0].state_dict()["state"]
            seen.append({i: {k: v.clone() for k, v in s.items()} for i, s in state.items()})

    poison = Steps(batches=(3,), gradients=(6,))
    skip = ["on_nonfinite=skip", "on_nonfinite.limit=2", "callbacks.log.every=4", "callbacks.checkpoint.every=12"]
    fit(plane(tmp_path, *QUIET, *skip), None, poison)
    moved = [bool(differences(a, b)) for a, b in zip(poison.weights, poison.weights[1:], strict=False)]
    assert [i + 1 for i, changed in enumerate(moved) if not changed] == [3, 6]  # batch 3 is the fourth step
    assert differences(seen[2], seen[3]) == differences(seen[5], seen[6]) == []
    lines = journal(tmp_path)
    assert [line["skipped"] for line in lines if "skipped" in line] == [1, 2]
    losses = torch.tensor([line["loss"] for line in lines if "loss" in line])
    assert losses.isfinite().all()  # the journal's mean is of the steps that were made
    saved = checkpoint(tmp_path)["callbacks"]
    assert [state["skipped"] for name, state in saved.items() if "SkipNonFinite" in name] == [2]


def test_more_bad_steps_than_the_limit_end_the_run_also_across_a_resumption(tmp_path):
    skip = ["on_nonfinite=skip", "on_nonfinite.limit=1", "callbacks.checkpoint.every=4"]
    message = stopped(tmp_path / "one", Poison(batches=(1, 5)), *skip)
    assert "step 6" in message
    assert "limit=1" in message
    config = plane(tmp_path / "one", *QUIET, *skip)
    with pytest.raises(NonFiniteError, match="step 5"):
        fit(config, RunDir(tmp_path / "one").checkpoint(4), Poison(batches=(4,)))


def test_a_verdict_read_late_still_comes_before_anything_is_saved(tmp_path, monkeypatch):
    """As on an accelerator, where the verdict is read every tenth step."""
    monkeypatch.setattr(NonFiniteGuard, "_due", lambda self, trainer: (trainer.global_step + 1) % self.every == 0)
    message = stopped(tmp_path, Poison(batches=(3,)), "callbacks.checkpoint.every=2", "trainer.val_check_interval=12")
    assert "step 4, batch 3" in message
    assert [p.name for p in RunDir(tmp_path).checkpoint_folder.iterdir()] == ["step-00000002.ckpt"]
    message = stopped(tmp_path / "gradient", Poison(gradients=(3,)), "callbacks.checkpoint.every=99")
    assert "step 4, batch 3" in message  # later losses are nan by then, and not the cause


def test_no_number_is_read_back_between_two_verdicts(tmp_path, monkeypatch):
    """What waits for a device is Tensor.__bool__, item and __float__; the guard calls none of them."""
    monkeypatch.setattr(NonFiniteGuard, "_due", lambda self, trainer: False)
    readings = []
    for name in ("__bool__", "item", "__float__", "tolist"):
        plain = getattr(torch.Tensor, name)

        def watched(tensor, *args, plain=plain):
            frame = sys._getframe(1)
            if "guard" in frame.f_code.co_filename:
                readings.append(frame.f_lineno)
            return plain(tensor, *args)

        monkeypatch.setattr(torch.Tensor, name, watched)
    overrides = ["callbacks.checkpoint.every=99", "trainer.val_check_interval=99", "steps=6"]
    fit(plane(tmp_path, *QUIET, *overrides))
    assert len(readings) == 1  # at the end of training


@pytest.mark.parametrize(
    ("guard", "kind", "code"), [("stop", "losses", Exit.NUMERICS), ("skip", "batches", Exit.FINISHED)]
)
def test_two_processes_agree(tmp_path, guard, kind, code):
    """The second process alone has a bad loss; both stop, or both leave the step out, and nobody waits for long.

    A bad batch reaches the other process through the gradient's mean; a bad loss with a good gradient does not.
    """
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.guarded", str(tmp_path), kind, *QUIET, f"on_nonfinite={guard}"],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stderr[-2000:]
    assert "process 1: the loss of 1 of 8 samples" in done.stderr
    assert "process 0: the loss" not in done.stderr  # it has nothing to answer for
    assert "Traceback" not in done.stderr
    assert offending(tmp_path / "run", 3, "-process1")["per_sample"].isnan().nonzero().tolist() == [[5]]
    if guard == "skip":
        first, second = (torch.load(tmp_path / f"weights-{rank}.pt", weights_only=True) for rank in (0, 1))
        assert differences(first, second) == []
        assert differences(first[1], first[2]) == []
        assert differences(first[2], first[3]) != []


def test_samples_that_are_not_finite_say_where_and_are_kept(tmp_path, capsys):
    class Diverged(Poison):
        def on_validation_start(self, trainer, pl_module) -> None:
            ema = next(c for c in trainer.callbacks if type(c).__name__ == "EMA")
            for parameter in ema.model.parameters():
                parameter.data.fill_(torch.nan)

    config = plane(tmp_path, "callbacks.likelihood=null", "callbacks.loss_by_noise=null", "callbacks.samples.every=1")
    with pytest.raises(SystemExit) as ended, answered():
        fit(config, None, Diverged())
    assert ended.value.code == Exit.NUMERICS
    message = capsys.readouterr().err
    path = RunDir(tmp_path).logs / "nonfinite-SampleGrid-step-00000004-process0.pt"
    for words in ("SampleGrid at step 4, ema weights", str(path), "samples 0 to 7 of seed 0"):
        assert words in message
    saved = torch.load(path, weights_only=True)
    assert saved["indices"].tolist() == list(range(8))
    assert saved["start"].isfinite().all()
    assert not saved["samples"].isfinite().all()
    assert NonFiniteSamplesError.__mro__[1].__name__ == "NumericalError"


def test_a_likelihood_that_cannot_go_on_says_where(tmp_path):
    once = ["callbacks.likelihood.every=1", "callbacks.samples=null", "callbacks.loss_by_noise=null"]
    config = plane(tmp_path, "likelihood.solver.max_nfe=8", *once)
    with pytest.raises(ArithmeticError, match=r"BitsPerDim at step 4.*examples 0 to 5.*max_nfe=8"):
        fit(config)
    saved = torch.load(next(RunDir(tmp_path).logs.glob("nonfinite-BitsPerDim-*")), weights_only=True)
    assert saved["indices"].tolist() == list(range(6))


@pytest.mark.parametrize(("make", "words"), [(StopOnNonFinite, "every=0"), (SkipNonFinite, "limit=0")])
def test_impossible_settings_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make("run", 0)
