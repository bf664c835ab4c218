"""table.md and table.png: published and obtained side by side, the protocol, the verdicts and the commands."""

from collections.abc import Sequence
from pathlib import Path

from paper_table.jobs import jobs
from paper_table.records import Records, Spread, load, spread
from paper_table.tables import SCALES, Column, Plan, Published, Row, Table
from paper_table.verdicts import Verdict, judge, tally
from scorefield.records.files import write_atomically
from scorefield.records.markup import duration
from scorefield.records.style import INK, MUTED, PALETTE, sheet

_RUN = "python experiments/paper_tables/run.py"
_DATASETS = {
    "cifar10": "CIFAR-10",
    "celeba64": "CelebA",
    "imagenet32": "ImageNet-32",
    "imagenet64": "ImageNet-64",
    "imagenet128": "ImageNet-128",
    "ffhq64": "FFHQ",
    "afhqv2_64": "AFHQv2",
}


def write(table: Table, plan: Plan) -> list[Verdict]:
    """Write the table's page and figure from its records; returns the verdicts at scale=small."""
    records = {scale: load(table, scale) for scale in SCALES}
    verdicts = [judge(table, statement, records["small"]) for statement in table.statements]
    figure = draw(table, records["small"])
    write_atomically(table.folder / "table.md", page(table, plan, records, verdicts, figure).encode())
    return verdicts


def page(
    table: Table, plan: Plan, records: dict[str, Records], verdicts: Sequence[Verdict], figure: Path | None
) -> str:
    """The text of table.md."""
    parts = [
        f"# {table.title}",
        f"<!-- written by `{_RUN} {table.name} --render`; do not edit -->",
        _sources(table, records),
        _numbers(table, records),
    ]
    if figure is not None:
        parts.append(f"![Published and obtained, row by row]({figure.name})")
    parts += [_statements(verdicts), _rows(table, plan), _runs(table, records)]
    return "\n\n".join(filter(None, parts)) + "\n"


