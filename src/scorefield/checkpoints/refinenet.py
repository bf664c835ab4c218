"""Networks and checkpoints of ermongroup/ncsn and ermongroup/ncsnv2 (Song and Ermon 2019; 2020).

A checkpoint is a list: the weights of the network inside a parallel wrapper, the optimiser's state and, in NCSNv2,
epoch, step and the averages of the trained parameters by name. NCSN keeps no averages. NCSN's baseline, which is not
told the noise level and has one, is known by the names of its weights.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints.names import Rule, Settings, State, activation, fitted, layer, same
from scorefield.checkpoints.published import AsPublished
from scorefield.data.transforms import Compose, Logit, Transform, to_symmetric_unit, to_unit
from scorefield.errors import BadFileError
from scorefield.models import Fixed, LadderIndex, NetworkModel, One, Parametrization
from scorefield.nets import NCSN, NCSNv2
from scorefield.nets.refinenet import (
    ConditionalInstanceNormPlus,
    InstanceNormPlus,
    NoNorm,
    PooledConv,
    Refine,
    RefineNet,
    RefineResidual,
)
from scorefield.prediction import ScaledScore, Score
from scorefield.schedules import VE, Constant

_BASELINE = 0.01  # the noise level of NCSN's baseline, in units of its data; no configuration has it

# The published depths: how the levels are called, their channels in units of the first, and their dilations.
_DEPTHS: dict[tuple[str, ...], tuple[tuple[int, ...], tuple[int, ...]]] = {
    ("1", "2", "3", "4"): ((1, 2, 2, 2), (1, 1, 2, 4)),
    ("1", "2", "3", "4", "5"): ((1, 2, 2, 4, 4), (1, 1, 1, 2, 4)),
    ("1", "2", "3", "31", "4", "5"): ((1, 2, 2, 2, 4, 4), (1, 1, 1, 1, 2, 4)),
}


def network(settings: Settings, levels: Sequence[str] = ("1", "2", "3", "4"), told: bool = True) -> RefineNet:
    """Our network for a configuration, with fresh weights.

    Args:
        settings: the configuration.
        levels: how the authors call the network's levels; their configurations do not say how deep a network is.
        told: whether NCSN is told the noise level; its baseline is not, and its configurations do not say so.
    """
    settings.choice("model.normalization", {"instancenorm++": None}, "InstanceNorm++")
    multipliers, dilations = _DEPTHS[tuple(levels)]
    image_channels, channels = settings.get("data.channels"), settings.get("model.ngf")
    if settings.source == "ncsn":
        act = activation(settings) if "model.nonlinearity" in settings else nn.ELU()
        noise_levels = settings.get("model.num_classes") if told else None
        return NCSN(image_channels, channels, noise_levels, multipliers, dilations, act)
    return NCSNv2(image_channels, channels, multipliers, dilations, activation(settings))


def from_state(state: State, settings: Settings) -> nn.Module:
    """The authors' function of (x, index of the noise level), with these weights."""
    net = _filled(state, settings)
    divide = settings.source == "ncsnv2"
    sigmas = _ladder(state, settings) if divide else None
    return AsPublished(net, centre=not _is_scaled(settings), divide=divide, sigmas=sigmas)


def model(state: State, settings: Settings) -> NetworkModel:
    """The score model with these weights, in the space of the authors' data.

    Raises:
        ValueError: the ladder is not geometric.
    """
    net = _filled(state, settings)
    scaled = _is_scaled(settings)
    parametrization = Parametrization(Score(), One() if scaled else Fixed(2.0), input_shift=0.0 if scaled else -1.0)
    if isinstance(net, NCSN) and net.noise_levels is None:
        return NetworkModel(net, Constant(_BASELINE), parametrization, _transform(settings))
    settings.choice("model.sigma_dist", {"geometric": None}, "geometric")
    _ladder(state, settings)
    levels = settings.get("model.num_classes")
    schedule = VE(settings.get("model.sigma_end"), settings.get("model.sigma_begin"), t_min=0.0)
    target = ScaledScore(levels) if settings.source == "ncsnv2" else Score()
    told = replace(parametrization, target=target, label=LadderIndex(levels))
    return NetworkModel(net, schedule, told, _transform(settings))


def _transform(settings: Settings) -> Transform:
    if settings.get("data.logit_transform", False):
        return Compose((to_unit(256), Logit(1e-6)))
    return to_symmetric_unit(256) if settings.get("data.rescaled", False) else to_unit(256)


def _is_scaled(settings: Settings) -> bool:
    """Whether the network takes the data as they come; else it sees 2 x - 1."""
    return bool(settings.get("data.logit_transform", False) or settings.get("data.rescaled", False))


