"""Jobs of a sweep as processes, with small scripts in the place of runs: side by side, failing, stopped, killed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from scorefield.cli import pool as pool_module
from scorefield.cli.launcher import Launcher, gpu_slots, quoted
from scorefield.cli.pool import Pool, Task
from scorefield.cli.sweep import Job, Sweep, job_name, sweep_name
from scorefield.errors import UserError

ROOT = Path(__file__).parents[2]
SAVES_ITSELF = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); "
    "print('ready', flush=True); time.sleep(60)"
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(pool_module, "_PERIOD", 0.02)


def task(name: str, code: str) -> Task:
    return Task(Job([f"name={name}"], name), [sys.executable, "-S", "-c", code])


def run(folder: Path, *tasks: Task, slots=(None,), threads=None, stop_on_failure=False) -> Sweep:
    pool = Pool(folder, list(slots), threads, stop_on_failure)
    pool.run(tasks)
    return Sweep.read(folder)


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)


def test_a_failed_job_leaves_its_log_and_code_and_the_others_go_on(tmp_path, capsys):
    sweep = run(tmp_path, task("a", "print('ouch'); raise SystemExit(3)"), task("b", "print('fine')"))
    assert [(job.state, job.exit_code) for job in sweep.jobs] == [("failed", 3), ("finished", 0)]
    log = (tmp_path / "a" / "logs" / "job.log").read_text()
    assert log.startswith("$ ")
    assert log.endswith("ouch\n")
    assert json.loads((tmp_path / "a" / "logs" / "job.json").read_text())["exit_code"] == 3
    assert sweep.exit_code == 3
    assert f"failed a: ouch; see {tmp_path / 'a' / 'logs' / 'job.log'}" in sweep.summary()
    said = capsys.readouterr().out
    assert "a failed after" in said
    assert (tmp_path / "sweep.log").read_text().count("\n") == 4


def test_a_job_without_a_run_of_its_own_is_done_once(tmp_path):
    """An evaluation, for instance: it counts as done where the same command has ended well, and else is done again."""
    code = f"print('ran', file=open({str(tmp_path / 'ran')!r}, 'a'))"
    for jobs, times in (([task("a", code)], 1), ([task("a", code)], 1), ([task("a", code + ";1")], 2)):
        run(tmp_path, *jobs)
        assert (tmp_path / "ran").read_text().count("ran") == times


def test_one_that_fails_ends_the_others_where_that_is_asked_for(tmp_path):
    tasks = [task("a", SAVES_ITSELF), task("b", "import time; time.sleep(0.3); raise SystemExit(2)"), task("c", "")]
    sweep = run(tmp_path, *tasks, slots=(None, None), stop_on_failure=True)
    assert [job.state for job in sweep.jobs] == ["interrupted", "failed", "waiting"]
    assert sweep.exit_code == 2


def test_a_job_killed_by_a_signal_has_failed_and_one_that_was_preempted_has_not(tmp_path):
    kill = "import os; os.kill(os.getpid(), 9)"
    sweep = run(tmp_path, task("a", kill), task("b", "raise SystemExit(75)"))
    assert [(job.state, job.exit_code) for job in sweep.jobs] == [("failed", -9), ("interrupted", 75)]
    assert "killed by signal 9" in sweep.summary()
    assert sweep.exit_code == 1


@pytest.mark.parametrize("side_by_side", [1, 2, 3])
def test_so_many_run_at_a_time(tmp_path, side_by_side):
    """Each job counts those that run while it does; with enough jobs the most is the number that was asked for."""
    code = (
        "import pathlib, time, os; here = pathlib.Path({!r}); me = here / str(os.getpid()); me.touch(); "
        "time.sleep(0.4); print(len(list(here.iterdir()))); me.unlink()"
    ).format(str(tmp_path / "running"))
    (tmp_path / "running").mkdir()
    run(tmp_path / "sweep", *(task(str(i), code) for i in range(4)), slots=[None] * side_by_side)
    counts = [int(log.read_text().split()[-1]) for log in (tmp_path / "sweep").glob("*/logs/job.log")]
    assert max(counts) == side_by_side


def test_jobs_side_by_side_have_gpus_of_their_own(tmp_path):
    code = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(0.4)"
    slots = list(gpu_slots(2, 2, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}))
    run(tmp_path, *(task(str(i), code) for i in range(4)), slots=slots)
    seen = [log.read_text().split()[-1] for log in sorted(tmp_path.glob("*/logs/job.log"))]
    assert set(seen[:2]) == {"4,5", "6,7"}
    assert sorted(seen) == ["4,5", "4,5", "6,7", "6,7"]


def test_too_few_gpus_are_refused_and_all_are_shared_by_default():
    with pytest.raises(UserError, match=r"jobs=3 with hydra.launcher.gpus=2 each need 6 GPUs, but 4 are visible"):
        list(gpu_slots(3, 2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}))
    assert list(gpu_slots(3, None, {"CUDA_VISIBLE_DEVICES": "0"})) == [None, None, None]


def test_a_job_is_no_process_of_another_run(tmp_path, monkeypatch):
    for name in ("LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    code = (
        "import os; names = ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT'); "
        "print([name for name in names if name in os.environ], os.environ['OMP_NUM_THREADS'])"
    )
    run(tmp_path, task("a", code), threads=3)
    assert (tmp_path / "a" / "logs" / "job.log").read_text().endswith("[] 3\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)])
def test_what_the_sweep_is_told_reaches_its_jobs_which_save_themselves(tmp_path, capsys, number, code):
    log = tmp_path / "a" / "logs" / "job.log"

    def tell() -> None:
        until(lambda: log.exists() and "\nready\n" in log.read_text())
        os.kill(os.getpid(), number)

    threading.Thread(target=tell, daemon=True).start()
    with pytest.raises(SystemExit) as end:
        run(tmp_path, task("a", SAVES_ITSELF), task("b", ""))
    assert end.value.code == code
    assert [(j.state, j.exit_code) for j in Sweep.read(tmp_path).jobs] == [("interrupted", 75), ("waiting", None)]
    said = capsys.readouterr().out
    assert "interrupted a: told to stop, and saved" in said
    assert f"scorefield resume {tmp_path}" in said
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_twice_ends_a_job_that_does_not_listen(tmp_path):
    log = tmp_path / "a" / "logs" / "job.log"
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )

    def tell() -> None:
        until(lambda: log.exists() and "\nready\n" in log.read_text())
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)

    threading.Thread(target=tell, daemon=True).start()
    start = time.monotonic()
    with pytest.raises(SystemExit):
        run(tmp_path, task("a", deaf))
    assert time.monotonic() - start < 20
    assert Sweep.read(tmp_path).jobs[0].exit_code == -9


def test_a_directory_belongs_to_one_sweep_at_a_time(tmp_path):
    first = Pool(tmp_path, [None], None, False)
    with pytest.raises(UserError, match="is the directory of a sweep that is running"):
        Pool(tmp_path, [None], None, False)
    first._lock.close()
    Pool(tmp_path, [None], None, False)


def test_a_job_waits_for_what_still_runs_in_its_directory(tmp_path):
    """Of a sweep that was killed, for instance: two processes never train in one directory."""
    log = tmp_path / "a" / "logs" / "job.log"
    log.parent.mkdir(parents=True)
    other = log.open("ab")
    fcntl.flock(other, fcntl.LOCK_EX)
    timer = threading.Timer(0.5, other.close)
    timer.start()
    start = time.monotonic()
    run(tmp_path, task("a", ""))
    assert time.monotonic() - start > 0.45


def test_jobs_of_a_sweep_that_is_killed_save_themselves_and_release_their_directory(tmp_path):
    """SIGKILL to the sweep, which can pass nothing on: its job is told to stop all the same."""
    job = (
        "import signal, sys, time\n"
        "from scorefield.cli.exits import end_with_the_sweep\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(75)))\n"
        "end_with_the_sweep()\nprint('ready', flush=True)\ntime.sleep(60)"
    )
    sweep = (
        "import sys\nfrom pathlib import Path\n"
        "from scorefield.cli.pool import Pool, Task\nfrom scorefield.cli.sweep import Job\n"
        f"Pool(Path({str(tmp_path)!r}), [None], None, False).run([Task(Job([], 'a'), [sys.executable, '-c', {job!r}])])"
    )
    process = subprocess.Popen([sys.executable, "-c", sweep], cwd=ROOT)
    log = tmp_path / "a" / "logs" / "job.log"
    until(lambda: log.exists() and "\nready\n" in log.read_text())
    process.kill()
    process.wait()
    until(lambda: "saved" in log.read_text())
    finished = run(tmp_path, task("a", "print('again')"))
    assert finished.jobs[0].state == "finished"
    assert log.read_text().endswith("again\n")


def test_names_of_jobs_are_what_is_swept_and_never_the_same_for_two():
    assert job_name([("sampler", "ddim"), ("optim.optimizer.lr", "0.001")]) == "sampler-ddim_lr-0.001"
    assert job_name([("/callbacks/x", "1"), ("+a.b", "2")]) == "x-1_b-2"
    assert job_name([("optim.betas.0", "0.5")]) == "betas.0-0.5"
    assert job_name([]) == "job"
    alike = [[("a", "x/y")], [("a", "x y")], [("a", "x-y")], [("a.n", "1"), ("b.n", "2")], [("b.n", "1"), ("a.n", "2")]]
    alike += [[("a", "v" * 300)], [("a", "v" * 301)]]
    names = [job_name(one) for one in alike]
    assert len(set(names)) == len(names)
    assert all(len(name) < 120 and "/" not in name and not name.startswith(".") for name in names)


def test_the_same_command_has_the_same_directory_however_many_run_side_by_side():
    name = sweep_name("train", "digits", ["seed=1,2", "sampler=ddim"])
    assert name == sweep_name("train", "digits", ["sampler=ddim", "seed=1,2", "hydra.launcher.jobs=4"])
    assert name != sweep_name("train", "digits", ["sampler=ddim", "seed=1,3"])
    assert name.startswith("digits-")


@pytest.mark.parametrize("arguments", [{"jobs": 0}, {"gpus": -1}, {"threads": "two"}, {"stop_on_failure": 1}])
def test_the_launcher_refuses_what_it_cannot_use(arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=f"hydra.launcher.{name}="):
        Launcher(**arguments)


@pytest.mark.parametrize("text", ["a b", 'say "x"', "a,b=c", "back\\slash", "end\\", '\\"'])
def test_quoted_texts_are_read_back_by_hydra(text):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (override,) = OverridesParser.create().parse_overrides([f"run_dir={quoted(text)}"])
    assert not override.is_sweep_override()
    assert override.value() == text
