"""Reading idx files and folders or archives of images for which nobody vouches.

Nothing is unpacked to disk, nothing is decoded before its size is known, and no file can fill the memory.
Every refusal is a `BadFileError` that names the file, what was expected and what was found.
"""

import gzip
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from scorefield.errors import BadFileError

_MOST_FILES = 1_000_000
_MOST_BYTES = 16 << 20  # of one image file
_SUFFIXES = {".png", ".jpg", ".jpeg"}

_Files = Mapping[str, tuple[int, Callable[[], bytes]]]  # path: size, and what reads the content


def idx_content(path: Path, shape: tuple[int, ...]) -> bytes:
    """The unpacked content of an idx file of uint8 examples of this shape, checked against its header."""
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    ndim = 1 + len(shape)
    expected = f"an idx file of uint8 examples of shape {shape}"
    try:
        with opened(path, "rb") as file:
            header = file.read(4 + 4 * ndim)
            if header[:4] != bytes((0, 0, 8, ndim)) or len(header) < 4 + 4 * ndim:
                raise BadFileError(f"{path} is no {expected[3:]}: it begins with {header[:4].hex()}")
            n, *found = struct.unpack(f">{ndim}i", header[4:])
            if tuple(found) != shape or not 0 < n <= _MOST_FILES:
                raise BadFileError(f"{path}: expected {expected}, found {n} of shape {tuple(found)}")
            size = n * math.prod(shape)
            content: bytes = file.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise BadFileError(f"{path} is truncated or damaged: {error}") from error
    if len(content) != size:
        found_bytes = f"{len(content)}" if len(content) < size else "more"
        raise BadFileError(f"{path}: expected {size} bytes after the header for {n} examples, found {found_bytes}")
    return header + content


