"""The launcher of sweeps: every job is a command of its own, in a fresh process, with fixed overrides and directory.

A job is ``python -m scorefield.cli.train <overrides> run_dir=<directory>``, in Hydra's run mode. What Lightning does to
start further processes of a run, repeating its command line, therefore repeats exactly this job and nothing of the
sweep.

Hydra instantiates launchers from the package ``hydra_plugins`` only, and that package is searched at every start of
any command, so this module loads nothing heavy.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher as HydraLauncher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from scorefield.cli.exits import answered
from scorefield.cli.pool import Pool, Task
from scorefield.cli.sweep import Job, job_name
from scorefield.errors import UserError

# Of an override that only steers the sweep, and means nothing to a job.
_OF_THE_SWEEP = ("hydra.launcher", "hydra/launcher", "hydra.sweeper", "hydra/sweeper", "hydra.sweep", "hydra.mode")


class JobFailedError(HydraException):
    """A job has no result; what a sweeper is told of it."""


class Launcher(HydraLauncher):
    """Runs each job of a sweep as a command of its own.

    Args:
        jobs: how many run side by side, >= 1.
        gpus: GPUs of each job, >= 1, disjoint among jobs that run side by side; None leaves all of them to every job.
        threads: threads of each process (OMP_NUM_THREADS), >= 1; None leaves it to torch.
        stop_on_failure: whether a job that fails ends the others.

    Raises:
        UserError: an argument is out of its range, or there are fewer GPUs than the jobs need.
    """

    def __init__(
        self, jobs: int = 1, gpus: int | None = None, threads: int | None = None, stop_on_failure: bool = False
    ) -> None:
        for name, value in (("jobs", jobs), ("gpus", gpus), ("threads", threads)):
            if (value is None and name != "jobs") or (type(value) is int and value >= 1):
                continue
            raise UserError(f"hydra.launcher.{name}={value!r} must be a whole number of at least 1")
        if not isinstance(stop_on_failure, bool):
            raise UserError(f"hydra.launcher.stop_on_failure={stop_on_failure!r} must be true or false")
        self.jobs, self.gpus, self.threads, self.stop_on_failure = jobs, gpus, threads, stop_on_failure
        self._pool: Pool | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._context, self._config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs to their end; one whose directory holds its result already is not run again."""
        setup_globals()
        with answered():
            if self._pool is None:
                slots = list(gpu_slots(self.jobs, self.gpus, os.environ))
                self._pool = Pool(Path(str(self._config.hydra.sweep.dir)), slots, self.threads, self.stop_on_failure)
            jobs = [self._job(list(overrides)) for overrides in job_overrides]
            self._pool.run(jobs)
        return [self._told(job) for job in jobs]

    def _job(self, overrides: list[str]) -> Task:
        """A job's command and place, and what its configuration comes to."""
        name = job_name(self._swept(overrides))
        command = command_module()
        steering = [o for o in self._config.hydra.overrides.hydra if not o.lstrip("+~").startswith(_OF_THE_SWEEP)]
        words = [*_flags(), *overrides, *steering]
        own = f"run_dir={quoted(str(Path(str(self._config.hydra.sweep.dir)) / name))}"
        owns = command == "train"
        return Task(
            Job(overrides=overrides, directory=name),
            [sys.executable, "-m", f"scorefield.cli.{command}", *words, *([own] if owns else [])],
            (lambda: self._composed([*overrides, own])) if owns else None,
        )

    def _swept(self, overrides: Sequence[str]) -> list[tuple[str, Any]]:
        """The keys of a job that the sweep varies, and their values."""
        asked = list(self._config.hydra.overrides.task)
        params = self._config.hydra.sweeper.get("params") or {}
        parser = OverridesParser.create(config_loader=self._context.config_loader)
        read = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *asked])
        varied = {o.get_key_element() for o in read if o.is_sweep_override()}
        varied -= {o.get_key_element() for o in read if not o.is_sweep_override()}  # a later, single value wins
        return [
            (o.get_key_element(), o.get_value_element_as_str())
            for o in parser.parse_overrides(list(overrides))
            if o.get_key_element() in varied
        ]

    def _composed(self, overrides: Sequence[str]) -> Mapping[str, Any]:
        """A job's configuration, as its process will have it."""
        from scorefield.cli.runs import resolved

        config = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        HydraConfig.instance().set_config(config)
        return resolved(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))

    def _told(self, task: Task) -> JobReturn:
        """What the sweeper is told of a job: the value of its objective, or that it has failed."""
        job = task.job
        told = JobReturn(overrides=job.overrides, status=JobStatus.COMPLETED)
        told.return_value = task.objective
        if job.state != "finished" and not self._keeps_on():
            told.status = JobStatus.FAILED
            told.return_value = JobFailedError(f"{job.directory}: {job.why}")
        return told

    def _keeps_on(self) -> bool:
        """Whether the sweeper asks for no values: it would end in the middle on the first failure that it is told."""
        return str(self._config.hydra.sweeper["_target_"]).startswith("hydra._internal.core_plugins.")


def command_module() -> str:
    """The command that is being swept: the name of the module that this process runs."""
    return Path(sys.argv[0]).stem


def quoted(text: str) -> str:
    """A text as Hydra's command line takes it, whatever characters it holds."""
    # A backslash is only one that escapes where a quotation mark follows, the closing one included.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    return '"' + re.sub(r"(\\+)$", r"\1\1", escaped) + '"'


def _flags() -> list[str]:
    """Flags of the sweep's command line that say where configurations are."""
    asked = get_args_parser().parse_args(sys.argv[1:])
    given = (("--config-dir", asked.config_dir), ("--config-path", asked.config_path))
    return [word for flag, value in (*given, ("--config-name", asked.config_name)) if value for word in (flag, value)]


def gpu_slots(jobs: int, gpus: int | None, environment: Mapping[str, str]) -> Iterator[str | None]:
    """What CUDA_VISIBLE_DEVICES is for each of the jobs that run side by side; None leaves it as it is.

    Args:
        jobs: how many run side by side.
        gpus: GPUs of each; None shares all of them.
        environment: where CUDA_VISIBLE_DEVICES may name those that the sweep may use; all of the machine otherwise.

    Raises:
        UserError: there are too few.
    """
    if gpus is None:
        yield from [None] * jobs
        return
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        import torch

        visible = [str(number) for number in range(torch.cuda.device_count())]
    else:
        visible = [name.strip() for name in named.split(",") if name.strip()]
    if jobs * gpus > len(visible):
        raise UserError(
            f"hydra.launcher.jobs={jobs} with hydra.launcher.gpus={gpus} each need {jobs * gpus} GPUs, but "
            f"{len(visible)} are visible; give smaller numbers, or more of CUDA_VISIBLE_DEVICES"
        )
    for n in range(jobs):
        yield ",".join(visible[n * gpus : (n + 1) * gpus])
