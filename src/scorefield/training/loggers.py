"""Where a run's numbers and pictures go: the run's own journal, and Weights & Biases as a mirror of it.

The journal is the record; everything that the project reads back comes from it. W&B is for looking: whatever fails in
it is reported once and never stops or slows a run.
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only, rank_zero_warn

from scorefield.records.journal import Journal, Phase
from scorefield.records.rundir import RunDir

_MOST_UNSENT = 1 << 24  # bytes that wait for the W&B process


class RunLogger(Logger):
    """A sink for values and pictures of one run; written on the first process only."""

    def __init__(self, run_dir: str) -> None:
        super().__init__()
        self.run_dir = RunDir(Path(run_dir))

    @property
    def name(self) -> str:
        return type(self).__name__

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Ignored: the run's resolved configuration is its record."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Ignored: Lightning's own metrics are for its progress bar; `log_values` is the way in."""

    def describe(self, config: Mapping[str, Any]) -> None:
        """Take the run's resolved configuration."""

    def log_values(self, phase: Phase, step: int, images: int, values: Mapping[str, float | str]) -> None:
        """Record named values of a phase (train, validation, final) at an optimiser step."""

    def log_picture(self, name: str, step: int, images: int, path: Path) -> None:
        """Show a picture that has been written to the run directory."""

    def rewind(self, step: int) -> None:
        """Forget everything after ``step``: the run has been resumed there."""


class JournalLogger(RunLogger):
    """Writes metrics.jsonl.

    Args:
        run_dir: the run's directory.
    """

    def __init__(self, run_dir: str) -> None:
        super().__init__(run_dir)
        self._journal: Journal | None = None

    @property
    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = Journal(self.run_dir.metrics)
        return self._journal

    @rank_zero_only
    def log_values(self, phase: Phase, step: int, images: int, values: Mapping[str, float | str]) -> None:
        self.journal.write(step=step, images=images, phase=phase, **values)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        self.journal.truncate_after(step)


class WandbLogger(RunLogger):
    """Mirrors a run to Weights & Biases; offline when there is no key.

    The package runs in a process of its own, which is told what to do and never waited for in training. The run's id is
    kept in the run directory, so that a resumed run goes on under the same id.

    Args:
        run_dir: the run's directory.
        project: W&B project.
        group: name that gathers the runs of a sweep; None for that of the sweep whose directory the run lies in, or
            else of the run.
        job_type: kind of job, e.g. "train".
        name: the run's display name.
        tags: tags to filter by.
        timeout: seconds, > 0, after which a silent server is given up: when the run starts there, and at its end.
    """

    def __init__(
        self,
        run_dir: str,
        project: str = "scorefield",
        group: str | None = None,
        job_type: str = "train",
        name: str | None = None,
        tags: Sequence[str] = (),
        timeout: float = 30.0,
    ) -> None:
        super().__init__(run_dir)
        if not timeout > 0:
            raise ValueError(f"timeout={timeout} must be positive seconds")
        self._options: dict[str, Any] = {"project": project, "group": group, "job_type": job_type, "name": name}
        self._options |= {"tags": list(tags), "timeout": timeout}
        self._config: dict[str, Any] = {}
        self._timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._unsent = bytearray()
        self._given_up = False

    def describe(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)

    def _start(self) -> "subprocess.Popen[bytes]":
        id_file = self.run_dir.path / "wandb_id.txt"
        run_id = id_file.read_text().strip() if id_file.exists() else token_hex(4)
        id_file.write_text(run_id)
        # -P: the folder of the script holds modules that would hide others of the same name.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("wandb_process.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, "WANDB_SILENT": "true"},
        )
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        group = self._options["group"] or self._sweep() or self._config.get("name")
        told = {**self._options, "group": group, "dir": str(self.run_dir.path), "id": run_id, "config": self._config}
        self._send("start", told)
        return self._process

    def _sweep(self) -> str | None:
        """The name of the sweep that has made the run; found in its place, so that a resumed run keeps it."""
        folders = list(self.run_dir.path.resolve().parents)[:2]  # launchers differ in how deep they put runs
        records = ("sweep.yaml", "multirun.yaml")
        return next((f.name for f in folders if any((f / record).exists() for record in records)), None)

    def _send(self, kind: str, content: Any) -> None:
        """Tell the process what to do; it says itself what has failed, and is not told anything from then on."""
        if self._given_up:
            return
        try:
            process = self._process or self._start()
            self._unsent += json.dumps([kind, content]).encode() + b"\n"
            self._pass_on(process)
            if len(self._unsent) > _MOST_UNSENT:
                self._give_up("takes nothing in any more")
        except BrokenPipeError:
            self._given_up = True
        except Exception as error:  # whatever it is, the run must go on
            self._give_up(f"cannot be told to {kind} ({type(error).__name__}: {error})")

    def _pass_on(self, process: "subprocess.Popen[bytes]") -> None:
        """Write as much as the pipe takes without waiting."""
        assert process.stdin is not None
        while self._unsent and (written := process.stdin.write(self._unsent)):
            del self._unsent[:written]

    def _give_up(self, why: str) -> None:
        self._given_up = True
        if self._process is not None:
            self._process.kill()
        rank_zero_warn(f"W&B {why}; the run goes on without it, and `wandb sync` sends what it has kept in the run")

    def _end(self, exit_code: int, patience: float) -> bool:
        """Let the process finish its work, and wait for so long at most; whether it has."""
        if self._process is None:
            return True
        self._send("finish", exit_code)
        assert self._process.stdin is not None
        deadline = time.monotonic() + patience
        while self._unsent and not self._given_up and time.monotonic() < deadline:
            time.sleep(0.01)
            with suppress(BrokenPipeError):
                self._pass_on(self._process)
        self._process.stdin.close()
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return False
        self._process = None
        return True

    @rank_zero_only
    def log_values(self, phase: Phase, step: int, images: int, values: Mapping[str, float | str]) -> None:
        self._send("log", {**{f"{phase}/{name}": v for name, v in values.items()}, "images": images, "step": step})

    @rank_zero_only
    def log_picture(self, name: str, step: int, images: int, path: Path) -> None:
        self._send("picture", {"name": name, "step": step, "images": images, "path": str(path)})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if status != "success":  # the process sees to its end by itself, within its timeout
            self._end(1, patience=min(2.0, self._timeout))
            self._process = None

    @rank_zero_only
    def finish(self, summary: Mapping[str, float]) -> None:
        """Write the run's final numbers as its summary and close it."""
        self._send("summary", dict(summary))
        if not self._end(0, self._timeout):
            self._give_up(f"has not finished in {self._timeout:g} s")
            self._process = None


def log_values(trainer: pl.Trainer, phase: Phase, images: int, values: Mapping[str, float | str]) -> None:
    """Send values to every logger of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.log_values(phase, trainer.global_step, images, values)


def log_picture(trainer: pl.Trainer, name: str, path: Path) -> None:
    """Send a picture to every logger of the run."""
    images = trainer.global_step * trainer.accumulate_grad_batches * trainer.datamodule.batch_size  # type: ignore[attr-defined]
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.log_picture(name, trainer.global_step, images, path)
