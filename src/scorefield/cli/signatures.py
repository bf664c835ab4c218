"""A configuration against signatures and annotations: every value, every node and its arguments; nothing is built."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, Unpack, get_args, get_origin, get_type_hints, is_typeddict

from hydra._internal.utils import _locate

from scorefield.cli.composed import Problem, nearest

A_NODE = ", a node with _target_ and its arguments"
RESERVED = ("_target_", "_partial_", "_convert_")


class Unread(Problem):
    """A key that is read by nothing, unless by an interpolation."""


def mismatches(value: Any, wanted: Any, path: str = "") -> Iterator[Problem]:
    """What keeps a configured value from being what an annotation asks for."""
    origin, arguments = get_origin(wanted), get_args(wanted)
    if isinstance(value, Mapping) and "_target_" in value:
        yield from _node(value, wanted, path)
    elif origin in (Union, UnionType):
        yield from _alternatives(value, arguments, path)
    elif origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(
            value is a for a in arguments if a in (True, False)
        ):
            yield Problem(path, f"{path}={value!r} must be one of {', '.join(map(repr, arguments))}")
    elif is_typeddict(wanted):
        yield from _keys(value, wanted, path)
    elif origin in (list, Sequence, Iterable, tuple) or wanted in (list, tuple):
        yield from _elements(value, origin or wanted, arguments, path)
    elif origin in (dict, Mapping) or wanted in (dict, Mapping):
        if not isinstance(value, Mapping):
            yield Problem(path, f"{path}={value!r} must be a mapping, key: value")
            return
        inner = arguments[1] if arguments else Any
        for key, item in value.items():
            yield from mismatches(item, inner, f"{path}.{key}")
    elif wanted is Any or not (isinstance(wanted, type) or origin is not None):
        yield from _nested(value, path)
    elif (text := _unlike(value, wanted)) is not None:
        yield Problem(path, f"{path}={_shown(value)} {text}")


def _nested(value: Any, path: str) -> Iterator[Problem]:
    """Nodes inside a value of which nothing is known."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from mismatches(item, Any, f"{path}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from mismatches(item, Any, f"{path}[{i}]")


def _alternatives(value: Any, wanted: Sequence[Any], path: str) -> Iterator[Problem]:
    """Nothing, if one of the alternatives is met; else what is wrong in the one that is met in kind."""
    attempts = [list(mismatches(value, one, path)) for one in wanted]
    if not all(attempts):
        return
    inside = [attempt for attempt in attempts if all(problem.path != path for problem in attempt)]
    names = " or ".join(dict.fromkeys(_name(one) for one in wanted))
    yield from inside[0] if inside else [Problem(path, f"{path}={_shown(value)} must be {names}{_headless(value)}")]


def _elements(value: Any, kind: Any, arguments: Sequence[Any], path: str) -> Iterator[Problem]:
    if not isinstance(value, list):
        yield Problem(path, f"{path}={_shown(value)} must be a list, [a, b]")
        return
    fixed = kind is tuple and arguments and arguments[-1] is not Ellipsis
    if fixed and len(value) != len(arguments):
        yield Problem(path, f"{path}={_shown(value)} must hold {len(arguments)} values")
        return
    for i, item in enumerate(value):
        yield from mismatches(item, arguments[i] if fixed else arguments[0] if arguments else Any, f"{path}[{i}]")


def _keys(value: Any, wanted: Any, path: str) -> Iterator[Problem]:
    """A mapping with known keys, each of its type."""
    if not isinstance(value, Mapping):
        yield Problem(path, f"{path}={_shown(value)} must be a group of keys; choose a file with {path}=name")
        return
    hints = get_type_hints(wanted)
    for key, item in value.items():
        here = f"{path}.{key}" if path else str(key)
        if key in hints:
            yield from mismatches(item, hints[key], here)
        else:
            yield Unread(here, f"{here} is read by nothing; {nearest(str(key), list(hints))}")
    for key in sorted(wanted.__required_keys__ - set(value)):
        yield Problem(path, f"{f'{path}.{key}' if path else key} is missing")


