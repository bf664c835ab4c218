"""Sweeps of real runs: each job is the run that the same settings make alone, also with several processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scorefield.cli import resume
from scorefield.cli.app import refuse_mistakes
from scorefield.cli.pool import Pool, Task
from scorefield.cli.sweep import Job, Sweep
from scorefield.errors import BadFileError, Exit, UserError
from scorefield.records.rundir import RunDir
from tests.training.tiny import PLANE, checkpoint, differences, journal, metrics, plane, stored

ROOT = Path(__file__).parents[2]
SMALL = [f"++{o}" if "." in o.split("=")[0] else o for o in PLANE if "likelihood" not in o]
SMALL += ["likelihood=exact", "~callbacks.likelihood"]
PROBE = "+callbacks.probe={_target_: tests.cli.probe.Probe, folder: '%s'}"


TWO_PROCESSES = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]


def clean() -> dict[str, str]:
    """The environment of a process that belongs to no other run."""
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")
    return {**{k: v for k, v in os.environ.items() if k not in names}, "OMP_NUM_THREADS": "1"}


def command(*arguments: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess:
    """A command of the project, run to its end."""
    return python("-m", "scorefield.cli.main", *arguments, code=code, **environment)


def python(*arguments: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean(), **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert code is None or done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def told_by(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Two jobs of two processes each, side by side, from one command; what each process was started with."""
    folder = tmp_path_factory.mktemp("swept")
    settings = [*SMALL, *TWO_PROCESSES, "steps=8", f"outputs={folder}", PROBE % (folder / "told")]
    side_by_side = ["hydra.launcher.jobs=2", "hydra.launcher.threads=1"]
    done = command("train", "-m", *settings, "seed=0,1", *side_by_side, SCOREFIELD_PLUGINS="tests")
    (sweep,) = (folder / "sweeps").iterdir()
    return settings, folder, sweep, done


@pytest.mark.timeout(290)
def test_a_sweep_of_two_jobs_and_two_processes_leaves_one_directory(swept):
    """The processes of a job were started alike, and as the run's record says."""
    _, folder, sweep, done = swept
    assert {p.name for p in folder.iterdir()} == {"sweeps", "told"}
    assert {p.name for p in sweep.iterdir()} == {
        *("seed-0", "seed-1", "sweep.yaml", "sweep.log", "table.md", "multirun.yaml")
    }
    assert "2 jobs: 2 finished" in done.stdout
    told = told_by(folder / "told")
    assert sorted((one["seed"], one["rank"]) for one in told) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for seed in (0, 1):
        same = {(one["fingerprint"], one["run_dir"]) for one in told if one["seed"] == seed}
        record = json.loads((sweep / f"seed-{seed}" / "result.json").read_text())
        assert same == {(record["config_hash"], str(sweep / f"seed-{seed}"))}
    assert metrics(sweep / "seed-0") != metrics(sweep / "seed-1")
    assert "| 2 |" in (sweep / "table.md").read_text()


@pytest.mark.timeout(290)
def test_a_job_is_the_run_that_it_is_alone_under_torchrun_too(swept, tmp_path):
    """conf/trainer/ddp as docs/sweeps.md starts it: numbers, weights and journal bit for bit those of the job."""
    settings, _, sweep, _ = swept
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "scorefield.cli.train"]
    python(*words, *settings, "seed=1", f"run_dir={tmp_path / 'alone'}", SCOREFIELD_PLUGINS="tests")
    assert metrics(tmp_path / "alone") == metrics(sweep / "seed-1")
    assert differences(checkpoint(tmp_path / "alone"), checkpoint(sweep / "seed-1")) == []
    assert journal(tmp_path / "alone") == journal(sweep / "seed-1")


