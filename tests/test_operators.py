"""Observations have orthonormal rows and their stated adjoint, and show what their names say."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.errors import BadFileError
from scorefield.operators import Averaging, Dense, Fourier, Grey, Inpainting, LinearOperator


def rotation(m, d):
    return torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0][:m]


OPERATORS: dict[str, LinearOperator] = {
    "rows": Inpainting.rows((1, 8, 6), 0.0, 0.5),
    "around": Inpainting.around((3, 6, 6), 0.4),
    "random": Inpainting.random((2, 5, 4), 0.3),
    "grey": Grey((3, 4, 4)),
    "two_channels": Grey((2, 3, 5)),
    "averaging": Averaging((3, 6, 4), 2),
    "averaging_3": Averaging((1, 6, 9), 3),
    "lowest": Fourier.lowest((1, 8, 6), 0.4),
    "lines": Fourier.lines((2, 9, 5), 3),
    "everything_but_one": Fourier((1, 4, 5), torch.ones(4, 5).bool()),
    "dense": Dense(rotation(3, 12), (3, 2, 2)),
}


@pytest.fixture(params=OPERATORS.values(), ids=OPERATORS.keys())
def operator(request):
    return request.param


def test_every_operator_is_covered():
    assert {type(o) for o in OPERATORS.values()} == set(LinearOperator.__subclasses__())


def test_rows_are_orthonormal(operator):
    """A A^T = I on random observations, and the matrix says the same."""
    y = operator.forward(torch.randn(4, *operator.shape))
    y = torch.randn_like(y)
    assert torch.allclose(operator.forward(operator.adjoint(y)), y, atol=1e-12)
    matrix = operator.matrix()
    assert torch.allclose(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-12)
    x = torch.randn(4, *operator.shape)
    assert torch.allclose(operator.forward(x).flatten(1), x.flatten(1) @ matrix.T, atol=1e-12)


def test_the_adjoint_is_the_adjoint(operator):
    x = torch.randn(3, *operator.shape)
    y = torch.randn_like(operator.forward(x))
    left = (operator.forward(x) * y).flatten(1).sum(1)
    assert torch.allclose(left, (x * operator.adjoint(y)).flatten(1).sum(1), atol=1e-12)


def test_what_is_observed_can_be_put_in_by_the_shortest_way(operator):
    """A (x + A^T (y - A x)) = y, and nothing orthogonal to the rows has moved."""
    x = torch.randn(2, *operator.shape)
    y = torch.randn_like(operator.forward(x))
    moved = x + operator.toward(x, y)
    assert torch.allclose(operator.forward(moved), y, atol=1e-12)
    rest = torch.eye(x[0].numel()) - operator.matrix().T @ operator.matrix()
    assert torch.allclose((moved - x).flatten(1) @ rest, torch.zeros(2, x[0].numel()), atol=1e-12)


def test_precision_is_the_inputs(operator):
    x = torch.randn(2, *operator.shape, dtype=torch.float32)
    y = operator.forward(x)
    assert y.dtype == operator.adjoint(y).dtype == torch.float32


def test_grey_is_the_mean_of_the_channels():
    x = torch.rand(2, 3, 4, 4)
    assert torch.allclose(Grey((3, 4, 4)).forward(x)[:, 0], math.sqrt(3) * x.mean(1))


def test_averaging_is_the_mean_of_blocks():
    x = torch.rand(1, 1, 4, 6)
    assert float(Averaging((1, 4, 6), 2).forward(x)[0, 0, 1, 2]) == pytest.approx(2 * float(x[0, 0, 2:, 4:].mean()))


def test_low_frequencies_are_a_projection_of_the_picture():
    """A^T A x by numpy: coefficients outside of the pass band put to zero."""
    x = np.random.default_rng(0).standard_normal((8, 6))
    band = (np.abs(np.fft.fftfreq(8)) <= 0.2)[:, None] & (np.abs(np.fft.fftfreq(6)) <= 0.2)
    expected = np.fft.ifft2(np.fft.fft2(x) * band).real
    operator = Fourier.lowest((1, 8, 6), 0.4)
    ours = operator.adjoint(operator.forward(torch.from_numpy(x)[None, None]))[0, 0]
    assert np.allclose(ours.numpy(), expected, atol=1e-13)
    assert len(operator.matrix()) == band.sum()  # as many real numbers as complex coefficients: half are conjugates


def test_all_frequencies_together_lose_nothing():
    operator = Fourier((1, 4, 5), torch.ones(4, 5).bool())
    x = torch.randn(2, 1, 4, 5)
    assert operator.forward(x).shape == (2, 1, 20)
    assert torch.allclose(operator.adjoint(operator.forward(x)), x, atol=1e-13)


def test_masks_hide_what_they_say():
    assert Inpainting.rows((2, 8, 3), 0.0, 0.5).mask[:, :, 0].tolist() == [[True] * 4 + [False] * 4] * 2
    assert int((~Inpainting.around((1, 8, 8), 0.5).mask).sum()) == 16
    random = Inpainting.random((3, 10, 10), 0.25, seed=3)
    assert int(random.mask[0].sum()) == 25
    assert (random.mask == random.mask[:1]).all()  # whole pixels
    assert torch.equal(random.mask, Inpainting.random((3, 10, 10), 0.25, seed=3).mask)
    assert not torch.equal(random.mask, Inpainting.random((3, 10, 10), 0.25, seed=4).mask)


def test_a_mask_may_be_painted(tmp_path):
    painted = np.zeros((4, 6), dtype=np.uint8)
    painted[1:3, 2:] = 255
    Image.fromarray(painted).save(tmp_path / "mask.png")
    mask = Inpainting.file((3, 4, 6), str(tmp_path / "mask.png")).mask
    assert torch.equal(mask, torch.from_numpy(painted > 0).expand(3, 4, 6))
    with pytest.raises(FileNotFoundError, match=r"nothing\.png does not exist"):
        Inpainting.file((1, 4, 6), str(tmp_path / "nothing.png"))
    with pytest.raises(BadFileError, match=r"expected a PNG or JPEG of 5x4 pixels in mode L, found 6x4"):
        Inpainting.file((1, 4, 5), str(tmp_path / "mask.png"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Inpainting(torch.ones(2, 2)), "boolean"),
        (lambda: Inpainting(torch.ones(2, 2).bool()), "observes 4 of 4"),
        (lambda: Inpainting(torch.zeros(2, 2).bool()), "observes 0 of 4"),
        (lambda: Inpainting.rows((1, 4, 4), 0.5, 0.5), "start=0.5 and stop=0.5"),
        (lambda: Inpainting.rows((2,)), "is of images"),
        (lambda: Inpainting.random((1, 4, 4), 1.0), r"part=1.0 must be a part"),
        (lambda: Grey((1, 4, 4)), "nothing is left to colour"),
        (lambda: Averaging((1, 5, 4), 2), "factor=2"),
        (lambda: Fourier((1, 4, 4), torch.zeros(4, 4).bool()), "true somewhere"),
        (lambda: Fourier.lines((1, 4, 4), 1), "every=1"),
        (lambda: Dense(torch.ones(1, 2)), "orthonormal rows"),
        (lambda: Dense(torch.eye(2), (3,)), r"shape=\[3\]"),
    ],
)
def test_impossible_observations_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
