"""From the authors' names of weights to ours: rules written down by walking our network in the authors' order.

A rule says which of the authors' tensors make one of ours, and how. `fitted` applies a whole set of rules and refuses
weights that are not those of the configuration: by name, by shape, or because they belong to another source.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.errors import BadFileError

State = Mapping[str, Tensor]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Rule:
    """One of our tensors and what it is made of.

    Args:
        ours: name in our network.
        theirs: names in the authors' state.
        convert: makes ours of theirs.
    """

    ours: str
    theirs: tuple[str, ...]
    convert: Callable[..., Tensor] = _as_is


def same(ours: str, theirs: str, *parts: str) -> list[Rule]:
    """Tensors that are taken as they are: the weight and bias of a layer, unless other parts are named."""
    return [Rule(f"{ours}.{part}", (f"{theirs}.{part}",)) for part in parts or ("weight", "bias")]


def layer(ours: str, module: nn.Module, theirs: str) -> list[Rule]:
    """All parameters of a layer that both sides call the same."""
    return [Rule(f"{ours}.{name}", (f"{theirs}.{name}",)) for name, _ in module.named_parameters(recurse=False)]


# What tells the sources apart, nearest first.
_MARKS: dict[str, Callable[[set[str]], bool]] = {
    "score_sde": lambda names: any(name.startswith("all_modules.") for name in names),
    "edm": lambda names: any(name.removeprefix("model.").startswith(("map_layer0.", "enc.", "dec.")) for name in names),
    "ncsn": lambda names: bool({"normalizer.embed.weight", "refine1.crp.norms.0.alpha"} & names),
    "ncsnv2": lambda names: "normalizer.alpha" in names or "begin_conv.weight" in names,
    "diffusers": lambda names: any(name.startswith(("down_blocks.", "time_embedding.")) for name in names),
    "scorefield": lambda names: any(name.startswith(("net.", "model.net.")) for name in names),
}


def nearest_source(names: Sequence[str] | set[str]) -> str | None:
    """The source whose names of weights these are most like."""
    bare = {str(name).removeprefix("module.") for name in names}
    return next((source for source, fits in _MARKS.items() if fits(bare)), None)


def plain_state(state: Any, source: str) -> dict[str, Tensor]:
    """A state dict with the prefix of a parallel wrapper taken off.

    Raises:
        BadFileError: it is something else than a mapping of names to tensors.
    """
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        found = f"a {type(state).__name__}"
        if isinstance(state, Mapping):
            found += " of " + (", ".join(f"{k}: {type(v).__name__}" for k, v in list(state.items())[:4]) or "nothing")
        raise BadFileError(
            f"{source}: expected a mapping of names to tensors, found {found}; a file of the authors is read by load"
        )
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


def fitted(
    net: nn.Module, state: State, rules: Sequence[Rule], source: str, unused: Callable[[str], bool] = lambda name: False
) -> None:
    """Fill a network with the authors' weights, in their precision (float32 where it is less).

    Args:
        net: our network.
        state: the authors' weights.
        rules: one rule for each of our tensors.
        source: whose weights they are said to be.
        unused: names in ``state`` that belong to no rule but to the source: tables and filters it keeps as buffers.

    Raises:
        BadFileError: with what was expected, what was found and the source that would fit.
    """
    wanted = [name for rule in rules for name in rule.theirs]
    missing = [name for name in wanted if name not in state]
    extra = sorted(name for name in state.keys() - set(wanted) if not unused(name))
    if missing or extra:
        raise BadFileError(_misfit(source, state, missing, extra))
    dtype = torch.promote_types(state[wanted[0]].dtype, torch.float32)
    own = net.state_dict()
    converted: dict[str, Tensor] = {}
    for rule in rules:
        expected = tuple(own[rule.ours].shape)
        try:
            tensor = rule.convert(*(state[name] for name in rule.theirs))
        except (RuntimeError, ValueError, IndexError):  # a shape with which not even the conversion can be done
            tensor = state[rule.theirs[0]]
        if tuple(tensor.shape) != expected:
            shapes = ", ".join(f"{name} {tuple(state[name].shape)}" for name in rule.theirs)
            raise BadFileError(
                f"{source}: the weights are those of another configuration: expected {' and '.join(rule.theirs)} to "
                f"make a tensor of shape {expected}, found {shapes}"
            )
        converted[rule.ours] = tensor.to(dtype)
    net.to(dtype).load_state_dict(converted)


def _misfit(source: str, state: State, missing: list[str], extra: list[str]) -> str:
    parts = [f"{source}: the weights do not fit the configuration"]
    if missing:
        parts.append(f"expected {_some(missing)}")
    parts.append(f"found {_some(extra)}" if extra else "found none of these")
    near = nearest_source(set(state))
    if near is None:
        parts.append("no source is known by these names")
    elif near != source:
        parts.append(f"these are names of {near}: use source {near!r}")
    else:
        parts.append(f"the names are those of {source}, so that the configuration is another network's")
    return "; ".join(parts)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


class Settings:
    """An authors' configuration, read by dotted names.

    Args:
        values: the nested mapping.
        source: whose configuration it is.
    """

    def __init__(self, values: Any, source: str) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(f"{source}: config must be a nested mapping, got a {type(values).__name__}")
        self.values = values
        self.source = source

    def __contains__(self, name: str) -> bool:
        return self._find(name) is not None

    def _find(self, name: str) -> Any:
        value: Any = self.values
        for part in name.split("."):
            if not isinstance(value, Mapping) or part not in value:
                return None
            value = value[part]
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """A value, or ``default`` where there is none.

        Raises:
            ValueError: there is no value and no default.
        """
        value = self._find(name)
        if value is None:
            value = default
        if value is None:
            inner = "; the configuration is the value of its key 'config'" if "config" in self.values else ""
            raise ValueError(f"{self.source}: config.{name} is missing among {sorted(map(str, self.values))}{inner}")
        return value

    def choice(self, name: str, options: Mapping[str, Any], default: str | None = None) -> Any:
        """What one of the authors' words stands for, whatever its case.

        Raises:
            ValueError: the word is none of the options.
        """
        word = str(self.get(name, default)).lower()
        if word not in options:
            raise ValueError(f"{self.source}: config.{name}={word!r} must be one of {', '.join(options)}")
        return options[word]


def activation(settings: Settings) -> nn.Module:
    """The nonlinearity that score_sde and ncsnv2 name in their configurations."""
    made: nn.Module = settings.choice(
        "model.nonlinearity",
        {"elu": nn.ELU(), "relu": nn.ReLU(), "lrelu": nn.LeakyReLU(0.2), "swish": nn.SiLU()},
    )
    return made


def numbered(rules: Iterator[Callable[[str], list[Rule]]], prefix: str) -> list[Rule]:
    """Rules of parts that the authors number in one list, in its order."""
    return [rule for n, part in enumerate(rules) for rule in part(f"{prefix}.{n}")]