def _sources(table: Table, records: dict[str, Records]) -> str:
    source = table.source
    ran = [scale for scale in SCALES if records[scale]]
    told = f"at scale={' and scale='.join(ran)}" if ran else "nothing has been run"
    lines = [
        f"Published: {source['authors']} {source['year']}, *{source['paper']}*, arXiv:{source['arxiv']}, "
        f"{source['table']}. {_sentence(source['protocol'])}",
        f"Obtained: {told}.",
        f"- scale=small: {_sentence(table.small)}",
        "- scale=paper: the presets of the authors' settings, for GPUs"
        + ("." if records["paper"] else "; not run here."),
    ]
    return "\n".join([lines[0], "", *lines[1:2], "", *lines[2:]])


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _numbers(table: Table, records: dict[str, Records]) -> str:
    ran = [scale for scale in SCALES if records[scale]]
    head = ["row"]
    for column in table.columns.values():
        if any(
            number.metric for row in table.rows for number in row.published if table.columns[number.metric] is column
        ):
            head.append(f"{column.title}, published")
        head += [f"{_obtained(column, scale)}, scale={scale}" for scale in ran if column.metric(scale)]
    lines = [head, ["---"] * len(head)]
    group = None
    for row in table.rows:
        if row.group is not None and row.group != group:
            group = row.group
            lines.append([f"**{group}**", *[""] * (len(head) - 1)])
        lines.append([_name(row), *_cells(table, row, records, ran)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _obtained(column: Column, scale: str) -> str:
    """What stands for a column at a scale."""
    metric = (column.metric(scale) or "").partition(".")
    return column.title if metric[2] == "nfe" or column.title == metric[0] else f"{metric[0]} (for {column.title})"


def _name(row: Row) -> str:
    name = row.name("paper")
    short = row.name("small")
    return name if short == name else f"{name} (small: {short})"


def _cells(table: Table, row: Row, records: dict[str, Records], ran: Sequence[str]) -> list[str]:
    cells = []
    for name, column in table.columns.items():
        numbers = [number for number in row.published if number.metric == name]
        if any(number.metric == name for each in table.rows for number in each.published):
            cells.append(_published(numbers))
        for scale in ran:
            if column.metric(scale):
                cells.append(_cell(row, records[scale], name, scale))
    return cells


def _published(numbers: Sequence[Published]) -> str:
    """The published numbers of a cell, with their data sets where there are several."""
    if not numbers:
        return ""
    several = len({number.dataset for number in numbers}) > 1
    told = []
    for number in numbers:
        where = f" ({_DATASETS.get(number.dataset or '', number.dataset)})" if several else ""
        if not number.verified:
            told.append(f"not verified{where}")
        elif number.value is None:
            told.append(f"– ({number.note}){where}")
        else:
            bound = "≤ " if number.bound == "upper" else ""
            told.append(f"{bound}{number.value:g}" + (f" ± {number.std:g}" if number.std is not None else "") + where)
    return "not verified" if set(told) == {"not verified"} else ", ".join(dict.fromkeys(told))


def _cell(row: Row, records: Records, column: str, scale: str) -> str:
    """What was obtained, at its scale."""
    if row.key is None:
        return ""
    values = spread(records, row.key, column)
    if values is not None:
        return f"{_short(values)} ({scale}, n={values.n})"
    return f"– ({scale})"


def _short(values: Spread) -> str:
    if values.mean == round(values.mean) and not values.std:
        return f"{values.mean:.0f}"
    return str(values)


def _statements(verdicts: Sequence[Verdict]) -> str:
    if not verdicts:
        return ""
    lines = [
        "## Statements",
        "",
        "Written down before the runs (`table.yaml`). Met if the mean improvement over the seeds, compared seed by",
        "seed, is above its standard error; everything else is not met.",
        "",
        "| statement | source | kind | verdict at scale=small | improvement | seeds in which it holds | numbers |",
        "|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        margin = "" if verdict.margin is None else f"{verdict.margin:.3g}"
        margin += "" if verdict.error is None else f" ± {verdict.error:.2g}"
        seeds = f"{verdict.holds} of {verdict.n}" if verdict.n else ""
        said = verdict.statement
        cells = [said.says, said.because, said.kind, f"**{verdict.word}**", margin, seeds, verdict.detail]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"Of {len(verdicts)}: {tally(verdicts)}."])


def _rows(table: Table, plan: Plan) -> str:
    lines = ["## Commands", "", "The whole table, and one row:", "", "```sh"]
    lines += [f"{_RUN} {table.name} --scale {scale}" for scale in SCALES]
    lines += [f"{_RUN} {table.name}:{next(iter(table.own))} --scale small", "```", ""]
    lines += ["What a row runs, with seed 0 in the place of every seed:", ""]
    for row in table.own.values():
        lines.append(f"- `{table.name}:{row.key}`: {_name(row)}" + (f" ({row.note})" if row.note else ""))
        for scale in SCALES:
            chain = jobs(row, scale, 0, plan)
            if chain:
                lines += [f"  - {scale}: " + ", then ".join(f"`{job.line}`" for job in chain)]
            else:
                lines.append(f"  - {scale}: not made: {row.missing[scale]}")
    if table.unavailable:
        lines += ["", "Tables of this paper that are not here:", ""]
        lines += [f"- {each['table']}: {each['why']}" for each in table.unavailable]
    return "\n".join(lines)


def _runs(table: Table, records: dict[str, Records]) -> str:
    """Every run behind the table: seed, evaluations, cost, and the hash of its record."""
    lines = []
    for scale in SCALES:
        if not records[scale]:
            continue
        lines += [
            f"## Runs at scale={scale}",
            "",
            "| row | seed | scale | training | evaluation | configuration | sha256 of result.json | commit |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for key in table.own:
            for one in records[scale].get(key, ()):
                cost = one["cost"]
                training = cost.get("training", cost)
                commit = one["git"]["commit"][:10] + ("+" if one["git"]["dirty"] else "") if one["git"] else ""
                lines.append(
                    f"| {key} | {one['seed']} | {scale} | {duration(training.get('train_seconds', 0))} | "
                    f"{duration(cost.get('evaluation_seconds', 0))} | `{one['config_hash'] or ''}` | "
                    f"`{one['sha256'][:16]}` | {commit} |"
                )
        lines += ["", f"Whole hashes, protocols and values are in `records.{scale}.json`.", ""]
    return "\n".join(lines).rstrip()


def draw(table: Table, records: Records) -> Path | None:
    """Published beside obtained, row by row, for the first two columns; None where nothing was obtained."""
    made = [name for name in table.columns if any(spread(records, key, name) for key in table.own)]
    if not made:
        return None
    ratings = [name for name in made if table.columns[name].title != "NFE"] or made
    shown = ratings[:2]
    rows = [row for row in table.own.values() if any(spread(records, row.key or "", name) for name in shown)]
    published = {
        name: {row.key: number.value for row in rows for number in row.published[::-1] if _counts(number, name)}
        for name in shown
    }
    panels = [(name, side) for name in shown for side in ("published", "small") if side == "small" or published[name]]
    path = table.folder / "table.png"
    labels = _labels(rows)
    width = 4.6 + 0.075 * max(0, max(map(len, labels)) - 20) / len(panels)  # long names take their room from nobody
    with sheet(path, panels=len(panels), width=width, height=1.3 + 0.24 * len(rows)) as (_, axes):
        places = range(len(rows))[::-1]
        for axis, (name, side) in zip(axes, panels, strict=True):
            column = table.columns[name]
            for place, row in zip(places, rows, strict=True):
                if side == "published":
                    value = published[name].get(row.key)
                    if value is not None:
                        axis.plot([value], [place], "D", color=MUTED, markersize=4)
                    continue
                values = spread(records, row.key or "", name)
                if values is None:
                    continue
                axis.plot(
                    list(values.values.values()), [place] * values.n, "o", color=PALETTE[0], markersize=3, alpha=0.6
                )
                axis.plot([values.mean], [place], "|", color=INK, markersize=11)
            title = (
                f"{column.title}, published" if side == "published" else f"{_obtained(column, 'small')}, scale=small"
            )
            axis.set_title(title)
            marks = "" if side == "published" else "\na dot a seed, the bar their mean"
            axis.set(xlabel=f"{column.better} is better{marks}", ylim=(-0.7, len(rows) - 0.3))
            axis.set_yticks(list(places), labels if axis is axes[0] else [""] * len(rows))
    return path


def _labels(rows: Sequence[Row]) -> list[str]:
    """Names of rows in a figure, with their group where names alone do not tell them apart."""
    names = [row.name("small") for row in rows]
    return [
        f"{row.group.split(' (')[0]}: {name}" if row.group and names.count(name) > 1 else name
        for row, name in zip(rows, names, strict=True)
    ]


def _counts(number: Published, column: str) -> bool:
    return number.metric == column and number.value is not None and number.dataset in (None, "cifar10")
