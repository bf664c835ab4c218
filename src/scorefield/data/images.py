"""Images held in memory as one uint8 tensor of grey levels."""

import tempfile
from abc import abstractmethod
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scorefield.data.base import Data, Split, stratified_order
from scorefield.data.files import class_folders, idx_content
from scorefield.data.transforms import Transform, to_symmetric_unit
from scorefield.errors import BadFileError
from scorefield.torchvision_ops import declare_missing_operators

SPLIT_SEED = 20210501  # fixes which examples are held out; changing it makes every recorded number another one


def _held_out_order(labels: Tensor) -> Tensor:
    """The fixed stratified order whose first examples are held out."""
    permutation = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    return stratified_order(labels, torch.from_numpy(permutation))


class Digits(Data):
    """The 8x8 handwritten digits that come with scikit-learn: 1797 images of 17 grey levels, ten classes.

    Split 1347 / 150 / 300 into training, validation and test, stratified by class.
    """

    name = "digits"
    shape = (1, 8, 8)
    classes = 10
    levels = 17

    def __init__(self) -> None:
        self.transform = to_symmetric_unit(self.levels)

    @cached_property
    def _shuffled(self) -> Split:
        from sklearn.datasets import load_digits  # a slow import that other data sets do not need

        images, labels = load_digits(return_X_y=True)
        split = Split(torch.from_numpy(images).to(torch.uint8).view(-1, *self.shape), torch.from_numpy(labels).long())
        assert split.labels is not None
        return split[_held_out_order(split.labels)]

    def test(self) -> Split:
        return self._shuffled[:300]

    def validation(self) -> Split:
        return self._shuffled[300:450]

    def train(self) -> Split:
        return self._shuffled[450:]


class TwoFiles(Data):
    """Images that come as a training and a test part; validation is carved from the training part.

    Args:
        data_dir: folder that holds the files.
        held_out: number of training images set aside for validation, the first of a fixed stratified order.
        download: let torchvision fetch missing files into ``data_dir``.
        transform: to model space; None is [-1, 1).
    """

    classes = 10
    levels = 256

    def __init__(
        self,
        data_dir: str | Path,
        held_out: int = 5000,
        download: bool = False,
        transform: Transform | None = None,
    ) -> None:
        if held_out < 0:
            raise ValueError(f"held_out={held_out} must not be negative")
        self.data_dir = Path(data_dir)
        self.held_out = held_out
        self.download = download
        self.transform = to_symmetric_unit(self.levels) if transform is None else transform

    @abstractmethod
    def read(self, train: bool) -> Split:
        """All examples of one part, in the order of the files."""

    @cached_property
    def _shuffled(self) -> Split:
        whole = self.read(train=True)
        assert whole.labels is not None
        if self.held_out >= len(whole):
            raise ValueError(f"held_out={self.held_out} leaves nothing of the {len(whole)} training images to train on")
        return whole[_held_out_order(whole.labels)]

    @cached_property
    def _test(self) -> Split:
        return self.read(train=False)

    def train(self) -> Split:
        return self._shuffled[self.held_out :]

    def validation(self) -> Split:
        return self._shuffled[: self.held_out]

    def test(self) -> Split:
        return self._test


