"""Networks and checkpoints of yang-song/score_sde_pytorch: DDPM, DDPM++ and NCSN++ (Song et al. 2021).

A checkpoint is a mapping with ``model``, the weights of the network inside a parallel wrapper, and ``ema``, whose
``shadow_params`` are a list of averages in the order of the parameters that are trained. All layers of a network are
members of one list, ``all_modules``; its order is that in which they are applied. Its NCSNv2 is that of ermongroup, by
other words of the configuration.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints import refinenet
from scorefield.checkpoints.names import Rule, Settings, State, activation, fitted, numbered, same
from scorefield.checkpoints.published import AsPublished
from scorefield.data.transforms import Affine, to_symmetric_unit, to_unit
from scorefield.errors import BadFileError
from scorefield.models import (
    ChainIndex,
    Fixed,
    LadderIndex,
    Log,
    NetworkModel,
    One,
    Parametrization,
    PerTime,
    Sigma,
    Time,
)
from scorefield.nets import (
    DDPM,
    Box,
    Fir,
    GaussianFourier,
    InputCat,
    InputResidual,
    InputSum,
    NCSNpp,
    OutputResidual,
    OutputSkip,
    Positional,
)
from scorefield.nets.ddpm import DownLevel, UpLevel
from scorefield.nets.layers import ShiftBlock, Stage
from scorefield.nets.ncsnpp import DecoderLevel, EncoderLevel
from scorefield.nets.resampling import DownConv, UpConv
from scorefield.prediction import Noise, ScaledScore, Score, Target
from scorefield.schedules import VE, VP, Schedule, SubVP, Tabulated

SOURCE = "score_sde"
_NCSNV2 = ("ncsnv2_64", "ncsnv2_128", "ncsnv2_256")
Part = Callable[[str], list[Rule]]


def network(settings: Settings) -> nn.Module:
    """Our network for a configuration, with fresh weights."""
    get = settings.get
    build: Callable[[Settings, dict[str, Any]], nn.Module]
    build = settings.choice("model.name", {"ddpm": _ddpm, "ncsnpp": _ncsnpp})
    size, multipliers = get("data.image_size"), list(get("model.ch_mult"))
    resolutions = list(get("model.attn_resolutions"))
    common = {
        "image_channels": get("data.num_channels"),
        "channels": get("model.nf"),
        "multipliers": multipliers,
        "blocks": get("model.num_res_blocks"),
        "attention": [level for level in range(len(multipliers)) if size // 2**level in resolutions],
        "resample_conv": get("model.resamp_with_conv"),
        "activation": activation(settings),
        "dropout": get("model.dropout", 0.0),
    }
    return build(settings, common)


def _ddpm(settings: Settings, common: dict[str, Any]) -> nn.Module:
    if not settings.get("model.conditional", True):
        raise ValueError(f"{SOURCE}: config.model.conditional=False is not a DDPM: the authors' code cannot build it")
    return DDPM(**common, features=Positional(common["channels"]), resampling=Box())


def _ncsnpp(settings: Settings, common: dict[str, Any]) -> nn.Module:
    get, choice = settings.get, settings.choice
    channels = common["channels"]
    features = choice(
        "model.embedding_type",
        {
            "fourier": lambda: GaussianFourier(2 * channels, get("model.fourier_scale", 16)),
            "positional": lambda: Positional(channels),
        },
    )()
    skip = choice("model.progressive_combine", {"sum": InputSum, "cat": InputCat}, "sum")
    return NCSNpp(
        **common,
        features=features if get("model.conditional", True) else None,
        resampling=Fir(tuple(get("model.fir_kernel"))) if get("model.fir") else Box(),
        residual_resampling=choice("model.resblock_type", {"biggan": True, "ddpm": False}),
        input_pyramid=choice(
            "model.progressive_input", {"none": None, "input_skip": skip, "residual": InputResidual}, "none"
        ),
        output_pyramid=choice(
            "model.progressive", {"none": None, "output_skip": OutputSkip, "residual": OutputResidual}, "none"
        ),
        gain=math.sqrt(0.5) if get("model.skip_rescale") else 1.0,
    )


def _ncsnv2(settings: Settings) -> Settings | None:
    """The configuration of an NCSNv2 in the words of ncsnv2; None for another network."""
    get, choice = settings.get, settings.choice
    if not choice("model.name", {"ddpm": False, "ncsnpp": False} | dict.fromkeys(_NCSNV2, True)):
        return None
    choice("training.sde", {"vesde": None})
    if get("training.continuous"):
        raise ValueError(f"{SOURCE}: config.training.continuous=True: an NCSNv2 knows the levels of its ladder only")
    data = {
        "channels": get("data.channels" if "data.channels" in settings else "data.num_channels"),
        "rescaled": get("data.centered"),
    }
    names = {"ngf": "nf", "num_classes": "num_scales", "sigma_begin": "sigma_max", "sigma_end": "sigma_min"}
    model = {ours: get(f"model.{theirs}") for ours, theirs in names.items()}
    model |= {name: get(f"model.{name}") for name in ("normalization", "nonlinearity")}
    return Settings({"data": data, "model": model}, "ncsnv2")


def from_state(state: State, settings: Settings) -> nn.Module:
    """The authors' function of (x, time input), with these weights."""
    if (ncsnv2 := _ncsnv2(settings)) is not None:
        return refinenet.from_state(state, ncsnv2)
    net = network(settings)
    _fill(net, state, settings)
    fourier = _is_fourier(settings)
    divide = bool(settings.get("model.scale_by_sigma"))
    return AsPublished(
        net,
        centre=not settings.get("data.centered"),
        log_label=fourier,
        divide=divide,
        sigmas=_ladder(state, settings) if divide and not fourier else None,
    )


