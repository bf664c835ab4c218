"""The final record of a run: ``result.json``, every number beside the protocol it was measured by.

::

    {"schema": "scorefield-result/1", "experiment": ..., "seed": ..., "config_hash": ..., "command": ...,
     "metrics": {name: {"value": number, "better": "less", protocol field: ...}}, "cost": {...}, "versions": {...},
     "git": {"commit": ..., "dirty": ...} or null}
"""

import hashlib
import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from scorefield.errors import BadFileError, UserError
from scorefield.records.files import write_atomically

SCHEMA = "scorefield-result/1"

_DISTRIBUTIONS = (
    "scorefield",
    "torch",
    "torchvision",
    "pytorch-lightning",
    "torchmetrics",
    "torch-fidelity",
    "hydra-core",
    "omegaconf",
    "numpy",
    "scipy",
    "scikit-learn",
)


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that can change a number."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """The commit of the code and whether the working tree differs from it.

    Args:
        folder: where to look; the package's own source by default.

    Returns:
        ``{"commit": 40 hex digits, "dirty": bool}``, or None where ``folder`` is not tracked by a repository, has no
        commit, or git is not there. Never raises.
    """
    folder = Path(__file__).parent if folder is None else folder

    def git(*arguments: str) -> str:
        command = ("git", "--no-optional-locks", "-C", str(folder), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout

    try:
        # an installed copy may lie inside somebody else's repository, untracked: its commit says nothing about us
        git("ls-files", "--error-unmatch", ".")
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain").strip())}
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def _canonical(config: Any) -> Any:
    """``config`` with keys written so that 1 and "1" differ and can be sorted together."""
    if isinstance(config, Mapping):
        return {repr(key): _canonical(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_canonical(value) for value in config]
    return config


def config_hash(config: Mapping[str, Any]) -> str:
    """A name for a resolved config: the first 16 hex digits of SHA-256 over its canonical JSON, whatever the key order.

    Raises:
        TypeError: the config holds something else than mappings, lists, texts, numbers, booleans and None.
    """
    try:
        text = json.dumps(_canonical(config), sort_keys=True, separators=(",", ":"))
    except TypeError as error:
        raise TypeError(f"config must hold plain values only, resolve it first: {error}") from error
    return hashlib.sha256(text.encode()).hexdigest()[:16]


Better = Literal["less", "more"]


@dataclass(frozen=True)
class Measurement:
    """A number and how it was measured.

    Args:
        value: the number, finite.
        protocol: what one must know to compare it: sample count, split, extractor, weights, solver, floor, ...
        better: whether "less" or "more" of it is better; None where neither is, or it is not known.
    """

    value: float
    protocol: Mapping[str, Any] = field(default_factory=dict)
    better: Better | None = None

    def __post_init__(self) -> None:
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise TypeError(f"value must be a Python number, got {self.value!r}; call float() on it")
        for name in ("value", "better"):
            if name in self.protocol:
                raise ValueError(f"protocol must not have a field {name!r}: it would hide the measurement's own")
        if self.better not in (None, "less", "more"):
            raise ValueError(f"better={self.better!r} must be 'less', 'more' or None")

    def record(self) -> dict[str, Any]:
        """The measurement as ``result.json`` holds it."""
        better = {} if self.better is None else {"better": self.better}
        return {"value": self.value, **better, **self.protocol}


@dataclass(frozen=True)
class Result:
    """Everything a run has to show, ready to be written.

    Args:
        experiment: the name of the experiment.
        seed: the run's seed.
        config_hash: see `config_hash`.
        metrics: measurements by name.
        cost: what the run took: train_seconds, steps, images, parameters, nfe, ...
        versions: see `versions`.
        git: see `git_state`.
        command: the command line that made the run, if there was one.

    Raises:
        ValueError: a metric's value is not finite.
    """

    experiment: str
    seed: int
    config_hash: str
    metrics: Mapping[str, Measurement]
    cost: Mapping[str, int | float]
    versions: Mapping[str, str]
    git: Mapping[str, Any] | None
    command: str | None = None

    def __post_init__(self) -> None:
        for name, measurement in self.metrics.items():
            if not math.isfinite(measurement.value):
                raise ValueError(
                    f"metrics[{name!r}] is {measurement.value}: a result holds finite numbers only; "
                    "leave the metric out and write it to the journal"
                )

    def record(self) -> dict[str, Any]:
        """The content of ``result.json``."""
        return {
            "schema": SCHEMA,
            "experiment": self.experiment,
            "seed": self.seed,
            "config_hash": self.config_hash,
            "command": self.command,
            "metrics": {name: measurement.record() for name, measurement in self.metrics.items()},
            "cost": dict(self.cost),
            "versions": dict(self.versions),
            "git": None if self.git is None else dict(self.git),
        }

    def write(self, path: Path) -> None:
        """Write ``result.json`` in one piece; if that fails, an earlier file stays as it was.

        Raises:
            ValueError: something in the record is not finite or cannot be written as JSON; the message names it.
        """
        record = self.record()
        pieces = {**record, **{f"metrics[{name!r}]": value for name, value in record["metrics"].items()}}
        del pieces["metrics"]
        for name, piece in pieces.items():
            try:
                json.dumps(piece, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} = {piece!r} cannot be written to {path.name}: {error}") from error
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(path, text.encode())

    def value(self, name: str) -> float:
        """The value of a metric.

        Raises:
            UserError: it was not measured.
        """
        if name not in self.metrics:
            raise UserError(f"{name} is not measured by {self.experiment}; there is {', '.join(sorted(self.metrics))}")
        return self.metrics[name].value

    @classmethod
    def read(cls, path: Path) -> "Result":
        """The result written to ``path``.

        Raises:
            BadFileError: the file is not JSON, of another schema or not whole.
        """
        try:
            record = json.loads(path.read_bytes())
        except ValueError as error:
            raise BadFileError(f"{path} is damaged: expected JSON, found {error}") from error
        if not isinstance(record, dict) or record.pop("schema", None) != SCHEMA:
            raise BadFileError(f"{path} is not a {SCHEMA} record; write it again with this version")
        try:
            metrics = {
                name: Measurement(
                    fields["value"],
                    {key: value for key, value in fields.items() if key not in ("value", "better")},
                    fields.get("better"),
                )
                for name, fields in record.pop("metrics").items()
            }
            return cls(metrics=metrics, **record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadFileError(f"{path} is not a whole {SCHEMA} record: {error}") from error
