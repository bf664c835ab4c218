"""Run directories read back for comparison, quickly: what each was configured with, what it measured, and, by name,
those that have nothing to compare yet.

Configurations of many runs are largely equal. Their text is cut at the top-level keys and each distinct piece is parsed
once; a text that cannot be cut so is parsed as a whole.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from scorefield.errors import BadFileError, Exit, UserError
from scorefield.records.result import Result
from scorefield.records.rundir import RunDir

PLACE = "(the run's directory)"
_MOST_BYTES = 1 << 20  # of a configuration
_MOST_VALUES = 20_000
_INSIDE = {"checkpoints", "samples", "figures", "logs", "evaluations", "drawn", "wandb"}
_SET_ASIDE = re.compile(r"\.old\d+$")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Run:
    """A finished run, or an evaluation of one.

    Args:
        path: its directory.
        config: its configuration, flat, by dotted keys; its own directory is replaced by a mark.
        result: its record.
        seed: what tells it from others of the same configuration: its seed; for an evaluation, that of the run as well.
    """

    path: Path
    config: Mapping[str, Any]
    result: Result
    seed: tuple[int, ...]


@dataclass(frozen=True)
class Unread:
    """A directory of a run that has nothing to compare.

    Args:
        path: the directory.
        why: the reason.
    """

    path: Path
    why: str


@dataclass
class Found:
    """What is below some folders.

    Args:
        runs: finished runs, by path.
        unread: the others.
    """

    runs: list[Run] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)


def find_runs(folders: Iterable[Path], evaluations: bool = False) -> Found:
    """Every run at or below some folders.

    Args:
        folders: runs, or folders of runs however deep.
        evaluations: also the evaluations below each run.

    Raises:
        UserError: a folder does not exist.
    """
    found, seen = Found(), set[Path]()
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is no folder; give run directories, or folders that hold them")
        for path in _run_dirs(folder):
            if path.resolve() not in seen:
                seen.add(path.resolve())
                _take(found, path, evaluations)
    return found


def _run_dirs(folder: Path) -> Iterator[Path]:
    """Directories of runs below a folder, in order; nothing inside a run is looked at."""
    for top, names, files in os.walk(folder):
        path = Path(top)
        if {"config.yaml", "result.json", "metrics.jsonl"} & set(files) or (path / "logs" / "job.log").is_file():
            names.clear()
            yield path
        names[:] = sorted(name for name in names if not name.startswith(".") and name not in _INSIDE)


def _take(found: Found, path: Path, evaluations: bool) -> None:
    if _SET_ASIDE.search(path.name):
        found.unread.append(Unread(path, "set aside by fresh=true"))
        return
    try:
        run = read_run(path)
    except (UserError, FileNotFoundError, OSError) as error:
        found.unread.append(Unread(path, _why(path, error)))
        return
    found.runs.append(run)
    for inner in sorted((path / "evaluations").glob("*/")) if evaluations else ():
        try:
            evaluation = read_run(inner)
            found.runs.append(Run(inner, evaluation.config, evaluation.result, (*run.seed, *evaluation.seed)))
        except (UserError, OSError) as error:
            found.unread.append(Unread(inner, _why(inner, error)))


def read_run(path: Path) -> Run:
    """A finished run.

    Raises:
        FileNotFoundError: it has not finished.
        BadFileError: a file of it is damaged.
    """
    run = RunDir(path)
    result = Result.read(run.result)
    return Run(path, read_config(run.config), result, (result.seed,))


def read_config(path: Path) -> dict[str, Any]:
    """A stored configuration, flat: values by dotted keys.

    Raises:
        BadFileError: it is damaged, or larger than any configuration is.
    """
    content = path.read_bytes()
    if len(content) > _MOST_BYTES:
        raise BadFileError(f"{path} has {len(content)} bytes; a configuration has at most {_MOST_BYTES}")
    try:
        text = content.decode()
        place = re.search(r"^run_dir: (\S+)$", text, re.MULTILINE)
        text = text.replace(f": {place[1]}\n", f": {PLACE}\n") if place else text
        flat: dict[str, Any] = {}
        try:
            for piece in re.split(r"^(?=[A-Za-z_])", text, flags=re.MULTILINE):
                flat.update(_parsed(piece))
        except yaml.YAMLError:  # an alias, perhaps, of something in another piece
            flat = dict(_parsed(text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is damaged: expected YAML, found {str(error).splitlines()[0]}") from error
    if not flat:
        raise BadFileError(f"{path} is damaged: it is empty")
    return flat


@lru_cache(maxsize=4096)
def _parsed(text: str) -> dict[str, Any]:
    """The values of a piece of YAML by dotted keys."""
    content = yaml.load(text, Loader=_Loader)
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ValueError(f"a {type(content).__name__} in the place of a mapping")
    flat: dict[str, Any] = {}
    _flatten(content, "", flat)
    return flat


def _flatten(node: Any, path: str, flat: dict[str, Any]) -> None:
    if len(flat) > _MOST_VALUES:
        raise ValueError(f"more than {_MOST_VALUES} values")
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            _flatten(value, f"{path}.{key}" if path else str(key), flat)
    elif isinstance(node, list) and any(isinstance(item, Mapping | list) for item in node):
        for i, item in enumerate(node):
            _flatten(item, f"{path}.{i}", flat)
    else:
        flat[path] = None if node == {} else tuple(node) if isinstance(node, list) else node


def _why(path: Path, error: Exception) -> str:
    """Why a directory has no result to compare."""
    if not isinstance(error, FileNotFoundError):
        return str(error)
    steps = f"last heard at step {step}" if (step := _last_step(path)) is not None else "nothing has been recorded"
    if RunDir(path).result.exists():
        return "it has no config.yaml"
    try:
        code = json.loads((path / "logs" / "job.json").read_bytes())["exit_code"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"unfinished, {steps}"
    return f"interrupted, {steps}" if code in (Exit.PREEMPTED, Exit.INTERRUPTED) else f"ended with code {code}, {steps}"


def _last_step(path: Path) -> int | None:
    """The step of the journal's last whole line, read from its end."""
    try:
        with RunDir(path).metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
