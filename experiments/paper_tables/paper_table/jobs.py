"""The commands behind a row, where each leaves its record, and how they are run."""

import importlib
import multiprocessing
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from paper_table.tables import Plan, Row
from scorefield.cli import compose
from scorefield.errors import BadFileError
from scorefield.records.result import Result
from scorefield.records.rundir import RunDir

OUTPUTS = Path("outputs") / "paper_tables"


@dataclass(frozen=True)
class Job:
    """One command.

    Args:
        program: ``train``, ``evaluate``, or the path of a script.
        overrides: what follows it, without seed and place.
        seed: the seed.
        run_dir: the run that it makes or reads.
        trained: overrides of the run that is evaluated; empty for other programs.
    """

    program: str
    overrides: tuple[str, ...]
    seed: int
    run_dir: Path
    trained: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Everything after the program."""
        if self.program in ("train", "evaluate"):
            return (*self.overrides, f"seed={self.seed}", f"run_dir={self.run_dir}")
        return (*self.overrides, f"--seed={self.seed}", f"--out={self.run_dir}")

    @property
    def line(self) -> str:
        """The command as one types it."""
        start = ("scorefield",) if self.program in ("train", "evaluate") else ("python",)
        return shlex.join([*start, self.program, *self.arguments])

    @property
    def place(self) -> Path:
        """The directory in which it leaves result.json."""
        if self.program != "evaluate":
            return self.run_dir
        return self.run_dir / "evaluations" / f"{self.fingerprint}-seed{self.seed}"

    @property
    def fingerprint(self) -> str | None:
        """What names the configuration that it computes with now; None for a script, which has none."""
        if self.program in ("train", "evaluate"):
            return _fingerprint(self.program, self.overrides, self.trained)
        return None

    def result(self) -> Result | None:
        """Its record, if it has run to its end with the configuration of today.

        Raises:
            ValueError: the directory holds the record of another configuration.
        """
        path = RunDir(self.place).result
        if not path.is_file():
            return None
        result = Result.read(path)
        if self.fingerprint is not None and result.config_hash != self.fingerprint:
            raise ValueError(
                f"{path} was made with configuration {result.config_hash}, and this row has {self.fingerprint} now: "
                "move the directory away, or restore the configuration"
            )
        return result


def jobs(row: Row, scale: str, seed: int, plan: Plan, outputs: Path = OUTPUTS) -> list[Job]:
    """The commands of a row, the last of which leaves its record; none where the row is not made at this scale."""
    if row.key is None or scale in row.missing:
        return []
    if row.script:
        program, *overrides = row.script
        return [Job(program, tuple(overrides), seed, outputs / scale / f"{row.key}-seed{seed}")]
    model = row.model[scale]
    trained = plan.train(model, scale)
    if trained is None:
        return []
    run_dir = outputs / scale / f"{plan.run(model, scale)}-seed{seed}"
    made = [Job("train", trained, seed, run_dir)]
    if scale in row.evaluate:
        own = tuple(row.evaluate[scale])
        keys = {override.partition("=")[0] for override in own}
        common = (each for each in plan.scales[scale]["evaluate"] if each.partition("=")[0] not in keys)
        made.append(Job("evaluate", (*common, *own), seed, run_dir, trained))
    return made


def composed(program: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The resolved configuration of a command.

    Raises:
        ValueError: the overrides do not make one; the message says why.
    """
    (found,) = compose.jobs(program, list(overrides))
    if found.problems or found.values is None:
        raise ValueError(f"{program} {shlex.join(overrides)}: " + "; ".join(problem.text for problem in found.problems))
    return found.values


@cache
def _fingerprint(program: str, overrides: tuple[str, ...], trained: tuple[str, ...]) -> str:
    from scorefield.cli.evaluate import evaluation_config
    from scorefield.cli.runs import fingerprint

    if program == "train":
        return fingerprint(composed("train", [*overrides, "run_dir=run"]))
    stored = composed("train", [*trained, "run_dir=run"])
    return fingerprint(evaluation_config(stored, composed("evaluate", [*overrides, "run_dir=run"])))


@dataclass(frozen=True)
class Done:
    """A job after its turn.

    Args:
        job: the job.
        seconds: how long it took; None where its record was there before.
        error: why it has no record; empty where it has one.
    """

    job: Job
    seconds: float | None
    error: str = ""


def run(chains: Sequence[Sequence[Job]], side_by_side: int) -> Iterator[Done]:
    """Run chains of jobs, so many at a time, and tell of each job when it is done; a failure ends its chain only."""
    context = multiprocessing.get_context("forkserver")
    # Loaded once, and not by each of some hundred commands: they take seconds, the commands a few more.
    context.set_forkserver_preload(["paper_table.jobs", "scorefield.cli.train", "scorefield.cli.evaluate"])

    told = SimpleQueue[Done]()

    def follow(chain: Sequence[Job]) -> None:
        for position, job in enumerate(chain):
            try:
                done = _run(job, context.Process)
            except Exception as error:  # whatever it is, the others go on, and whoever waits is told
                done = Done(job, None, f"{type(error).__name__}: {error}")
            told.put(done)
            if done.error:
                for other in chain[position + 1 :]:
                    told.put(Done(other, None, f"not run, since {job.line} failed"))
                return

    with ThreadPoolExecutor(side_by_side) as pool:
        running = [pool.submit(follow, chain) for chain in chains]
        for _ in range(sum(len(chain) for chain in chains)):
            yield told.get()
        for each in running:
            each.result()


def _run(job: Job, process: Callable[..., Any]) -> Done:
    try:
        if job.result() is not None:
            return Done(job, None)
    except (BadFileError, ValueError) as error:
        return Done(job, None, str(error))
    name = job.run_dir.name if job.program != "evaluate" else f"{job.run_dir.name}-{job.place.name}"
    log = job.run_dir.parent / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    if job.program in ("train", "evaluate"):
        worker = process(target=_work, args=((job.program, *job.arguments), str(log)))
        worker.start()
        worker.join()
        code = worker.exitcode
    else:
        with log.open("wb") as file:
            code = subprocess.run([sys.executable, job.program, *job.arguments], stdout=file, stderr=file).returncode
    seconds = time.monotonic() - begun
    if code != 0 or not RunDir(job.place).result.is_file():
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        return Done(job, seconds, "\n".join([f"{job.line} ended with code {code}; see {log}", *said]))
    return Done(job, seconds)


def _work(arguments: Sequence[str], log: str) -> None:
    """A command of scorefield in a process of its own."""
    import torch

    torch.set_num_threads(1)
    with open(log, "w", buffering=1, encoding="utf-8") as file, redirect_stdout(file), redirect_stderr(file):
        sys.argv = ["scorefield", *arguments]
        importlib.import_module("scorefield.cli.main").main()
