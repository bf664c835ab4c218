"""Processes of a sweep's jobs: a number of them side by side, watched, told to stop and never left behind."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

from scorefield.cli.exits import STARTED_BY_SWEEP
from scorefield.cli.sweep import Job, Sweep, conclude
from scorefield.cli.watch import watching
from scorefield.errors import BadFileError, Exit, UserError
from scorefield.records.files import write_atomically
from scorefield.records.result import Result
from scorefield.records.rundir import RunDir

_PERIOD = 0.2  # seconds from one look at the processes to the next
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
# What says which process of which run somebody is; jobs are runs of their own.
_OF_ANOTHER_RUN = ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class Task:
    """A job and how to run it.

    Args:
        job: its record.
        command: its command line.
        compose: makes its configuration; None where the job is no run with a directory of its own.
    """

    job: Job
    command: list[str]
    compose: Callable[[], Mapping[str, Any]] | None = None
    objective: float | None = None
    process: "subprocess.Popen[bytes] | None" = None
    slot: str | None = None
    started: float = field(default_factory=time.monotonic)

    def take(self, result: Result, config: Mapping[str, Any]) -> None:
        """Keep the value that the sweep is about, where it is about one."""
        name = config.get("objective_metric")
        self.objective = None if name is None else result.value(name)


class Pool:
    """Runs tasks, so many side by side, and records how they come on.

    Args:
        directory: the sweep's directory.
        slots: one entry for each task that may run at a time: its CUDA_VISIBLE_DEVICES, or None.
        threads: OMP_NUM_THREADS of the tasks; None leaves it.
        stop_on_failure: whether a task that fails ends the others.

    Raises:
        UserError: another process is running the sweep of this directory.
    """

    def __init__(
        self, directory: Path, slots: Sequence[str | None], threads: int | None, stop_on_failure: bool
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(directory / "sweep.log")
        if self._lock is None:
            raise UserError(f"{directory} is the directory of a sweep that is running; wait for it, or end it")
        command = ["scorefield", Path(sys.argv[0]).stem, *sys.argv[1:]]
        self.sweep = Sweep(directory, command)
        self._free, self._threads, self._stop_on_failure = list(slots), threads, stop_on_failure
        self._told: int | None = None

    def run(self, tasks: Sequence[Task]) -> None:
        """Run the tasks to their end; raises SystemExit where the sweep was told to stop."""
        self.sweep.jobs += [task.job for task in tasks]
        for task in tasks:
            self._look(task)
        self.sweep.write()
        waiting, running = [task for task in tasks if task.job.state == "waiting"], list[Task]()
        with self._listening(running), watching(self.sweep) as say:
            for task in tasks:
                if task.job.state == "finished":
                    say(f"{task.job.directory} is finished already")
            while running or (waiting and not self._stopping):
                while waiting and self._free and not self._stopping:
                    task = waiting.pop(0)
                    self._start(task)
                    running.append(task)
                    self.sweep.write()
                    say(f"{task.job.directory} starts")
                time.sleep(_PERIOD)
                for task in [task for task in running if task.process is not None and task.process.poll() is not None]:
                    running.remove(task)
                    self._end(task)
                    self.sweep.write()
                    say(_said(task))
                    if task.job.state == "failed" and self._stop_on_failure:
                        self._stop(running)
        if self._told is not None:
            conclude(self.sweep.path)
            sys.exit(Exit.INTERRUPTED if self._told == signal.SIGINT else Exit.PREEMPTED)

    @property
    def _stopping(self) -> bool:
        return self._told is not None or (self._stop_on_failure and bool(self.sweep.of("failed")))

    def _look(self, task: Task) -> None:
        """Whether a task has been done by an earlier sweep; refuses a directory that holds another run.

        Raises:
            UserError: the directory holds a run with another configuration.
        """
        if task.compose is None:
            if _recorded(self.sweep.run_dir(task.job)) == {"command": task.command, "exit_code": 0}:
                task.job.state = "finished"
            return
        run = RunDir(self.sweep.run_dir(task.job))
        if not run.config.exists():
            return
        from scorefield.cli.runs import fingerprint, stored_config

        wanted, stored = task.compose(), stored_config(run)
        if (fingerprint(wanted), wanted["seed"]) != (fingerprint(stored), stored["seed"]):
            raise UserError(
                f"{run.path} holds a run with another configuration than this sweep's job; give the sweep another "
                "directory, hydra.sweep.dir=..."
            )
        self._take_result(task, fingerprint(stored), wanted)

    def _take_result(self, task: Task, named: str, config: Mapping[str, Any]) -> None:
        """Count a task as finished if its directory holds the result of its configuration."""
        try:
            result = Result.read(RunDir(self.sweep.run_dir(task.job)).result)
        except (FileNotFoundError, BadFileError):
            return
        if result.config_hash == named:
            task.job.state, task.job.exit_code = "finished", 0
            task.take(result, config)

    def _start(self, task: Task) -> None:
        """Start a task's process, in a session of its own; it holds its log's lock for as long as it lives."""
        log = self.sweep.log(task.job)
        log.parent.mkdir(parents=True, exist_ok=True)
        output = _locked(log, patience=60.0)
        if output is None:
            raise UserError(f"{log.parent.parent} is in use by a run that has not ended after a minute; end it first")
        task.slot = self._free.pop(0)
        environment = {key: value for key, value in os.environ.items() if key not in _OF_ANOTHER_RUN}
        environment[STARTED_BY_SWEEP] = str(os.getpid())
        environment["PYTHONUNBUFFERED"] = "1"
        if task.slot is not None:
            environment["CUDA_VISIBLE_DEVICES"] = task.slot
        if self._threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._threads)
        with output:
            output.write(f"$ {shlex.join(task.command)}\n".encode())
            output.flush()
            task.process = subprocess.Popen(
                task.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        task.job.state, task.job.exit_code, task.job.why = "running", None, None
        task.started = time.monotonic()

    def _end(self, task: Task) -> None:
        """Record how a task's process has ended."""
        assert task.process is not None
        code, job = task.process.returncode, task.job
        self._free.append(task.slot)
        job.exit_code = code
        record = {"command": task.command, "exit_code": code}
        path = self.sweep.run_dir(job) / "logs" / "job.json"
        write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
        if code == Exit.FINISHED:
            job.state = "finished"
            if task.compose is not None and (config := task.compose()).get("objective_metric") is not None:
                task.take(Result.read(RunDir(self.sweep.run_dir(job)).result), config)
        elif code in (Exit.PREEMPTED, Exit.INTERRUPTED) or (code < 0 and self._told is not None):
            job.state, job.why = "interrupted", "told to stop, and saved" if code == Exit.PREEMPTED else "told to stop"
        else:
            job.state = "failed"
            job.why = f"killed by signal {-code}" if code < 0 else _last_word(self.sweep.log(job)) or f"code {code}"

    def _stop(self, running: Sequence[Task], number: int = signal.SIGTERM) -> None:
        """Tell what runs to stop; the first process of a run sees to the others."""
        for task in running:
            if task.process is not None and task.process.poll() is None:
                task.process.send_signal(number)

    @contextmanager
    def _listening(self, running: Sequence[Task]) -> Iterator[None]:
        """Pass on what the sweep is told: to save and stop; told twice by Ctrl-C, to stop at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            again = self._told == signal.SIGINT == number
            self._told = number
            self._stop(running, signal.SIGKILL if again else signal.SIGTERM)

        before = {number: signal.signal(number, handle) for number in _SIGNALS}
        try:
            yield
        except BaseException:
            self._stop(running)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _locked(path: Path, patience: float = 0.0) -> BinaryIO | None:
    """A file opened to append, and locked as long as somebody has it open; None if it stays another's."""
    file = path.open("ab")
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(_PERIOD)
        else:
            return file


def _recorded(directory: Path) -> Any:
    """What is recorded of a job's last attempt."""
    try:
        return json.loads((directory / "logs" / "job.json").read_bytes())
    except (OSError, ValueError):
        return None


def _last_word(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace")[-4000:].splitlines() if line.strip()]
    return lines[-1].removeprefix("scorefield: ")[:300] if lines else ""


def _said(task: Task) -> str:
    """One line on a task that has ended."""
    seconds = time.monotonic() - task.started
    why = f": {task.job.why}" if task.job.why else ""
    return f"{task.job.directory} {task.job.state} after {seconds:.0f} s{why}"
