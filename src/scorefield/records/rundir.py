"""The layout of a run's directory; every path in it is named here and nowhere else.

::

    config.yaml                     the resolved config
    metrics.jsonl                   the journal: one JSON object per line
    result.json                     the final record
    checkpoints/step-00004000.ckpt
    samples/step-00004000.png       fixed-noise grids during training
    samples/final.png  samples/real.png  samples/trajectory.gif
    figures/*.png
    report.html
    logs/
"""

import re
from dataclasses import dataclass
from pathlib import Path

_STEP = re.compile(r"step-(\d{8,})\.\w+")


def step_of(path: Path) -> int:
    """The step in a file name ``step-XXXXXXXX.*``.

    Raises:
        ValueError: the file is not named so.
    """
    match = _STEP.fullmatch(path.name)
    if match is None:
        raise ValueError(f"path must be named step- and eight or more digits, got {path.name!r}")
    return int(match[1])


def _by_step(folder: Path, suffix: str) -> list[Path]:
    """The files ``step-XXXXXXXX<suffix>`` of a folder, earliest first; anything else in it is passed over."""
    return sorted((path for path in folder.glob(f"step-*{suffix}") if _STEP.fullmatch(path.name)), key=step_of)


def _at_step(folder: Path, step: int, suffix: str) -> Path:
    if step < 0:
        raise ValueError(f"step must be at least 0, got {step}")
    return folder / f"step-{step:08d}{suffix}"


@dataclass(frozen=True)
class RunDir:
    """The paths of one run. Making the object touches nothing on disk; `create` makes the folders.

    Args:
        path: the run's directory.
    """

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def checkpoint_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def sample_folder(self) -> Path:
        return self.path / "samples"

    @property
    def figure_folder(self) -> Path:
        return self.path / "figures"

    @property
    def final_samples(self) -> Path:
        return self.sample_folder / "final.png"

    @property
    def real_samples(self) -> Path:
        return self.sample_folder / "real.png"

    @property
    def trajectory(self) -> Path:
        return self.sample_folder / "trajectory.gif"

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint taken after ``step`` optimiser steps belongs."""
        return _at_step(self.checkpoint_folder, step, ".ckpt")

    def samples_at(self, step: int) -> Path:
        """Where the sample grid drawn after ``step`` optimiser steps belongs."""
        return _at_step(self.sample_folder, step, ".png")

    def figure(self, name: str) -> Path:
        """Where the figure called ``name`` (no suffix) belongs."""
        return self.figure_folder / f"{name}.png"

    def checkpoints(self) -> list[Path]:
        """The checkpoints on disk, earliest step first; `step_of` reads a step."""
        return _by_step(self.checkpoint_folder, ".ckpt")

    def sample_grids(self) -> list[Path]:
        """The sample grids on disk, earliest step first."""
        return _by_step(self.sample_folder, ".png")

    def figures(self) -> list[Path]:
        """The figures on disk, by name."""
        return sorted(self.figure_folder.glob("*.png"))

    def create(self) -> "RunDir":
        """Make the directory and its folders; those already there are kept as they are."""
        for folder in (self.checkpoint_folder, self.sample_folder, self.figure_folder, self.logs):
            folder.mkdir(parents=True, exist_ok=True)
        return self
