"""A comparison as text: for a terminal, as Markdown, LaTeX, CSV or a page."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from scorefield.records.comparison import Comparison, Metric, Value
from scorefield.records.markup import document
from scorefield.records.runs import Unread

_NO_VALUE = "–"
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "–": "--",
}


@dataclass(frozen=True)
class Cell:
    """One entry of a table.

    Args:
        text: what it says.
        best: whether it is the best of its column.
        mark: the letter of its protocol, where there are several.
    """

    text: str
    best: bool = False
    mark: str = ""


@dataclass(frozen=True)
class Table:
    """A table and what is to be said below it.

    Args:
        head: titles of the columns.
        rows: one for each group of runs.
        settings: how many of the columns, from the left, are settings.
        remarks: sentences about the numbers.
        unread: runs that are not in the table, by name, with the reason.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    settings: int
    remarks: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def tabulate(comparison: Comparison, unread: Sequence[Unread] = ()) -> Table:
    """A comparison in reading form: settings, number of seeds, mean ± standard deviation over them, the best marked."""
    arrows = {"less": " ↓", "more": " ↑", None: ""}
    best = {metric.name: comparison.best(metric) for metric in comparison.metrics}
    settings = [column.title for column in comparison.columns]
    rows = []
    for number, group in enumerate(comparison.groups):
        row = [Cell(_setting(group.settings[column.key])) for column in comparison.columns]
        row.append(Cell(str(len(group.runs))))
        for metric in comparison.metrics:
            value = group.metrics.get(metric.name)
            row.append(_cell(value, metric, number in best[metric.name], len(group.runs)))
        rows.append(tuple(row))
    head = (*settings, "n", *(metric.name + arrows[metric.better] for metric in comparison.metrics))
    lost = tuple(f"{one.path}: {one.why}" for one in unread)
    return Table(head, tuple(rows), len(settings) + 1, tuple(comparison.remarks()), lost)


def _setting(value: object) -> str:
    from scorefield.records.differences import cell

    return cell(value)


def _cell(value: Value | None, metric: Metric, best: bool, runs: int) -> Cell:
    if value is None:
        return Cell(_NO_VALUE)
    text = spread(value.mean, value.std)
    if value.n != runs:
        text += f" (n={value.n})"
    return Cell(text, best, "" if metric.comparable else ",".join(value.protocols))


def spread(mean: float, std: float | None) -> str:
    """A mean with its standard deviation, to two digits of the latter; four digits of the mean where there is none."""
    if std is None or not math.isfinite(std) or not math.isfinite(mean):
        return f"{mean:.4g}"
    if std == 0:
        return f"{mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(std)))
    if digits > 6 or abs(mean) >= 1e6:
        return f"{mean:.4g} ± {std:.2g}"
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def markdown(table: Table) -> str:
    """The table for a page of Markdown."""

    def row(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    def cell(one: Cell) -> str:
        return (f"**{one.text}**" if one.best else one.text) + (f" ({one.mark})" if one.mark else "")

    rule = ["---"] * table.settings + ["--:"] * (len(table.head) - table.settings)
    lines = [row(table.head), "|" + "|".join(rule) + "|", *(row([cell(c) for c in r]) for r in table.rows)]
    lines += ["", *(f"{remark}." for remark in table.remarks)] if table.remarks else []
    lines += ["", "Not in the table:", "", *(f"- {line}" for line in table.unread)] if table.unread else []
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """The table for LaTeX, with the rules of booktabs."""

    def text(one: str) -> str:
        escaped = "".join(_LATEX.get(letter, letter) for letter in one)
        return escaped.replace("±", r"$\pm$").replace("↓", r"$\downarrow$").replace("↑", r"$\uparrow$")

    def cell(one: Cell) -> str:
        inner = rf"\textbf{{{text(one.text)}}}" if one.best else text(one.text)
        return inner + (rf"\textsuperscript{{{one.mark}}}" if one.mark else "")

    lines = [rf"\begin{{tabular}}{{{'l' * table.settings}{'r' * (len(table.head) - table.settings)}}}", r"\toprule"]
    lines += [" & ".join(map(text, table.head)) + r" \\", r"\midrule"]
    lines += [" & ".join(map(cell, row)) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"% {remark}" for remark in table.remarks] + [f"% not in the table: {line}" for line in table.unread]
    return "\n".join(lines) + "\n"


def html(table: Table, title: str = "Runs") -> str:
    """The table as a page, self-contained."""

    def cell(one: Cell) -> str:
        inner = f"<strong>{escape(one.text)}</strong>" if one.best else escape(one.text)
        return f"<td>{inner}{f'<sup>{escape(one.mark)}</sup>' if one.mark else ''}</td>"

    head = "".join(f"<th>{escape(name)}</th>" for name in table.head)
    rows = "\n".join("<tr>" + "".join(map(cell, row)) + "</tr>" for row in table.rows)
    remarks = "".join(f'<p class="note">{escape(remark)}.</p>' for remark in table.remarks)
    lost = "".join(f"<li>{escape(line)}</li>" for line in table.unread)
    body = [
        f"<header>\n<h1>{escape(title)}</h1>\n</header>",
        f'<div class="panel scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table></div>',
        remarks,
        f'<aside class="missing"><b>Not in the table</b><ul>{lost}</ul></aside>' if lost else "",
    ]
    return document(title, body)


def comma_separated(comparison: Comparison, unread: Sequence[Unread] = ()) -> str:
    """The numbers in full: for each metric mean, standard deviation, number of seeds and protocol."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    numbers = [f"{m.name}{end}" for m in comparison.metrics for end in ("", "_std", "_n", "_protocol")]
    writer.writerow([*(column.key for column in comparison.columns), "n", *numbers, "runs"])
    for group in comparison.groups:
        row: list[object] = [_setting(group.settings[column.key]) for column in comparison.columns]
        row.append(len(group.runs))
        for metric in comparison.metrics:
            value = group.metrics.get(metric.name)
            if value is None:
                row += ["", "", 0, ""]
            else:
                std = "" if value.std is None else repr(value.std)
                row += [repr(value.mean), std, value.n, ",".join(value.protocols)]
        writer.writerow([*row, " ".join(str(run.path) for run in group.runs)])
    for remark in comparison.remarks():
        file.write(f"# {remark}\n")
    for one in unread:
        file.write(f"# not in the table: {one.path}: {one.why}\n")
    return file.getvalue()


FORMATS: dict[str, Callable[[Table], str]] = {"markdown": markdown, "latex": latex, "html": html}
