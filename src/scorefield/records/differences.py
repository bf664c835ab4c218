"""Which settings differ among runs, told as shortly as they can be.

A part whose class differs is one column, by its class and whatever differs among those of the same class:
``Ancestral(eta=0.0)``. What configurations repeat by interpolation, a sampler in every callback, is told once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scorefield.records.runs import PLACE, Run

# Where a run is kept, how it is started and who is told of it; nothing that it computes.
_ELSEWHERE = ("run_dir", "outputs", "fresh", "seed", "logger", "tags", "objective_metric")
_TARGET = "_target_"
ABSENT = "–"


@dataclass(frozen=True)
class Column:
    """A setting that differs.

    Args:
        key: its dotted key.
        title: the shortest end of the key that no other column has.
        values: of each run: a plain value, or the text of a part.
        cells: the same in reading form.
    """

    key: str
    title: str
    values: tuple[Any, ...]
    cells: tuple[str, ...]


def differing(runs: Sequence[Run]) -> list[Column]:
    """The settings that differ among runs, in the order of their configurations."""
    apart = _paths(runs)
    if not apart:
        return []
    heads = dict.fromkeys(_head(path, apart) for path in apart)
    heads = {head: None for head in heads if not any(_below(head, other) for other in heads if other != head)}
    inside = {head: [path for path in apart if _below(path, head)] for head in heads}
    found: dict[tuple[str, ...], list[tuple[str, tuple[Any, ...]]]] = {}
    for head in sorted(heads, key=lambda head: head.count(".")):
        values = _column(runs, head, inside[head])
        cells = tuple(cell(value) for value in values)
        if not any(_copies(head, other, parts=bool(inside[head])) for other, _ in found.get(cells, [])):
            found.setdefault(cells, []).append((head, values))
    kept = {head: (values, cells) for cells, columns in found.items() for head, values in columns}
    titles = _titles(list(kept))
    return [Column(head, titles[head], *kept[head]) for head in heads if head in kept]


def _paths(runs: Sequence[Run]) -> dict[str, None]:
    """Keys whose values are not the same in all runs, in their order."""
    keys: dict[str, None] = {}
    for run in runs:
        keys |= dict.fromkeys(run.config)
    missing = object()
    apart: dict[str, None] = {}
    for key in keys:
        if key.split(".")[0] in _ELSEWHERE:
            continue
        values = [run.config.get(key, missing) for run in runs]
        first = values[0]
        if all(type(value) is type(first) and value == first for value in values):
            continue
        seeds = (v in (missing, run.config.get("seed")) for v, run in zip(values, runs, strict=True))
        if key.endswith(".seed") and all(seeds):
            continue  # the run's own seed, interpolated, wherever there is such a part
        if key.endswith("run_dir") or all(value in (PLACE, missing) for value in values):
            continue
        apart[key] = None
    return apart


def _head(path: str, apart: Mapping[str, None]) -> str:
    """The outermost part around a key whose class differs, or which is left out in some runs; else the key."""
    parts = path.split(".")
    for n in range(1, len(parts)):
        outer = ".".join(parts[:n])
        if f"{outer}.{_TARGET}" in apart or outer in apart:
            return outer
    return path


def _below(path: str, head: str) -> bool:
    return path.startswith(head + ".")


def _column(runs: Sequence[Run], head: str, inside: Sequence[str]) -> tuple[Any, ...]:
    """The value of each run, or the text of its part."""
    if not inside:
        return tuple(run.config.get(head, ABSENT) for run in runs)
    target = f"{head}.{_TARGET}"
    classes = [run.config.get(target) for run in runs]
    texts = []
    for run, named in zip(runs, classes, strict=True):
        if named is None:
            texts.append("none" if head in run.config or not any(_below(key, head) for key in run.config) else ABSENT)
            continue
        mates = [other for other, name in zip(runs, classes, strict=True) if name == named]
        varied = [p for p in inside if p != target and len({cell(m.config.get(p, ABSENT)) for m in mates}) > 1]
        arguments = (f"{p[len(head) + 1 :]}={cell(run.config[p])}" for p in varied if p in run.config)
        inner = ", ".join(a for a in arguments if not a.startswith(_TARGET)).replace(f".{_TARGET}", "")
        texts.append(cell(named, short=True) + (f"({inner})" if inner else ""))
    return tuple(texts)


def _copies(key: str, other: str, parts: bool) -> bool:
    """Whether two settings with the same values are the same one: parts, or keys with the same last name."""
    last, known = key.rpartition(".")[2], other.rpartition(".")[2]
    return parts or last == known or last.endswith(f"_{known}") or known.endswith(f"_{last}")


def cell(value: Any, short: bool = False) -> str:
    """A value in reading form; a class by its name."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple):
        return "[" + ", ".join(cell(item) for item in value) + "]"
    text = str(value)
    dotted = text.replace(".", "").replace("_", "").isalnum() and "." in text and text.split(".")[0].isidentifier()
    if short or (dotted and text.split(".")[0] in ("scorefield", "torch", "pytorch_lightning")):
        parts = text.split(".")
        # a class's own constructor keeps the class, as Mixture.ring
        return ".".join(parts[-2:]) if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1]
    return text


def _titles(keys: Sequence[str]) -> dict[str, str]:
    """For each key its shortest end that tells it from the others."""
    titles = {}
    for key in keys:
        parts = key.split(".")
        for n in range(1, len(parts) + 1):
            end = ".".join(parts[-n:])
            if end != "n" and sum(other == end or other.endswith(f".{end}") for other in keys) == 1:
                break  # n is the number of seeds
        titles[key] = end
    return titles
