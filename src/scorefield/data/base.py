"""What a data set is: fixed splits in data space, and the way to model space and back."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from scorefield.data.transforms import Transform, dequantise, from_uint8, quantise, to_uint8
from scorefield.noise import Noise


@dataclass(frozen=True)
class Split:
    """One part of a data set, in memory.

    Args:
        x: examples in data space, (N, *event): uint8 levels for images, float32 otherwise.
        labels: classes, (N,) int64, or None.
    """

    x: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        if self.labels is not None and len(self.labels) != len(self.x):
            raise ValueError(f"labels has {len(self.labels)} entries for {len(self.x)} examples")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Tensor | slice) -> "Split":
        return Split(self.x[index], None if self.labels is None else self.labels[index])

    def to(self, device: torch.device | str) -> "Split":
        """The same examples on another device."""
        return Split(self.x.to(device), None if self.labels is None else self.labels.to(device))

    def checksum(self) -> str:
        """SHA-256 of the examples and labels: equal for equal content in equal order."""
        digest = sha256(f"{tuple(self.x.shape)} {self.x.dtype}".encode())
        for part in (self.x, self.labels):
            if part is not None:
                digest.update(part.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


class Data(ABC):
    """A data set with fixed splits.

    Attributes:
        name: what records call it.
        shape: shape of one example.
        classes: number of classes, or None where there are no labels.
        levels: number of grey levels of integer data, or None for continuous data.
        has_density: whether the law of the data, dequantised where they are integers, has a density.
        transform: data space to model space.
    """

    name: str
    shape: tuple[int, ...]
    classes: int | None = None
    levels: int | None = None
    has_density: bool = True
    transform: Transform

    @abstractmethod
    def train(self) -> Split:
        """Examples for training."""

    @abstractmethod
    def validation(self) -> Split:
        """Examples for choices made during development; never part of the test split."""

    @abstractmethod
    def test(self) -> Split:
        """Examples for the reported numbers."""

    def to_model(self, x: Tensor, noise: Noise) -> Tensor:
        """Examples of a split to model space; integer levels are dequantised uniformly."""
        return self.transform.forward(self.continuous(x, noise))

    def continuous(self, x: Tensor, noise: Noise) -> Tensor:
        """Examples of a split in continuous data space: levels k become k + u, continuous data stay as they are."""
        x = x.to(torch.get_default_dtype()) if not x.is_floating_point() else x
        return x if self.levels is None else dequantise(x, noise.uniform_like(x))

    def from_model(self, y: Tensor) -> Tensor:
        """Model space to what a split holds: uint8 levels for integer data, floats otherwise."""
        x = self.transform.inverse(y)
        return x if self.levels is None else self.quantise(x)

    def quantise(self, x: Tensor) -> Tensor:
        """Data space to integer levels, uint8."""
        return quantise(x, self._levels())

    def display(self, x: Tensor) -> Tensor:
        """Levels (or values in continuous data space) to pixels a person can look at, uint8 in 0..255."""
        return to_uint8(self.quantise(x).float() / (self._levels() - 1))

    def from_pixels(self, pixels: Tensor) -> Tensor:
        """Pixels of a picture, uint8 in 0..255, to the nearest grey levels: the inverse of `display`."""
        return from_uint8(pixels, self._levels())

    def observable(self, x: Tensor) -> Tensor:
        """Examples of a split to model space without randomness: a grey level to the middle of its interval."""
        middle = x.to(torch.get_default_dtype()) + (0.0 if self.levels is None else 0.5)
        return self.transform.forward(middle)

    def _levels(self) -> int:
        if self.levels is None:
            raise TypeError(f"{self.name} holds continuous data: it has no grey levels to quantise to or to display")
        return self.levels


def stratified_order(labels: Tensor, permutation: Tensor) -> Tensor:
    """An order in which every run of examples from the start holds the classes in their overall proportion.

    The j-th of the n_c examples of class c, in the order of ``permutation``, is placed at (j + 1/2) / n_c; sorting by
    that place leaves each class within one example of its share in every prefix.

    Args:
        labels: classes, (N,).
        permutation: a random order of range(N).
    """
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in labels.unique():
        members = permutation[labels[permutation] == label]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return permutation[place[permutation].argsort(stable=True)]
