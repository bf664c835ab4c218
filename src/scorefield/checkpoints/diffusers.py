"""Folders of diffusers' UNet2DModel: ``config.json`` and ``diffusion_pytorch_model.safetensors``.

Also a pipeline's folder, which has the network in ``unet`` and the noise schedule in ``scheduler``. Networks are those
of Ho et al. 2020: the blocks DownBlock2D, AttnDownBlock2D, UpBlock2D and AttnUpBlock2D.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints.files import document, tensors
from scorefield.checkpoints.names import Rule, Settings, State, fitted, same
from scorefield.checkpoints.published import AsPublished
from scorefield.data.transforms import to_symmetric_unit
from scorefield.errors import BadFileError
from scorefield.models import ChainIndex, Fixed, NetworkModel, One, Parametrization
from scorefield.nets import DDPM, Box, CentredBox, Positional
from scorefield.nets.layers import ShiftBlock, Stage
from scorefield.prediction import Data, Noise
from scorefield.schedules import Tabulated

SOURCE = "diffusers"
_CONFIG, _WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

# What a configuration may say beside the sizes; anything else is another network.
_ONLY = {
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "resnet_time_scale_shift": "default",
    "attn_norm_num_groups": None,
    "class_embed_type": None,
    "num_class_embeds": None,
}
# Names of attention's layers in files of older versions.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def network(settings: Settings) -> DDPM:
    """Our network for a configuration, with fresh weights.

    Raises:
        ValueError: the configuration is of a network that is not DDPM's.
    """
    get = settings.get
    for key, only in _ONLY.items():
        if (found := settings.values.get(key, only)) != only:
            raise ValueError(f"{SOURCE}: config.{key}={found!r} is not supported; only {only!r} is")
    widths = list(get("block_out_channels"))
    if get("in_channels") != get("out_channels") or any(w % widths[0] for w in widths):
        raise ValueError(
            f"{SOURCE}: in_channels={get('in_channels')} must equal out_channels={get('out_channels')}, and "
            f"block_out_channels={widths} be multiples of the first"
        )
    down = [_kind(name, "Down") for name in get("down_block_types")]
    up = [_kind(name, "Up") for name in get("up_block_types")]
    if up != down[::-1]:
        raise ValueError(f"{SOURCE}: up_block_types={get('up_block_types')} must mirror down_block_types")
    offset = get("freq_shift", 0)
    if offset not in (0, 1):
        raise ValueError(f"{SOURCE}: config.freq_shift={offset} must be 0 or 1")
    settings.choice("act_fn", {"silu": None, "swish": None}, "silu")  # with others the library mixes it with SiLU
    return DDPM(
        image_channels=get("in_channels"),
        channels=widths[0],
        multipliers=[w // widths[0] for w in widths],
        blocks=get("layers_per_block", 2),
        features=Positional(widths[0], endpoint=offset == 1),
        resampling=CentredBox() if get("downsample_padding", 1) else Box(),
        attention=[level for level, attends in enumerate(down) if attends],
        attention_after_each=True,
        middle_attention=bool(get("add_attention", True)),
        head_channels=settings.values.get("attention_head_dim", 8),
        groups=get("norm_num_groups", 32),
        eps=get("norm_eps", 1e-5),
        dropout=get("dropout", 0.0),
    )


def _kind(name: str, side: str) -> bool:
    """Whether a block of this name has attention."""
    kinds = {f"{side}Block2D": False, f"Attn{side}Block2D": True}
    if name not in kinds:
        raise ValueError(f"{SOURCE}: block {name!r} is not supported; there are {', '.join(kinds)}")
    return kinds[name]


def from_state(state: State, settings: Settings) -> nn.Module:
    """The library's function of (sample, timestep), with these weights."""
    return AsPublished(_filled(state, settings), centre=bool(settings.get("center_input_sample", False)))


def model(path: Path, scheduler: Mapping[str, Any] | None = None) -> NetworkModel:
    """The score model of a folder, on images in [-1, 1].

    Args:
        path: folder of the network or of a pipeline.
        scheduler: the noise schedule's configuration; None reads the pipeline's, or takes DDPM's.

    Raises:
        BadFileError: the folder is not one.
        ValueError: the configuration is of a network or schedule that is not DDPM's.
    """
    state, settings, beside = read(path)
    schedule = Settings(scheduler if scheduler is not None else beside, SOURCE)
    target = schedule.choice("prediction_type", {"epsilon": Noise(), "sample": Data()}, "epsilon")
    betas = _betas(schedule)
    centred = bool(settings.get("center_input_sample", False))
    scale = Fixed(2.0) if centred else One()
    label = ChainIndex(len(betas))
    parametrization = Parametrization(target, scale, label, -1.0 if centred else 0.0)
    return NetworkModel(
        _filled(state, settings), Tabulated.ddpm(betas.tolist()), parametrization, to_symmetric_unit(256)
    )


