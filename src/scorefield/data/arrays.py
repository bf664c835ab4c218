"""Images of your own, from one file of NumPy or from a folder or zip file of images, with labels or without."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from scorefield.data.base import Data, Split
from scorefield.data.files import image_set, stored_arrays
from scorefield.data.transforms import Transform, to_symmetric_unit
from scorefield.errors import BadFileError

SPLIT_SEED = 20210501  # fixes which images are held out


class OwnImages(Data):
    """Grey levels 0 ... 255 of images from one place; a fixed shuffled order parts them.

    Test and validation images are the first of that order.

    Args:
        path: where they are.
        shape: (C, H, W) of an image.
        held_out: number of images set aside for validation.
        tested: number of images set aside for the reported numbers.
        classes: number of classes; labels are 0 ... classes - 1. None for images without.
        transform: to model space; None is [-1, 1).
    """

    levels = 256

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        held_out: int = 1000,
        tested: int = 1000,
        classes: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        if len(shape) != 3 or min(shape) < 1 or held_out < 0 or tested < 1:
            raise ValueError(
                f"shape={list(shape)} must be (channels, height, width), held_out={held_out} not negative and "
                f"tested={tested} at least 1"
            )
        self.path = Path(path)
        self.shape = tuple(shape)
        self.held_out = held_out
        self.tested = tested
        self.classes = classes
        self.transform = to_symmetric_unit(self.levels) if transform is None else transform

    @abstractmethod
    def read(self) -> Split:
        """All images in the order of the files, with labels where ``classes`` asks for them."""

    @cached_property
    def _shuffled(self) -> Split:
        whole = self.read()
        if len(whole) <= self.held_out + self.tested:
            raise ValueError(
                f"{self.path} holds {len(whole)} images, and held_out={self.held_out} and tested={self.tested} leave "
                "none to train on"
            )
        return whole[torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(whole)))]

    def test(self) -> Split:
        return self._shuffled[: self.tested]

    def validation(self) -> Split:
        return self._shuffled[self.tested : self.tested + self.held_out]

    def train(self) -> Split:
        return self._shuffled[self.tested + self.held_out :]


class ArrayImages(OwnImages):
    """Images of one .npy file, or of an .npz file with ``images`` and, for classes, ``labels`` (N,).

    The array is uint8, (N, H, W, C) or (N, C, H, W). The arguments are those of `OwnImages`.
    """

    name = "array"

    def read(self) -> Split:
        images, labels = self._read()
        kept = None if labels is None else torch.from_numpy(labels).long()
        return Split(torch.from_numpy(np.ascontiguousarray(images)), kept)

    def _read(self) -> tuple[np.ndarray, np.ndarray | None]:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} is not there: expected a .npy or .npz file of images, or another path="
            )
        arrays = stored_arrays(self.path)
        found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in arrays.items())
        images, labels = arrays.get("images"), arrays.get("labels")
        channels, height, width = self.shape
        if images is not None and images.ndim == 4 and images.shape[1:] == (height, width, channels):
            images = images.transpose(0, 3, 1, 2)
        if images is None or images.dtype != np.uint8 or images.shape[1:] != self.shape:
            raise BadFileError(
                f"{self.path}: expected images uint8 (N, {height}, {width}, {channels}) or (N, {channels}, {height}, "
                f"{width}), found {found}"
            )
        if self.classes is None:
            return images, None
        if labels is None or labels.shape != images.shape[:1] or not np.isin(labels, np.arange(self.classes)).all():
            raise BadFileError(
                f"{self.path}: expected labels ({len(images)},) from 0 to {self.classes - 1}, found {found}"
            )
        return images, labels


class ImageFolder(OwnImages):
    """PNG and JPEG images below a folder or in a zip file, see `image_set`.

    Classes are those of ``dataset.json`` or of the folders, in alphabetical order. The arguments are those of
    `OwnImages`.
    """

    name = "folder"

    def read(self) -> Split:
        x, labels = image_set(self.path, self.shape)
        if self.classes is None:
            return Split(x)
        if labels is None or int(labels.max()) >= self.classes:
            found = "no labels" if labels is None else f"classes up to {int(labels.max())}"
            expected = f"expected classes from 0 to {self.classes - 1}, by dataset.json or a folder for each"
            raise BadFileError(f"{self.path}: {expected}, found {found}")
        return Split(x, labels)
