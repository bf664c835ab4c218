"""The journal of a run: ``metrics.jsonl``, one JSON object per line, only ever appended to.

A line holds ``step`` (optimiser steps done), ``images`` (training images seen), ``time`` (seconds since the run began,
continued over a resume), ``phase`` ("train", "validation" or "final") and the values by name.

JSON has no infinities and no NaN, and the tokens Python writes for them make a line unreadable elsewhere. They are
written as the strings "nan", "inf" and "-inf" and read back as numbers; those three strings are refused as values.
A line counts once its newline is there: what a killed process left behind the last newline was never written.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from scorefield.errors import BadFileError
from scorefield.records.files import write_atomically

Phase = Literal["train", "validation", "final"]

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_HEAD = ("step", "images", "time", "phase")


def _encode(value: Any) -> Any:
    """``value`` with tensors and array scalars as Python numbers and non-finite numbers as strings."""
    if isinstance(value, Mapping):
        return {key: _encode(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_encode(inner) for inner in value]
    if isinstance(value, str) and value in _NON_FINITE:
        raise ValueError(f"the text {value!r} would be read back as a number; write the number itself or another text")
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _decode(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_decode(inner) for inner in value]
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _whole_lines(path: Path) -> list[bytes]:
    """The lines that were written to their end, newline included."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


class Journal:
    """Appends to and reads one ``metrics.jsonl``. One process writes; any number may read meanwhile.

    Args:
        path: the file; it is made by the first `write`.
        clock: seconds on any steadily growing clock.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = Path(path)
        self._clock = clock
        self._opened = clock()
        self._time_before: float | None = None  # read from the file by the first write

    def write(self, step: int, images: int, phase: Phase, **values: Any) -> None:
        """Append one line and hand it to the operating system, so that killing the process cannot lose it.

        Args:
            step: optimiser steps done.
            images: training images seen.
            phase: what the values were measured in.
            values: numbers, texts, None, 0-dimensional tensors, or lists and mappings of these.

        Raises:
            ValueError: unknown phase, a reserved name, or a text that stands for a non-finite number.
            TypeError: a value that JSON cannot hold.
        """
        if phase not in get_args(Phase):
            raise ValueError(f"phase must be one of {get_args(Phase)}, got {phase!r}")
        if "time" in values:
            raise ValueError("'time' is filled in by the journal; give the value another name")
        if self._time_before is None:
            self._continue()
        elapsed = (self._time_before or 0.0) + self._clock() - self._opened
        head = {"step": step, "images": images, "time": round(elapsed, 3), "phase": phase}
        line = json.dumps({**_encode(head), **_encode(values)}, ensure_ascii=False, allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())

    def read(self) -> list[dict[str, Any]]:
        """Every line written so far, oldest first; an absent file is an empty journal.

        Raises:
            BadFileError: a line that is not a journal line, named by its number.
        """
        return self._parse(_whole_lines(self.path))

    def truncate_after(self, step: int) -> None:
        """Forget what was written after ``step``, for a run that resumes there; time goes on from the last line kept.

        Lines of ``step`` itself stay: take a checkpoint only after the lines of its step are written. Only those of the
        final evaluation go, whatever their step: it comes last and starts anew. The file is replaced in one piece, and
        a line cut short by the interruption goes with the rest.
        """
        lines = _whole_lines(self.path)
        records = zip(lines, self._parse(lines), strict=True)
        kept = [line for line, record in records if record["step"] <= step and record["phase"] != "final"]
        if self.path.exists():
            write_atomically(self.path, b"".join(kept))
        self._opened, self._time_before = self._clock(), None

    def _parse(self, lines: list[bytes]) -> list[dict[str, Any]]:
        records = []
        for number, line in enumerate(lines, start=1):
            try:
                record = _decode(json.loads(line))
            except ValueError as error:
                raise BadFileError(f"{self.path}, line {number} is not JSON ({error}); repair or remove it") from error
            if not isinstance(record, dict) or any(name not in record for name in _HEAD):
                raise BadFileError(f"{self.path}, line {number} lacks one of {_HEAD}; repair or remove it")
            records.append(record)
        return records

    def _continue(self) -> None:
        """Take up the file where it ends, without the half line an interruption may have left."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(self.path)
        self._time_before = float(self._parse(lines[-1:])[0]["time"]) if lines else 0.0
        if self.path.exists() and self.path.stat().st_size != sum(map(len, lines)):
            write_atomically(self.path, b"".join(lines))
