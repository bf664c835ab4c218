"""Where a run's numbers and pictures go: the run's own journal, and Weights & Biases as a mirror of it.

The journal is the record; everything that the project reads back comes from it. W&B is for looking: whatever fails in
it is reported once and never stops or slows a run.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from scorefield.records.journal import Journal, Phase
from scorefield.records.rundir import RunDir


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

    def log_picture(self, name: str, step: int, path: Path) -> None:
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

    The run's id is kept in the run directory, so that a resumed run goes on under the same id.

    Args:
        run_dir: the run's directory.
        project: W&B project.
        group: name that gathers the runs of a sweep.
        job_type: kind of job, e.g. "train".
        name: the run's display name.
        tags: tags to filter by.
        timeout: seconds after which a silent server is given up.
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
        self._settings: dict[str, Any] = {"project": project, "group": group, "job_type": job_type, "name": name}
        self._settings["tags"] = list(tags)
        self._config: dict[str, Any] = {}
        self._timeout = timeout
        self._run: Any = None
        self._failed = False

    def describe(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)

    def _attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """Do something with W&B; on any failure say so once and go on without it."""
        if self._failed:
            return None
        try:
            return action()
        except Exception as error:  # whatever it is, the run must go on
            self._failed = True
            rank_zero_warn(f"W&B failed to {what} ({type(error).__name__}: {error}); the run goes on without it")
            return None

    def _init(self) -> Any:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        id_file = self.run_dir.path / "wandb_id.txt"
        run_id = id_file.read_text().strip() if id_file.exists() else token_hex(4)
        id_file.write_text(run_id)
        run = wandb.init(
            dir=str(self.run_dir.path),
            id=run_id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            config=self._config,
            settings=wandb.Settings(init_timeout=self._timeout, silent=True, console="off"),
            **self._settings,
        )
        run.define_metric("images")
        for phase in ("train", "validation", "final"):
            run.define_metric(f"{phase}/*", step_metric="images")
        rank_zero_info(f"W&B: {mode} run {run_id}")
        return run

    @property
    def run(self) -> Any:
        """The W&B run, started at first use; None after a failure."""
        if self._run is None and not self._failed:
            self._run = self._attempt("start", self._init)
        return self._run

    @rank_zero_only
    def log_values(self, phase: Phase, step: int, images: int, values: Mapping[str, float | str]) -> None:
        if self.run is not None:
            row = {f"{phase}/{name}": value for name, value in values.items()}
            self._attempt("log values", lambda: self._run.log({**row, "images": images, "step": step}))

    @rank_zero_only
    def log_picture(self, name: str, step: int, path: Path) -> None:
        if self.run is not None:
            import wandb

            self._attempt("log a picture", lambda: self._run.log({name: wandb.Image(str(path)), "step": step}))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None and status != "success":
            self._attempt("finish", lambda: self._run.finish(exit_code=1))
            self._run = None

    @rank_zero_only
    def finish(self, summary: Mapping[str, float]) -> None:
        """Write the run's final numbers as its summary and close it."""
        if self.run is not None:
            self._attempt("write the summary", lambda: self._run.summary.update(dict(summary)))
            self._attempt("finish", lambda: self._run.finish())
            self._run = None


def log_values(trainer: pl.Trainer, phase: Phase, images: int, values: Mapping[str, float | str]) -> None:
    """Send values to every logger of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.log_values(phase, trainer.global_step, images, values)


def log_picture(trainer: pl.Trainer, name: str, path: Path) -> None:
    """Send a picture to every logger of the run."""
    for logger in trainer.loggers:
        if isinstance(logger, RunLogger):
            logger.log_picture(name, trainer.global_step, path)
