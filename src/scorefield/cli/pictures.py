"""Pictures that a command is given, and what is observed of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scorefield.cli.runs import make
from scorefield.data import Data
from scorefield.data.files import pictures
from scorefield.errors import UserError
from scorefield.noise import IndexedNoise
from scorefield.operators import LinearOperator


def complete(node: Mapping[str, Any], **parts: Any) -> Any:
    """Build what a partial node describes from the parts that only the command has; refusals are the user's to mend."""
    try:
        return make(node)(**parts)
    except ValueError as error:
        raise UserError(f"{node['_target_']}: {error}") from error


@dataclass(frozen=True)
class Given:
    """Pictures from files or from the test split.

    Args:
        names: of the files, or places in the split.
        x: what they hold in the data's own values, (J, *shape).
        labels: their classes (J,), where they are known.
    """

    names: list[str]
    x: Tensor
    labels: Tensor | None = None

    @classmethod
    def read(cls, asked: Mapping[str, Any], data: Data) -> "Given":
        """What ``images`` or ``examples`` ask for.

        Raises:
            UserError: neither or both were given, or the data are no pictures.
            FileNotFoundError, BadFileError: a file is missing, or no picture of this size and mode.
        """
        images, examples = asked["images"], asked["examples"]
        if (images is None) == (examples is None):
            raise UserError("give either images=FILE_OR_FOLDER or examples=NUMBER, the first so many of the test split")
        if images is not None:
            if data.levels is None or len(data.shape) != 3:
                raise UserError(f"images={images} was given, but {data.name} holds no pictures; use examples=NUMBER")
            names, pixels = pictures(Path(images), data.shape)
            return cls(names, data.from_pixels(pixels))
        split = data.test()
        if not 1 <= examples <= len(split):
            raise UserError(f"examples={examples} must be between 1 and {len(split)}, the test split of {data.name}")
        some = split[slice(examples)]
        return cls([f"test {i}" for i in range(examples)], some.x, some.labels)


@dataclass(frozen=True)
class Observation:
    """An observation y = A x + std n of each picture, in model space.

    Args:
        given: the pictures.
        operator: A.
        y: (J, *observed).
    """

    given: Given
    operator: LinearOperator
    y: Tensor

    @classmethod
    def made(cls, asked: Mapping[str, Any], data: Data) -> "Observation":
        """What the configuration observes; the noise of picture j depends on (seed, j) alone."""
        given = Given.read(asked, data)
        operator = complete(asked["observation"], shape=data.shape)
        y = operator.forward(data.observable(given.x))
        noise = IndexedNoise(asked["seed"], "observation", range(len(y))).normal_like(y)
        return cls(given, operator, y + asked["std"] * noise)

    def shown(self, data: Data) -> Tensor:
        """The observation as a picture: A^T y, the shortest x that explains it, in the data's own values."""
        return data.from_model(self.operator.adjoint(self.y))


def spread(data: Data, samples: Tensor) -> Tensor:
    """Deviation of samples (J, n, *shape) as pixels (J, *shape): black is none, white half of the range of grey."""
    bright = torch.stack([data.display(row) for row in samples]).float() / 255
    return (2 * bright.std(1) * 255).clamp(max=255).round().to(torch.uint8)
