"""Jacobians against matrices that are known, and the two signs of a field that is no gradient."""

import pytest
import torch

from scorefield.divergence import Gaussian, Sphere
from scorefield.jacobian import asymmetry, circulation, estimated_asymmetry, jacobian
from scorefield.noise import StreamNoise


def linear(matrix):
    return lambda x: (x.flatten(1) @ matrix.T).reshape(x.shape)


@pytest.mark.parametrize("chunk", [None, 1, 4])
def test_jacobian_of_a_linear_field_is_its_matrix(chunk):
    matrix = torch.randn(6, 6)
    found = jacobian(linear(matrix), torch.randn(3, 2, 3), chunk)
    assert torch.allclose(found, matrix.expand(3, 6, 6), rtol=1e-12)


def test_jacobian_of_each_sample_is_its_own():
    x = torch.randn(4, 3)
    expected = torch.stack([torch.func.jacrev(lambda y: y.sin() * y.sum())(row) for row in x])
    found = jacobian(lambda y: y.sin() * y.sum(1, keepdim=True), x)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_asymmetry_of_known_matrices():
    symmetric, rotation = torch.randn(4, 4), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    symmetric = symmetric + symmetric.T
    assert float(asymmetry(linear(symmetric), torch.randn(2, 4)).max()) < 1e-14
    assert torch.allclose(asymmetry(linear(rotation), torch.randn(2, 2)), torch.tensor(2.0))  # J^T = -J


def test_a_random_matrix_has_the_stated_asymmetry():
    """Entries are independent, so E|J - J^T|^2 = 2 d (d - 1) and E|J|^2 = d^2."""
    d = 60
    found = torch.stack([asymmetry(linear(torch.randn(d, d)), torch.zeros(1, d)) for _ in range(30)]).square().mean()
    # |J|^2 and |J - J^T|^2 each deviate by sqrt(2) / d relatively; their ratio's mean over 30 by less than 1 %.
    assert float(found) == pytest.approx(2 * (d - 1) / d, rel=0.02)


@pytest.mark.parametrize("probe", [None, Gaussian(), Sphere()])
def test_estimates_are_unbiased(probe):
    matrix, n = torch.randn(5, 5), 20_000
    antisymmetric, total = estimated_asymmetry(linear(matrix), torch.zeros(n, 5), StreamNoise(0), 1, probe)
    for found, exact in ((antisymmetric, (matrix - matrix.T).square().sum()), (total, matrix.square().sum())):
        assert float(found.mean()) == pytest.approx(float(exact), abs=4 * float(found.std()) / n**0.5)


def test_estimates_see_no_asymmetry_in_a_gradient():
    def field(x):
        return x.sum(1, keepdim=True).cos() * torch.ones_like(x) - x**3

    antisymmetric, total = estimated_asymmetry(field, torch.randn(7, 3), StreamNoise(0))
    assert float((antisymmetric / total).max()) < 1e-28  # squares of rounding errors


def circle(n, radius):
    angle = 2 * torch.pi * torch.arange(n) / n
    return radius * torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize("n", [32, 33])
def test_circulation_is_curl_times_area(n):
    """Stokes: a rotation of speed w has curl 2 w, and a circle of radius r the area pi r^2."""
    found = circulation(lambda x: 0.7 * torch.stack([-x[:, 1], x[:, 0]], 1), circle(n, 3.0))
    assert float(found) == pytest.approx(2 * 0.7 * torch.pi * 9, rel=1e-12)


def test_circulation_of_a_gradient_is_zero():
    # exp(cos) on the circle is resolved to rounding by 64 points.
    found = circulation(lambda x: torch.stack([x[:, 0].cos(), 2 * x[:, 1]], 1), circle(64, 1.5))
    assert abs(float(found)) < 1e-12


def test_what_has_no_jacobian_is_refused():
    with pytest.raises(ValueError, match="carries no gradient"):
        estimated_asymmetry(lambda x: torch.ones_like(x), torch.randn(2, 3), StreamNoise(0))
    with pytest.raises(ValueError, match="k=0"):
        estimated_asymmetry(lambda x: x, torch.randn(2, 3), StreamNoise(0), k=0)
