"""What is seen of a sample: linear observations y = A x whose rows are orthonormal, A A^T = I.

Then A^T A is the orthogonal projection onto what is observed, A^T y is the shortest x that explains y, and the noise of
x_t shows up in A x_t as independent noise of the same size. A constraint replaces the observed part of a sample, and a
posterior score takes (r^2 A A^T + std^2 I)^-1 by one division.

Operators work on batches: x is (B, *shape) and y is (B, *observed).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scorefield.data.files import read_mask
from scorefield.noise import StreamNoise


class LinearOperator(ABC):
    """An observation y = A x with A A^T = I.

    Args:
        shape: shape of one x.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = tuple(int(n) for n in shape)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x: (B, *shape) -> (B, *observed)."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A^T y: (B, *observed) -> (B, *shape)."""

    def toward(self, x: Tensor, y: Tensor) -> Tensor:
        """A^T (y - A x): what has to be added to x so that A x is y, (B, *shape)."""
        return self.adjoint(y - self.forward(x))

    def matrix(self) -> Tensor:
        """A as an (m, d) matrix on the flattened x, float64."""
        basis = torch.eye(math.prod(self.shape), dtype=torch.float64).reshape(-1, *self.shape)
        return self.forward(basis).flatten(1).T

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={list(self.shape)})"


class Inpainting(LinearOperator):
    """Some entries of x, as they are.

    Args:
        mask: true where x is observed, boolean, shaped like one x; neither nothing nor everything.
    """

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape)
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be boolean, true where x is observed, got {mask.dtype}")
        if not mask.any() or mask.all():
            raise ValueError(f"mask observes {int(mask.sum())} of {mask.numel()} entries: nothing, or nothing is left")
        self.mask = mask

    @classmethod
    def rows(cls, shape: Sequence[int], start: float = 0.0, stop: float = 0.5) -> "Inpainting":
        """Some rows of an image.

        Args:
            shape: (C, H, W).
            start: first observed row, as a part of the height in [0, 1).
            stop: end of the observed rows, likewise, above ``start``.
        """
        _image_shape(shape)
        if not 0 <= start < stop <= 1:
            raise ValueError(f"start={start} and stop={stop} must be parts of the height with 0 <= start < stop <= 1")
        mask = torch.zeros(*shape, dtype=torch.bool)
        mask[:, round(start * shape[1]) : round(stop * shape[1])] = True
        return cls(mask)

    @classmethod
    def around(cls, shape: Sequence[int], part: float = 0.5) -> "Inpainting":
        """All of an image but a rectangle in its middle.

        Args:
            shape: (C, H, W).
            part: height and width of the hidden rectangle as parts of the image's, in (0, 1).
        """
        _image_shape(shape)
        _part("part", part)
        height, width = (max(1, round(part * n)) for n in shape[1:])
        top, left = (shape[1] - height) // 2, (shape[2] - width) // 2
        mask = torch.ones(*shape, dtype=torch.bool)
        mask[:, top : top + height, left : left + width] = False
        return cls(mask)

    @classmethod
    def random(cls, shape: Sequence[int], part: float = 0.25, seed: int = 0) -> "Inpainting":
        """Pixels at random, each with all its channels; the same ones for the same seed.

        Args:
            shape: (C, H, W).
            part: part of the pixels that is observed, in (0, 1).
            seed: which ones.
        """
        _image_shape(shape)
        _part("part", part)
        pixels = shape[1] * shape[2]
        seen = StreamNoise(seed, "mask").permutation(pixels)[: max(1, round(part * pixels))]
        mask = torch.zeros(pixels, dtype=torch.bool)
        mask[seen] = True
        return cls(mask.reshape(1, *shape[1:]).expand(*shape).contiguous())

    @classmethod
    def file(cls, shape: Sequence[int], path: str) -> "Inpainting":
        """What is white in a picture of the image's size.

        Args:
            shape: (C, H, W).
            path: PNG or JPEG; brighter than half is observed.
        """
        _image_shape(shape)
        return cls(read_mask(Path(path), (shape[1], shape[2])).expand(*shape).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.mask.to(x.device)]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), *self.shape)
        x[:, self.mask.to(y.device)] = y
        return x


class Grey(LinearOperator):
    """The grey axis of colours: y = (r + g + b) / sqrt 3, the first coordinate of an orthonormal basis of the colours.

    Its complement is what colourisation fills in (Song et al. 2021, section 5 and appendix I.3).

    Args:
        shape: (C, H, W), C >= 2.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__(shape)
        _image_shape(shape)
        if shape[0] < 2:
            raise ValueError(f"shape={list(shape)} has {shape[0]} channel: nothing is left to colour")

    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1, keepdim=True) / math.sqrt(self.shape[0])

    def adjoint(self, y: Tensor) -> Tensor:
        return y.expand(-1, self.shape[0], -1, -1) / math.sqrt(self.shape[0])


class Averaging(LinearOperator):
    """Blocks of factor x factor pixels, y = their sum / factor: factor times their mean, which has orthonormal rows.

    Args:
        shape: (C, H, W), height and width divisible by ``factor``.
        factor: side of a block, >= 2.
    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        super().__init__(shape)
        _image_shape(shape)
        if factor < 2 or shape[1] % factor or shape[2] % factor:
            raise ValueError(f"factor={factor} must be at least 2 and divide height and width of shape={list(shape)}")
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(x, self.factor) * self.factor

    def adjoint(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3) / self.factor