def _ladder(state: State, settings: Settings) -> Tensor:
    """The noise levels, largest first, float64."""
    high, low, n = (settings.get(f"model.{key}") for key in ("sigma_begin", "sigma_end", "num_classes"))
    geometric = settings.choice("model.sigma_dist", {"geometric": True, "uniform": False}, "geometric")
    if geometric:
        sigmas = torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp()
    else:
        sigmas = torch.linspace(high, low, n, dtype=torch.float64)
    stored = state.get("sigmas")
    if stored is not None and (stored.shape != sigmas.shape or not torch.allclose(stored.double(), sigmas, rtol=1e-4)):
        raise BadFileError(
            f"{settings.source}: the weights come with {len(stored)} noise levels from {float(stored[0]):g} to "
            f"{float(stored[-1]):g}, expected {n} from {high:g} to {low:g} as the configuration says"
        )
    return sigmas


def _filled(state: State, settings: Settings) -> RefineNet:
    found = {name.split(".")[0].removeprefix("res") for name in state if name.startswith("res")}
    levels = next((names for names in _DEPTHS if set(names) == found), next(iter(_DEPTHS)))
    net = network(settings, levels, told="normalizer.alpha" not in state)
    fitted(net, state, rules(net, levels), settings.source, unused=lambda name: name == "sigmas")
    return net


def rules(net: RefineNet, levels: Sequence[str]) -> list[Rule]:
    """The authors' names for each of our tensors."""
    found = same("enter", "begin_conv") + _norm("norm", net.norm, "normalizer") + same("leave", "end_conv")
    for i, level in enumerate(levels):
        for j in range(2):
            block = net.levels[i][j]  # type: ignore[index]
            assert isinstance(block, RefineResidual)
            found += _residual(f"levels.{i}.{j}", block, f"res{level}.{j}")
    # The refine blocks run from the deepest level up, and are numbered in that order; the extra level's is the odd one.
    numbers = [name for name in levels if name != "31"]
    order = iter(numbers)
    for i, level in enumerate(reversed(levels)):
        refine = net.refine[i]
        assert isinstance(refine, Refine)
        found += list(_refine(f"refine.{i}", refine, "refine31" if level == "31" else f"refine{next(order)}"))
    return found


def _norm(ours: str, norm: nn.Module, theirs: str) -> list[Rule]:
    if isinstance(norm, ConditionalInstanceNormPlus):
        return [Rule(f"{ours}.table.weight", (f"{theirs}.embed.weight",))]
    assert isinstance(norm, InstanceNormPlus | NoNorm)
    return layer(ours, norm, theirs)


def _residual(ours: str, block: RefineResidual, theirs: str) -> list[Rule]:
    found = same(f"{ours}.conv_in", f"{theirs}.conv1")
    found += _norm(f"{ours}.norm_in", block.norm_in, f"{theirs}.normalize1")
    found += _norm(f"{ours}.norm_out", block.norm_out, f"{theirs}.normalize2")
    for name, part, their in (("conv_out", block.conv_out, "conv2"), ("shortcut", block.shortcut, "shortcut")):
        inner = ".conv" if isinstance(part, PooledConv) else ""
        found += [] if isinstance(part, nn.Identity) else same(f"{ours}.{name}{inner}", f"{theirs}.{their}{inner}")
    return found


def _refine(ours: str, refine: Refine, theirs: str) -> Iterator[Rule]:
    for i, units in enumerate(refine.adapt):
        yield from _units(f"{ours}.adapt.{i}", units, f"{theirs}.adapt_convs.{i}")
    yield from _units(f"{ours}.units", refine.units, f"{theirs}.output_convs")
    if refine.fusion is not None:
        for i, norm in enumerate(refine.fusion.norms):
            yield from _norm(f"{ours}.fusion.norms.{i}", norm, f"{theirs}.msf.norms.{i}")
            yield from same(f"{ours}.fusion.convs.{i}", f"{theirs}.msf.convs.{i}")
    for i, norm in enumerate(refine.pooling.norms):
        yield from _norm(f"{ours}.pooling.norms.{i}", norm, f"{theirs}.crp.norms.{i}")
        yield from same(f"{ours}.pooling.convs.{i}", f"{theirs}.crp.convs.{i}", "weight")


def _units(ours: str, units: Any, theirs: str) -> Iterator[Rule]:
    for i, unit in enumerate(units):
        for j in range(2):
            yield from _norm(f"{ours}.{i}.norms.{j}", unit.norms[j], f"{theirs}.{i + 1}_{j + 1}_norm")
            yield from same(f"{ours}.{i}.convs.{j}", f"{theirs}.{i + 1}_{j + 1}_conv", "weight")


def unpacked(content: Any, weights: str) -> dict[str, Tensor]:
    """The state of one set of weights out of a checkpoint; the trained ones where it keeps no averages."""
    state = {str(name).removeprefix("module."): tensor for name, tensor in content[0].items()}
    averages = content[4] if len(content) > 4 else None
    if weights == "raw" or not isinstance(averages, dict):
        return state
    return {**state, **{str(name).removeprefix("module."): tensor for name, tensor in averages.items()}}