def model(state: State, settings: Settings) -> NetworkModel:
    """The score model with these weights, in the space of the authors' data.

    Raises:
        ValueError: the configuration combines what no published model does.
    """
    if (ncsnv2 := _ncsnv2(settings)) is not None:
        return refinenet.model(state, ncsnv2)
    net = network(settings)
    _fill(net, state, settings)
    schedule, label, target = _process(settings)
    centred = settings.get("data.centered")
    scale = One() if centred else Fixed(2.0)
    parametrization = Parametrization(target, scale, label, 0.0 if centred else -1.0)
    return NetworkModel(net, schedule, parametrization, _transform(bool(centred)))


def _transform(centred: bool) -> Affine:
    return to_symmetric_unit(256) if centred else to_unit(256)


def _process(settings: Settings) -> tuple[Schedule, PerTime, Target]:
    """Schedule, label and target of a model."""
    get = settings.get
    sde = settings.choice("training.sde", {"vesde": VE, "vpsde": VP, "subvpsde": SubVP})
    continuous = bool(get("training.continuous")) or sde is SubVP
    levels = get("model.num_scales")
    divides = bool(get("model.scale_by_sigma"))
    label: PerTime
    if sde is VE:
        # The ladder ends at sigma_min itself, in continuous time the authors end at 1e-5.
        schedule: Schedule = VE(get("model.sigma_min"), get("model.sigma_max"), t_min=1e-5 if continuous else 0.0)
        label = Sigma() if continuous else LadderIndex(levels)
        target = ScaledScore(None if continuous else levels) if divides else Score()
        return schedule, Log(label) if _is_fourier(settings) else label, target
    if divides:
        raise ValueError(f"{SOURCE}: config.model.scale_by_sigma=True goes with training.sde='vesde' only")
    low, high = get("model.beta_min"), get("model.beta_max")
    if continuous:
        schedule, label = sde(low, high), Time(999.0)
    else:
        betas = torch.linspace(low / levels, high / levels, levels, dtype=torch.float64)
        schedule, label = Tabulated.ddpm(betas.tolist()), ChainIndex(levels)
    return schedule, Log(label) if _is_fourier(settings) else label, Noise()


