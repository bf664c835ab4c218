"""Distances to a known density, against closed forms."""

import math

import pytest
import torch

from scorefield.metrics.truth import fisher_divergence, lattice, normalised, total_variation


def test_fisher_divergence_of_two_gaussians():
    """N(0, 1) against N(m, v): E|grad log p - grad log q|^2 / 2 = ((1 - 1/v)^2 + m^2 / v^2) / 2."""
    m, v, n = 0.7, 2.0, 200_000
    x = torch.randn(n, 1)
    each = fisher_divergence(-(x - m) / v, -x)
    assert float(each.mean()) == pytest.approx(((1 - 1 / v) ** 2 + m**2 / v**2) / 2, abs=4 * float(each.std()) / n**0.5)


def test_total_variation_of_two_gaussians():
    """At distance m along an axis and unit variance it is 2 Phi(m / 2) - 1."""
    points, area = lattice(-9.0, 9.0, 600)
    p, q = (normalised((points - torch.tensor([m, 0.0])).square().sum(1) / 2, area) for m in (0.0, 1.3))
    assert float(p.sum() * area) == pytest.approx(1, abs=1e-12)
    # |p - q| has a kink along a line, which the midpoint rule takes to second order: width 0.03.
    assert total_variation(p, q, area) == pytest.approx(math.erf(1.3 / 2 / math.sqrt(2)), abs=1e-4)
    assert total_variation(p, p, area) == 0


def test_a_constant_in_the_energy_does_not_matter():
    points, area = lattice(-4.0, 4.0, 50)
    energy = points.square().sum(1)
    assert torch.allclose(normalised(energy, area), normalised(energy + 1e4, area), rtol=1e-9)


def test_impossible_input_is_refused():
    with pytest.raises(ValueError, match="same points"):
        fisher_divergence(torch.zeros(2, 1), torch.zeros(3, 1))
    with pytest.raises(ValueError, match=r"low=1\.0"):
        lattice(1.0, 1.0, 4)
