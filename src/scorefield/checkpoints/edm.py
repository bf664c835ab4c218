"""Networks and weights of NVlabs/edm: SongUNet and DhariwalUNet inside a preconditioning (Karras et al. 2022).

The authors distribute pickles of whole modules, which cannot be read without running what they hold; see `edm_pickle`
for the way around. What is read here is a plain state dict of such a module.

Networks of iDDPM (Nichol & Dhariwal 2021) return the noise and, in as many channels behind it, the interpolated
variance of a reverse step. Karras et al. 2022, appendix C.3.3, use the first half, and so do the networks here: they
have image_channels outputs, and the rows of the last layer that make the variance are left out.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints.names import Rule, Settings, State, fitted, same
from scorefield.checkpoints.published import AsPublished
from scorefield.data.transforms import Affine
from scorefield.models import Log, NearestLevel, NetworkModel, One, Parametrization, Sigma, UnitVariance, VPTime
from scorefield.nets import ADM, GaussianFourier, InputResidual, InputSum, NCSNpp, OutputSkip, Positional, TransposedFir
from scorefield.nets.adm import ADMDown, ADMUp
from scorefield.nets.layers import ResidualBlock, SelfAttention, ShiftBlock, Stage
from scorefield.nets.ncsnpp import DecoderLevel, EncoderLevel
from scorefield.prediction import Noise, ScaledScore
from scorefield.schedules import EDM, Tabulated

SOURCE = "edm"

# EDM's images are (k / 127.5) - 1 for level k, here the middle of the interval [k, k + 1).
TRANSFORM = Affine(shift=128.0, scale=127.5)


def network(settings: Settings) -> NCSNpp | ADM:
    """Our network for a configuration, with fresh weights."""
    get = settings.get
    song = settings.choice("model_type", {"songunet": True, "dhariwalunet": False}, _default_type(settings))
    channels, size = get("model_channels", 128 if song else 192), get("img_resolution")
    multipliers = list(get("channel_mult", (1, 2, 2, 2) if song else (1, 2, 3, 4)))
    resolutions = list(get("attn_resolutions", (16,) if song else (32, 16, 8)))
    common: dict[str, Any] = {
        "image_channels": get("img_channels"),
        "channels": channels,
        "multipliers": multipliers,
        "blocks": get("num_blocks", 4 if song else 3),
        "attention": [level for level in range(len(multipliers)) if size >> level in resolutions],
        "condition": channels * get("channel_mult_emb", 4),
        "classes": get("label_dim", 0) or None,
        "augmentations": get("augment_dim", 0),
        "dropout": get("dropout", 0.1),
    }
    if not song:
        return ADM(**common, features=Positional(channels, endpoint=False))
    width = channels * get("channel_mult_noise", 1)
    kinds = {"positional": lambda: Positional(width), "fourier": lambda: GaussianFourier(width)}
    return NCSNpp(
        **common,
        features=settings.choice("embedding_type", kinds, "positional")(),
        resampling=TransposedFir(tuple(get("resample_filter", (1, 1)))),
        input_pyramid=settings.choice(
            "encoder_type", {"standard": None, "skip": InputSum, "residual": InputResidual}, "standard"
        ),
        output_pyramid=settings.choice("decoder_type", {"standard": None, "skip": OutputSkip}, "standard"),
    )


def _default_type(settings: Settings) -> str:
    """The network that a preconditioning takes where none is named."""
    return "SongUNet" if settings.get("preconditioning", "EDMPrecond") in ("VPPrecond", "VEPrecond") else "DhariwalUNet"


def _learns_variance(settings: Settings) -> bool:
    """Whether a variance follows the noise in the authors' last layer."""
    return str(settings.get("preconditioning", "EDMPrecond")).lower() == "iddpmprecond"


def from_state(state: State, settings: Settings) -> nn.Module:
    """The raw network F of (c_in x, c_noise), with these weights; `model` has the preconditioning around it.

    Of a network that learns a variance it is the first half of the channels.
    """
    sizes = {"class_labels": "label_dim", "augment_labels": "augment_dim"}
    labels = [name for name, size in sizes.items() if settings.get(size, 0)]
    return AsPublished(_filled(state, settings), labels=labels)


