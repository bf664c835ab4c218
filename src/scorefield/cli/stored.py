"""Configurations that a run has stored: read as data, and nothing in them may name code that is not a part of a run."""

import importlib
import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins import CheckpointIO, ClusterEnvironment, Precision
from pytorch_lightning.profilers import Profiler
from pytorch_lightning.strategies import Strategy
from torch.optim.lr_scheduler import LRScheduler

from scorefield.errors import BadFileError, UserError
from scorefield.records.rundir import RunDir
from scorefield.training.lr import warmup_cosine

# Of the frameworks, only classes that a run is put together from; of their functions and methods, none.
_TORCH = (torch.nn.Module, torch.optim.Optimizer, LRScheduler)
_LIGHTNING = (pl.Trainer, pl.Callback, Strategy, Logger, Profiler, CheckpointIO, ClusterEnvironment, Precision)
_FUNCTIONS = (warmup_cosine,)
_SECTIONS = ("name", "seed", "run_dir", "data", "model", "objective", "optim", "ema", "callbacks", "logger", "trainer")
_PLUGINS = "SCOREFIELD_PLUGINS"
_MOST_NODES = 100_000  # YAML's aliases can make a short file stand for any number
_MOST_BYTES = 1 << 20


def stored_config(run_dir: RunDir) -> dict[str, Any]:
    """The resolved configuration that a run was made with.

    Raises:
        UserError: the directory is not a run.
        BadFileError: the file is damaged, or asks for something that a run is not made of.
    """
    path = run_dir.config
    if not path.is_file():
        raise UserError(f"{run_dir.path} is not a run: it has no {path.name}")
    if path.stat().st_size > _MOST_BYTES:
        raise BadFileError(f"{path} has {path.stat().st_size} bytes; a configuration has at most {_MOST_BYTES}")
    try:
        values = yaml.safe_load(path.read_bytes())
        nodes = list(_nodes(values))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is damaged: expected YAML, found {str(error).splitlines()[0]}") from error
    if not isinstance(values, dict):
        raise BadFileError(f"{path} is no configuration: expected a mapping, found {type(values).__name__}")
    missing = [section for section in _SECTIONS if section not in values]
    if missing:
        raise BadFileError(f"{path} is no whole configuration: {', '.join(missing)} is missing")
    for node in nodes:
        if isinstance(node, str) and "${" in node:
            raise BadFileError(f"{path} holds {node!r}; a stored configuration is resolved and interpolates nothing")
        if isinstance(node, Mapping) and "_target_" in node and not is_part_of_a_run(node["_target_"]):
            raise BadFileError(
                f"{path} asks for {node['_target_']!r}; a stored configuration may name the classes of scorefield, and "
                "modules, optimisers, callbacks, loggers and the like of torch and pytorch_lightning only. To trust a "
                f"package of your own, name it: {_PLUGINS}=my_package"
            )
    return values


def plugins() -> tuple[str, ...]:
    """Packages and modules that the user trusts as parts of a run, from the environment variable SCOREFIELD_PLUGINS.

    Their names are separated by commas. They come from whoever starts the command and never from a file of the run.

    Raises:
        UserError: an entry is no name of a package or module.
    """
    names = [name.strip() for name in os.environ.get(_PLUGINS, "").split(",") if name.strip()]
    for name in names:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(f"{_PLUGINS} holds {name!r}; give names of packages or modules, separated by commas")
    return tuple(names)


def _nodes(value: Any) -> Iterator[Any]:
    """Every value and key of a nested configuration, aliases followed."""
    waiting, seen = [value], 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > _MOST_NODES:
            raise ValueError(f"more than {_MOST_NODES} values")
        yield node
        if isinstance(node, Mapping):
            waiting += [*node.keys(), *node.values()]
        elif isinstance(node, list):
            waiting += node


def is_part_of_a_run(target: Any) -> bool:
    """Whether a ``_target_`` is a class, or a class's own constructor, that configurations are made of.

    Of the packages in `plugins`, functions are parts of a run as well, if they are defined there.
    """
    if not isinstance(target, str):
        return False
    if any(_below(target, plugin) for plugin in plugins()):
        return _is_own(_resolved(target))
    if target.split(".")[0] not in ("scorefield", "torch", "pytorch_lightning"):
        return False
    thing = _resolved(target)
    if inspect.ismethod(thing) and inspect.isclass(thing.__self__):  # a class's own constructor, as Mixture.ring
        return _of(thing.__self__, "scorefield.")
    if inspect.isclass(thing):
        return (
            _of(thing, "scorefield.")
            or (_of(thing, "torch.nn.", "torch.optim.") and issubclass(thing, _TORCH))
            or (_of(thing, "pytorch_lightning.") and issubclass(thing, _LIGHTNING))
        )
    return any(thing is function for function in _FUNCTIONS)


def _below(name: str, plugin: str) -> bool:
    return name == plugin or name.startswith(f"{plugin}.")


def _is_own(thing: Any) -> bool:
    """Whether a plugin's class, class method or function was defined in a plugin, and not only imported by one."""
    owner = thing.__self__ if inspect.ismethod(thing) else thing
    made = inspect.isclass(owner) or inspect.isfunction(owner)
    return made and any(_below(owner.__module__, plugin) for plugin in plugins())


def _of(thing: type, *packages: str) -> bool:
    """Whether a class was defined in one of these packages, whatever name it is asked for by."""
    return thing.__module__.startswith(packages)


def _resolved(target: str) -> Any:
    """What a dotted name stands for; None where it stands for nothing."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            thing: Any = importlib.import_module(".".join(parts[:cut]))
        except Exception:  # whatever a module of another package answers when it cannot be loaded here
            continue
        for name in parts[cut:]:
            thing = getattr(thing, name, None)
        return thing
    return None
