"""The two ways in: a state dict with a configuration, or a file with a configuration.

The sources are ``ncsn`` and ``ncsnv2`` (Song and Ermon 2019, 2020), ``score_sde`` (Song et al. 2021), ``edm`` (Karras
et al. 2022) and, by `load` alone, ``diffusers`` (folders of a UNet2DModel) and ``scorefield`` (folders of `export`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from scorefield.checkpoints import diffusers, edm, files, own, refinenet, score_sde
from scorefield.checkpoints.names import Settings, State, plain_state
from scorefield.errors import BadFileError
from scorefield.models import ScoreModel

Weights = Literal["ema", "raw"]

_READERS = {"ncsn": refinenet, "ncsnv2": refinenet, "score_sde": score_sde, "edm": edm}


def from_state(source: str, state: State, config: Mapping[str, Any]) -> nn.Module:
    """The authors' network with given weights: ``net(x, time_input, class_labels=None, augment_labels=None)``.

    It takes what the authors' own network takes and returns what theirs returns, with their scale of the data and their
    division by sigma where they have it. Of EDM it is the network inside the preconditioning, of (c_in x, c_noise).

    Args:
        source: ``"ncsn"``, ``"ncsnv2"``, ``"score_sde"`` or ``"edm"``.
        state: the authors' names -> tensors; the prefix ``module.`` of a parallel wrapper is taken off.
        config: the authors' configuration as a nested mapping.

    Raises:
        ValueError: the source is unknown, or the configuration is none of its.
        BadFileError: the weights are not those of the configuration.
    """
    reader = _reader(source)
    return reader.from_state(plain_state(state, source), Settings(config, source)).eval()


def load(
    source: str, path: str | Path, config: Mapping[str, Any] | None = None, weights: Weights = "ema"
) -> ScoreModel:
    """A score model from a published file: weights, schedule, parametrisation and the transform of the data.

    The model lives in the space of the authors' data (its ``transform`` says how grey levels get there) and at their
    noise levels, without gradients. Nothing in the file is run.

    Args:
        source: a source of `from_state`, or ``"diffusers"`` or ``"scorefield"`` for their folders.
        path: the authors' checkpoint; a plain state dict, by torch or as safetensors, is taken too.
        config: the authors' configuration as a nested mapping; for diffusers that of the scheduler, where the folder
            has none; not read for scorefield's own.
        weights: ``"ema"`` for the averaged weights, ``"raw"`` for those of the last step. A file that keeps only one
            set has its set taken.

    Raises:
        ValueError: the source is unknown, or the configuration is none of its.
        BadFileError: the file is damaged, of another source, or not of this configuration.
        OSError: the file cannot be opened.
    """
    if weights not in ("ema", "raw"):
        raise ValueError(f"weights={weights!r} must be 'ema' or 'raw'")
    path = Path(path)
    model: ScoreModel
    if source == "scorefield":
        model = own.restored(path)
    elif source == "diffusers":
        model = diffusers.model(path, config)
    else:
        reader = _reader(source)
        settings = Settings(config, source)
        state = _unpacked(source, files.content(path, source), weights, path)
        model = reader.model(plain_state(state, source), settings)
    return model.eval().requires_grad_(False)


def _reader(source: str) -> Any:
    if source not in _READERS:
        raise ValueError(f"source={source!r} must be one of {', '.join([*_READERS, *('diffusers', 'scorefield')])}")
    return _READERS[source]


def _unpacked(source: str, found: Any, weights: Weights, path: Path) -> dict[str, Tensor]:
    """One set of weights out of what a file holds."""
    if isinstance(found, dict) and found and all(isinstance(value, Tensor) for value in found.values()):
        return found
    if (
        source == "score_sde"
        and isinstance(found, dict)
        and all(isinstance(found.get(key), dict) for key in ("model", "ema"))
    ):
        return score_sde.unpacked(found, weights)
    if source in ("ncsn", "ncsnv2") and isinstance(found, list) and found and isinstance(found[0], dict):
        return refinenet.unpacked(found, weights)
    expected = {
        "score_sde": "a mapping with model and ema",
        "edm": "a state dict",
    }.get(source, "a list that begins with a state dict")
    raise BadFileError(f"{path}: expected {expected} of source {source!r}, found {files.layout(found)}")