def _is_fourier(settings: Settings) -> bool:
    """Whether the network takes the logarithm of its time input; DDPM's does not, whatever its configuration says."""
    if settings.choice("model.name", {"ddpm": True, "ncsnpp": False}):
        return False
    return bool(settings.choice("model.embedding_type", {"fourier": True, "positional": False}))


def _ladder(state: State, settings: Settings) -> Tensor:
    """The noise levels, largest first."""
    high, low, n = (settings.get(f"model.{key}") for key in ("sigma_max", "sigma_min", "num_scales"))
    sigmas = torch.linspace(math.log(high), math.log(low), n, dtype=torch.float64).exp()
    stored = state.get("sigmas")
    if stored is not None and (stored.shape != sigmas.shape or not torch.allclose(stored.double(), sigmas, rtol=1e-4)):
        raise BadFileError(
            f"{SOURCE}: the weights come with {len(stored)} noise levels from {float(stored[0]):g} to "
            f"{float(stored[-1]):g}, expected {n} from {high:g} to {low:g} as the configuration says"
        )
    return sigmas


def _fill(net: nn.Module, state: State, settings: Settings) -> None:
    # A network that is not told the noise level may still carry the frequencies with which it would have been.
    idle = _is_fourier(settings) and not settings.get("model.conditional", True)
    unused = {"sigmas", "all_modules.0.W"} if idle else {"sigmas"}
    fitted(net, state, rules(net, idle), SOURCE, unused=lambda name: name in unused)


def rules(net: nn.Module, idle_features: bool = False) -> list[Rule]:
    """The authors' names for each of our tensors.

    Args:
        net: our network.
        idle_features: whether their list begins with frequencies that ours has no use for.
    """
    assert isinstance(net, DDPM | NCSNpp)
    return numbered(_parts(net, idle_features), "all_modules")


def _parts(net: DDPM | NCSNpp, idle_features: bool) -> Iterator[Part]:
    """Our layers in the order of the authors' list; some entries of it have no weights."""
    plain_shortcut = isinstance(net, DDPM) or not net.residual_resampling
    conditioning = net.conditioning
    if conditioning is None and idle_features:
        yield lambda n: []
    if conditioning is not None:
        if isinstance(conditioning.features, GaussianFourier):
            yield lambda n: [Rule("conditioning.features.frequencies", (f"{n}.W",))]
        yield partial(same, "conditioning.inner")
        yield partial(same, "conditioning.outer")
    yield partial(same, "enter")
    for i, level in enumerate(net.encoder):
        here = f"encoder.{i}"
        assert isinstance(level, EncoderLevel | DownLevel)
        yield from _stages(level.stages, here, plain_shortcut)
        if level.down is not None:
            yield from _change(level.down, f"{here}.down", plain_shortcut)
        join = level.join if isinstance(level, EncoderLevel) else None
        if isinstance(join, InputSum | InputResidual):
            yield from _change(join.down, f"{here}.join.down", plain_shortcut)
        if isinstance(join, InputSum):
            yield partial(_combination, f"{here}.join.conv")
    yield from _stages(net.middle, "middle", plain_shortcut, joined=True)
    for i, level in enumerate(net.decoder):
        here = f"decoder.{i}"
        assert isinstance(level, DecoderLevel | UpLevel)
        yield from _stages(level.stages, here, plain_shortcut)
        collect, at = level.collect if isinstance(level, DecoderLevel) else None, f"{here}.collect"
        if isinstance(collect, OutputSkip | OutputResidual):
            if collect.up is not None:
                yield from _change(collect.up, f"{at}.up", plain_shortcut)
            if collect.conv is not None:
                yield partial(same, f"{at}.norm")
                yield partial(same, f"{at}.conv")
        if level.up is not None:
            yield from _change(level.up, f"{here}.up", plain_shortcut)
    if net.leave is not None:
        yield partial(same, "norm")
        yield partial(same, "leave")


def _stages(stages: Any, at: str, plain_shortcut: bool, joined: bool = False) -> Iterator[Part]:
    for i, stage in enumerate(stages):
        assert isinstance(stage, Stage)
        here = f"{at}.{i}" if joined else f"{at}.stages.{i}"
        yield partial(_block, stage.block, f"{here}.block", plain_shortcut)
        if stage.attention is not None:
            yield partial(_attention, f"{here}.attention")


