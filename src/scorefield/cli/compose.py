"""From a command line to a configuration, with every mistake in it named.

Hydra stops at the first mistake. Here each override is read and applied by Hydra's own code, but one at a time, so that
all mistakes are found and each is answered with the nearest right name and the file that holds it. What comes out is
what Hydra composes for the run itself.

This module loads neither torch nor Lightning: a typing error is answered before they are imported.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import islice, product
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from scorefield.cli.composed import Composed, Problem
from scorefield.cli.interpolations import resolve
from scorefield.cli.overrides import chooses, first_line, read, unasked_sweep, wrong_key, wrong_option

PACKAGE = Path(__file__).parents[1]
_MOST_JOBS = 64  # checked of a search that picks its jobs itself; of a grid, all are
_GRID = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def conf_dir() -> str:
    """The configuration folder: beside src/ in a checkout, inside the package once installed."""
    packaged = PACKAGE / "conf"
    return str(packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf")


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
    overrides, unreadable = read(arguments, loader)
    sweeps = [override for override in overrides if override.is_sweep_override()]
    fixed = [override for override in overrides if not override.is_sweep_override()]
    most = None
    if multirun:
        sweeper = _sweeper(loader, config, fixed)
        most = None if sweeper.get("_target_") == _GRID else _MOST_JOBS
        named = {override.get_key_element() for override in overrides}
        params, wrong = read([f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()], loader)
        unreadable += wrong
        sweeps = [*(o for o in params if o.is_sweep_override() and o.get_key_element() not in named), *sweeps]
        fixed = [*(o for o in params if not o.is_sweep_override() and o.get_key_element() not in named), *fixed]
    else:
        unreadable += [unasked_sweep(override) for override in sweeps]
        sweeps = []
    axes = [[f"{s.get_key_element()}={v}" for v in s.sweep_string_iterator()] for s in sweeps if s.is_discrete_sweep()]
    for values in islice(product(*axes), most):
        swept, wrong = read(values, loader)
        composed = _compose(loader, config, [*fixed, *swept], [*unreadable, *wrong])
        composed.swept = values
        yield composed


def _sweeper(loader: ConfigLoaderImpl, config: str, fixed: Sequence[Override]) -> Mapping[str, Any]:
    """The sweeper's configuration; empty where the mistakes that each job will tell keep it from being read."""
    try:
        base = _configuration(loader, config, [str(o.input_line) for o in fixed if chooses(o, loader)])
    except Exception:
        return {}
    sweeper: Any = OmegaConf.to_container(base.hydra.sweeper)
    return dict(sweeper)


def _compose(
    loader: ConfigLoaderImpl, config: str, overrides: Sequence[Override], problems: Sequence[Problem]
) -> Composed:
    """Groups first, then values, each override on its own."""
    composed = Composed(problems=list(problems))
    choosing = [o for o in overrides if chooses(o, loader)]
    setting = [o for o in overrides if not chooses(o, loader)]
    accepted, refused = list[Override](), set[str]()
    for override in choosing:
        text = wrong_option(override, loader)
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
        text = wrong_key(override, base, composed, config)
        if text is None:
            try:
                ConfigLoaderImpl._apply_overrides_to_config([override], base)
            except Exception as error:
                text = f"cannot be applied ({first_line(error)})"
        if text is not None:
            composed.problems.append(Problem("", f"{override.input_line!r} {text}"))
    resolve(base, composed)
    return composed


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
    return None, first_line(error)