def read(path: Path) -> tuple[dict[str, Tensor], Settings, dict[str, Any]]:
    """Weights and configuration of a folder, and its scheduler's configuration where there is one."""
    folder = path / "unet" if (path / "unet").is_dir() else path
    missing = [name for name in (_CONFIG, _WEIGHTS) if not (folder / name).is_file()]
    if missing:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:5]) if folder.is_dir() else "no folder"
        raise BadFileError(f"{folder}: expected {' and '.join(missing)}, found {found or 'an empty folder'}")
    config = document(folder / _CONFIG)
    kind = config.get("_class_name", "UNet2DModel")
    if kind != "UNet2DModel":
        raise BadFileError(f"{folder / _CONFIG}: expected a UNet2DModel, found a {kind}")
    scheduler = path / "scheduler" / "scheduler_config.json"
    beside = document(scheduler) if scheduler.is_file() else {}
    state = tensors(folder / _WEIGHTS)
    return {_renamed(name): tensor for name, tensor in state.items()}, Settings(config, SOURCE), beside


def _renamed(name: str) -> str:
    for old, new in _OLD.items():
        name = name.replace(old, new)
    return name


def _betas(schedule: Settings) -> Tensor:
    """The variances of the discrete chain."""
    n = schedule.get("num_train_timesteps", 1000)
    low, high = schedule.get("beta_start", 1e-4), schedule.get("beta_end", 0.02)
    kinds = {
        "linear": lambda: torch.linspace(low, high, n, dtype=torch.float64),
        "scaled_linear": lambda: torch.linspace(math.sqrt(low), math.sqrt(high), n, dtype=torch.float64).square(),
    }
    betas: Tensor = schedule.choice("beta_schedule", kinds, "linear")()
    return betas


def _filled(state: State, settings: Settings) -> DDPM:
    net = network(settings)
    fitted(net, state, rules(net, bool(settings.get("flip_sin_to_cos", True))), SOURCE)
    return net


def rules(net: DDPM, cosines_first: bool) -> list[Rule]:
    """The library's names for each of our tensors."""
    found = same("enter", "conv_in")
    swap = _halves_swapped if cosines_first else _as_it_is
    found.append(Rule("conditioning.inner.weight", ("time_embedding.linear_1.weight",), swap))
    found += same("conditioning.inner", "time_embedding.linear_1", "bias")
    found += same("conditioning.outer", "time_embedding.linear_2")
    for i, level in enumerate(net.encoder):
        found += _stages(level.stages, f"encoder.{i}.stages", f"down_blocks.{i}")
        if level.down is not None:
            found += same(f"encoder.{i}.down.conv", f"down_blocks.{i}.downsamplers.0.conv")
    found += _stages(net.middle, "middle", "mid_block")
    for i, level in enumerate(net.decoder):
        found += _stages(level.stages, f"decoder.{i}.stages", f"up_blocks.{i}")
        if level.up is not None:
            found += same(f"decoder.{i}.up.conv", f"up_blocks.{i}.upsamplers.0.conv")
    return found + same("norm", "conv_norm_out") + same("leave", "conv_out")


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _halves_swapped(weight: Tensor) -> Tensor:
    return torch.cat(weight.chunk(2, 1)[::-1], 1)


def _stages(stages: Any, ours: str, theirs: str) -> list[Rule]:
    found: list[Rule] = []
    for j, stage in enumerate(stages):
        assert isinstance(stage, Stage)
        assert isinstance(stage.block, ShiftBlock)
        at, their = f"{ours}.{j}.block", f"{theirs}.resnets.{j}"
        found += same(f"{at}.norm_in", f"{their}.norm1") + same(f"{at}.conv_in", f"{their}.conv1")
        found += same(f"{at}.shift", f"{their}.time_emb_proj")
        found += same(f"{at}.norm_out", f"{their}.norm2") + same(f"{at}.conv_out", f"{their}.conv2")
        if isinstance(stage.block.shortcut, nn.Conv2d):
            found += same(f"{at}.shortcut", f"{their}.conv_shortcut")
        if stage.attention is not None:
            found += _attention(f"{ours}.{j}.attention", f"{theirs}.attentions.{j}")
    return found


def _attention(ours: str, theirs: str) -> list[Rule]:
    three = ("to_q", "to_k", "to_v")
    return [
        *same(f"{ours}.norm", f"{theirs}.group_norm"),
        Rule(f"{ours}.qkv.weight", tuple(f"{theirs}.{n}.weight" for n in three), lambda *w: _as_conv(torch.cat(w))),
        Rule(f"{ours}.qkv.bias", tuple(f"{theirs}.{n}.bias" for n in three), lambda *b: torch.cat(b)),
        Rule(f"{ours}.out.weight", (f"{theirs}.to_out.0.weight",), _as_conv),
        Rule(f"{ours}.out.bias", (f"{theirs}.to_out.0.bias",)),
    ]


def _as_conv(matrix: Tensor) -> Tensor:
    return matrix[:, :, None, None]
