"""Judging a table's statements from its runs.

Rows are compared seed by seed: runs of one seed share their data order and their noise. With d the improvement of the
better row over the other in each of n seeds, a statement is met if the mean of d is above its standard error
std(d) / sqrt(n), n >= 2; for a bound, if the mean is on its right side by as much. One seed decides nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from paper_table.records import Records, Spread, spread
from paper_table.tables import Statement, Table


@dataclass(frozen=True)
class Verdict:
    """A statement and what the runs say of it.

    Args:
        statement: the statement.
        met: whether they bear it out; None where they have not been run, or for one seed only.
        margin: mean improvement, or distance to the bound on the right side; None where there are no runs.
        error: its standard error.
        holds: seeds in which it holds.
        n: seeds.
        detail: the numbers compared, in words.
    """

    statement: Statement
    met: bool | None
    margin: float | None
    error: float | None
    holds: int
    n: int
    detail: str

    @property
    def word(self) -> str:
        if self.met is None:
            return "not decided" if self.n else "not run"
        return "met" if self.met else "not met"


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many are met, not met, not decided and not run, in words."""
    words = [verdict.word for verdict in verdicts]
    counted = [f"{words.count(word)} {word}" for word in ("met", "not met", "not decided", "not run") if word in words]
    return ", ".join(counted) or "none"


def judge(table: Table, statement: Statement, records: Records) -> Verdict:
    """The verdict over a statement; against several rows it is the narrowest one."""
    if statement.row is not None:
        return _bound(statement, spread(records, statement.row, statement.metric))
    verdicts = [_compared(table, statement, other, records) for other in statement.than]
    absent = next((verdict for verdict in verdicts if verdict.met is None), None)
    if absent is not None:
        return absent
    return min(verdicts, key=lambda verdict: (bool(verdict.met), (verdict.margin or 0.0) - (verdict.error or 0.0)))


def _compared(table: Table, statement: Statement, other: str, records: Records) -> Verdict:
    assert statement.better is not None
    left, right = (spread(records, key, statement.metric) for key in (statement.better, other))
    seeds = sorted(set(left.values) & set(right.values)) if left and right else []
    if left is None or right is None or not seeds:
        return Verdict(statement, None, None, None, 0, 0, "")
    sign = 1.0 if table.columns[statement.metric].better == "lower" else -1.0
    gained = Spread({seed: sign * (right.values[seed] - left.values[seed]) for seed in seeds})
    names = [table.own[key].name("small") for key in (statement.better, other)]
    detail = f"{names[0]}: {left}; {names[1]}: {right}"
    return _verdict(statement, gained, detail)


def _bound(statement: Statement, values: Spread | None) -> Verdict:
    if values is None:
        return Verdict(statement, None, None, None, 0, 0, "")
    if statement.above is not None:
        above = statement.above
        distances = {seed: value - above for seed, value in values.values.items()}
    else:
        below = statement.below or 0.0
        distances = {seed: below - value for seed, value in values.values.items()}
    wanted = f"above {statement.above:g}" if statement.above is not None else f"below {statement.below:g}"
    return _verdict(statement, Spread(distances), f"{values}, wanted {wanted}")


def _verdict(statement: Statement, gained: Spread, detail: str) -> Verdict:
    holds = sum(value > 0 for value in gained.values.values())
    if gained.std is None:  # one seed has no spread, and decides nothing
        return Verdict(statement, None, gained.mean, None, holds, gained.n, detail)
    error = gained.std / math.sqrt(gained.n)
    return Verdict(statement, gained.mean > error, gained.mean, error, holds, gained.n, detail)