def class_folders(root: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Images (N, *shape) below one folder for each class, in a zip file or on disk, and their labels (N,).

    Classes and files are in alphabetical order.

    Raises:
        FileNotFoundError: there is no image.
        BadFileError: something in it is no image of this shape.
    """
    with _files(root) as files:
        names = sorted(name for name in files if Path(name).suffix.lower() in _SUFFIXES and "/" in name)
        if not names:
            raise FileNotFoundError(f"{root} holds no PNG or JPEG image inside a folder named after its class")
        if len(names) > _MOST_FILES:
            raise BadFileError(f"{root} holds {len(names)} images, expected {_MOST_FILES} at most")
        x = torch.empty((len(names), *shape), dtype=torch.uint8)
        for row, name in zip(x, names, strict=True):
            row.copy_(_image(*files[name], shape, f"{name} in {root}"))
    classes = sorted({name.split("/")[-2] for name in names})
    return x, torch.tensor([classes.index(name.split("/")[-2]) for name in names])


def stored_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by their names, or that of a .npy file as ``images``.

    Raises:
        BadFileError: it is no such file, or damaged.
    """
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            return {"images": content} if isinstance(content, np.ndarray) else dict(content)
    except Exception as error:  # the reader answers damage in many ways
        raise BadFileError(f"{path} is no file of NumPy, or damaged: {error}") from error


def image_set(root: Path, shape: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor | None]:
    """All PNG and JPEG images (N, C, H, W), uint8, below a folder or in a zip file, in the order of their names.

    Labels (N,) come from ``dataset.json`` where there is one, ``{"labels": [[name, class], ...]}`` as EDM's data sets
    have it (Karras et al. 2022), and else from the names of the folders where every image lies in one.

    Args:
        root: the folder or zip file.
        shape: (C, H, W) of every image, C = 1 or 3; None takes that of the first one.

    Raises:
        FileNotFoundError: there is no such file or folder, or no image in it.
        BadFileError: something in it is no image of this shape, or a label is missing.
    """
    if not root.exists():
        raise FileNotFoundError(f"{root} does not exist: expected a folder or a zip file of PNG or JPEG images")
    with _files(root) as files:
        names = sorted(name for name in files if Path(name).suffix.lower() in _SUFFIXES)
        if not names:
            raise FileNotFoundError(f"{root} holds no PNG or JPEG image")
        if len(names) > _MOST_FILES:
            raise BadFileError(f"{root} holds {len(names)} images, expected {_MOST_FILES} at most")
        first = f"{names[0]} in {root}"
        shape = _declared(*files[names[0]], first) if shape is None else shape
        _require_memory(len(names) * math.prod(shape), root)
        modes = ("L",) if shape[0] == 1 else ("RGB",)
        x = torch.empty((len(names), *shape), dtype=torch.uint8)
        for row, name in zip(x, names, strict=True):
            row.copy_(_image(*files[name], shape, f"{name} in {root}", modes))
        if "dataset.json" in files:
            return x, _edm_labels(*files["dataset.json"], names, root)
    folders = {name.rpartition("/")[0] for name in names}
    if "" in folders or len(folders) < 2:
        return x, None
    classes = sorted(folders)
    return x, torch.tensor([classes.index(name.rpartition("/")[0]) for name in names])


def _declared(size: int, read: Callable[[], bytes], where: str) -> tuple[int, int, int]:
    """(C, H, W) that an image file declares; no pixel is decoded."""
    if size > _MOST_BYTES:
        raise BadFileError(f"{where}: expected an image in {_MOST_BYTES} bytes at most, found {size} bytes")
    try:
        with Image.open(BytesIO(read()), formats=("PNG", "JPEG")) as image:
            return {"L": 1}.get(image.mode, 3), image.height, image.width
    except Exception as error:  # archives and decoders answer damage with many kinds of error
        raise BadFileError(f"{where}: expected a PNG or JPEG image, found none ({error})") from error


def _require_memory(wanted: int, root: Path) -> None:
    """Refuse images that do not fit the machine's memory before they fill it."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if wanted > there:
        raise BadFileError(f"{root}: its images take {wanted >> 20} MiB in memory, and this machine has {there >> 20}")


def _edm_labels(size: int, read: Callable[[], bytes], names: list[str], root: Path) -> Tensor | None:
    """The classes of ``names`` in a ``dataset.json``, or None where it declares none."""
    where = f"dataset.json in {root}"
    if size > _MOST_BYTES * 16:
        raise BadFileError(f"{where}: {size} bytes are more than the labels of {len(names)} images take")
    try:
        labels = json.loads(read())["labels"]
        if labels is None:
            return None
        known = {str(name): label for name, label in labels}
    except BadFileError:
        raise
    except Exception as error:  # whatever else the file holds
        raise BadFileError(f'{where}: expected {{"labels": [[name, class], ...]}} ({error!r})') from error
    found = [known.get(name) for name in names]
    for name, label in zip(names, found, strict=True):
        if not isinstance(label, int) or isinstance(label, bool) or label < 0:
            raise BadFileError(f"{where}: expected a class from 0 for {name}, found {label!r}")
    return torch.tensor(found)


@contextmanager
def _files(root: Path) -> Iterator[_Files]:
    """The files of a folder or of a zip file.

    Raises:
        BadFileError: the file is no zip archive, or a member's name leads out of it.
    """
    if root.is_dir():
        paths = (path for path in root.rglob("*") if path.is_file())
        yield {path.relative_to(root).as_posix(): (path.stat().st_size, path.read_bytes) for path in paths}
        return
    try:
        archive = zipfile.ZipFile(root)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise BadFileError(
            f"{root}: expected a zip archive with a folder of images for each class ({error})"
        ) from error
    with archive:
        for member in archive.infolist():
            if member.filename.startswith(("/", "\\")) or ".." in PurePosixPath(member.filename).parts:
                raise BadFileError(f"{root}: {member.filename} in it leads out of the archive")
        yield {member.filename: (member.file_size, partial(_member, archive, member)) for member in archive.infolist()}


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    with archive.open(member) as file:
        return file.read(member.file_size)  # without a number it would unpack more than is declared, then cut it off


def pictures(path: Path, shape: tuple[int, ...]) -> tuple[list[str], Tensor]:
    """Names and pixels (N, *shape), uint8, of an image file, or of all in a folder in alphabetical order.

    A grey file serves a model of colours, its channel repeated.

    Raises:
        FileNotFoundError: there is no such file, or no image in the folder.
        BadFileError: a file is no image of this size, or a coloured one where the model is grey.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; give a PNG or JPEG file, or a folder of them")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{path} holds no PNG or JPEG image")
    modes = ("L",) if shape[0] == 1 else ("RGB", "L")
    images = [_image(f.stat().st_size, f.read_bytes, shape, str(f), modes) for f in files]
    return [f.name for f in files], torch.stack(images)


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """Where a grey picture is brighter than half, boolean (1, H, W).

    Raises:
        FileNotFoundError: there is no such file.
        BadFileError: it is no grey image of this size.
    """
    return pictures(path, (1, *size))[1][0] > 127


def _image(
    size: int, read: Callable[[], bytes], shape: tuple[int, ...], where: str, modes: tuple[str, ...] = ("RGB",)
) -> Tensor:
    """The pixels (C, H, W) of a PNG or JPEG file; its dimensions and mode are read, and refused, before a pixel is."""
    expected = f"expected a PNG or JPEG of {shape[2]}x{shape[1]} pixels in mode {' or '.join(modes)}"
    if size > _MOST_BYTES:
        raise BadFileError(f"{where}: {expected} in {_MOST_BYTES} bytes at most, found {size} bytes")
    try:
        with Image.open(BytesIO(read()), formats=("PNG", "JPEG")) as image:
            if (image.height, image.width) != shape[1:] or image.mode not in modes:
                raise BadFileError(f"{where}: {expected}, found {image.width}x{image.height} in mode {image.mode}")
            pixels = torch.from_numpy(np.array(image))
            return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels.expand(shape)
    except BadFileError:
        raise
    except Exception as error:  # archives and decoders answer damage with many kinds of error
        raise BadFileError(f"{where}: {expected}, found {size} bytes that are none ({error})") from error
