"""When a measured number counts as the expected one. A check's configuration names exactly one of these.

within: 0.02        |value - expected| <= 0.02
relative: 0.03      |value - expected| <= 0.03 |expected|
below: 1.0e-10      value < 1e-10
above: 0.05         value > 0.05
between: [0.4, 0.5] 0.4 <= value <= 0.5
equal: true         value == expected, for counts
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class Tolerance(ABC):
    """A rule that a value, given what is expected, meets or misses. A value that is not a number misses every rule."""

    @abstractmethod
    def met(self, value: float, expected: float | None) -> bool:
        """Whether the value counts as the expected one; ``expected`` is None only where the rule is a bound."""

    @abstractmethod
    def __str__(self) -> str:
        """The rule as a table shows it."""


@dataclass(frozen=True)
class Within(Tolerance):
    """|value - expected| <= distance.

    Args:
        distance: in the quantity's own unit, >= 0.
    """

    distance: float

    def met(self, value: float, expected: float | None) -> bool:
        return expected is not None and abs(value - expected) <= self.distance

    def __str__(self) -> str:
        return f"± {self.distance:g}"


@dataclass(frozen=True)
class Relative(Tolerance):
    """|value - expected| <= fraction |expected|.

    Args:
        fraction: of the expected value, >= 0.
    """

    fraction: float

    def met(self, value: float, expected: float | None) -> bool:
        return expected is not None and abs(value - expected) <= self.fraction * abs(expected)

    def __str__(self) -> str:
        return f"± {100 * self.fraction:g} %"


@dataclass(frozen=True)
class Below(Tolerance):
    """value < bound.

    Args:
        bound: excluded.
    """

    bound: float

    def met(self, value: float, expected: float | None) -> bool:
        return value < self.bound

    def __str__(self) -> str:
        return f"< {self.bound:g}"


@dataclass(frozen=True)
class Above(Tolerance):
    """value > bound.

    Args:
        bound: excluded.
    """

    bound: float

    def met(self, value: float, expected: float | None) -> bool:
        return value > self.bound

    def __str__(self) -> str:
        return f"> {self.bound:g}"


@dataclass(frozen=True)
class Between(Tolerance):
    """low <= value <= high.

    Args:
        low: included.
        high: included.
    """

    low: float
    high: float

    def met(self, value: float, expected: float | None) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Equal(Tolerance):
    """value == expected: for counts."""

    def met(self, value: float, expected: float | None) -> bool:
        return value == expected

    def __str__(self) -> str:
        return "equal"


FIELDS = ("within", "relative", "below", "above", "between", "equal")


def from_fields(fields: Mapping[str, Any]) -> Tolerance:
    """The tolerance that a check's fields name.

    Raises:
        ValueError: if they name none, or more than one, or give it something else than its numbers.
    """
    named = [name for name in FIELDS if name in fields]
    if len(named) != 1:
        raise ValueError(f"a check names exactly one of {', '.join(FIELDS)}, this one {', '.join(named) or 'none'}")
    (name,) = named
    given = fields[name]
    if name == "equal":
        if given is not True:
            raise ValueError(f"equal={given!r} must be true; write another tolerance where a value may differ")
        return Equal()
    if name == "between":
        if not isinstance(given, list) or len(given) != 2:
            raise ValueError(f"between={given!r} must be a list of two numbers, [low, high]")
        low, high = (_number(name, bound) for bound in given)
        if low > high:
            raise ValueError(f"between={given!r} is empty: its first number must not be above the second")
        return Between(low, high)
    number = _number(name, given)
    if name in ("within", "relative") and number < 0:
        raise ValueError(f"{name}={number} is a distance and must not be negative")
    if name == "within":
        return Within(number)
    if name == "relative":
        return Relative(number)
    return Below(number) if name == "below" else Above(number)


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        # YAML reads 1e-10 as text: its numbers need a point.
        raise ValueError(f"{name}={value!r} must be a number; in YAML write 1.0e-10, not 1e-10")
    return value
