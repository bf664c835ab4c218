"""From a command line to a configuration, with every mistake in it named.

Hydra stops at the first mistake. Here each override is read and applied by Hydra's own code, but one at a time, so that
all mistakes are found and each is answered with the nearest right name and the file that holds it. What comes out is
what Hydra composes for the run itself.

This module loads neither torch nor Lightning: a typing error is answered before they are imported.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice, product
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

PACKAGE = Path(__file__).parents[1]
_MOST_JOBS = 64  # checked of a search that picks its jobs itself; of a grid, all are
_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
_WHOLE = re.compile(r"\$\{([\w.@-]+)\}")


def conf_dir() -> str:
    """The configuration folder: beside src/ in a checkout, inside the package once installed."""
    packaged = PACKAGE / "conf"
    return str(packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf")


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


def jobs(
    config: str, arguments: Sequence[str], multirun: bool = False, folder: str | None = None, main: str | None = None
) -> Iterator[Composed]:
    """The configuration of each job that a command line asks for.

    Args:
        config: name of the primary configuration, e.g. ``train``.
        arguments: overrides, as on the command line.
        multirun: whether values separated by commas are a sweep.
        folder: a further configuration folder.
        main: another folder in the place of conf/, absolute or relative to this file.
    """
    setup_globals()
    path = create_config_search_path(f"file://{PACKAGE / 'cli' / main if main else conf_dir()}")
    if folder is not None:
        path.prepend("command-line", f"file://{Path(folder).absolute()}", SearchPathQuery(provider="schema"))
    loader = ConfigLoaderImpl(path)
    overrides, unreadable = _read(arguments, loader)
    sweeps = [override for override in overrides if override.is_sweep_override()]
    fixed = [override for override in overrides if not override.is_sweep_override()]
    most = None
    if multirun:
        sweeper = _sweeper(loader, config, fixed)
        most = None if sweeper.get("_target_") == _GRID else _MOST_JOBS
        named = {override.get_key_element() for override in overrides}
        params, wrong = _read([f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()], loader)
        unreadable += wrong
        sweeps = [*(o for o in params if o.is_sweep_override() and o.get_key_element() not in named), *sweeps]
        fixed = [*(o for o in params if not o.is_sweep_override() and o.get_key_element() not in named), *fixed]
    else:
        unreadable += [_unasked_sweep(override) for override in sweeps]
        sweeps = []
    axes = [[f"{s.get_key_element()}={v}" for v in s.sweep_string_iterator()] for s in sweeps if s.is_discrete_sweep()]
    for values in islice(product(*axes), most):
        swept, wrong = _read(values, loader)
        composed = _compose(loader, config, [*fixed, *swept], [*unreadable, *wrong])
        composed.swept = values
        yield composed


def _sweeper(loader: ConfigLoaderImpl, config: str, fixed: Sequence[Override]) -> Mapping[str, Any]:
    """The sweeper's configuration; empty where the mistakes that each job will tell keep it from being read."""
    try:
        base = _configuration(loader, config, [str(o.input_line) for o in fixed if _chooses(o, loader)])
    except Exception:
        return {}
    sweeper: Any = OmegaConf.to_container(base.hydra.sweeper)
    return dict(sweeper)


def _read(arguments: Sequence[str], loader: ConfigLoaderImpl) -> tuple[list[Override], list[Problem]]:
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
                text = f"cannot be read ({_first_line(error)}); quote the value, as in 'key=\"the value\"'"
            problems.append(Problem("", f"{argument!r} {text}"))
    return overrides, problems


def _is_text(argument: str) -> bool:
    try:
        argument.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unasked_sweep(override: Override) -> Problem:
    text = "looks like a sweep; add --multirun to run them all, or write [a,b] for a list and 'key=\"a,b\"' for a text"
    return Problem("", f"{override.input_line!r} {text}")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _compose(
    loader: ConfigLoaderImpl, config: str, overrides: Sequence[Override], problems: Sequence[Problem]
) -> Composed:
    """Groups first, then values, each override on its own."""
    composed = Composed(problems=list(problems))
    choosing = [o for o in overrides if _chooses(o, loader)]
    setting = [o for o in overrides if not _chooses(o, loader)]
    accepted, refused = list[Override](), set[str]()
    for override in choosing:
        text = _wrong_option(override, loader)
        if text is None:
            accepted.append(override)
        else:
            composed.problems.append(Problem("", text))
            refused.add((override.package or override.key_or_group).replace("/", "."))
    base = _load(loader, config, accepted, composed)
    if base is None:
        return composed
    composed.choices = {str(key): value for key, value in base.hydra.runtime.choices.items()}
    for override in setting:
        if override.key_or_group.split(".")[0] in refused:
            continue  # its group was refused, so what the keys below it should be is not known
        text = _wrong_key(override, base, composed, config)
        if text is None:
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], base)
            except Exception as error:
                text = f"cannot be applied ({_first_line(error)})"
        if text is not None:
            composed.problems.append(Problem("", f"{override.input_line!r} {text}"))
    _resolve(base, composed)
    return composed


