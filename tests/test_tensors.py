"""Arithmetic per sample, against the same arithmetic done one sample at a time."""

import pytest
import torch

from scorefield.tensors import event_dot, event_mean, event_norm, event_size, event_sum, per_sample

SHAPES = [(5, 2), (4, 1, 8, 8), (3, 3, 4, 4), (1, 7), (0, 2)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_sample_is_treated_by_itself(shape, dtype):
    x, y = torch.randn(2, *shape, dtype=dtype)
    singles = {
        event_sum: [a.sum() for a in x],
        event_mean: [a.mean() for a in x],
        event_norm: [(a * a).sum().sqrt() for a in x],
    }
    eps = 10 * torch.finfo(dtype).eps  # sums of at most 64 numbers of order one
    for function, values in singles.items():
        expected = torch.stack(values) if values else torch.empty(0, dtype=dtype)
        torch.testing.assert_close(function(x), expected, atol=10 * eps, rtol=eps)
    dots = torch.stack([(a * b).sum() for a, b in zip(x, y, strict=True)]) if len(x) else torch.empty(0, dtype=dtype)
    torch.testing.assert_close(event_dot(x, y), dots, atol=10 * eps, rtol=eps)


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_a_value_per_sample_scales_its_own_sample(shape):
    x, value = torch.randn(shape), torch.randn(shape[0])
    scaled = per_sample(value, x) * x
    assert scaled.shape == x.shape
    for i in range(shape[0]):
        assert torch.equal(scaled[i], float(value[i]) * x[i])


def test_a_batch_as_large_as_an_axis_is_not_mistaken_for_it():
    """Broadcasting from the right would take these values for the columns."""
    x = torch.ones(3, 3)
    assert torch.equal(per_sample(torch.tensor([1.0, 2.0, 3.0]), x), torch.tensor([[1.0], [2.0], [3.0]]))


def test_size_of_an_event():
    assert event_size(torch.zeros(5, 3, 4, 4)) == 48
