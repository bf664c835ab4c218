"""Running a claim and judging what it measured."""

import json
import math
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lecture.claims import Check, Claim
from scorefield.records.files import write_atomically


@dataclass(frozen=True)
class Verdict:
    """One check after the run.

    Args:
        check: what was to be reached.
        value: what was measured; None where nothing was.
        met: whether it counts.
    """

    check: Check
    value: float | None
    met: bool


@dataclass(frozen=True)
class Outcome:
    """A claim after its run.

    Args:
        claim: the claim.
        verdicts: one for each of its checks.
        also: measured values that no check judges, by quantity.
        seconds: how long it took.
        error: why nothing was measured, or no longer; empty where all went well.
    """

    claim: Claim
    verdicts: tuple[Verdict, ...]
    also: dict[str, float]
    seconds: float
    error: str = ""

    @property
    def met(self) -> bool:
        return not self.error and all(verdict.met for verdict in self.verdicts)


def figure_of(claim: Claim, output: Path) -> Path:
    """Where a claim's figure goes."""
    return output / "figures" / f"{claim.name}.png"


def run(claim: Claim, output: Path) -> Outcome:
    """Measure and judge one claim. An error inside the claim is an outcome, too: all of its checks are missed."""
    begun = time.perf_counter()
    figure = figure_of(claim, output)
    figure.unlink(missing_ok=True)  # a former run's figure must not stand beside this run's numbers
    measured: dict[str, float] = {}
    error = ""
    try:
        measured = {name: float(value) for name, value in claim.measure(figure).items()}
        lacking = [check.quantity for check in claim.checks if check.quantity not in measured]
        if lacking:
            error = f"{claim.folder.name}/claim.py did not measure {', '.join(map(repr, lacking))}"
        elif not figure.exists():
            error = f"{claim.folder.name}/claim.py did not draw its figure"
    except Exception:
        error = traceback.format_exc()
    return judge(claim, measured, time.perf_counter() - begun, error)


def judge(claim: Claim, measured: dict[str, float], seconds: float, error: str = "") -> Outcome:
    """Compare the measured values with what the claim expects."""
    verdicts = []
    for check in claim.checks:
        value = measured.get(check.quantity)
        met = value is not None and not math.isnan(value) and check.tolerance.met(value, check.expected)
        verdicts.append(Verdict(check, value, met))
    judged = {check.quantity for check in claim.checks}
    also = {name: value for name, value in measured.items() if name not in judged}
    return Outcome(claim, tuple(verdicts), also, seconds, error)


def table(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """All verdicts as plain values; a value that is not finite is null, which JSON can hold."""
    return [
        {
            "claim": outcome.claim.name,
            "quantity": verdict.check.quantity,
            "value": verdict.value if verdict.value is not None and math.isfinite(verdict.value) else None,
            "expected": verdict.check.expected,
            "tolerance": str(verdict.check.tolerance),
            "met": verdict.met,
        }
        for outcome in outcomes
        for verdict in outcome.verdicts
    ]


def write_verdicts(outcomes: Sequence[Outcome], path: Path) -> None:
    """Write the table as JSON, in one piece."""
    write_atomically(path, (json.dumps(table(outcomes), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
