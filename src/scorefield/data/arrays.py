"""Images of your own, from one file of NumPy."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from scorefield.data.base import Data, Split
from scorefield.data.transforms import Transform, to_symmetric_unit
from scorefield.errors import BadFileError

SPLIT_SEED = 20210501  # fixes which images are held out


class ArrayImages(Data):
    """Grey levels 0 ... 255 of images, in a .npy file or as the only array of an .npz file.

    The array is uint8, (N, H, W, C) or (N, C, H, W). Test and validation images are the first of a fixed shuffled
    order.

    Args:
        path: the file.
        shape: (C, H, W) of an image.
        held_out: number of images set aside for validation.
        tested: number of images set aside for the reported numbers.
        transform: to model space; None is [-1, 1).
    """

    name = "array"
    levels = 256

    def __init__(
        self,
        path: str | Path,
        shape: Sequence[int],
        held_out: int = 1000,
        tested: int = 1000,
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
        self.transform = to_symmetric_unit(self.levels) if transform is None else transform

    @cached_property
    def _shuffled(self) -> Split:
        images = self._read()
        if len(images) < self.held_out + self.tested:
            raise ValueError(
                f"{self.path} holds {len(images)} images, fewer than held_out={self.held_out} and tested={self.tested}"
            )
        order = np.random.default_rng(SPLIT_SEED).permutation(len(images))
        return Split(torch.from_numpy(np.ascontiguousarray(images[order])))

    def _read(self) -> np.ndarray:
        if not self.path.is_file():
            raise FileNotFoundError(
                f"{self.path} is not there: expected a .npy or .npz file of images, or another path="
            )
        try:
            content = np.load(self.path, allow_pickle=False)
            arrays = [content] if isinstance(content, np.ndarray) else [content[name] for name in content.files]
        except Exception as error:  # the reader answers damage in many ways
            raise BadFileError(f"{self.path} is no file of NumPy, or damaged: {error}") from error
        channels, height, width = self.shape
        if len(arrays) == 1 and arrays[0].dtype == np.uint8 and arrays[0].ndim == 4:
            if arrays[0].shape[1:] == self.shape:
                return arrays[0]
            if arrays[0].shape[1:] == (height, width, channels):
                return arrays[0].transpose(0, 3, 1, 2)
        found = ", ".join(f"{array.dtype} {array.shape}" for array in arrays)
        raise BadFileError(
            f"{self.path}: expected one uint8 array (N, {height}, {width}, {channels}) or (N, {channels}, {height}, "
            f"{width}), found {found}"
        )

    def test(self) -> Split:
        return self._shuffled[: self.tested]

    def validation(self) -> Split:
        return self._shuffled[self.tested : self.tested + self.held_out]

    def train(self) -> Split:
        return self._shuffled[self.tested + self.held_out :]
