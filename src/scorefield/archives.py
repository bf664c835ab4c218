"""Files that torch wrote, read without running anything in them.

``torch.save`` writes a zip archive of stored members around a pickle. torch itself neither verifies the members'
checksums nor looks at how they lie in the file, and its reader answers damage with many kinds of error.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from scorefield.errors import BadFileError


def require_archive(path: Path) -> None:
    """Refuse a file that is no zip archive of stored members, as which no other size can be hidden in it.

    Raises:
        BadFileError: with what was found.
        OSError: the file cannot be opened.
    """
    with path.open("rb"):  # a file that cannot be opened is no damaged file
        pass
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # zipfile answers damage with many kinds of error
        raise BadFileError(
            f"{path} is no whole checkpoint: expected a zip archive, found {path.stat().st_size} bytes ({error})"
        ) from error
    stored = all(member.compress_type == zipfile.ZIP_STORED for member in members)
    if not stored or sum(member.file_size for member in members) > path.stat().st_size:
        raise BadFileError(f"{path} is no checkpoint: its members are compressed or overlap")


def require_checksums(path: Path) -> None:
    """Refuse an archive whose members are not what their checksums say.

    Raises:
        BadFileError: with the first member that is not.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except Exception as error:
        raise BadFileError(f"{path} is damaged: {error}") from error
    if damaged is not None:
        raise BadFileError(f"{path} is damaged: {damaged} in it does not match its checksum")


def unpickled(path: Path, mmap: bool = False) -> Any:
    """Tensors and plain values of a file, on the CPU, and nothing else; with ``mmap`` they are read when they are used.

    Raises:
        BadFileError: the file is damaged, or asks for code to be run.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # whatever a damaged or hostile pickle provokes in the reader
        raise BadFileError(f"{path} is no checkpoint: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """What torch found, without its advice to load the file all the same."""
    code = re.search(r"(?:GLOBAL|global:?|class) ([\w.]+\.\w+)", str(error))
    if code:
        return f"it asks for {code[1]}, and a checkpoint may hold tensors and plain values only"
    return f"{type(error).__name__}: {(str(error).splitlines() or ['no message'])[0][:200]}"