def model(state: State, settings: Settings) -> NetworkModel:
    """The score model with these weights on images in [-1, 1]; its time is the noise level.

    Raises:
        ValueError: the preconditioning is none of EDM's, VP's, VE's and iDDPM's.
    """
    get = settings.get
    kinds = {"edmprecond": _edm, "vpprecond": _vp, "veprecond": _ve, "iddpmprecond": _iddpm}
    kind = settings.choice("preconditioning", kinds, "EDMPrecond")
    parametrization, low, high = kind(settings)
    # The authors' sampler keeps to the levels that both it and the network know.
    schedule = EDM(max(0.002, get("sigma_min", low)), min(80.0, get("sigma_max", high)))
    return NetworkModel(_filled(state, settings), schedule, parametrization, TRANSFORM)


def _edm(settings: Settings) -> tuple[Parametrization, float, float]:
    return Parametrization.edm(settings.get("sigma_data", 0.5)), 0.0, math.inf


def _vp(settings: Settings) -> tuple[Parametrization, float, float]:
    low, slope = settings.get("beta_min", 0.1), settings.get("beta_d", 19.9)
    label = VPTime(low, low + slope, settings.get("M", 1000) - 1.0)
    first = settings.get("epsilon_t", 1e-5)
    least, most = (math.sqrt(math.expm1(slope * t**2 / 2 + low * t)) for t in (first, 1.0))
    return Parametrization(Noise(), UnitVariance(1.0), label), least, most


def _ve(settings: Settings) -> tuple[Parametrization, float, float]:
    return Parametrization(ScaledScore(), One(), Log(Sigma(0.5))), 0.02, 100.0


def _iddpm(settings: Settings) -> tuple[Parametrization, float, float]:
    get = settings.get
    chain = Tabulated.cosine(get("M", 1000), get("C_2", 0.008), 1 - get("C_1", 0.001))
    least, most = chain.ratio(torch.tensor([chain.t_min, chain.t_max], dtype=torch.float64)).tolist()
    return Parametrization(Noise(), UnitVariance(1.0), NearestLevel(chain)), least, most


def _filled(state: State, settings: Settings) -> nn.Module:
    net = network(settings)
    bare = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    fitted(net, bare, rules(net, settings), SOURCE, unused=_is_table)
    return net


def _is_table(name: str) -> bool:
    """Filters and tables that the authors keep as buffers and that follow from the configuration."""
    return name.endswith("resample_filter") or name == "u"


def rules(net: NCSNpp | ADM, settings: Settings) -> list[Rule]:
    """The authors' names for each of our tensors: by the size of the image, the place in the network and the number."""
    size = settings.get("img_resolution")
    found = _mapping(net)
    down, up = _Names(size, "enc"), _Names(size, "dec")
    found += same("enter", down.at(0, "conv"))
    for i, level in enumerate(net.encoder):
        found += _stages(level.stages, f"encoder.{i}.stages", partial(_numbered, down, i))
        assert isinstance(level, EncoderLevel | ADMDown)
        if level.down is not None:
            found += _block(level.down, f"encoder.{i}.down", down.at(i + 1, "down"))
        join = level.join if isinstance(level, EncoderLevel) else None
        if isinstance(join, InputSum):
            found += same(f"encoder.{i}.join.conv", down.at(i + 1, "aux_skip"))
        elif join is not None:
            found += same(f"encoder.{i}.join.down.conv", down.at(i + 1, "aux_residual"))
    last = len(net.encoder) - 1
    found += _stages(net.middle, "middle", lambda j: up.at(last, f"in{j}"))
    for i, level in enumerate(net.decoder):
        depth = last - i
        found += _stages(level.stages, f"decoder.{i}.stages", partial(_numbered, up, depth))
        assert isinstance(level, DecoderLevel | ADMUp)
        if level.up is not None:
            found += _block(level.up, f"decoder.{i}.up", up.at(depth - 1, "up"))
        if isinstance(level, DecoderLevel) and level.collect is not None:
            found += same(f"decoder.{i}.collect.norm", up.at(depth, "aux_norm"))
            found += same(f"decoder.{i}.collect.conv", up.at(depth, "aux_conv"))
    if isinstance(net, ADM):
        found += same("norm", "out_norm") + same("leave", "out_conv")
    elif net.leave is not None:
        found += same("norm", up.at(0, "aux_norm")) + same("leave", up.at(0, "aux_conv"))
    if _learns_variance(settings):
        ends = ("leave", "collect.conv")  # whose outputs are channels of the image
        found = [replace(r, convert=_first_half) if r.ours.rpartition(".")[0].endswith(ends) else r for r in found]
    return found


