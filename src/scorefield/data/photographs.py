"""Photographs that torchvision reads, cut out and brought to one size: CelebA and LSUN."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor

from scorefield.data.base import Data, Split
from scorefield.data.transforms import Transform, to_symmetric_unit
from scorefield.errors import BadFileError
from scorefield.torchvision_ops import declare_missing_operators

SPLIT_SEED = 20210501  # fixes which images of the training part are held out


def square(image: Image.Image, crop: int | None, resolution: int) -> Tensor:
    """The middle of a photograph, (3, resolution, resolution) uint8.

    Args:
        image: the photograph, of any mode.
        crop: side of the square that is cut out of its middle; None takes the shorter side.
        resolution: side of the result, by Pillow's box filter, which averages (no aliasing).
    """
    side = min(image.size) if crop is None else crop
    if side > min(image.size):
        raise BadFileError(f"an image of {image.width}x{image.height} pixels is smaller than crop={crop}")
    left, top = (image.width - side) // 2, (image.height - side) // 2
    part = image.convert("RGB").resize(
        (resolution, resolution), Image.Resampling.BOX, box=(left, top, left + side, top + side)
    )
    return torch.from_numpy(np.array(part)).permute(2, 0, 1)


class Photographs(Data):
    """Colour photographs of 256 grey levels, of which the first ``examples`` are read into memory.

    Args:
        data_dir: folder in torchvision's layout.
        resolution: side of an image in pixels.
        crop: side of the square that is cut out first; None takes the shorter side.
        examples: at most so many training images; None takes all.
        transform: to model space; None is [-1, 1).
    """

    levels = 256

    def __init__(
        self,
        data_dir: str | Path,
        resolution: int = 64,
        crop: int | None = None,
        examples: int | None = None,
        transform: Transform | None = None,
    ) -> None:
        for name, value, least in (("resolution", resolution, 1), ("crop", crop, 1), ("examples", examples, 1)):
            if value is not None and value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        self.data_dir, self.resolution, self.crop, self.examples = Path(data_dir), resolution, crop, examples
        self.shape = (3, resolution, resolution)
        self.transform = to_symmetric_unit(self.levels) if transform is None else transform

    @abstractmethod
    def images(self, part: str) -> Sequence[Any]:
        """torchvision's data set of a part, "train", "valid" or "test": pairs of an image and something else."""

    def _part(self, part: str) -> Tensor:
        source = self.images(part)
        n = len(source) if self.examples is None else min(len(source), self.examples)
        x = torch.empty((n, *self.shape), dtype=torch.uint8)
        for i in track(range(n), description=f"{self.name}, {part}", transient=True, disable=n < 1000):
            try:
                x[i] = square(source[i][0], self.crop, self.resolution)
            except Exception as error:  # decoders answer damage with many kinds of error
                raise BadFileError(f"image {i} of {self.name}, {part}, in {self.data_dir}: {error}") from error
        return x


class CelebA(Photographs):
    """202,599 aligned faces (Liu et al. 2015) with the published split, read by torchvision.

    ``data_dir/celeba`` holds ``img_align_celeba`` and the lists, as torchvision.datasets.CelebA wants them. NCSN and
    the score SDEs cut out the middle 140 pixels.
    """

    name = "celeba"

    def images(self, part: str) -> Sequence[Any]:
        declare_missing_operators()
        from torchvision import datasets

        try:
            found: Sequence[Any] = datasets.CelebA(str(self.data_dir), split=part)
        except (RuntimeError, OSError) as error:
            raise FileNotFoundError(
                f"data_dir={self.data_dir} holds no celeba folder as torchvision.datasets.CelebA wants it "
                f"({str(error).splitlines()[0]}); put img_align_celeba and the lists of the data set there"
            ) from error
        return found

    @cached_property
    def _train(self) -> Split:
        return Split(self._part("train"))

    @cached_property
    def _validation(self) -> Split:
        return Split(self._part("valid"))

    @cached_property
    def _test(self) -> Split:
        return Split(self._part("test"))

    def train(self) -> Split:
        return self._train

    def validation(self) -> Split:
        return self._validation

    def test(self) -> Split:
        return self._test


class LSUN(Photographs):
    """Scenes and objects of one category (Yu et al. 2015), read by torchvision from its LMDB files.

    ``data_dir`` holds ``<category>_train_lmdb`` and ``<category>_val_lmdb``; the package lmdb must be installed. The
    images for validation come from the training part, those of the test are the published 300 of validation.

    Args:
        data_dir: the folder.
        category: the category, as "church_outdoor" or "bedroom".
        resolution: side of an image in pixels.
        examples: at most so many training images; None takes all, which a category of millions does not fit.
        held_out: number of training images set aside for validation.
        transform: to model space; None is [-1, 1).
    """

    name = "lsun"

    def __init__(
        self,
        data_dir: str | Path,
        category: str,
        resolution: int = 64,
        examples: int | None = None,
        held_out: int = 1000,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(data_dir, resolution, None, examples, transform)
        if held_out < 0:
            raise ValueError(f"held_out={held_out} must not be negative")
        self.category, self.held_out = category, held_out

    def images(self, part: str) -> Sequence[Any]:
        declare_missing_operators()
        from torchvision import datasets

        folder = self.data_dir / f"{self.category}_{'train' if part == 'train' else 'val'}_lmdb"
        if not (folder / "data.mdb").is_file():
            raise FileNotFoundError(
                f"data_dir={self.data_dir}: {folder.name} in it is no LMDB folder of LSUN; unpack its zip file there"
            )
        try:
            found: Sequence[Any] = datasets.LSUN(str(self.data_dir), classes=[folder.name.removesuffix("_lmdb")])
        except ModuleNotFoundError as error:
            raise FileNotFoundError(f"LSUN is read by the package lmdb, which is not installed: {error}") from error
        return found

    @cached_property
    def _shuffled(self) -> Split:
        x = self._part("train")
        if len(x) <= self.held_out:
            raise ValueError(f"held_out={self.held_out} leaves none of {len(x)} training images of {self.category}")
        return Split(x)[torch.from_numpy(np.random.default_rng(SPLIT_SEED).permutation(len(x)))]

    @cached_property
    def _test(self) -> Split:
        return Split(self._part("val"))

    def train(self) -> Split:
        return self._shuffled[self.held_out :]

    def validation(self) -> Split:
        return self._shuffled[: self.held_out]

    def test(self) -> Split:
        return self._test
