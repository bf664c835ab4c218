"""How an object was made, as plain values: what a file must hold besides weights to make the model again.

A recipe is what the configuration files hold too: a mapping with the name of a class under ``_target_`` and its
arguments beside it; ``_partial_: true`` stands for the class itself, or for the class with some of its arguments.
"""

import dataclasses
import functools
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

# What a recipe may name: classes that hold numbers and tensors, of these modules alone.
_HOMES = (
    "scorefield.nets",
    "scorefield.models",
    "scorefield.schedules",
    "scorefield.prediction",
    "scorefield.data.transforms",
    "torch.nn.modules.activation",
)


class Remembered:
    """Objects that keep the arguments they were made with, so that `recipe` can write them down."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        made = super().__new__(cls)
        made.__dict__["_made_with"] = (args, kwargs)  # a module takes no attributes before its constructor has run
        return made


def recipe(thing: Any) -> Any:
    """Plain values from which `build` makes an equal object, without its weights.

    Raises:
        TypeError: a part does not say how it was made.
    """
    if thing is None or isinstance(thing, bool | int | float | str):
        return thing
    if isinstance(thing, list | tuple):
        return [recipe(item) for item in thing]
    if isinstance(thing, Mapping):
        return {str(key): recipe(item) for key, item in thing.items()}
    if isinstance(thing, Tensor):
        return thing.tolist()
    if isinstance(thing, type):
        return {"_target_": _name(thing), "_partial_": True}
    if isinstance(thing, functools.partial) and not thing.args:
        return {"_target_": _name(thing.func), "_partial_": True, **recipe(thing.keywords)}
    return {"_target_": _name(type(thing)), **recipe(_arguments(thing))}


def _arguments(thing: Any) -> dict[str, Any]:
    if isinstance(thing, Remembered):
        args, kwargs = vars(thing)["_made_with"]
        return dict(inspect.signature(type(thing)).bind(*args, **kwargs).arguments)
    if dataclasses.is_dataclass(thing):
        return {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    if isinstance(thing, nn.Module) and type(thing).__module__ == "torch.nn.modules.activation":
        return {name: getattr(thing, name) for name in inspect.signature(type(thing)).parameters}
    raise TypeError(
        f"{type(thing).__module__}.{type(thing).__qualname__} does not say how it was made: let its class inherit from "
        "scorefield.recipe.Remembered"
    )


def _name(thing: Any) -> str:
    name = f"{thing.__module__}.{thing.__qualname__}"
    if not _allowed(thing.__module__):
        raise TypeError(f"{name} cannot be written down: a recipe names classes of {', '.join(_HOMES)} only")
    return name


def _allowed(module: str) -> bool:
    return any(module == home or module.startswith(home + ".") for home in _HOMES)


def build(node: Any) -> Any:
    """The object that a recipe describes. Only the classes listed in this module are called, whatever the recipe names.

    Raises:
        ValueError: the recipe names something else, or its arguments do not fit.
    """
    if isinstance(node, list):
        return [build(item) for item in node]
    if not isinstance(node, Mapping):
        return node
    values = {key: build(value) for key, value in node.items() if not key.startswith("_")}
    if "_target_" not in node:
        return values
    kind = _class(node["_target_"])
    try:
        return functools.partial(kind, **values) if node.get("_partial_") else kind(**values)
    except TypeError as error:
        raise ValueError(f"{node['_target_']} cannot be made from {sorted(values)}: {error}") from error


def _class(name: Any) -> type:
    module, _, attribute = str(name).rpartition(".")
    if not _allowed(module):
        raise ValueError(f"{name!r} is asked for; a recipe may name classes of {', '.join(_HOMES)} only")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} is not known here: {error}") from error
    if not isinstance(found, type) or not _allowed(found.__module__):
        raise ValueError(f"{name!r} is asked for; a recipe may name classes of {', '.join(_HOMES)} only")
    return found
