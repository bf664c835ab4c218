"""Runs side by side: only what differs in their configurations, seeds together, protocols kept apart."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from scorefield.errors import UserError
from scorefield.records.differences import Column, differing
from scorefield.records.result import Better
from scorefield.records.runs import Run

# Fields of a protocol that say what was found or what was evaluated, and not how it was measured.
FOUND = {
    "by_class",
    "by_level",
    "each",
    "extent",
    "floor",
    "guidance",
    "images",
    "kernel",
    "kid_by_class",
    "lowest",
    "n_solver_error",
    "nfe",
    "of_zero",
    "sampler",
    "samples_median",
    "seconds",
    "seed",
    "solver_error",
    "solver_error_max",
    "spread",
    "standard_error",
    "step",
    "t_min_tenfold_change",
    "test_median",
}


@dataclass(frozen=True)
class Value:
    """A metric over the seeds of a group.

    Args:
        values: of each run that has it.
        protocols: the protocols that they were measured by, as letters.
    """

    values: tuple[float, ...]
    protocols: tuple[str, ...] = ()

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return math.fsum(self.values) / len(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation over seeds, with n - 1; None for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Args:
        runs: the runs.
        settings: what they are configured with, by column.
        metrics: what they measured.
    """

    runs: tuple[Run, ...]
    settings: Mapping[str, Any]
    metrics: Mapping[str, Value]


@dataclass(frozen=True)
class Metric:
    """A column of numbers.

    Args:
        name: of the metric, or ``metric.field`` for a number of its protocol, or ``cost.name``.
        better: which way is better; None where nothing says so.
        protocols: the protocols met, by letter: the fields in which they differ.
    """

    name: str
    better: Better | None = None
    protocols: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def comparable(self) -> bool:
        """Whether all values were measured by one protocol."""
        return len(self.protocols) <= 1


@dataclass(frozen=True)
class Comparison:
    """Groups of runs with their settings and metrics.

    Args:
        columns: the settings that differ.
        metrics: the numbers.
        groups: one for each configuration.
        repeated: runs that are in another directory as well, and are counted once.
    """

    columns: tuple[Column, ...]
    metrics: tuple[Metric, ...]
    groups: tuple[Group, ...]
    repeated: tuple[Run, ...] = ()

    def best(self, metric: Metric) -> set[int]:
        """The groups with the best mean of a metric, by their numbers; none where they are not to be ranked."""
        if metric.better is None or not metric.comparable:
            return set()
        means = {i: g.metrics[metric.name].mean for i, g in enumerate(self.groups) if metric.name in g.metrics}
        if len(means) < 2:
            return set()
        best = min(means.values()) if metric.better == "less" else max(means.values())
        found = {i for i, mean in means.items() if mean == best}
        return found if len(found) < len(means) else set()  # where all are equal none is better

    def sorted(self, key: str, reverse: bool = False) -> "Comparison":
        """Groups in the order of a metric, the best first, or of a setting; those without it come last.

        Values that were measured by different protocols stay apart: one protocol after the other.

        Raises:
            UserError: there is no such column.
        """
        metric = next((m for m in self.metrics if m.name == key), None)
        column = next((c for c in self.columns if key in (c.key, c.title)), None)
        if metric is None and column is None:
            raise UserError(f"--sort {key} is no column; there is {', '.join(self.names)}")

        def order(group: Group) -> tuple[Any, ...]:
            if metric is not None:
                value = group.metrics.get(metric.name)
                if value is None:
                    return (1,)
                sign = -1 if (metric.better == "more") != reverse else 1
                return (0, value.protocols, sign * value.mean)
            assert column is not None
            return (0, *_orderly(group.settings.get(column.key)))

        backwards = reverse and metric is None
        return Comparison(self.columns, self.metrics, tuple(sorted(self.groups, key=order, reverse=backwards)))

    @cached_property
    def names(self) -> list[str]:
        """What can be sorted by."""
        return [*(c.title for c in self.columns), *(m.name for m in self.metrics)]

    def remarks(self) -> list[str]:
        """What must be said beside the numbers."""
        said = []
        for metric in self.metrics:
            if not metric.comparable:
                each = "; ".join(
                    f"{letter}: " + ", ".join(f"{key}={_plain(value)}" for key, value in fields.items())
                    for letter, fields in metric.protocols.items()
                )
                said.append(f"{metric.name} was measured by different protocols and is not ranked ({each})")
        said += [f"{run.path} repeats a run that is counted already" for run in self.repeated]
        return said