class MNIST(TwoFiles):
    """Handwritten digits, 60,000 + 10,000 grey 28x28 images (LeCun et al. 1998).

    Reads the four idx files, gzipped or not, from ``data_dir`` itself or from ``data_dir/MNIST/raw``, where torchvision
    puts them.

    Args:
        data_dir: folder that holds the files.
        held_out: number of training images set aside for validation.
        download: let torchvision fetch missing files into ``data_dir``.
        pad: black pixels added on every side; 2 gives 32x32.
        transform: to model space; None is [-1, 1).
    """

    name = "mnist"
    folder = "MNIST"  # torchvision's name of the class and of its folder
    raw_shape = (28, 28)

    def __init__(
        self,
        data_dir: str | Path,
        held_out: int = 5000,
        download: bool = False,
        pad: int = 0,
        transform: Transform | None = None,
    ) -> None:
        if pad < 0:
            raise ValueError(f"pad={pad} must not be negative")
        super().__init__(data_dir, held_out, download, transform)
        self.pad = pad
        self.shape = (1, 28 + 2 * pad, 28 + 2 * pad)

    def read(self, train: bool) -> Split:
        declare_missing_operators()
        from torchvision.datasets.mnist import read_image_file, read_label_file

        part = "train" if train else "t10k"
        images = self._idx(f"{part}-images-idx3-ubyte", read_image_file)
        labels = self._idx(f"{part}-labels-idx1-ubyte", read_label_file)
        if len(images) != len(labels) or int(labels.max()) >= self.classes:
            raise BadFileError(
                f"{self._find(f'{part}-labels-idx1-ubyte')}: expected {len(images)} labels below {self.classes}, found "
                f"{len(labels)} up to {int(labels.max())}"
            )
        return Split(F.pad(images, (self.pad,) * 4)[:, None], labels)

    def _idx(self, name: str, parse: Callable[[str], Tensor]) -> Tensor:
        path = self._find(name)
        if path is None and self.download:
            from torchvision import datasets

            getattr(datasets, self.folder)(self.data_dir, download=True)
            path = self._find(name)
        if path is None:
            raise FileNotFoundError(
                f"{name} or {name}.gz is neither in data_dir={self.data_dir} nor in {self._folders()[1]}; "
                "put the four idx files there or pass download=True"
            )
        with tempfile.NamedTemporaryFile() as plain:  # the parser takes a path to an unpacked file
            plain.write(idx_content(path, self.raw_shape if "idx3" in name else ()))
            plain.flush()
            return parse(plain.name)

    def _folders(self) -> tuple[Path, Path]:
        return self.data_dir, self.data_dir / self.folder / "raw"

    def _find(self, name: str) -> Path | None:
        paths = (folder / file for folder in self._folders() for file in (name, f"{name}.gz"))
        return next((path for path in paths if path.is_file()), None)


class FashionMNIST(MNIST):
    """Articles of clothing, 60,000 + 10,000 grey 28x28 images in the layout of MNIST (Xiao et al. 2017).

    Reads from ``data_dir`` itself or from ``data_dir/FashionMNIST/raw``; the arguments are those of `MNIST`.
    """

    name = "fashion_mnist"
    folder = "FashionMNIST"


class CIFAR10(TwoFiles):
    """Ten classes of objects, 50,000 + 10,000 colour 32x32 images (Krizhevsky 2009).

    Reads torchvision's python batches (``data_dir/cifar-10-batches-py``) or, without those, ``train`` and ``test``: zip
    files or folders that hold one folder of PNG or JPEG images for each class. JPEG images are other images: numbers
    obtained with them compare with each other only, and `source` says so.
    """

    name = "cifar10"
    shape = (3, 32, 32)

    @property
    def source(self) -> str:
        """Where the images are read from: ``"batches"``, ``"train.zip"`` or ``"train"``."""
        if (self.data_dir / "cifar-10-batches-py").is_dir() or self.download:
            return "batches"
        for name in ("train.zip", "train"):
            if (self.data_dir / name).exists():
                return name
        raise FileNotFoundError(
            f"data_dir={self.data_dir} holds neither cifar-10-batches-py nor train.zip and test.zip nor the folders "
            "train and test with one folder of images for each class; put one of these there or pass download=True"
        )

    def read(self, train: bool) -> Split:
        source = self.source
        if source == "batches":
            return self._batches(train)
        part = self.data_dir / (source if train else source.replace("train", "test"))
        if not part.exists():
            raise FileNotFoundError(f"{part} is missing beside {source}")
        return Split(*class_folders(part, self.shape))

    def _batches(self, train: bool) -> Split:
        declare_missing_operators()
        from torchvision import datasets

        try:  # the files are pickles: torchvision opens them only if they are the published ones, by their checksums
            files = datasets.CIFAR10(self.data_dir, train=train, download=self.download)
        except Exception as error:
            raise BadFileError(
                f"{self.data_dir / 'cifar-10-batches-py'} does not hold the published batches ({error})"
            ) from error
        return Split(torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(files.targets))
