"""Models of this project in a folder of two files that need nothing else to be read.

::

    model.json             {"schema": "scorefield-model/1", "model": how it was made}
    weights.safetensors    its state dict
"""

import json
from pathlib import Path

import safetensors.torch

from scorefield.checkpoints.files import document, tensors
from scorefield.errors import BadFileError
from scorefield.models import ScoreModel
from scorefield.recipe import build, recipe

SCHEMA = "scorefield-model/1"
_MODEL, _WEIGHTS = "model.json", "weights.safetensors"


def export(model: ScoreModel, folder: str | Path) -> Path:
    """Write a model into a folder, which is made; `load` with source ``"scorefield"`` reads it back.

    Args:
        model: any model whose parts say how they were made: those of this project do.
        folder: where to; must not hold a model already.

    Raises:
        TypeError: a part of the model does not say how it was made.
        FileExistsError: the folder holds a model.
    """
    folder = Path(folder)
    text = json.dumps({"schema": SCHEMA, "model": recipe(model)}, indent=2)
    if (folder / _MODEL).exists():
        raise FileExistsError(f"{folder} already holds a model; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, folder / _WEIGHTS)
    (folder / _MODEL).write_text(text + "\n")  # last: a folder with this file is whole
    return folder


def restored(folder: Path) -> ScoreModel:
    """The model that a folder of `export` holds.

    Raises:
        BadFileError: the folder is none, damaged, or names what a model is not made of.
    """
    if not (folder / _MODEL).is_file():
        raise BadFileError(f"{folder}: expected {_MODEL} and {_WEIGHTS}, found no {_MODEL}")
    described = document(folder / _MODEL)
    if described.get("schema") != SCHEMA:
        raise BadFileError(f"{folder / _MODEL}: expected schema {SCHEMA!r}, found {described.get('schema')!r}")
    try:
        model = build(described.get("model"))
    except ValueError as error:
        raise BadFileError(f"{folder / _MODEL}: {error}") from error
    if not isinstance(model, ScoreModel):
        raise BadFileError(f"{folder / _MODEL}: expected a score model, found a {type(model).__name__}")
    saved, wanted = tensors(folder / _WEIGHTS), model.state_dict()
    wrong = sorted(saved.keys() ^ wanted.keys())
    wrong += [name for name in wanted if name in saved and saved[name].shape != wanted[name].shape]
    if wrong:
        raise BadFileError(
            f"{folder / _WEIGHTS} holds another model than {_MODEL} describes: {', '.join(wrong[:3])} are missing, of "
            "no use or of another shape"
        )
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if name in saved:
            parameter.data = parameter.data.to(saved[name].dtype)
    model.load_state_dict(saved)
    return model
