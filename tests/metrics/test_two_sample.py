import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from sklearn.neighbors import NearestNeighbors

from scorefield.data.images import Digits
from scorefield.metrics.two_sample import (
    nearest_distances,
    sliced_wasserstein,
    wasserstein_1d,
)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 7), (30, 47), (100, 1), (64, 48)])
def test_one_dimensional_distance_is_scipys(n, m):
    a, b = torch.randn(n, 3), torch.randn(m, 3) * 2 + 1
    expected = [wasserstein_distance(a[:, k].numpy(), b[:, k].numpy()) for k in range(3)]
    assert wasserstein_1d(a, b, order=1.0).tolist() == pytest.approx(expected, rel=1e-12)


def test_quadratic_distance_is_the_best_matching():
    from scipy.optimize import linear_sum_assignment

    a, b = torch.randn(9), torch.rand(9) * 3
    cost = (a[:, None] - b).square().numpy()
    expected = cost[linear_sum_assignment(cost)].mean() ** 0.5
    assert float(wasserstein_1d(a[:, None], b[:, None])) == pytest.approx(expected, rel=1e-12)


def test_sliced_distance_of_a_shift():
    """W_2 of a shift v along theta is |theta . v|, whose mean square is |v|^2 / d."""
    a, v = torch.randn(50, 2), torch.tensor([3.0, 4.0])
    value = sliced_wasserstein(a, a + v, projections=20000)
    # the mean of 25 cos^2 over 20000 angles: deviation 25 / sqrt 8, five standard errors
    assert value**2 == pytest.approx(12.5, abs=5 * 25 / 8**0.5 / 20000**0.5)
    assert sliced_wasserstein(a, a[torch.randperm(50)]) < 1e-15  # products summed in another order
    assert sliced_wasserstein(a, a + v, seed=1) == sliced_wasserstein(a, a + v, seed=1)


@pytest.mark.parametrize("chunk", [1, 7, 512])
def test_nearest_neighbours_are_those_of_brute_force(chunk):
    x, reference = torch.randn(40, 2, 3), torch.randn(150, 2, 3)
    expected = (x[:, None] - reference).flatten(2).norm(dim=2).min(1).values
    assert torch.allclose(nearest_distances(x, reference, chunk), expected, rtol=1e-12, atol=0)


def test_nearest_neighbours_of_bytes():
    """Unsigned differences must not wrap round, and a copy is at distance zero exactly."""
    data = Digits()
    test, train = data.test().x, data.train().x
    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(train.flatten(1).numpy().astype(np.float64))
    expected = search.kneighbors(test.flatten(1).numpy().astype(np.float64))[0][:, 0]
    assert nearest_distances(test, train).tolist() == pytest.approx(expected.tolist(), rel=1e-12)
    assert nearest_distances(train[:20], train).tolist() == [0.0] * 20


def test_small_distances_survive_a_large_offset():
    reference = torch.randn(30, 64) + 1e4
    x = reference[:5] + 1e-6
    # the difference of numbers near 1e4 keeps 1e-12 of them; the squares alone would leave 1e-4
    assert nearest_distances(x, reference).tolist() == pytest.approx([8e-6] * 5, rel=1e-4)


def test_median_nearest_distance_tells_copies_from_fresh_examples():
    def memorisation_ratio(samples, held_out, train):
        return float(nearest_distances(samples, train).median() / nearest_distances(held_out, train).median())

    data = Digits()
    train, test, validation = data.train().x, data.test().x, data.validation().x
    assert memorisation_ratio(train[:200], test, train) == 0
    assert memorisation_ratio(test, test, train) == 1
    # other real digits: medians of 150 and 300 distances whose spread is a quarter of the median, 1.25 times 4 errors
    assert memorisation_ratio(validation, test, train) == pytest.approx(1, abs=0.12)
