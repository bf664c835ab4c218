"""A table as its folder declares it (table.yaml), and the trained models that all tables share (models.yaml)."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

HOME = Path(__file__).parents[1]
SCALES = ("small", "paper")


@dataclass(frozen=True)
class Column:
    """A quantity of the table.

    Args:
        title: its name as the paper prints it.
        better: ``lower`` or ``higher``.
        small: the metric of result.json that stands for it at scale=small, with ``.field`` for a field of its protocol;
            None where nothing does.
        paper: the same at scale=paper.
    """

    title: str
    better: str
    small: str | None = None
    paper: str | None = None

    def __post_init__(self) -> None:
        if self.better not in ("lower", "higher"):
            raise ValueError(f"better={self.better!r} of {self.title!r} must be lower or higher")

    def metric(self, scale: str) -> str | None:
        """The metric at a scale."""
        metric: str | None = getattr(self, scale)
        return metric


@dataclass(frozen=True)
class Published:
    """One published number.

    Args:
        metric: name of the column.
        dataset: what it was measured on.
        value: the number; None where the paper left it blank, or where it is not verified.
        std: the paper's own spread.
        bound: ``upper`` where the number is a bound.
        verified: whether two sources agree on it; where not, its value is not given.
        note: why it is blank.
    """

    metric: str
    dataset: str | None = None
    value: float | None = None
    std: float | None = None
    bound: str | None = None
    verified: bool = True
    note: str | None = None

    def __post_init__(self) -> None:
        if not self.verified and (self.value is not None or self.std is not None):
            raise ValueError(f"{self} is not verified: leave its value out")


@dataclass(frozen=True)
class Row:
    """A row of the table. Rows without a key are other people's: published numbers that nothing here makes again.

    Args:
        method: its name as published.
        published: its published numbers.
        group: heading under which it stands.
        config: what tells it from rows of the same name.
        key: its name in commands.
        small_name: its name at scale=small where that differs.
        model: the trained model by scale.
        evaluate: what `scorefield evaluate` is given by scale; without, the row is the model's own evaluation.
        script: what python is given, for a row that is no trained model.
        missing: why there is nothing at a scale.
        note: what else one must know.
    """

    method: str
    published: tuple[Published, ...]
    group: str | None = None
    config: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    small_name: str | None = None
    model: Mapping[str, str] = field(default_factory=dict)
    evaluate: Mapping[str, Sequence[str]] = field(default_factory=dict)
    script: Sequence[str] = ()
    missing: Mapping[str, str] = field(default_factory=dict)
    note: str | None = None

    def name(self, scale: str) -> str:
        """Its name at a scale, with what tells it from others."""
        name = self.small_name if scale == "small" and self.small_name else self.method
        return name + "".join(f", {value}" for value in self.config.values())


@dataclass(frozen=True)
class Statement:
    """What the table should say again, written down before it is run.

    Args:
        says: the statement.
        because: who says so.
        kind: ``theory`` where an argument carries it to any scale, ``paper`` where the paper found it.
        metric: the column that it is about.
        better: key of the row that should be better.
        than: keys of the rows that it should be better than.
        row: or: key of the row whose value has a bound.
        above: lower bound.
        below: upper bound.
    """

    says: str
    because: str
    kind: str
    metric: str
    better: str | None = None
    than: tuple[str, ...] = ()
    row: str | None = None
    above: float | None = None
    below: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("theory", "paper"):
            raise ValueError(f"kind={self.kind!r} of {self.says!r} must be theory or paper")
        compares, bounds = self.better is not None and self.than, self.row is not None
        if bool(compares) == bounds or (bounds and (self.above is None) == (self.below is None)):
            raise ValueError(f"{self.says!r} needs better and than, or row with one of above and below")

    @property
    def rows(self) -> tuple[str, ...]:
        """Keys of the rows that it is about."""
        return tuple(key for key in (self.better, *self.than, self.row) if key)


@dataclass(frozen=True)
class Table:
    """A table of a paper.

    Args:
        folder: where it is kept; its name is the table's.
        title: what it shows.
        source: paper, authors, arxiv number, year, table and protocol.
        small: the protocol at scale=small.
        columns: its quantities by name.
        rows: all rows, in the paper's order.
        statements: what it should say again.
        unavailable: the paper's other tables, and why they are not here.
    """

    folder: Path
    title: str
    source: Mapping[str, Any]
    small: str
    columns: Mapping[str, Column]
    rows: tuple[Row, ...]
    statements: tuple[Statement, ...]
    unavailable: tuple[Mapping[str, str], ...]

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def own(self) -> dict[str, Row]:
        """The rows that are made here, by key."""
        return {row.key: row for row in self.rows if row.key is not None}


@dataclass(frozen=True)
class Plan:
    """How trained models are made, at both scales.

    Args:
        scales: seeds and common overrides of each scale.
        models: overrides of each model by scale; None where it is not made.
    """

    scales: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Sequence[str] | None]]

    def train(self, model: str, scale: str) -> tuple[str, ...] | None:
        """What `scorefield train` is given for a model; None where it is not made at this scale."""
        own = self.models[model][scale]
        return None if own is None else (*self.scales[scale]["train"], *own)

    def run(self, model: str, scale: str) -> str:
        """The name of a model's run: that of the first model with the same configuration."""
        wanted = self.train(model, scale)
        return next(name for name in self.models if self.train(name, scale) == wanted)


