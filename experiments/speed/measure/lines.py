"""Comparisons of two times taken in turn, and the table of them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch


@dataclass(frozen=True)
class Line:
    """One comparison.

    Args:
        subject: what part of the table it belongs to.
        what: what is timed.
        ours: seconds through the project, the median over the turns; bytes where ``unit`` says so. None, as the other
            numbers, where the machine could not do it; ``note`` says why.
        against: name of what it is set against.
        other: seconds of that, likewise.
        ratio: median over the turns of ours / other.
        low: lower quartile of the ratios.
        high: upper quartile of the ratios.
        unit: what the seconds are for.
        note: settings the numbers depend on.
    """

    subject: str
    what: str
    ours: float | None
    against: str
    other: float | None
    ratio: float | None
    low: float | None
    high: float | None
    unit: str
    note: str = ""

    @classmethod
    def of(
        cls, subject: str, what: str, against: str, turns: Sequence[tuple[float, float]], unit: str, note: str = ""
    ) -> "Line":
        """A line from pairs (ours, other), each taken one right after the other."""
        ours, other = ([turn[i] for turn in turns] for i in (0, 1))
        ratios = [a / b for a, b in turns]
        low, _, high = quantiles(ratios, n=4) if len(ratios) > 1 else (ratios * 3)
        return cls(subject, what, median(ours), against, median(other), median(ratios), low, high, unit, note)

    @classmethod
    def missing(cls, subject: str, what: str, why: str) -> "Line":
        """A line of something that the machine could not do."""
        return cls(subject, what, None, "-", None, None, None, None, "", why)

    def cells(self) -> tuple[str, str, str, str, str]:
        """What is timed, its time, what it is set against, the time of that, and the ratio with its quartiles."""
        if self.ours is None:
            return self.what, "not measured", self.against, "", ""
        spread = f"{self.ratio:.3g} ({self.low:.3g} to {self.high:.3g})"
        return self.what, f"{self.ours:.4g} {self.unit}", self.against, f"{self.other:.4g}", spread


def seconds(action: Callable[[], object], device: torch.device | None = None) -> float:
    """Wall-clock time of an action, with everything it has put on the device."""
    wait = device is not None and device.type == "cuda"
    if wait:
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    action()
    if wait:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def in_turn(
    ours: Callable[[], object], other: Callable[[], object], repeats: int, device: torch.device | None = None
) -> list[tuple[float, float]]:
    """Pairs of seconds, after one call of each that is not counted: a busy machine slows both."""
    ours()
    other()
    return [(seconds(ours, device), seconds(other, device)) for _ in range(repeats)]


def markdown(machine: dict[str, Any], lines: Sequence[Line]) -> str:
    """The tables, one a subject, below what is known of the machine."""
    said = [f"- {name}: {value}" for name, value in machine.items()]
    for subject in dict.fromkeys(line.subject for line in lines):
        said += ["", f"## {subject}", "", "| | measured | set against | | ratio | |", "|---|---|---|---|---|---|"]
        for line in lines:
            if line.subject == subject:
                said.append(f"| {' | '.join((*line.cells(), line.note))} |")
    return "\n".join(said) + "\n"


def save(folder: Path, name: str, machine: dict[str, Any], lines: Sequence[Line], title: str) -> None:
    """Write name.json and name.md."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine, "lines": [asdict(line) for line in lines]}
    (folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    (folder / f"{name}.md").write_text(f"# {title}\n\n{markdown(machine, lines)}")