def _change(change: nn.Module, at: str, plain_shortcut: bool) -> Iterator[Part]:
    """What stands between two levels: a residual block, a convolution, or an entry without weights."""
    if isinstance(change, ShiftBlock):
        yield partial(_block, change, at, plain_shortcut)
        return
    assert isinstance(change, DownConv | UpConv)
    name = "Conv2d_0" if isinstance(change.resampling, Fir) else "Conv_0"
    yield lambda n: [] if change.conv is None else same(f"{at}.conv", f"{n}.{name}")


def _block(block: nn.Module, at: str, plain_shortcut: bool, n: str) -> list[Rule]:
    """A residual block; its shortcut is a matrix, or in BigGAN's kind of block a convolution."""
    assert isinstance(block, ShiftBlock)
    found = [
        *same(f"{at}.norm_in", f"{n}.GroupNorm_0"),
        *same(f"{at}.conv_in", f"{n}.Conv_0"),
        *same(f"{at}.shift", f"{n}.Dense_0"),
        *same(f"{at}.norm_out", f"{n}.GroupNorm_1"),
        *same(f"{at}.conv_out", f"{n}.Conv_1"),
    ]
    if isinstance(block.shortcut, nn.Conv2d):
        at = f"{at}.shortcut"
        found += _matrix(at, f"{n}.NIN_0") if plain_shortcut else same(at, f"{n}.Conv_2")
    return found


def _combination(at: str, n: str) -> list[Rule]:
    return same(at, f"{n}.Conv")


def _attention(at: str, n: str) -> list[Rule]:
    qkv = [f"{n}.NIN_{i}" for i in range(3)]
    return [
        *same(f"{at}.norm", f"{n}.GroupNorm_0"),
        Rule(f"{at}.qkv.weight", tuple(f"{name}.W" for name in qkv), lambda *w: torch.cat([_turned(m) for m in w])),
        Rule(f"{at}.qkv.bias", tuple(f"{name}.b" for name in qkv), lambda *b: torch.cat(b)),
        *_matrix(f"{at}.out", f"{n}.NIN_3"),
    ]


def _matrix(ours: str, theirs: str) -> list[Rule]:
    """A matrix between channels, which the authors keep as (in, out), as a 1x1 convolution."""
    return [Rule(f"{ours}.weight", (f"{theirs}.W",), _turned), Rule(f"{ours}.bias", (f"{theirs}.b",))]


def _turned(matrix: Tensor) -> Tensor:
    return matrix.transpose(0, 1)[:, :, None, None]


def unpacked(content: Any, weights: str) -> dict[str, Tensor]:
    """The state of one set of weights out of a checkpoint.

    Raises:
        BadFileError: it is not laid out as the authors' checkpoints.
    """
    state = {str(name).removeprefix("module."): tensor for name, tensor in content["model"].items()}
    if weights == "raw":
        return state
    shadow = content["ema"].get("shadow_params")
    trained = [name for name, tensor in state.items() if not _untrained(name, tensor)]
    if not isinstance(shadow, list) or len(shadow) != len(trained):
        found = f"{len(shadow)}" if isinstance(shadow, list) else f"a {type(shadow).__name__}"
        raise BadFileError(f"{SOURCE}: expected {len(trained)} averages in ema.shadow_params, found {found}")
    for name, average in zip(trained, shadow, strict=True):
        if average.shape != state[name].shape:
            raise BadFileError(
                f"{SOURCE}: expected the average of {name} to have shape {tuple(state[name].shape)}, found "
                f"{tuple(average.shape)} in ema.shadow_params"
            )
    return {**state, **dict(zip(trained, shadow, strict=True))}


def _untrained(name: str, tensor: Tensor) -> bool:
    """Buffers, and the frozen frequencies: the only W that is not a matrix."""
    return name == "sigmas" or (name.endswith(".W") and tensor.ndim == 1)
