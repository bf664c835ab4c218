"""Several processes: one run, its draws shared out, its weights and its evaluation the same everywhere."""

import importlib
import inspect
import json
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

from scorefield import training
from scorefield.cli.runs import build
from scorefield.errors import Exit
from scorefield.records.rundir import RunDir
from scorefield.training.datamodule import TrainingStream
from tests.training.tiny import (
    CLASSIFIER,
    DIGITS,
    ENERGY,
    classifier,
    differences,
    digits,
    fit,
    journal,
    metrics,
    plane,
    stored,
)

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.timeout(240)


def launch(*arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """Run a module of the project to its end, with the processes that it starts."""
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
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


def test_stopped_by_a_signal_to_the_second_and_resumed_is_uninterrupted(probed, tmp_path):
    """At step 7, between two journal entries and without a validation: weights, averages and journal, bit for bit.

    The first process has not been told, and ends with the code that says so all the same.
    """
    folder, processes = probed
    arguments = (str(tmp_path), "callbacks.checkpoint.keep=9", "callbacks.log.every=4")
    told = launch("tests.training.two_processes", *arguments, code=Exit.PREEMPTED, TELL_SECOND_AT="6")
    assert "Traceback" not in told.stderr
    saved = RunDir(tmp_path / "run").checkpoints()[-1]
    assert saved.name == "step-00000007.ckpt"
    launch("tests.training.two_processes", *arguments, RESUME_FROM=str(saved))
    for rank, process in enumerate(processes):
        other = torch.load(tmp_path / f"process-{rank}.pt", weights_only=True)
        assert len(other["batches"]) == 5
        for key in ("weights", "ema", "optimizer"):
            assert differences(process[key], other[key], key) == []
    assert journal(folder / "run") == journal(tmp_path / "run")


CHAIN = (
    "+callbacks.chain={_target_: scorefield.training.callbacks.BitsPerDimChain, n_final: 7, every: 0, "
    "chain: {_target_: scorefield.variational_chain.ChainBound, levels: 5}}"
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The digits, trained and evaluated by the real command with two processes."""
    path = tmp_path_factory.mktemp("outputs") / "run"
    overrides = [f"++{o}" if "." in o.split("=")[0] else o for o in DIGITS]
    wanted = ["callbacks.quality.n_final=41", "callbacks.likelihood.n_final=7", "callbacks.samples.every=1"]
    wanted += ["++callbacks.likelihood.n=1", "++callbacks.loss_by_noise.every=1"]  # one example, and so none for one
    wanted += ["bound=variational", "++callbacks.bound.bound.draws=2", "++callbacks.bound.n_final=7", CHAIN]
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


def alone(trained, tmp_path) -> dict:
    """The same weights evaluated by one process, in batches of another size."""
    parts = build(
        digits(
            tmp_path,
            "callbacks.quality.n_final=41",
            "callbacks.likelihood.n_final=7",
            "bound=variational",
            "callbacks.bound.bound.draws=2",
            "callbacks.bound.n_final=7",
            "callbacks.bound.batch_size=2",
            CHAIN,
            "callbacks.samples.every=1",
            "callbacks.quality.batch_size=10",
        )
    )
    newest = RunDir(trained).checkpoints()[-1]
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest, weights_only=True, verbose=False)
    return {k: m.record() for c in parts.trainer.callbacks for k, m in getattr(c, "metrics", {}).items()}


def test_one_two_and_three_processes_measure_the_same_and_draw_the_same_picture(trained, tmp_path):
    """41 samples and 7 likelihoods, which neither two nor three divide: each counts once, and none twice."""
    one = alone(trained, tmp_path)
    launch("scorefield.cli.main", "evaluate", f"run_dir={trained}", "trainer=ddp_cpu", "trainer.devices=3")
    (evaluation,) = (trained / "evaluations").iterdir()
    assert json.loads(RunDir(evaluation).result.read_text())["cost"]["processes"] == 3
    assert stored(trained)["trainer"]["devices"] == 2
    for other in (trained, evaluation):
        many = metrics(other)
        assert one.keys() == many.keys()
        for name in one:
            # float32 layers round differently for other batch shapes
            for field in one[name].keys() & {"value", "rate", "distortion", "rmse"}:
                assert many[name][field] == pytest.approx(one[name][field], rel=1e-5), (name, field)
            for field in ("n", "seed", "weights", "step", "nfe", "floor", "n_reference"):
                assert many[name].get(field) == pytest.approx(one[name].get(field)), (name, field)
        assert RunDir(other).final_samples.read_bytes() == RunDir(tmp_path).final_samples.read_bytes()


@pytest.fixture(scope="module")
def energies(tmp_path_factory):
    """Energies at many levels, trained and evaluated by the real command with two processes."""
    path = tmp_path_factory.mktemp("energies") / "run"
    overrides = [f"++{o}" if "." in o.split("=")[0] else o for o in ENERGY]
    levels = ["schedule=vp", "objective=cd", "objective.k=2", "++callbacks.energy_gap.every=1"]
    residual = "scorefield.training.callbacks.FokkerPlanckResidual"
    added = f"+callbacks.fokker_planck={{_target_: {residual}, run_dir: '{path}', levels: 3, n: 7, every: 1}}"
    launch("scorefield.cli.main", "train", *overrides, *levels, added, "trainer=ddp_cpu", f"run_dir={path}")
    return path


@pytest.fixture(scope="module")
def classified(tmp_path_factory):
    """A classifier of noisy digits, trained and evaluated by the real command with two processes."""
    path = tmp_path_factory.mktemp("classified") / "run"
    overrides = [f"++{o}" if "." in o.split("=")[0] else o for o in CLASSIFIER]
    launch("scorefield.cli.main", "train", *overrides, "trainer=ddp_cpu", f"run_dir={path}")
    return path


def test_a_classifier_is_measured_the_same_by_one_process(classified, tmp_path):
    parts = build(classifier(tmp_path))
    newest = RunDir(classified).checkpoints()[-1]
    parts.trainer.test(parts.module, parts.data, ckpt_path=newest, weights_only=True, verbose=False)
    (one,) = [m.record() for c in parts.trainer.callbacks for m in getattr(c, "metrics", {}).values()]
    two = metrics(classified)["class_accuracy"]
    # Counts of 41 examples, which two processes do not share evenly; float32 may decide a tie the other way.
    assert one["by_level"] == pytest.approx(two["by_level"], abs=1.01 / 41)
    assert (one["n"], one["seed"]) == (two["n"], two["seed"]) == (41, 0)


def test_every_callback_has_run_on_two_processes(trained, energies, classified):
    """The commands' runs have all that there are, bar the other one of two guards, which has a test of its own."""
    nodes = [
        node["_target_"]
        for run in (trained, energies, classified)
        for node in stored(run)["callbacks"].values()
        if node
    ]
    ran = {node.split(".")[-1] for node in [*nodes, stored(trained)["ema"]["_target_"]]} | {
        "Stopwatch",
        "Agreement",
    }  # all have both
    there_are = {
        name
        for module in pkgutil.walk_packages(training.__path__, "scorefield.training.")
        for name, thing in vars(importlib.import_module(module.name)).items()
        if isinstance(thing, type) and issubclass(thing, pl.Callback) and thing.__module__ == module.name
        if not inspect.isabstract(thing)
    }
    assert there_are - ran == {"SkipNonFinite"}  # test_guard.py::test_two_processes_agree
    phases = [(line["phase"], line["step"]) for line in journal(trained)]
    assert {("validation", 4), ("validation", 8), ("final", 8)} <= set(phases)
    measured = set(metrics(energies))
    assert {"fisher_divergence", "total_variation", "r_hat", "acceptance"} <= measured
    assert any("fokker" in name for name in measured)


def test_another_number_of_processes_can_take_over(probed, tmp_path):
    """Not bit for bit, as noise belongs to processes; but the same examples, from the same place."""
    folder, _ = probed
    parts = fit(plane(tmp_path, "optim=adam", "steps=7"), RunDir(folder / "run").checkpoint(5))
    assert parts.trainer.global_step == 7
    assert parts.trainer.fit_loop.total_batch_idx == 6
