"""The authors' files, read without running anything in them."""

import json
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from scorefield.archives import require_archive, require_checksums, unpickled
from scorefield.checkpoints.names import nearest_source
from scorefield.errors import BadFileError


def content(path: Path, source: str) -> Any:
    """What a file of torch or safetensors holds: tensors and plain values.

    Files of torch before 1.6 are no archives and carry no checksums: of them, only what torch's reader notices is
    noticed.

    Raises:
        BadFileError: the file is damaged, asks for code to be run, or is neither.
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        raise BadFileError(
            f"{source}: expected a file at {path}, found a folder; folders are read with source 'diffusers' or "
            "'scorefield'"
        )
    if path.suffix == ".safetensors":
        return tensors(path)
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" or zipfile.is_zipfile(path):
        require_archive(path)
        require_checksums(path)
    elif start[:1] != b"\x80":  # a pickle's first byte
        raise BadFileError(
            f"{source}: expected a file that torch wrote at {path}, found {path.stat().st_size} bytes that begin with "
            f"{start!r}"
        )
    try:
        return unpickled(path)
    except BadFileError as error:
        if source == "edm":
            raise BadFileError(
                f"{error}. The authors' pickles are converted by `python -m scorefield.checkpoints.edm_pickle`"
            ) from error
        raise


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        BadFileError: the file is damaged, or not one.
    """
    with path.open("rb"):  # a file that cannot be opened is no damaged file
        pass
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # the reader's own kinds of error
        raise BadFileError(f"{path} is no whole safetensors file: {error}") from error


def document(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadFileError: the file is damaged, or holds something else.
    """
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise BadFileError(f"{path} is damaged: expected JSON, found {str(error)[:200]}") from error
    if not isinstance(values, dict):
        raise BadFileError(f"{path}: expected a JSON object, found a {type(values).__name__}")
    return values


def layout(found: Any) -> str:
    """A file's layout in words, with the source that would fit where one is known."""
    if isinstance(found, list):
        words, state = f"a list of {len(found)}", found[0] if found else None
        near = nearest_source(set(state)) if isinstance(state, dict) else None
    elif isinstance(found, dict):
        words = f"a mapping of {', '.join(map(str, list(found)[:4]))}{' ...' if len(found) > 4 else ''}"
        inner = found.get("model", found.get("state_dict", found))
        near = nearest_source(set(inner)) if isinstance(inner, dict) else None
        if "pytorch-lightning_version" in found:
            near = "scorefield"
    else:
        words, near = f"a {type(found).__name__}", None
    if near == "scorefield":
        return f"{words}, which is a checkpoint of a run of this project: load it with its run"
    return words + (f", which looks like one of source {near!r}" if near else ", which is of no known source")
