import itertools
import math

import pytest
import torch

from scorefield.data.base import Data
from scorefield.data.images import Digits
from scorefield.data.transforms import (
    Affine,
    Compose,
    Identity,
    Logit,
    Transform,
    dequantise,
    quantise,
    to_symmetric_unit,
    to_uint8,
    to_unit,
)
from scorefield.metrics.bits_per_dim import bits_per_dim
from scorefield.noise import IndexedNoise, StreamNoise


class Cubic(Transform):
    """y = x^3, whose determinant depends on the point."""

    def __repr__(self):
        return "Cubic()"

    def forward(self, x):
        return x**3

    def inverse(self, y):
        return y.sign() * y.abs() ** (1 / 3)

    def log_abs_det(self, x):
        return (3 * x.square()).log().flatten(1).sum(1)


TRANSFORMS = [
    Identity(),
    Affine(shift=8.5, scale=8.5),
    Affine(shift=-1.0, scale=-0.3),
    Compose((Affine(0.3, 2.0), Cubic(), Affine(1.0, 3.0))),
    Compose((Affine(1.0, 3.0), Affine(-2.0, 0.25), Identity())),
    to_symmetric_unit(17),
    to_symmetric_unit(256),
    to_unit(256),
    Compose((Affine(-40.0, 400.0), Logit(0.01))),
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("event", [(2,), (1, 2, 3)])
def test_log_abs_det_is_the_jacobians(transform, event):
    x = torch.randn(3, *event, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    d = math.prod(event)
    for b in range(len(x)):
        jacobian = torch.func.jacrev(lambda v: transform.forward(v[None])[0])(x[b]).reshape(d, d)
        expected = torch.linalg.slogdet(jacobian).logabsdet
        # float64 sums of six logarithms
        assert float(transform.log_abs_det(x)[b]) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_inverse_undoes_forward(transform):
    x = torch.linspace(-30, 300, 101, dtype=torch.float64)[:, None]
    # a few roundings of numbers up to 300 / 0.25; a cube's root loses its digits at zero
    assert torch.allclose(transform.inverse(transform.forward(x)), x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_uniform_density_over_the_cube_takes_log2_of_the_levels(levels):
    """A model that is uniform on [-1, 1]^d knows nothing: it must pay log2 L bits for each of L equal levels."""
    transform = to_symmetric_unit(levels)
    x = torch.rand(5, 3, 4, 4, dtype=torch.float64) * levels
    log_model = torch.full((5,), -48 * math.log(2.0), dtype=torch.float64)
    bits = bits_per_dim(log_model + transform.log_abs_det(x), 48)
    assert bits.tolist() == pytest.approx([math.log2(levels)] * 5, abs=1e-12)  # rounding of float64 sums


def test_model_space_is_the_symmetric_interval():
    y = to_symmetric_unit(17).forward(torch.tensor([[0.0], [17.0]]))
    assert y.flatten().tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(("levels", "dtype"), list(itertools.product([2, 17, 256], [torch.float32, torch.float64])))
def test_quantise_undoes_dequantise(levels, dtype):
    k = torch.arange(levels, dtype=torch.uint8).repeat(1000)
    u = torch.rand(len(k), dtype=dtype, generator=torch.Generator().manual_seed(1))
    assert torch.equal(quantise(dequantise(k, u), levels), k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_noise_stays_on_its_level(dtype):
    """k + u rounds to k + 1 for u just below one; the draw must not change the picture."""
    k = torch.arange(256, dtype=torch.uint8)
    largest = torch.nextafter(torch.ones(256, dtype=dtype), torch.zeros(256, dtype=dtype))
    assert torch.equal(quantise(dequantise(k, largest), 256), k)


def test_dequantisation_is_uniform_within_the_level():
    u = dequantise(torch.full((20000,), 7, dtype=torch.uint8), StreamNoise(0).uniform_like(torch.empty(20000))) - 7
    # four standard errors of mean and second moment: deviations sqrt(1/12) and sqrt(4/45)
    assert float(u.mean()) == pytest.approx(1 / 2, abs=4 * math.sqrt(1 / 12 / 20000))
    assert float(u.square().mean()) == pytest.approx(1 / 3, abs=4 * math.sqrt(4 / 45 / 20000))


def test_quantise_moves_outliers_to_the_ends():
    x = torch.tensor([-3.0, -0.01, 0.0, 0.99, 16.99, 17.0, 400.0])
    assert quantise(x, 17).tolist() == [0, 0, 0, 0, 16, 16, 16]


def test_pixels_clamp_and_round_to_nearest():
    """Overshoot must not wrap round to the other end of the scale, as a bare cast would let it."""
    brightness = torch.tensor([-0.1, 0.0, 0.4 / 255, 0.6 / 255, 0.5, 1.0, 1.01, 7.0])
    assert to_uint8(brightness).tolist() == [0, 0, 0, 1, 128, 255, 255, 255]


def test_display_shows_levels_in_equal_steps():
    assert Digits().display(torch.tensor([0, 4, 8, 16, 17])).tolist() == [0, 64, 128, 255, 255]


def test_display_of_a_byte_is_the_byte():
    class Bytes(Data):
        levels = 256
        train = validation = test = None

    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(Bytes().display(levels), levels)


def test_dequantised_digits_come_back_through_model_space():
    data = Digits()
    x = data.test().x[:50]
    noise = IndexedNoise(0, "dequantise", range(50))
    # noise in the middle of the level, where rounding of the affine map cannot cross an edge
    middle = data.transform.forward(dequantise(x, 0.25 + 0.5 * noise.uniform_like(x.float())))
    assert torch.equal(data.from_model(middle), x)


def test_affine_refuses_a_map_without_inverse():
    with pytest.raises(ValueError, match="scale=0"):
        Affine(1.0, 0.0)
