"""Files as the authors write them, made here: their names and layouts around weights of our own."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from scorefield.checkpoints import edm, refinenet, score_sde
from scorefield.checkpoints.names import Rule, Settings

SCORE_SDE: dict[str, Any] = {
    "data": {"image_size": 8, "num_channels": 3, "centered": False},
    "model": {
        "name": "ncsnpp",
        "nf": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "resamp_with_conv": True,
        "conditional": True,
        "dropout": 0.0,
        "embedding_type": "fourier",
        "fourier_scale": 2,
        "fir": True,
        "fir_kernel": [1, 3, 3, 1],
        "nonlinearity": "swish",
        "progressive": "none",
        "progressive_input": "residual",
        "progressive_combine": "sum",
        "resblock_type": "biggan",
        "scale_by_sigma": True,
        "skip_rescale": True,
        "sigma_min": 0.01,
        "sigma_max": 50,
        "num_scales": 20,
        "beta_min": 0.1,
        "beta_max": 20.0,
    },
    "training": {"sde": "vesde", "continuous": True},
}
NCSN: dict[str, Any] = {
    "data": {"image_size": 8, "channels": 3, "logit_transform": False},
    "model": {"ngf": 8, "num_classes": 10, "sigma_begin": 1.0, "sigma_end": 0.01},
}
NCSNV2: dict[str, Any] = {
    "data": {"image_size": 8, "channels": 3, "logit_transform": False, "rescaled": False},
    "model": {
        "ngf": 8,
        "num_classes": 10,
        "sigma_begin": 10.0,
        "sigma_end": 0.01,
        "normalization": "InstanceNorm++",
        "nonlinearity": "elu",
    },
}
EDM: dict[str, Any] = {
    "preconditioning": "EDMPrecond",
    "model_type": "SongUNet",
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 4,
    "model_channels": 8,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [4],
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
    "augment_dim": 9,
    "dropout": 0.0,
}
CONFIGS = {"score_sde": SCORE_SDE, "ncsn": NCSN, "ncsnv2": NCSNV2, "edm": EDM}


def changed(config: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A configuration with values replaced; a key of a section is written section__key."""
    new = {key: dict(value) if isinstance(value, Mapping) else value for key, value in config.items()}
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (new[section] if section else new)[key] = value
    return new


def network(source: str, config: Mapping[str, Any]) -> tuple[nn.Module, list[Rule]]:
    """Our network for a configuration, and the authors' names for its weights."""
    settings = Settings(config, source)
    if source == "score_sde":
        net = score_sde.network(settings)
        return net, score_sde.rules(net)
    if source == "edm":
        song = edm.network(settings)
        return song, edm.rules(song, settings)
    refine = refinenet.network(settings)
    return refine, refinenet.rules(refine, ("1", "2", "3", "4"))


def drawn(source: str, config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """A state with the authors' names and shapes, weights drawn at the scale of their fan-in.

    The shapes are found by asking each rule for what it makes of tensors of a shape until ours comes out.
    """
    net, rules = network(source, config)
    generator = torch.Generator().manual_seed(seed)
    own = net.state_dict()
    state: dict[str, Tensor] = {}
    for rule in rules:
        for name, shape in zip(rule.theirs, _shapes(rule, tuple(own[rule.ours].shape)), strict=True):
            fan_in = max(1, torch.Size(shape).numel() // shape[0]) if len(shape) > 1 else 25
            tensor = torch.randn(shape, generator=generator, dtype=torch.float32) / fan_in**0.5
            state[name] = 1 + 0.2 * tensor if "norm" in name.lower() and len(shape) == 1 else tensor
    return state


def _shapes(rule: Rule, wanted: tuple[int, ...]) -> list[tuple[int, ...]]:
    n = len(rule.theirs)
    one = (wanted[0] // n, *wanted[1:])
    candidates = [one, tuple(reversed(one[:2])), one[:2], (2 * one[0], *one[1:])]
    for shape in candidates:
        try:
            made = rule.convert(*(torch.zeros(shape) for _ in range(n)))
        except (RuntimeError, ValueError, IndexError):
            continue
        if tuple(made.shape) == wanted and (len(shape) == 4 or not any(s.endswith(".weight") for s in rule.theirs)):
            return [shape] * n
    return [one] * n


def parallel(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names inside a parallel wrapper."""
    return {f"module.{name}": tensor for name, tensor in state.items()}


def checkpoint(source: str, raw: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> Any:
    """What the authors save."""
    if source == "score_sde":
        shadow = [tensor for name, tensor in ema.items() if not (name.endswith(".W") and tensor.ndim == 1)]
        averages = {"decay": 0.999, "num_updates": 5, "shadow_params": shadow}
        return {"optimizer": {}, "model": parallel(raw), "ema": averages, "step": 5}
    if source == "ncsnv2":
        return [parallel(raw), {}, 0, 5, dict(ema)]
    if source == "ncsn":
        return [parallel(raw), {}]
    return dict(ema)
