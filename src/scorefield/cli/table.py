"""scorefield table DIR...: runs side by side, only what differs, seeds together, the best marked."""

import argparse
import operator
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scorefield.cli.exits import answered
from scorefield.errors import UserError
from scorefield.records.comparison import Comparison, compare, number_of
from scorefield.records.files import write_atomically
from scorefield.records.runs import Run, Unread, find_runs
from scorefield.records.tables import FORMATS, Table, comma_separated, markdown, tabulate

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}
_SUFFIXES = {".md": "markdown", ".tex": "latex", ".csv": "csv", ".html": "html"}


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scorefield table", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or folders that hold them")
    parser.add_argument("--metrics", metavar="A,B", help="columns of numbers: metric, metric.field or cost.name")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="only runs with this setting or number; also != < > <= >=; repeated, all of them",
    )
    parser.add_argument("--sort", metavar="NAME", help="by a metric, the best first, or by a setting")
    parser.add_argument("--reverse", action="store_true", help="the other way round")
    parser.add_argument(
        "--ignore", default="", metavar="A,B", help="fields of protocols that may differ within a ranking"
    )
    parser.add_argument("--evaluations", action="store_true", help="also the evaluations below each run")
    parser.add_argument(
        "--format", choices=("terminal", "markdown", "latex", "csv", "html"), help="of what is printed or written"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write to a file, .md, .tex, .csv or .html")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the runs, compare them, and print or write the table."""
    asked = options().parse_args(arguments)
    with answered():
        kind = asked.format or ("terminal" if asked.out is None else _SUFFIXES.get(asked.out.suffix))
        if kind is None:
            raise UserError(f"--out {asked.out} must end in {', '.join(_SUFFIXES)}, or --format say what it is")
        found = find_runs(asked.folders, asked.evaluations)
        runs = selected(found.runs, asked.where)
        if not runs:
            reasons = "".join(f"\n  {one.path}: {one.why}" for one in found.unread)
            raise UserError(f"no finished run {'that is asked for ' if found.runs else ''}is there{reasons}")
        names = [name for name in (asked.metrics or "").split(",") if name]
        comparison = compare(runs, names or None, [name for name in asked.ignore.split(",") if name])
        if asked.sort:
            comparison = comparison.sorted(asked.sort, asked.reverse)
        text = written(comparison, found.unread, kind)
        if asked.out is None:
            sys.stdout.write(text)
        else:
            write_atomically(asked.out, text.encode())
            print(f"{len(comparison.groups)} rows of {len(runs)} runs: {asked.out}")


def written(comparison: Comparison, unread: Sequence[Unread], kind: str) -> str:
    """A comparison in one of the formats."""
    if kind == "csv":
        return comma_separated(comparison, unread)
    table = tabulate(comparison, unread)
    return drawn(table) if kind == "terminal" else FORMATS[kind](table)


def drawn(table: Table) -> str:
    """The table for a terminal; Markdown where the output is none."""
    if not sys.stdout.isatty():
        return markdown(table)
    from rich.console import Console
    from rich.table import Table as Drawing
    from rich.text import Text

    drawing = Drawing()
    for number, name in enumerate(table.head):
        drawing.add_column(Text(name), justify="left" if number < table.settings else "right")
    for row in table.rows:
        drawing.add_row(*(Text(c.text + (f" ({c.mark})" if c.mark else ""), "bold" if c.best else "") for c in row))
    console = Console()
    with console.capture() as capture:
        console.print(drawing)
        for line in (*table.remarks, *(f"not in the table: {line}" for line in table.unread)):
            console.print(line, markup=False, highlight=False)
    return capture.get()


def selected(runs: Sequence[Run], conditions: Sequence[str]) -> list[Run]:
    """The runs that meet every condition.

    Raises:
        UserError: a condition cannot be read, or names nothing that any run has.
    """
    kept = list(runs)
    for condition in conditions:
        read = re.fullmatch(r"([\w.]+)\s*(!=|<=|>=|=|<|>)\s*(.*)", condition)
        if read is None:
            raise UserError(f"--where {condition!r} cannot be read; write KEY=VALUE, or != < > <= >= in the middle")
        key, sign, wanted = read.groups()
        if runs and not any(_known(run, key) for run in runs):
            raise UserError(f"--where {condition!r}: no run has {key}, neither as a setting nor as a number")
        kept = [run for run in kept if _meets(run, key, sign, wanted)]
    return kept


def _known(run: Run, key: str) -> bool:
    return key in run.config or f"{key}._target_" in run.config or number_of(key)(run) is not None


def _meets(run: Run, key: str, sign: str, wanted: str) -> bool:
    """Whether a run's setting, or else its number, stands to a value as the sign says."""
    from scorefield.records.differences import cell

    value: Any = run.config[key] if key in run.config else run.config.get(f"{key}._target_", number_of(key)(run))
    number = isinstance(value, int | float) and not isinstance(value, bool)
    try:
        if number:
            return _OPERATORS[sign](float(value), float(wanted))
    except ValueError:
        return sign == "!="
    if sign not in ("=", "!="):
        return False
    same = wanted in (str(value), cell(value), str(value).rpartition(".")[2])
    return same if sign == "=" else not same


if __name__ == "__main__":
    main()
