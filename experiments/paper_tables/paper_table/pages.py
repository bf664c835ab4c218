"""The index of all tables, inside README.md."""

import re
from collections.abc import Sequence

from paper_table.records import load
from paper_table.tables import HOME, Table
from paper_table.verdicts import judge, tally
from scorefield.records.files import write_atomically
from scorefield.records.markup import duration

_BLOCK = re.compile(r"(<!-- index[^\n]*-->\n).*?(<!-- end of the index -->)", re.DOTALL)


def write_index(tables: Sequence[Table]) -> None:
    """Put the index into README.md, where its place is marked."""
    path = HOME / "README.md"
    text = path.read_text(encoding="utf-8")
    new = _BLOCK.sub(lambda found: f"{found[1]}{index(tables)}\n{found[2]}", text)
    write_atomically(path, new.encode())


def index(tables: Sequence[Table]) -> str:
    """Each table with how much of it is made and met, and what all of it took."""
    lines = ["| table | what it shows | rows made at scale=small | statements |", "|---|---|---|---|"]
    seconds: dict[str, float] = {}
    for table in tables:
        rows = load(table, "small")
        verdicts = [judge(table, statement, rows) for statement in table.statements]
        name, made = f"[{table.name}]({table.name}/table.md)", f"{len(rows)} of {len(table.own)}"
        lines.append(f"| {name} | {table.title} | {made} | {tally(verdicts)} |")
        for one in (each for of_row in rows.values() for each in of_row):
            seconds |= _seconds(one)
    if seconds:
        lines += ["", f"{len(seconds)} runs, {duration(sum(seconds.values()))} of training and evaluation in all."]
    return "\n".join(lines)


def _seconds(one: dict) -> dict[str, float]:  # type: ignore[type-arg]
    """What each command behind a record took, by command: rows share their runs, and each counts once."""
    cost = one["cost"]
    took = {one["commands"][-1]: cost.get("evaluation_seconds", 0.0) + ("training" not in cost) * _trained(cost)}
    if "training" in cost:
        own = cost["training"]
        took[one["commands"][0]] = own.get("evaluation_seconds", 0.0) + _trained(own)
    return took


def _trained(cost: dict) -> float:  # type: ignore[type-arg]
    return float(cost.get("train_seconds", 0.0) + cost.get("validation_seconds", 0.0))