SRUN = """#!{python}
import os, subprocess, sys
words = [word for word in sys.argv[1:] if not word.startswith("--")]
def start(rank):
    own = {{"SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": 0, "SLURM_NTASKS": 2, "SLURM_JOB_NAME": "t"}}
    return subprocess.Popen(words, env={{**os.environ, **{{k: str(v) for k, v in own.items()}}}})
sys.exit(max([process.wait() for process in [start(0), start(1)]]))
"""


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_the_script_for_slurm_starts_the_run(swept, tmp_path):
    """docs/slurm.sh with a stand-in for srun, which starts two processes with the variables that Slurm sets."""
    settings, _, sweep, _ = swept
    for name, text in (
        ("srun", SRUN.format(python=sys.executable)),
        ("python", f'#!/bin/sh\nexec {sys.executable} "$@"\n'),
    ):
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    slurm = {"SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": "4242", "SLURM_NODELIST": "127.0.0.1"}
    own = [word for word in settings if not word.startswith(("trainer=", "trainer.devices="))]
    done = subprocess.run(
        ["bash", "docs/slurm.sh", *own, "seed=1", f"run_dir={tmp_path / 'alone'}"],
        cwd=ROOT,
        env={**clean(), **slurm, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SCOREFIELD_PLUGINS": "tests"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert metrics(tmp_path / "alone") == metrics(sweep / "seed-1")
    assert differences(checkpoint(tmp_path / "alone"), checkpoint(sweep / "seed-1")) == []


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_sweep_through_submitit_on_this_machine(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    settings = [*SMALL, "steps=4", "seed=0,1", f"outputs={tmp_path}"]
    done = command("train", "-m", *settings, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10")
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert len(list(sweep.glob("toy_mixture/*-seed?/result.json"))) == 2
    assert "| 2 |" in (sweep / "table.md").read_text()
    assert f"table: {sweep / 'table.md'}" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(290)
def test_a_search_by_optuna_is_told_the_numbers_of_the_results(tmp_path):
    """The best trial of the search is the run with the smallest number; the same command again runs none anew."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra/sweeper/sampler=random", "hydra.sweeper.sampler.seed=1"]
    search += ["hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=2", "hydra.launcher.jobs=2", "objective_metric=loss"]
    small = [word for word in SMALL if "optimizer.lr" not in word]
    settings = [*small, "steps=4", "optim.optimizer.lr=interval(0.001,0.1)", f"outputs={tmp_path}"]
    command("train", "-m", *search, *settings)
    (sweep,) = (tmp_path / "sweeps").iterdir()
    losses = [json.loads(path.read_text())["metrics"]["loss"]["value"] for path in sweep.glob("*/result.json")]
    found = yaml.safe_load((sweep / "optimization_results.yaml").read_text())
    assert len(losses) == 2
    assert found["best_value"] == min(losses)
    assert command("train", "-m", *search, *settings).stdout.count("is finished already") == 2


@pytest.mark.slow
@pytest.mark.timeout(290)
@pytest.mark.parametrize("again", ["command", "resume"])
def test_a_sweep_that_is_killed_goes_on_without_redoing_what_is_finished(tmp_path, again):
    """SIGKILL in the middle of the second job: the first is not touched, the second goes on from its checkpoint."""
    length = [
        "steps=300",
        "++trainer.val_check_interval=20",
        "++callbacks.checkpoint.every=7",
        "++optim.lr_schedule=null",
    ]
    arguments = ["train", "-m", *SMALL, *length, "seed=0,1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "scorefield.cli.main", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    second = RunDir(tmp_path / "sweep" / "seed-1")
    while not second.checkpoint(70).exists() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = tmp_path / "sweep" / "seed-0"
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in first.rglob("*") if p.is_file()}
    done = command(*(arguments if again == "command" else ["resume", str(tmp_path / "sweep")]))
    assert "seed-0 is finished already" in done.stdout
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in first.rglob("*") if p.is_file()} == before
    assert "resuming step-" in (second.logs / "job.log").read_text()
    command("train", *SMALL, *length, "seed=1", f"run_dir={tmp_path / 'alone'}")
    assert metrics(tmp_path / "alone") == metrics(second.path)
    assert differences(checkpoint(tmp_path / "alone"), checkpoint(second.path)) == []


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        refuse_mistakes("train", arguments)
    assert end.value.code == Exit.USER
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seed=0,0"], "two jobs of the sweep are the same run: seed=0, and seed=0"),
        (["sampler=ddim,ddim", "seed=1,2"], "two jobs of the sweep are the same run: sampler=ddim seed=1, and"),
        (["seed=0,1", "fresh=true"], "fresh=true would start every job over each time"),
        (["seed=0,1", "run_dir=here"], "run_dir is the directory of one run; a sweep's is hydra.sweep.dir"),
        (["seed=0,1", "hydra.launcher.jobs=0"], "hydra.launcher.jobs=0 must be a whole number of at least 1"),
        (["seed=0,1", "+hydra.launcher.job=3"], "job"),
        (["sweep=seeds,samplers"], "sweep=[a,b] is their product"),
        (["seed=0,1", "trainer=ddp_cpu", "hydra/launcher=basic"], "each further process would repeat the whole sweep"),
        (["seed=0,1", "trainer=ddp_cpu", "+trainer.num_nodes=2"], "starts jobs on this machine alone"),
    ],
)
def test_a_sweep_is_refused_as_a_whole(capsys, arguments, expected):
    assert expected in refused(capsys, "-m", *arguments)


def test_a_sweep_is_refused_where_somebody_else_starts_the_processes(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "each of which would run the whole sweep; start the sweep alone" in refused(capsys, "-m", "seed=0,1")


def test_a_sweep_may_have_several_processes_in_each_job():
    assert len(refuse_mistakes("train", ["-m", "seed=0,1", "trainer=ddp_cpu"])) == 2


def test_groups_of_sweeps_multiply_and_the_command_line_wins():
    both = refuse_mistakes("train", ["-m", "sweep=[seeds,samplers]"], thorough=False)
    assert len(both) == len({job.swept for job in both}) == 12
    one = refuse_mistakes("train", ["-m", "sweep=[seeds,samplers]", "seed=7"], thorough=False)
    assert [job.values["seed"] for job in one] == [7] * 4
    assert len({job.values["sampler"]["predictor"]["_target_"] for job in one}) == 3  # ddim and ancestral share theirs


@pytest.fixture
def finished_sweep(tmp_path) -> Path:
    """A sweep's record without its runs."""
    Sweep(tmp_path, ["scorefield", "train", "-m", "seed=0,1"]).write()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["scorefield", "rm"], "asks for the command 'rm'"),
        (["scorefield", "train", "-m", "seed=0,1", "+callbacks.x={_target_: os.system, command: ls}"], "os.system"),
        (["scorefield", "train", "-m", "seed=0,1", "+hydra.callbacks.x._target_=subprocess.run"], "subprocess.run"),
    ],
)
def test_a_recorded_sweep_runs_nothing_foreign(finished_sweep, monkeypatch, capsys, words, expected):
    Sweep(finished_sweep, words).write()
    monkeypatch.setattr(sys, "argv", ["resume", str(finished_sweep)])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("the command was started"))
    with pytest.raises(SystemExit) as end:
        resume.main()
    assert end.value.code == Exit.USER
    assert expected in capsys.readouterr().err


def test_a_damaged_record_is_refused_by_name(tmp_path):
    for content in ("jobs: [", "command: 3\njobs: []", "[]", "command: scorefield train\njobs: [{colour: red}]"):
        (tmp_path / "sweep.yaml").write_text(content)
        with pytest.raises(BadFileError, match=r"sweep.yaml is damaged"):
            Sweep.read(tmp_path)


def test_a_directory_of_another_sweep_is_refused_before_anything_starts(tmp_path):
    """The directory is named by what is swept, so a sweep with other fixed settings may meet it."""
    path = tmp_path / "seed-0"
    path.mkdir()
    (path / "config.yaml").write_text(yaml.safe_dump(plane(path, "steps=5")))
    tasks = [
        Task(
            Job([f"seed={n}"], f"seed-{n}"),
            ["false"],
            lambda n=n: plane(tmp_path / f"seed-{n}", "steps=4", f"seed={n}"),
        )
        for n in (1, 0)
    ]
    with pytest.raises(UserError, match="seed-0 holds a run with another configuration"):
        Pool(tmp_path, [None], None, False).run(tasks)
    assert not (tmp_path / "seed-1").exists()
    assert stored(path)["steps"] == 5