def _unlike(value: Any, wanted: Any) -> str | None:
    """Why a value without ``_target_`` is not of a type."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted is float:
        return None if number and _finite_enough(value) else "must be a number"
    if wanted is int:
        return None if number and isinstance(value, int) and abs(value) < 2**63 else "must be a whole number"
    if wanted is NoneType and value == {}:  # an empty file of conf/ leaves a group out
        return None
    if wanted in (bool, str, NoneType):
        return None if isinstance(value, wanted) else f"must be {_name(wanted)}"
    if isinstance(wanted, type) and issubclass(wanted, Path):
        return None if isinstance(value, str) else "must be a path"
    return f"must be {_name(wanted)}{_headless(value) or A_NODE}"


def _headless(value: Any) -> str:
    """What to say of a node that sets arguments of a class which is not named."""
    return "; it has arguments but no _target_: no chosen file names its class" if isinstance(value, Mapping) else ""


def _finite_enough(value: float) -> bool:
    """Whether a number is one that a float can hold; infinity is, as the end of an open range."""
    try:
        return not math.isnan(float(value))
    except OverflowError:
        return False


def _name(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null"}
    if wanted in names:
        return names[wanted]
    origin = get_origin(wanted)
    if origin is Callable or _callable(wanted):
        return "a function (a node with _target_, and _partial_: true for a class)"
    if origin is Literal:
        return ", ".join(map(repr, get_args(wanted)))
    if origin in (list, Sequence, Iterable, tuple):
        return "a list"
    if origin in (dict, Mapping):
        return "a mapping"
    return f"a {wanted.__name__}" if isinstance(wanted, type) else str(wanted)


def _callable(wanted: Any) -> bool:
    """Whether an annotation asks for something to call."""
    return (
        wanted is Callable
        or get_origin(wanted) is type(lambda: 0)
        or getattr(get_origin(wanted), "__name__", "") == ("Callable")
    )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else text[:56] + " ..."


def _node(node: Mapping[str, Any], wanted: Any, path: str) -> Iterator[Problem]:
    """A node with ``_target_``: what it names, its arguments, and what comes out of it."""
    try:
        target = _locate(node["_target_"])
    except Exception as error:
        yield Problem(path, f"{path}._target_={node['_target_']!r} {_unfound(node['_target_'], error)}")
        return
    name = node["_target_"]
    if not callable(target):
        yield Problem(path, f"{path}._target_={name!r} is a {type(target).__name__}, nothing that can be called")
        return
    if inspect.isabstract(target):
        some = ", ".join(sorted(c.__name__ for c in target.__subclasses__()))
        yield Problem(path, f"{path}._target_={name!r} is abstract; choose one of {some}")
        return
    partial = node.get("_partial_", False)
    if not isinstance(partial, bool):
        yield Problem(f"{path}._partial_", f"{path}._partial_={partial!r} must be true or false")
        return
    yield from _arguments(node, target, name, partial, path)
    if not _fits(made_by(target), partial, wanted):
        kinds = " or ".join(dict.fromkeys(_name(one) for one in (get_args(wanted) if _is_union(wanted) else [wanted])))
        yield Problem(path, f"{path} is made by {name}, but must be {kinds}")


def _unfound(name: Any, error: Exception) -> str:
    """Why a ``_target_`` is not there, with the nearest name beside it."""
    module, _, attribute = str(name).rpartition(".")
    try:
        around = [n for n in dir(_locate(module)) if not n.startswith("_")]
    except Exception:
        return "cannot be imported; give the full path of a class or function, package.module.Name"
    near = nearest(attribute, around)
    return f"does not exist; {near}" if near.startswith("did") else f"does not exist in {module}"


def _arguments(
    node: Mapping[str, Any], target: Callable[..., Any], name: str, partial: bool, path: str
) -> Iterator[Problem]:
    known = parameters(target)
    if known is None:
        for key, item in node.items():
            yield from mismatches(item, Any, f"{path}.{key}")
        return
    for key, item in node.items():
        if key in RESERVED:
            continue
        if key not in known.annotations and not known.any_keyword:
            near = nearest(str(key), list(known.annotations))
            yield Problem(f"{path}.{key}", f"{path}.{key} is no argument of {name}; {near}")
        else:
            yield from mismatches(item, known.annotations.get(key, Any), f"{path}.{key}")
    if not partial:
        for key in known.required:
            if key not in node:
                yield Problem(path, f"{path}.{key} is missing: {name} needs it")


class _Parameters:
    """The arguments of a callable that can be given by name."""

    def __init__(self, target: Callable[..., Any]) -> None:
        function = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
        hints = type_hints(function)
        self.annotations: dict[str, Any] = {}
        self.required: list[str] = []
        self.any_keyword = False
        for name, parameter in inspect.signature(target).parameters.items():
            wanted = hints.get(name, Any)
            if parameter.kind is parameter.VAR_KEYWORD:
                if get_origin(wanted) is Unpack:
                    self.annotations |= get_type_hints(get_args(wanted)[0])
                else:
                    self.any_keyword = True
            elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                self.annotations[name] = wanted
                if parameter.default is parameter.empty:
                    self.required.append(name)


@functools.cache
def parameters(target: Callable[..., Any]) -> _Parameters | None:
    """The arguments of a callable; None where it has no signature that can be read."""
    try:
        return _Parameters(target)
    except (TypeError, ValueError):
        return None


def type_hints(function: Any) -> dict[str, Any]:
    """Annotations of a function; none where they cannot be evaluated."""
    try:
        return get_type_hints(function)
    except Exception:
        return {}


def made_by(target: Any) -> Any:
    """The class of what a callable returns; Any where it does not say."""
    if isinstance(target, type):
        return target
    returned = type_hints(target).get("return", Any)
    return returned if isinstance(returned, type) else Any


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, UnionType)


def _fits(result: Any, partial: bool, wanted: Any) -> bool:
    """Whether what a node makes is what an annotation asks for."""
    if wanted is Any or isinstance(wanted, TypeVar):
        return True
    if _is_union(wanted):
        return any(_fits(result, partial, one) for one in get_args(wanted))
    if _callable(wanted):
        made = get_args(wanted)[-1] if get_args(wanted) else Any
        if not partial:
            is_it = isinstance(made, type) and isinstance(result, type) and issubclass(result, made)
            called = not isinstance(result, type) or any("__call__" in vars(base) for base in result.__mro__)
            return called and not is_it  # what the function should make is not the function
        return not isinstance(made, type) or not isinstance(result, type) or issubclass(result, made)
    if partial:
        return False
    kind = get_origin(wanted) or wanted
    if not isinstance(kind, type) or not isinstance(result, type) or getattr(kind, "_is_protocol", False):
        return not is_typeddict(wanted) and get_origin(wanted) is not Literal
    return issubclass(result, kind)
