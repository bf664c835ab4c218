"""A configuration with where it comes from and what is wrong with it, which all parts of a check hand on."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Args:
        path: the key it is about, dotted; empty where there is none.
        text: what is wrong and what to do.
        fatal: whether it must be mended; otherwise it is a remark.
    """

    path: str
    text: str
    fatal: bool = True


@dataclass
class Composed:
    """A configuration, where it comes from, and what is wrong with it.

    Args:
        values: plain values; None where no configuration came about.
        problems: mistakes that were found on the way; the overrides they are about are left out of ``values``.
        choices: the option of each group, by ``group@package``.
        aliases: paths that are nothing but an interpolation, and the path they stand for.
        read: paths that some interpolation reads.
        hydra: Hydra's own node, as far as it can be resolved.
        swept: the overrides of a job that come from a sweep.
    """

    values: dict[str, Any] | None = None
    problems: list[Problem] = field(default_factory=list)
    choices: dict[str, str | None] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)
    hydra: dict[str, Any] = field(default_factory=dict)
    swept: tuple[str, ...] = ()

    def home(self, path: str) -> str:
        """The path at which a value is written, for one that is interpolated somewhere else."""
        for _ in range(8):  # interpolations of interpolations; an endless circle has been refused by now
            alias = next((a for a in self.aliases if path == a or path.startswith(a + ".")), None)
            if alias is None:
                break
            path = self.aliases[alias] + path[len(alias) :]
        return path

    def file(self, path: str, root: str) -> str:
        """The file of conf/ that defines what stands at a path."""
        found = ("", f"conf/{root}.yaml")
        for choice, option in self.choices.items():
            group, _, package = choice.partition("@")
            package = package or group.replace("/", ".")
            if option and (path == package or path.startswith(package + ".")) and len(package) > len(found[0]):
                found = (package, f"conf/{group}/{option}.yaml")
        return found[1]

    def choice(self, path: str) -> str | None:
        """How the group that fills a path is chosen on the command line."""
        return next((c for c in self.choices if path in (c.partition("@")[2], c)), None)


def nearest(name: str, names: Sequence[str]) -> str:
    """A clause that names the right name, or all of them where none is near."""
    near = get_close_matches(name, names, 1, 0.6)
    if near:
        return f"did you mean {near[0]}?"
    return f"there is {', '.join(sorted(names))}" if names else "it takes none"
