"""A sweep's directory: which jobs it consists of, where each has its own directory, and how far each has come.

::

    sweep.yaml          the command, and every job with its overrides, directory, state and exit code
    sweep.log           what the sweep said
    table.md            the comparison of its runs, once they have ended
    <job>/logs/job.log  what a job said, over all of its attempts
    <job>/...           the job's run, as if it had been started alone

A job's directory is named by what is swept: ``sampler-ddim_seed-1``.
"""

import hashlib
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from scorefield.errors import BadFileError, Exit
from scorefield.records.comparison import compare
from scorefield.records.files import write_atomically
from scorefield.records.runs import find_runs
from scorefield.records.tables import markdown, tabulate

State = Literal["waiting", "running", "finished", "failed", "interrupted"]

RECORD = "sweep.yaml"
TABLE = "table.md"
_UNSAFE = re.compile(r"[^\w.+-]+")
_LONGEST = 96  # characters of a job's name


@dataclass
class Job:
    """One job of a sweep.

    Args:
        overrides: its command line after the command, without its directory.
        directory: its directory, relative to the sweep's.
        state: how far it has come.
        exit_code: the code that its process ended with; negative for a signal, None where it has not ended.
        why: what keeps it from being finished, where the code does not say.
    """

    overrides: list[str]
    directory: str
    state: State = "waiting"
    exit_code: int | None = None
    why: str | None = None


@dataclass
class Sweep:
    """All jobs of a sweep, written to its directory whenever one of them changes.

    Args:
        path: the sweep's directory.
        command: the command line that started it, as words.
        jobs: its jobs in their order.
    """

    path: Path
    command: list[str]
    jobs: list[Job] = field(default_factory=list)

    def write(self) -> None:
        """Write sweep.yaml in one piece."""
        record = {"command": shlex.join(self.command), "jobs": [asdict(job) for job in self.jobs]}
        write_atomically(self.path / RECORD, yaml.safe_dump(record, sort_keys=False, width=10_000).encode())

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """The sweep recorded in a directory.

        Raises:
            BadFileError: the record is damaged.
        """
        file = path / RECORD
        try:
            record = yaml.safe_load(file.read_bytes())
            return cls(path, shlex.split(record["command"]), [Job(**job) for job in record["jobs"]])
        except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BadFileError(f"{file} is damaged: expected a sweep's record, found {error!r}") from error

    def of(self, *states: State) -> list[Job]:
        """The jobs in some states."""
        return [job for job in self.jobs if job.state in states]

    @property
    def exit_code(self) -> int:
        """The code that the sweep ends with: of its first failed job, else whether something is left to do."""
        failed = self.of("failed")
        if failed:
            code = failed[0].exit_code
            return code if code is not None and code > 0 else Exit.FAULT
        return Exit.PREEMPTED if self.of("interrupted", "waiting", "running") else Exit.FINISHED

    def summary(self) -> str:
        """How many jobs are in which state, and those that did not finish by name."""
        if not self.jobs:
            return f"the jobs have ended: {self.path}"
        counts = [f"{len(jobs)} {state}" for state in _ORDER if (jobs := self.of(state))]
        lines = [f"{len(self.jobs)} jobs: {', '.join(counts)}"]
        for job in self.of("failed", "interrupted"):
            lines.append(f"  {job.state} {job.directory}: {job.why}; see {self.log(job)}")
        return "\n".join(lines)

    def tabled(self) -> bool:
        """Compare the runs in table.md; whether there are any."""
        found = find_runs([self.path])
        if not found.runs:
            return False
        text = markdown(tabulate(compare(found.runs), found.unread))
        write_atomically(self.path / TABLE, text.encode())
        return True

    def run_dir(self, job: Job) -> Path:
        """The directory of a job."""
        return self.path / job.directory

    def log(self, job: Job) -> Path:
        """Where a job's output goes."""
        return self.run_dir(job) / "logs" / "job.log"


_ORDER: tuple[State, ...] = ("finished", "failed", "interrupted", "running", "waiting")


def job_name(overrides: Iterable[tuple[str, Any]]) -> str:
    """A directory's name for the swept values of a job, the same whatever else is in the sweep.

    Where the values hold what a file name should not, or are too long, eight hexadecimal digits of them are added, so
    that two jobs are never called the same.

    Args:
        overrides: the swept keys and their values, in order.
    """
    pairs = [(key, str(value)) for key, value in overrides]
    if not pairs:
        return "job"
    ends = [re.sub(r".*[./](?=[^./]*[A-Za-z])", "", key).lstrip("+~") for key, _ in pairs]
    whole = "_".join(f"{end}-{value}" for end, (_, value) in zip(ends, pairs, strict=True))
    name = _UNSAFE.sub("-", whole)[:_LONGEST].strip(".")
    if name == whole and len(set(ends)) == len(pairs):
        return name
    return f"{name}-{hashlib.sha256(repr(pairs).encode()).hexdigest()[:8]}"


def sweep_name(command: str, name: str | None, overrides: Sequence[str]) -> str:
    """A directory's name for a sweep: the same command line, the same directory."""
    asked = sorted(o for o in overrides if not o.lstrip("+~").startswith(("hydra.launcher", "hydra/launcher")))
    digest = hashlib.sha256("\n".join([command, *asked]).encode()).hexdigest()[:8]
    return f"{name or command}-{digest}"


def conclude(directory: Path) -> int:
    """Say how a sweep has ended and how to go on, write its table, and give the exit code."""
    recorded = (directory / RECORD).exists()  # other launchers keep none, and have ended with an error where one failed
    sweep = Sweep.read(directory) if recorded else Sweep(directory, [])
    print(sweep.summary(), flush=True)
    if sweep.tabled():
        print(f"table: {directory / TABLE}", flush=True)
    if sweep.exit_code != Exit.FINISHED:
        print(f"what is left: scorefield resume {shlex.quote(str(directory))}, or the same command again", flush=True)
    return sweep.exit_code
