"""Interpolations of a configuration: filled in, remembered, and those that cannot be."""

import re
from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from scorefield.cli.composed import Composed, Problem
from scorefield.cli.overrides import first_line

_WHOLE = re.compile(r"\$\{([\w.@-]+)\}")


def resolve(base: DictConfig, composed: Composed) -> None:
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
        composed.problems.append(Problem("", f"the configuration cannot be resolved ({first_line(error)})"))
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
            yield Problem(here, f"{here} cannot be filled in: {first_line(error)}")
        else:
            if isinstance(value, (DictConfig, ListConfig)) and not value._is_none():
                yield from _broken(value, here, depth + 1)
