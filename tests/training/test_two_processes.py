"""Two processes: one run, its draws shared out, its weights and its evaluation the same everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scorefield.cli.runs import build
from scorefield.records.rundir import RunDir
from scorefield.training.datamodule import TrainingStream
from tests.training.tiny import DIGITS, differences, digits, fit, journal, metrics, plane, stored

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(240)


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Run a module of the project to its end, in a session of its own."""
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """A plane trained by two processes, and what each of them saw."""
    folder = tmp_path_factory.mktemp("probed")
    launch("tests.training.two_processes", str(folder), "callbacks.checkpoint.keep=9", "callbacks.log.every=4")
    return folder, [torch.load(folder / f"process-{rank}.pt", weights_only=True) for rank in (0, 1)]


def test_processes_draw_different_noise_and_share_the_examples(probed, tmp_path):
    _, (first, second) = probed
    alone = build(plane(tmp_path)).data
    stream = TrainingStream(alone.data, alone.train_split, 16, 0)
    for number, (a, b) in enumerate(zip(first["batches"], second["batches"], strict=True)):
        assert not torch.isclose(a["t"], b["t"]).any()
        assert torch.equal(torch.cat([a["index"], b["index"]]), stream.indices(number))
        assert torch.equal(torch.cat([a["x"], b["x"]]), stream.batch(number)["x"])


def test_processes_hold_the_same_weights_averages_and_optimiser(probed):
    _, (first, second) = probed
    for key in ("weights", "ema", "optimizer"):
        assert differences(first[key], second[key], key) == []
    assert differences(first["weights"], first["ema"]) != []


def test_the_journal_has_the_mean_over_processes(probed):
    folder, processes = probed
    losses = torch.stack([torch.stack([b["per_sample"].mean() for b in p["batches"]]) for p in processes]).mean(0)
    lines = [line["loss"] for line in journal(folder / "run") if line["phase"] == "train"]
    assert lines == pytest.approx(losses.reshape(-1, 4).mean(1).tolist(), rel=1e-6)  # float32 means


def test_resumed_by_two_processes_is_uninterrupted(probed, tmp_path):
    """From step 5, between two journal entries and without a validation: weights, averages and journal, bit for bit."""
    folder, processes = probed
    run, again = RunDir(folder / "run"), RunDir(tmp_path / "run")
    again.create()
    again.metrics.write_bytes(run.metrics.read_bytes())
    overrides = ("callbacks.checkpoint.keep=9", "callbacks.log.every=4")
    launch("tests.training.two_processes", str(tmp_path), *overrides, RESUME_FROM=str(run.checkpoint(5)))
    for rank, process in enumerate(processes):
        other = torch.load(tmp_path / f"process-{rank}.pt", weights_only=True)
        assert len(other["batches"]) == 7
        for key in ("weights", "ema", "optimizer"):
            assert differences(process[key], other[key], key) == []
    assert journal(folder / "run") == journal(tmp_path / "run")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The digits, trained and evaluated by the real command with two processes."""
    path = tmp_path_factory.mktemp("outputs") / "run"
    overrides = [f"++{o}" if "." in o.split("=")[0] else o for o in DIGITS]
    wanted = ["callbacks.quality.n_final=41", "callbacks.likelihood.n_final=7", "callbacks.samples.every=1"]
    launch("scorefield.cli.main", "train", *overrides, *wanted, "trainer=ddp_cpu", f"run_dir={path}")
    return path


def test_the_command_leaves_one_run_with_one_set_of_lines(trained):
    assert [p.name for p in trained.parent.iterdir()] == ["run"]
    lines = [(line["phase"], line["step"], *sorted(line)) for line in journal(trained)]
    assert len(lines) == len(set(lines))
    assert [step for phase, step, *_ in lines if phase == "train"] == [3, 6]
    run = RunDir(trained)
    assert run.result.is_file()
    assert run.report.is_file()
    assert [p.name for p in run.checkpoints()] == ["step-00000005.ckpt", "step-00000008.ckpt"]
    assert [p.name for p in run.sample_grids()] == ["step-00000004.png", "step-00000008.png"]


def test_one_process_measures_what_two_did(trained, tmp_path):
    """Same weights, 41 samples and 7 likelihoods, neither divisible by two, in batches of other sizes."""
    config = stored(trained)
    overrides = ["callbacks.quality.n_final=41", "callbacks.likelihood.n_final=7", "callbacks.quality.batch_size=10"]
    parts = build(digits(tmp_path, *overrides))
    newest = RunDir(trained).checkpoints()[-1]
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest, weights_only=True, verbose=False)
    two = metrics(trained)
    one = {k: m.record() for c in parts.trainer.callbacks for k, m in getattr(c, "metrics", {}).items()}
    assert config["trainer"]["devices"] == 2
    assert one.keys() == two.keys()
    for name in one:
        # float32 layers round differently for other batch shapes
        assert one[name]["value"] == pytest.approx(two[name]["value"], rel=1e-5), name
        for field in ("n", "seed", "weights", "step", "nfe", "floor", "n_reference"):
            assert one[name].get(field) == pytest.approx(two[name].get(field)), (name, field)


def test_one_process_draws_the_same_picture(trained, tmp_path):
    parts = build(digits(tmp_path, "callbacks.samples.every=1", "callbacks.quality=null", "callbacks.likelihood=null"))
    newest = RunDir(trained).checkpoints()[-1]
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest, weights_only=True, verbose=False)
    assert RunDir(tmp_path).final_samples.read_bytes() == RunDir(trained).final_samples.read_bytes()


def test_another_number_of_processes_can_take_over(probed, tmp_path):
    """Not bit for bit, as noise belongs to processes; but the same examples, from the same place."""
    folder, _ = probed
    parts = fit(plane(tmp_path, "optim=adam", "steps=7"), RunDir(folder / "run").checkpoint(5))
    assert parts.trainer.global_step == 7
    assert parts.trainer.fit_loop.total_batch_idx == 6