class Fourier(LinearOperator):
    """Some frequencies of the unitary discrete Fourier transform of an image, each channel by itself.

    A real image has conjugate coefficients at opposite frequencies. One of each pair is kept, as sqrt 2 times its real
    and imaginary part; the frequencies that are their own opposite are real already. So y is real, and the rows are
    orthonormal.

    Args:
        shape: (C, H, W).
        frequencies: true where a frequency is observed, boolean (H, W) in the order of `torch.fft.fft2`; its opposite
            is then observed as well.
    """

    def __init__(self, shape: Sequence[int], frequencies: Tensor) -> None:
        super().__init__(shape)
        _image_shape(shape)
        height, width = self.shape[1:]
        if frequencies.shape != (height, width) or frequencies.dtype != torch.bool or not frequencies.any():
            raise ValueError(
                f"frequencies must be boolean ({height}, {width}), true somewhere, got {frequencies.dtype} "
                f"{tuple(frequencies.shape)}"
            )
        index = torch.arange(height * width).reshape(height, width)
        opposite = index[-torch.arange(height) % height][:, -torch.arange(width) % width].flatten()
        index = index.flatten()
        seen = frequencies.flatten()
        seen = seen | seen[opposite]
        self._alone = index[seen & (index == opposite)]
        self._first = index[seen & (index < opposite)]
        self._second = opposite[self._first]

    @classmethod
    def lowest(cls, shape: Sequence[int], part: float = 0.25) -> "Fourier":
        """The lowest frequencies: an ideal low-pass filter.

        Args:
            shape: (C, H, W).
            part: how far they reach, in each direction, as a part of the highest frequency, in (0, 1).
        """
        _image_shape(shape)
        _part("part", part)
        rows, columns = (torch.fft.fftfreq(n).abs() <= part / 2 for n in shape[1:])
        return cls(shape, rows[:, None] & columns)

    @classmethod
    def lines(cls, shape: Sequence[int], every: int = 4, centre: float = 0.1) -> "Fourier":
        """Every so many lines of frequencies and all in the middle, as magnetic resonance is accelerated.

        Args:
            shape: (C, H, W).
            every: distance of the lines, >= 2.
            centre: part of the lowest lines that is observed fully, in (0, 1).
        """
        _image_shape(shape)
        _part("centre", centre)
        if every < 2:
            raise ValueError(f"every={every} must be at least 2: 1 is everything")
        k = torch.fft.fftfreq(shape[1])
        rows = (torch.arange(shape[1]) % every == 0) | (k.abs() <= centre / 2)
        return cls(shape, rows[:, None].expand(-1, shape[2]).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        coefficients = torch.fft.fft2(x, norm="ortho").flatten(2)
        alone, pairs = coefficients[..., self._alone.to(x.device)], coefficients[..., self._first.to(x.device)]
        return torch.cat([alone.real, math.sqrt(2) * pairs.real, math.sqrt(2) * pairs.imag], 2)

    def adjoint(self, y: Tensor) -> Tensor:
        alone, real, imaginary = y.split([len(self._alone), len(self._first), len(self._first)], 2)
        pairs = torch.complex(real.contiguous(), imaginary.contiguous()) / math.sqrt(2)
        coefficients = pairs.new_zeros(len(y), self.shape[0], math.prod(self.shape[1:]))
        coefficients[..., self._alone.to(y.device)] = alone.to(coefficients.dtype)
        coefficients[..., self._first.to(y.device)] = pairs
        coefficients[..., self._second.to(y.device)] = pairs.conj()
        return torch.fft.ifft2(coefficients.unflatten(2, self.shape[1:]), norm="ortho").real


class Dense(LinearOperator):
    """y = A x for a matrix that acts on the flattened x.

    Args:
        matrix: A, (m, d) with orthonormal rows.
        shape: shape of one x with d entries; None takes (d,).
    """

    def __init__(self, matrix: Tensor, shape: Sequence[int] | None = None) -> None:
        super().__init__((matrix.shape[1],) if shape is None else shape)
        gram = matrix @ matrix.T
        if math.prod(self.shape) != matrix.shape[1] or not torch.allclose(
            gram, torch.eye(len(matrix)).to(gram), atol=1e-5
        ):
            raise ValueError(
                f"matrix {tuple(matrix.shape)} must act on shape={list(self.shape)} and have orthonormal rows; of a "
                "matrix U S V^T observe V^T x, with noise of std / S"
            )
        self._matrix = matrix

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self._matrix.T.to(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self._matrix.to(y)).reshape(len(y), *self.shape)


def _image_shape(shape: Sequence[int]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={list(shape)} must be (channels, height, width): this observation is of images")


def _part(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name}={value} must be a part, in (0, 1)")