def _first_half(tensor: Tensor) -> Tensor:
    return tensor[: len(tensor) // 2]


class _Names:
    """Names of one side of the network.

    Args:
        size: side of an image.
        side: "enc" or "dec".
    """

    def __init__(self, size: int, side: str) -> None:
        self.size, self.side = size, side

    def at(self, level: int, what: str) -> str:
        n = self.size >> level
        return f"{self.side}.{n}x{n}_{what}"


def _numbered(names: _Names, level: int, j: int) -> str:
    return names.at(level, f"block{j}")


def _mapping(net: NCSNpp | ADM) -> list[Rule]:
    conditioning = net.conditioning
    assert conditioning is not None
    # ADM's features begin with the cosines, ours with the sines.
    inner = _halves_swapped if isinstance(net, ADM) else _as_it_is
    found = [
        Rule("conditioning.inner.weight", ("map_layer0.weight",), inner),
        Rule("conditioning.inner.bias", ("map_layer0.bias",)),
        *same("conditioning.outer", "map_layer1"),
    ]
    if isinstance(conditioning.features, GaussianFourier):
        found.append(Rule("conditioning.features.frequencies", ("map_noise.freqs",)))
    if conditioning.augment_map is not None:
        rows = _rows_swapped if isinstance(net, ADM) else _as_it_is
        found.append(Rule("conditioning.augment_map.weight", ("map_augment.weight",), rows))
    if conditioning.class_map is not None:
        parts = ("weight",) if isinstance(net, ADM) else ("weight", "bias")
        found += same("conditioning.class_map", "map_label", *parts)
    return found


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _halves_swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2, 1)[::-1], 1)


def _rows_swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2, 0)[::-1], 0)


def _stages(stages: Any, ours: str, name: Any) -> Iterator[Rule]:
    for j, stage in enumerate(stages):
        assert isinstance(stage, Stage)
        yield from _block(stage.block, f"{ours}.{j}.block", name(j))
        if stage.attention is not None:
            yield from _attention(stage.attention, f"{ours}.{j}.attention", name(j))


def _block(block: nn.Module, ours: str, theirs: str) -> list[Rule]:
    assert isinstance(block, ShiftBlock | ResidualBlock)
    condition = f"{ours}.shift" if isinstance(block, ShiftBlock) else f"{ours}.film.linear"
    found = [
        *same(f"{ours}.norm_in", f"{theirs}.norm0"),
        *same(f"{ours}.conv_in", f"{theirs}.conv0"),
        *same(condition, f"{theirs}.affine"),
        *same(f"{ours}.norm_out", f"{theirs}.norm1"),
        *same(f"{ours}.conv_out", f"{theirs}.conv1"),
    ]
    if isinstance(block.shortcut, nn.Conv2d):
        found += same(f"{ours}.shortcut", f"{theirs}.skip")
    return found


def _attention(attention: SelfAttention, ours: str, theirs: str) -> list[Rule]:
    apart = partial(_qkv_apart, heads=attention.heads)
    return [
        *same(f"{ours}.norm", f"{theirs}.norm2"),
        Rule(f"{ours}.qkv.weight", (f"{theirs}.qkv.weight",), apart),
        Rule(f"{ours}.qkv.bias", (f"{theirs}.qkv.bias",), apart),
        *same(f"{ours}.out", f"{theirs}.proj"),
    ]


def _qkv_apart(tensor: Tensor, heads: int) -> Tensor:
    """Rows ordered by (head, channel, query/key/value) brought into the order (query/key/value, head, channel)."""
    return tensor.unflatten(0, (heads, -1, 3)).movedim(2, 0).flatten(0, 2)
