"""Sweeps of real runs: each job is the run that the same settings make alone, also with several processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from scorefield.cli import resume
from scorefield.cli.app import refuse_mistakes
from scorefield.cli.sweep import Sweep
from scorefield.errors import BadFileError, Exit
from scorefield.records.rundir import RunDir
from tests.training.tiny import PLANE, checkpoint, differences, journal, metrics, stored

ROOT = Path(__file__).parents[2]
SMALL = [f"++{o}" if "." in o.split("=")[0] else o for o in PLANE if "likelihood" not in o]
SMALL += ["likelihood=exact", "~callbacks.likelihood"]
PROBE = "+callbacks.probe={_target_: tests.cli.probe.Probe, folder: '%s'}"


def command(*arguments: str, code: int | None = 0, **environment: str) -> subprocess.CompletedProcess:
    """A command of the project, run to its end."""
    names = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")
    env = {k: v for k, v in os.environ.items() if k not in names}
    done = subprocess.run(
        [sys.executable, "-m", "scorefield.cli.main", *arguments],
        cwd=ROOT,
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert code is None or done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def told_by(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


@pytest.mark.timeout(290)
def test_two_jobs_of_two_processes_are_the_runs_that_they_are_alone(tmp_path):
    """One sweep directory; the processes of a job were started alike; its numbers, weights and journal bit for bit."""
    settings = [*SMALL, "steps=8", "trainer=ddp_cpu", f"outputs={tmp_path}", PROBE % (tmp_path / "told")]
    side_by_side = ["hydra.launcher.jobs=2", "hydra.launcher.threads=1"]
    done = command("train", "-m", *settings, "seed=0,1", *side_by_side, SCOREFIELD_PLUGINS="tests")
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert {p.name for p in tmp_path.iterdir()} == {"sweeps", "told"}
    assert {p.name for p in sweep.iterdir()} == {
        *("seed-0", "seed-1", "sweep.yaml", "sweep.log", "table.md", "multirun.yaml")
    }
    assert "2 jobs: 2 finished" in done.stdout
    told = told_by(tmp_path / "told")
    assert sorted((one["seed"], one["rank"]) for one in told) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for seed in (0, 1):
        same = {(one["fingerprint"], one["run_dir"]) for one in told if one["seed"] == seed}
        record = json.loads((sweep / f"seed-{seed}" / "result.json").read_text())
        assert same == {(record["config_hash"], str(sweep / f"seed-{seed}"))}
    command("train", *settings, "seed=1", f"run_dir={tmp_path / 'alone'}", SCOREFIELD_PLUGINS="tests")
    assert metrics(tmp_path / "alone") == metrics(sweep / "seed-1")
    assert differences(checkpoint(tmp_path / "alone"), checkpoint(sweep / "seed-1")) == []
    assert journal(tmp_path / "alone") == journal(sweep / "seed-1")
    assert metrics(sweep / "seed-0") != metrics(sweep / "seed-1")
    assert "| 2 |" in (sweep / "table.md").read_text()


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
def test_a_sweep_is_refused_as_a_whole(capsys, remembered_composition, arguments, expected):
    assert expected in refused(capsys, "-m", *arguments)


def test_a_sweep_is_refused_where_somebody_else_starts_the_processes(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "each of which would run the whole sweep; start the sweep alone" in refused(capsys, "-m", "seed=0,1")


def test_a_sweep_may_have_several_processes_in_each_job(remembered_composition):
    assert len(refuse_mistakes("train", ["-m", "seed=0,1", "trainer=ddp_cpu"])) == 2


def test_groups_of_sweeps_multiply_and_the_command_line_wins(remembered_composition):
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
    run = RunDir(tmp_path / "seed-0").create()
    done = command("train", "--cfg", "job", "--resolve", *SMALL, "steps=5", f"run_dir={run.path}")
    run.config.write_text(yaml.safe_dump(yaml.safe_load(done.stdout)))
    arguments = ["train", "-m", *SMALL, "steps=4", "seed=1,0", f"hydra.sweep.dir={tmp_path}"]
    refusal = command(*arguments, code=2)
    assert "seed-0 holds a run with another configuration" in refusal.stderr
    assert not (tmp_path / "seed-1").exists()
    assert stored(run.path)["steps"] == 5
    shutil.rmtree(run.path)