def _chooses(override: Override, loader: ConfigLoaderImpl) -> bool:
    """Whether Hydra takes an override as the choice of a group's option."""
    key = override.key_or_group
    return (override.is_hydra_override() or "/" in key or loader.repository.group_exists(key)) and not (
        isinstance(override.value(), dict) and loader.repository.group_exists(key)
    )


def _wrong_option(override: Override, loader: ConfigLoaderImpl) -> str | None:
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


def _load(
    loader: ConfigLoaderImpl, config: str, overrides: Sequence[Override], composed: Composed
) -> DictConfig | None:
    """The configuration with the given groups; those that Hydra refuses are left out."""
    accepted = [str(override.input_line) for override in overrides]
    for _ in range(len(accepted) + 1):
        try:
            return _configuration(loader, config, accepted)
        except Exception as error:
            culprit, text = _culprit(loader, config, accepted, error)
            composed.problems.append(Problem("", text))
            if culprit is None:
                return None
            accepted.remove(culprit)
    return None


_REMEMBERED: dict[tuple[str, ...], DictConfig] = {}  # jobs of a sweep mostly choose the same files


def _configuration(loader: ConfigLoaderImpl, config: str, choices: Sequence[str]) -> DictConfig:
    """What Hydra composes of a choice of files; composed once, as that takes most of the time of a check."""
    where = (source.path for source in loader.config_search_path.get_path() if source.path is not None)
    key = (config, *where, "", *choices)
    if key not in _REMEMBERED:
        _REMEMBERED[key] = loader.load_configuration(config, list(choices), RunMode.RUN)
    return deepcopy(_REMEMBERED[key])


def _culprit(
    loader: ConfigLoaderImpl, config: str, accepted: list[str], error: BaseException
) -> tuple[str | None, str]:
    """The first override that cannot be added to those before it, and Hydra's reason."""
    for n, override in enumerate(accepted):
        try:
            loader.load_configuration(config, accepted[: n + 1], RunMode.RUN)
        except Exception as reason:
            lines = [line.strip() for line in str(reason).splitlines()[:2]]
            return override, f"{override!r}: {' '.join(lines)}"
    return None, _first_line(error)


def _wrong_key(override: Override, base: DictConfig, composed: Composed, root: str) -> str | None:
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
            return f"cannot be followed at {here} ({_first_line(error)})"
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


def _resolve(base: DictConfig, composed: Composed) -> None:
    """Fill in interpolations, and remember where they were."""
    try:
        HydraConfig.instance().set_config(base)
        if OmegaConf.to_container(base).get("run_dir", "") is None:  # type: ignore[union-attr]
            base.run_dir = "."  # null stands for a folder that the command names itself
        del_hydra = OmegaConf.masked_copy(base, [str(key) for key in base if key != "hydra"])
        own: Any = OmegaConf.to_container(base.hydra)
        composed.hydra = {key: own[key] for key in ("launcher", "sweeper", "callbacks", "mode")}
        raw = OmegaConf.to_container(del_hydra, resolve=False)
        _remember(raw, "", composed)
        broken = list(_broken(del_hydra, "", 0))
        composed.problems += broken
        if not broken:
            values: Any = OmegaConf.to_container(del_hydra, resolve=True, throw_on_missing=True)
            composed.values = dict(values)
    except Exception as error:
        composed.problems.append(Problem("", f"the configuration cannot be resolved ({_first_line(error)})"))
    finally:
        HydraConfig.instance().cfg = None


def _remember(node: Any, path: str, composed: Composed) -> None:
    """Collect interpolations of a configuration as it was written."""
    if isinstance(node, dict):
        for key, value in node.items():
            _remember(value, f"{path}.{key}" if path else str(key), composed)
    elif isinstance(node, list):
        for i, value in enumerate(node):
            _remember(value, f"{path}[{i}]", composed)
    elif isinstance(node, str) and "${" in node:
        whole = _WHOLE.fullmatch(node)
        if whole is not None:
            composed.aliases[path] = whole.group(1)
        for name in _WHOLE.findall(node):
            parts = name.split(".")
            composed.read |= {".".join(parts[: n + 1]) for n in range(len(parts))}


def _broken(node: Any, path: str, depth: int) -> Iterator[Problem]:
    """Values that are missing, or that interpolate what does not exist."""
    if depth > 32:
        yield Problem(path, f"{path} is nested without end: an interpolation contains itself")
        return
    keys = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        here = f"{path}[{key}]" if isinstance(node, ListConfig) else f"{path}.{key}" if path else str(key)
        try:
            value = node[key]
        except MissingMandatoryValue:
            yield Problem(here, f"{here} must be given: {here}=...")
        except RecursionError:
            yield Problem(here, f"{here} interpolates itself")
        except Exception as error:
            yield Problem(here, f"{here} cannot be filled in: {_first_line(error)}")
        else:
            if isinstance(value, (DictConfig, ListConfig)) and not value._is_none():
                yield from _broken(value, here, depth + 1)
