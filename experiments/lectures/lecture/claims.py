"""A claim: one folder with what is expected (config.yaml), why (README.md) and how it is measured (claim.py)."""

import difflib
import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from lecture.tolerances import FIELDS, Tolerance, from_fields

HOME = Path(__file__).parents[1]
_FOLDER = re.compile(r"L(\d)_(\d+)([a-z]?)_\w+")
_KINDS = ("analytic", "empirical")
_TEXTS = ("title", "time", "source")

Measure = Callable[..., dict[str, float]]


@dataclass(frozen=True)
class Check:
    """One number that a claim must reach.

    Args:
        quantity: its name, as `claim.py` returns it.
        expected: its value; None where only a bound is claimed.
        tolerance: when a measured value counts.
        kind: ``analytic`` where the value has a closed form or a quadrature, ``empirical`` where a bound was chosen.
    """

    quantity: str
    expected: float | None
    tolerance: Tolerance
    kind: str


@dataclass(frozen=True)
class Claim:
    """A claim as its folder states it.

    Args:
        folder: where it is kept; its name gives the claim's.
        name: L<lecture>.<number>, with a letter for a companion.
        title: what is claimed, in one line.
        time: where in the lecture's recording, minutes and seconds.
        source: where the statement is proved.
        references: the works it names.
        settings: every number of the experiment, by name.
        checks: the numbers that count.
        experiment: name of the claim whose `claim.py` measures this one; itself, for most.
    """

    folder: Path
    name: str
    title: str
    time: str
    source: str
    references: tuple[str, ...]
    settings: dict[str, Any]
    checks: tuple[Check, ...]
    experiment: str

    @property
    def lecture(self) -> int:
        return int(self.name[1])

    @property
    def page(self) -> str:
        """The text of README.md."""
        return (self.folder / "README.md").read_text(encoding="utf-8")

    def seeded(self, seed: int) -> "Claim":
        """The same with other random numbers, where it has any."""
        return replace(self, settings={**self.settings, "seed": seed}) if "seed" in self.settings else self

    def measure(self, figure: Path) -> dict[str, float]:
        """Run the experiment, draw its figure, and return the measured values by quantity."""
        module = load_module(by_name(self.experiment, self.folder.parent).folder)
        measure: Measure = module.measure
        try:
            settings = module.Settings(**self.settings)
        except TypeError as error:
            raise ValueError(
                f"the settings of {self.folder.name}/config.yaml do not fit its claim.py: {error}"
            ) from None
        return measure(settings, figure)


def load_module(folder: Path) -> ModuleType:
    """The folder's claim.py, under a name of its own."""
    name = f"lecture_claim_{folder.name}"
    spec = importlib.util.spec_from_file_location(name, folder / "claim.py")
    if spec is None or spec.loader is None:
        raise ValueError(f"{folder / 'claim.py'} cannot be loaded")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def name_of(folder: str) -> str:
    """L1.5 for L1_05_what_it_is_about."""
    match = _FOLDER.fullmatch(folder)
    if match is None:
        raise ValueError(f"{folder} is not the name of a claim's folder, which reads L1_05_what_it_is_about")
    return f"L{match[1]}.{int(match[2])}{match[3]}"


def read(folder: Path) -> Claim:
    """The claim of a folder.

    Raises:
        ValueError: if its configuration lacks something, or says something unknown.
    """
    name = name_of(folder.name)
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    try:
        return Claim(
            folder=folder,
            name=name,
            settings=_settings(config.pop("settings")),
            references=tuple(config.pop("references")),
            checks=tuple(_check(fields) for fields in config.pop("checks")),
            experiment=config.pop("experiment", name),
            **{text: str(config.pop(text)) for text in _TEXTS},
            **config,
        )
    except KeyError as error:
        raise ValueError(f"{folder.name}/config.yaml lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"{folder.name}/config.yaml: {error}") from None


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    for name, value in fields.items():
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", each):
                raise ValueError(f"{name}={each!r} was read as text; in YAML write 1.0e-3, not 1e-3")
    return fields


def _check(fields: dict[str, Any]) -> Check:
    unknown = fields.keys() - {"quantity", "expected", "kind", *FIELDS}
    if unknown:
        raise ValueError(f"a check knows no {', '.join(sorted(unknown))}: {fields}")
    if fields["kind"] not in _KINDS:
        raise ValueError(f"kind={fields['kind']!r} must be one of {', '.join(_KINDS)}")
    tolerance, expected = from_fields(fields), fields.get("expected")
    if expected is None and not {"below", "above", "between"} & fields.keys():
        raise ValueError(f"{fields['quantity']!r} needs the expected value that it is compared with")
    if expected is not None and (isinstance(expected, bool) or not isinstance(expected, int | float)):
        raise ValueError(f"expected={expected!r} must be a number; in YAML write 1.0e-10, not 1e-10")
    return Check(fields["quantity"], expected, tolerance, fields["kind"])


def everything(home: Path | None = None) -> list[Claim]:
    """All claims of a folder, in the order of the lectures; None takes this one."""
    folders = sorted(path for path in (home or HOME).iterdir() if _FOLDER.fullmatch(path.name))
    return [read(folder) for folder in folders]


def by_name(name: str, home: Path | None = None) -> Claim:
    """The claim of that name."""
    return select([name], home)[0]


def select(names: Sequence[str], home: Path | None = None) -> list[Claim]:
    """The claims of those names, all where there are none.

    Raises:
        KeyError: if there is no such claim; the message says which comes nearest.
    """
    claims = {claim.name: claim for claim in everything(home)}
    for name in names:
        if name not in claims:
            near = difflib.get_close_matches(name, claims, n=1, cutoff=0.4)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise KeyError(f"there is no claim {name!r}{meant} All are: {', '.join(claims)}")
    return [claims[name] for name in dict.fromkeys(names)] if names else list(claims.values())
