"""A configuration built as far as that costs nothing: the constructors of this project, which check their arguments."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from hydra._internal.utils import _locate
from pytorch_lightning.loggers import Logger
from torch import nn

from scorefield.cli.composed import Problem
from scorefield.cli.signatures import RESERVED, made_by
from scorefield.data import Data
from scorefield.objectives import Objective

# Of networks and data sets with a larger number only the signature is checked, so that this stays quick.
_LARGEST = 1024


class Unbuilt:
    """Stands for what is built only with the run, or could not be."""


def rehearse(node: Any, problems: list[Problem], path: str = "") -> Any:
    """The object that a node describes, with `Unbuilt` for what is left to the run; refusals go to ``problems``."""
    if isinstance(node, list):
        return [rehearse(item, problems, f"{path}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, Mapping):
        return node
    parts = {key: rehearse(item, problems, f"{path}.{key}" if path else key) for key, item in node.items()}
    if "_target_" not in node:
        return parts
    target = _locate(node["_target_"])
    arguments = {key: part for key, part in parts.items() if key not in RESERVED}
    if any(isinstance(part, Unbuilt) for part in arguments.values()) or not _cheap(target, arguments):
        return Unbuilt()
    if node.get("_partial_", False):
        return functools.partial(target, **arguments)
    try:
        with torch.device("meta" if isinstance(target, type) and issubclass(target, nn.Module) else "cpu"):
            return target(**arguments)
    except Exception as error:  # a constructor's refusal is the user's mistake
        what = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        problems.append(Problem(path, f"{path}: {what}"))
        return Unbuilt()


def _cheap(target: Any, arguments: Mapping[str, Any]) -> bool:
    """Whether calling a target only checks and stores its arguments."""
    result = made_by(target)
    if not str(getattr(target, "__module__", "")).startswith("scorefield."):
        return False
    if isinstance(result, type) and issubclass(result, Logger):
        return False
    sized = isinstance(result, type) and issubclass(result, nn.Module | Data) and not issubclass(result, Objective)
    return not sized or all(_small(value) for value in arguments.values())


def _small(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LARGEST and all(map(_small, value))
    return not isinstance(value, int | float) or abs(value) <= _LARGEST
