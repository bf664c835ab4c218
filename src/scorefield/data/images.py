"""Images held in memory as one uint8 tensor of grey levels."""

import gzip
import tempfile
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from scorefield.data.base import Data, Split, stratified_order
from scorefield.data.transforms import to_symmetric_unit
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
    """

    classes = 10
    levels = 256

    def __init__(self, data_dir: str | Path, held_out: int = 5000, download: bool = False) -> None:
        if held_out < 0:
            raise ValueError(f"held_out={held_out} must not be negative")
        self.data_dir = Path(data_dir)
        self.held_out = held_out
        self.download = download
        self.transform = to_symmetric_unit(self.levels)

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
    """

    name = "mnist"
    folder = "MNIST"  # torchvision's name of the class and of its folder

    def __init__(self, data_dir: str | Path, held_out: int = 5000, download: bool = False, pad: int = 0) -> None:
        if pad < 0:
            raise ValueError(f"pad={pad} must not be negative")
        super().__init__(data_dir, held_out, download)
        self.pad = pad
        self.shape = (1, 28 + 2 * pad, 28 + 2 * pad)

    def read(self, train: bool) -> Split:
        declare_missing_operators()
        from torchvision.datasets.mnist import read_image_file, read_label_file

        part = "train" if train else "t10k"
        images = self._idx(f"{part}-images-idx3-ubyte", read_image_file)
        labels = self._idx(f"{part}-labels-idx1-ubyte", read_label_file)
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
        if path.suffix != ".gz":
            return parse(str(path))
        with tempfile.NamedTemporaryFile() as plain:  # the parser takes a path to an unpacked file
            plain.write(gzip.decompress(path.read_bytes()))
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
        return _class_folders(part, self.shape)

    def _batches(self, train: bool) -> Split:
        declare_missing_operators()
        from torchvision import datasets

        files = datasets.CIFAR10(self.data_dir, train=train, download=self.download)
        return Split(torch.from_numpy(files.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(files.targets))


def _class_folders(root: Path, shape: tuple[int, ...]) -> Split:
    """Images below one folder for each class, in a zip file or on disk; classes and files in alphabetical order."""
    files = sorted(_image_files(root), key=lambda item: item[0])
    names = sorted({name.split("/")[-2] for name, _ in files})
    if not files:
        raise FileNotFoundError(f"{root} holds no PNG or JPEG image inside a folder named after its class")
    x = torch.empty((len(files), *shape), dtype=torch.uint8)
    for row, (name, content) in zip(x, files, strict=True):
        image = torch.from_numpy(np.array(Image.open(BytesIO(content)).convert("RGB"))).permute(2, 0, 1)
        if image.shape != shape:
            raise ValueError(f"{name} in {root} has shape {tuple(image.shape)}, expected {shape}")
        row.copy_(image)
    return Split(x, torch.tensor([names.index(name.split("/")[-2]) for name, _ in files]))


def _image_files(root: Path) -> Iterator[tuple[str, bytes]]:
    """Path within the root, ``.../class/file``, and content of each image file."""
    suffixes = {".png", ".jpg", ".jpeg"}
    if root.is_dir():
        for path in root.rglob("*"):
            if path.suffix.lower() in suffixes and path.parent != root:
                yield path.relative_to(root).as_posix(), path.read_bytes()
        return
    with zipfile.ZipFile(root) as archive:
        for name in archive.namelist():
            if Path(name).suffix.lower() in suffixes and "/" in name:
                yield name, archive.read(name)