def compare(runs: Sequence[Run], metrics: Sequence[str] | None = None, ignore: Sequence[str] = ()) -> Comparison:
    """Runs grouped over their seeds.

    Args:
        runs: finished runs.
        metrics: the columns of numbers; all metrics of the runs by default.
        ignore: fields of protocols that may differ among values that are ranked together.

    Raises:
        UserError: no run has one of the metrics.
    """
    columns = differing(runs)
    gathered: dict[tuple[str, ...], dict[tuple[int, ...], Run]] = {}
    settings: dict[tuple[str, ...], dict[str, Any]] = {}
    repeated = []
    for number, run in enumerate(runs):
        key = tuple(column.cells[number] for column in columns)
        seeds = gathered.setdefault(key, {})
        settings.setdefault(key, {column.key: column.values[number] for column in columns})
        if run.seed in seeds:
            repeated.append(run)
        else:
            seeds[run.seed] = run
    names = list(metrics or dict.fromkeys(name for run in runs for name in run.result.metrics))
    kept = [run for seeds in gathered.values() for run in seeds.values()]
    letters = {name: _letters(kept, name, ignore) for name in names}
    for name in metrics or ():
        if not any(_number(run, name) is not None for run in runs):
            raise UserError(f"no run has {name}; there is {', '.join(_available(runs))}")
    groups = [
        Group(tuple(seeds.values()), settings[key], _values(list(seeds.values()), names, letters))
        for key, seeds in gathered.items()
    ]
    shown = [Metric(name, _better(kept, name), _told(kept, name, letters[name])) for name in names]
    return Comparison(tuple(columns), tuple(shown), tuple(groups), tuple(repeated))


def number_of(name: str) -> Callable[[Run], float | None]:
    """A function that finds a number of a run: a metric, ``metric.field`` or ``cost.name``."""
    return lambda run: _number(run, name)


def _number(run: Run, name: str) -> float | None:
    found: Any
    if name in run.result.metrics:
        return run.result.metrics[name].value
    outer, _, inner = name.partition(".")
    if outer == "cost":
        found = run.result.cost.get(inner)
    else:
        found = run.result.metrics[outer].protocol.get(inner) if outer in run.result.metrics else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def _available(runs: Sequence[Run]) -> list[str]:
    metrics = dict.fromkeys(name for run in runs for name in run.result.metrics)
    return [*metrics, *dict.fromkeys(f"cost.{name}" for run in runs for name in run.result.cost)]


def _values(runs: Sequence[Run], names: Sequence[str], letters: Mapping[str, Mapping[str, str]]) -> dict[str, Value]:
    found = {}
    for name in names:
        having = [run for run in runs if _number(run, name) is not None]
        if having:
            values = tuple(value for run in having if (value := _number(run, name)) is not None)
            used = sorted({letters[name].get(str(run.path), "") for run in having} - {""})
            found[name] = Value(values, tuple(used))
    return found


def _better(runs: Sequence[Run], name: str) -> Better | None:
    """Which way is better, where all runs that have the metric say the same."""
    said = {run.result.metrics[name].better for run in runs if name in run.result.metrics}
    return said.pop() if len(said) == 1 else None


def _protocol(run: Run, name: str, ignore: Sequence[str]) -> dict[str, Any] | None:
    measured = run.result.metrics.get(name)
    if measured is None:
        return None
    named = {"data": str(run.config.get("data.dataset._target_")).rpartition(".")[2], **measured.protocol}
    return {key: value for key, value in named.items() if key not in FOUND and key not in ignore}


def _letters(runs: Sequence[Run], name: str, ignore: Sequence[str]) -> dict[str, str]:
    """The protocol of a metric in each run's directory, as a letter."""
    known: dict[str, str] = {}
    letters = {}
    for run in runs:
        protocol = _protocol(run, name, ignore)
        if protocol is not None:
            text = json.dumps(protocol, sort_keys=True, default=str)
            letters[str(run.path)] = known.setdefault(text, _letter(len(known)))
    return letters


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"p{number}"


def _told(runs: Sequence[Run], name: str, letters: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The protocols of a metric, by letter, each with the fields in which they differ."""
    by_letter: dict[str, dict[str, Any]] = {}
    for run in runs:
        if str(run.path) in letters:
            by_letter.setdefault(letters[str(run.path)], _protocol(run, name, ()) or {})
    keys = dict.fromkeys(key for protocol in by_letter.values() for key in protocol)
    apart = [key for key in keys if len({json.dumps(p.get(key), default=str) for p in by_letter.values()}) > 1]
    return {letter: {key: protocol.get(key) for key in apart} for letter, protocol in by_letter.items()}


def _orderly(value: Any) -> tuple[int, float, str]:
    """A key to sort settings by: numbers before texts."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, str(value))


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
