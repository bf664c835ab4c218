import math

import pytest
import torch

from scorefield.metrics.bits_per_dim import BitsPerDim, bits_per_dim


def test_a_fair_coin_takes_one_bit():
    assert float(bits_per_dim(torch.tensor([7 * math.log(0.5)]), 7)[0]) == pytest.approx(1.0, rel=1e-15)


def test_mean_and_error_over_batches():
    """A million dimensions' worth of nats in float32, in uneven batches."""
    log_prob = -torch.linspace(1e6, 1.001e6, 57).float()
    metric = BitsPerDim(3072)
    for batch in log_prob.split(20):
        metric.update(batch)
    bits = (-log_prob.double() / 3072 / torch.tensor(2.0).log()).double()
    mean, error, n = metric.compute()
    assert int(n) == 57
    assert float(mean) == pytest.approx(float(bits.mean()), rel=1e-12)
    assert float(error) == pytest.approx(
        float(bits.std() / 57**0.5), rel=1e-6
    )  # a difference of squares 1e7 times larger


def test_error_of_a_known_distribution():
    """The error bar holds the truth: Gaussian entropy, log2 sqrt(2 pi e) bits."""
    x = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    metric = BitsPerDim(1)
    metric.update(-0.5 * x.square() - 0.5 * math.log(2 * math.pi))
    estimate = metric.compute()
    truth = 0.5 * math.log2(2 * math.pi * math.e)
    assert abs(float(estimate.mean) - truth) < 4 * float(estimate.standard_error)
    # the deviation of x^2 / 2 is 1 / sqrt 2 nats; its estimate from 20000 has relative error 2 %, times four
    assert float(estimate.standard_error) == pytest.approx(1 / math.sqrt(2 * 20000) / math.log(2), rel=0.08)


def test_nothing_to_average():
    with pytest.warns(UserWarning, match="compute"), pytest.raises(ValueError, match="call update first"):
        BitsPerDim(2).compute()
