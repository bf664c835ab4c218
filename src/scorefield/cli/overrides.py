"""Overrides of a command line: read by Hydra's own grammar, and why there is no place for one."""

from collections.abc import Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, ListConfig

from scorefield.cli.composed import Composed, Problem, nearest


def read(arguments: Sequence[str], loader: ConfigLoaderImpl) -> tuple[list[Override], list[Problem]]:
    """Overrides as Hydra reads them, and those that it cannot read."""
    parser = OverridesParser.create(config_loader=loader)
    overrides, problems = [], []
    for argument in arguments:
        if not _is_text(argument):
            problems.append(Problem("", f"{argument!r} holds bytes that are no text in UTF-8"))
            continue
        try:
            overrides += parser.parse_overrides([argument])
        except Exception as error:  # whatever the grammar stumbles over, the user wrote it
            if "=" not in argument and not argument.startswith("~"):
                text = "is no override; write key=value, or group=option to choose a file of conf/"
            else:
                text = f"cannot be read ({first_line(error)}); quote the value, as in 'key=\"the value\"'"
            problems.append(Problem("", f"{argument!r} {text}"))
    return overrides, problems


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def unasked_sweep(override: Override) -> Problem:
    """What to do about values separated by commas where no sweep was asked for."""
    text = "looks like a sweep; add --multirun to run them all, or write [a,b] for a list and 'key=\"a,b\"' for a text"
    return Problem("", f"{override.input_line!r} {text}")


def first_line(error: BaseException) -> str:
    """The first line of an error that says something, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def chooses(override: Override, loader: ConfigLoaderImpl) -> bool:
    """Whether Hydra takes an override as the choice of a group's option."""
    key = override.key_or_group
    return (override.is_hydra_override() or "/" in key or loader.repository.group_exists(key)) and not (
        isinstance(override.value(), dict) and loader.repository.group_exists(key)
    )


def wrong_option(override: Override, loader: ConfigLoaderImpl) -> str | None:
    """Why a group cannot be filled so, or None."""
    group, value = override.key_or_group, override.value()
    if override.is_hydra_override() or override.is_delete():
        return None
    if not loader.repository.group_exists(group):
        groups = [name for name in loader.list_groups("") if name != "hydra"]
        outer, _, inner = group.rpartition("/")
        if inner in groups:
            where = f"{outer.replace('/', '.')}.{inner}"
            return f"{override.input_line!r}: to put a file of conf/{inner} at {where} write {inner}@{where}={value}"
        return f"{override.input_line!r}: conf/ has no group {group}; {nearest(group, groups)}"
    options = loader.get_group_options(group)
    if value is None:
        without = f"{group}=none" if "none" in options else f"~{group}"
        return f"{override.input_line!r}: to leave a group out write {without}; its options are {', '.join(options)}"
    for option in value if isinstance(value, list) else [value]:
        if str(option) not in options:
            return f"{override.input_line!r}: conf/{group} has no option {option!r}; {nearest(str(option), options)}"
        if not isinstance(option, str):
            return f"{override.input_line!r}: an option is a name; quote it"
    return None


def wrong_key(override: Override, base: DictConfig, composed: Composed, root: str) -> str | None:
    """Why there is no place for an override; looked at before it is applied, which could leave half of it behind."""
    if override.is_force_add():
        return None
    node: Any = base
    walked = ""
    for part in override.key_or_group.split("."):
        here = f"{walked}.{part}" if walked else part
        names = _keys(node)
        if names is None and not override.is_add():
            return f"has no place: {walked} is a value without keys ({node!r})"
        if part not in (names or ()):
            if override.is_add():
                return None
            return f"is unknown: {here} is not in {composed.file(walked or part, root)}; {nearest(part, names or [])}"
        if here == override.key_or_group:
            break  # its value is about to change, whatever it is
        try:
            node = node[int(part) if isinstance(node, ListConfig) else part]
        except Exception as error:
            return f"cannot be followed at {here} ({first_line(error)})"
        walked = here
    if override.is_add() and not isinstance(override.value(), dict | list):
        return f"is there already; write {str(override.input_line)[1:]}"
    return None


def _keys(node: Any) -> list[str] | None:
    """Names of what is inside a node; None for a value."""
    if isinstance(node, ListConfig) and not node._is_none():
        return [str(i) for i in range(len(node))]
    if isinstance(node, DictConfig) and not node._is_none():
        return [str(name) for name in node if name != "hydra"]
    return None
