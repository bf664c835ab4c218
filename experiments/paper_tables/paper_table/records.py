"""What the runs of a table measured: the file records.<scale>.json beside it, and the check of the runs behind it.

::

    {"schema": "scorefield-paper-table/1", "scale": ..., "rows": {key: [
        {"seed": ..., "commands": [...], "result": path, "sha256": of that file, "config_hash": ...,
         "values": {column: number}, "protocol": {metric: {...}}, "cost": {...}, "versions": {...}, "git": {...}}]}}
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paper_table.jobs import Job
from paper_table.tables import Table
from scorefield.errors import BadFileError
from scorefield.records.files import write_atomically
from scorefield.records.result import Result
from scorefield.records.rundir import RunDir

SCHEMA = "scorefield-paper-table/1"

Records = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Spread:
    """Values of one cell over seeds.

    Args:
        values: by seed.
    """

    values: Mapping[int, float]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return sum(self.values.values()) / self.n

    @property
    def std(self) -> float | None:
        """Sample standard deviation, with n - 1; None for one value."""
        if self.n < 2:
            return None
        return math.sqrt(sum((value - self.mean) ** 2 for value in self.values.values()) / (self.n - 1))

    def __str__(self) -> str:
        return f"{self.mean:.4g}" + (f" ± {self.std:.2g}" if self.std is not None else "")


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def value_of(result: Result, metric: str) -> float | None:
    """A metric's value, or a field of its protocol where ``metric`` is ``name.field``; None where it is not there."""
    name, _, entry = metric.partition(".")
    if name not in result.metrics:
        return None
    measured = result.metrics[name]
    value = measured.protocol.get(entry) if entry else measured.value
    return float(value) if isinstance(value, int | float) else None


def record(table: Table, scale: str, chain: Sequence[Job]) -> dict[str, Any] | None:
    """What the commands of one row and seed left; None where they have not all run."""
    job = chain[-1]
    result = job.result()
    if result is None:
        return None
    wanted = {name: column.metric(scale) for name, column in table.columns.items()}
    values = {name: value_of(result, metric) for name, metric in wanted.items() if metric is not None}
    own = chain[0].result() if len(chain) > 1 else None
    if own is not None:  # what a model has by itself, whatever samples it, is measured in its own run
        for name, metric in wanted.items():
            if metric is not None and metric.partition(".")[0] not in result.metrics:
                values[name] = value_of(own, metric)
    measured = {metric.partition(".")[0] for metric in wanted.values() if metric}
    return {
        "seed": job.seed,
        "commands": [each.line for each in chain],
        "result": str(RunDir(job.place).result),
        "sha256": file_hash(RunDir(job.place).result),
        "config_hash": result.config_hash,
        "values": {name: value for name, value in values.items() if value is not None},
        "protocol": {name: dict(m.protocol) for name, m in result.metrics.items() if name in measured},
        "cost": {**dict(result.cost), **({} if own is None else {"training": dict(own.cost)})},
        "versions": dict(result.versions),
        "git": None if result.git is None else dict(result.git),
    }


def path_of(table: Table, scale: str) -> Path:
    """The file of a table's records."""
    return table.folder / f"records.{scale}.json"


def load(table: Table, scale: str) -> Records:
    """The records of a table; none where nothing was run.

    Raises:
        BadFileError: the file is damaged.
    """
    path = path_of(table, scale)
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        if content["schema"] != SCHEMA or content["scale"] != scale:
            raise BadFileError(f"{path} is not a {SCHEMA} record of scale={scale}")
        rows: Records = content["rows"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadFileError(f"{path} is damaged: {error}") from error
    return rows


def save(table: Table, scale: str, records: Records) -> None:
    """Write the records, in one piece."""
    content = {"schema": SCHEMA, "scale": scale, "rows": records}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(path_of(table, scale), text.encode())


def spread(records: Records, key: str, column: str) -> Spread | None:
    """The values of a cell over seeds; None where there is none."""
    values = {one["seed"]: one["values"][column] for one in records.get(key, ()) if column in one["values"]}
    return Spread(values) if values else None


def changed(table: Table, scale: str) -> list[str]:
    """What is no longer as it was recorded: run records of this machine whose bytes are others than the table's.

    Runs that are not here are not looked for: a table is read where its runs are not.
    """
    told = []
    for key, rows in load(table, scale).items():
        for one in rows:
            path = Path(one["result"])
            if path.is_file() and file_hash(path) != one["sha256"]:
                told.append(f"{table.name}:{key} seed {one['seed']}: {path} is not the record that the table shows")
    return told