def read_plan(home: Path | None = None) -> Plan:
    """models.yaml."""
    return Plan(**yaml.safe_load(((home or HOME) / "models.yaml").read_text(encoding="utf-8")))


def read(folder: Path, plan: Plan) -> Table:
    """The table of a folder.

    Raises:
        ValueError: it lacks something, says something unknown, or names a column, row or model that is not there.
    """
    fields = yaml.safe_load((folder / "table.yaml").read_text(encoding="utf-8"))
    try:
        fields["columns"] = {name: Column(**column) for name, column in fields["columns"].items()}
        fields["rows"] = tuple(_row(row) for row in fields["rows"])
        fields["statements"] = tuple(Statement(**_tupled(s, "than")) for s in fields["statements"])
        fields["unavailable"] = tuple(fields["unavailable"])
        table = Table(folder=folder, **fields)
        _require_whole(table, plan)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder.name}/table.yaml: {error}") from error
    return table


def _tupled(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {**fields, key: tuple(fields[key])} if key in fields else dict(fields)


def _row(fields: dict[str, Any]) -> Row:
    model = fields.get("model", {})
    if isinstance(model, str):
        model = dict.fromkeys(SCALES, model)
    published = tuple(Published(**number) for number in fields["published"])
    return Row(**{**fields, "model": model, "published": published})


def _require_whole(table: Table, plan: Plan) -> None:
    keys = [row.key for row in table.rows if row.key is not None]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is the key of two rows")
    for row in table.rows:
        for number in row.published:
            if number.metric not in table.columns:
                raise ValueError(f"row {row.method!r} has a published {number.metric!r}, which is no column")
        for scale, model in row.model.items():
            if model not in plan.models:
                raise ValueError(f"row {row.key} at scale={scale} has model {model!r}, which is not in models.yaml")
        for scale in SCALES:
            made = row.script or (scale in row.model and plan.train(row.model[scale], scale) is not None)
            if row.key is not None and not made and scale not in row.missing:
                raise ValueError(f"row {row.key} is not made at scale={scale}, and missing does not say why")
    for statement in table.statements:
        if statement.metric not in table.columns:
            raise ValueError(f"{statement.says!r} is about {statement.metric!r}, which is no column")
        for key in statement.rows:
            if key not in keys:
                raise ValueError(f"{statement.says!r} is about row {key!r}, which is not there")


def everything(home: Path | None = None) -> list[Table]:
    """All tables of a folder, by name."""
    home = home or HOME
    plan = read_plan(home)
    return [read(path.parent, plan) for path in sorted(home.glob("*/table.yaml"))]


def select(names: Sequence[str], tables: Sequence[Table]) -> dict[str, list[Row]]:
    """The rows that names ask for, by table: ``table`` for all of its rows, ``table:row`` for one; all without names.

    Raises:
        KeyError: there is no such table or row; the message says which comes nearest.
    """
    known = {table.name: table for table in tables}
    chosen: dict[str, list[Row]] = {}
    for name in names or list(known):
        title, _, key = name.partition(":")
        if title not in known:
            raise KeyError(f"there is no table {title!r}{_nearest(title, known)}")
        rows = known[title].own
        if key and key not in rows:
            raise KeyError(f"{title} has no row {key!r}{_nearest(key, rows)}")
        new = [rows[key]] if key else list(rows.values())
        chosen[title] = chosen.get(title, []) + [row for row in new if row not in chosen.get(title, [])]
    return chosen


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return (f"; did you mean {near[0]}?" if near else "") + f" All are: {', '.join(known)}"
