"""What the calibration says of a sampler: errors and orders that are known, and verdicts that can fail."""

import importlib
import math
from itertools import pairwise

import pytest
import torch

from scorefield.kernels import Euler


@pytest.fixture
def calibrate():
    return importlib.import_module("calibrate")


@pytest.fixture
def peers():
    return importlib.import_module("peers")


@pytest.mark.parametrize("order", [1.0, 2.5])
def test_the_order_is_that_of_the_last_points(calibrate, order):
    evaluations = [10, 20, 40, 80]
    errors = [99.0] + [3.0 * n**-order for n in evaluations[1:]]
    assert calibrate.slope(evaluations, errors) == pytest.approx(order, rel=1e-9)
    assert math.isnan(calibrate.slope([10, 20], [1.0, 0.5]))


def test_methods_take_no_more_evaluations_than_they_are_given(calibrate):
    for name, method in calibrate.METHODS.items():
        for wanted in calibrate.EVALUATIONS:
            sampler = method.sampler(wanted)
            assert sampler is None or wanted / 2 < sampler.nfe <= wanted, name
    assert calibrate.Method(calibrate.Karras(), Euler()).sampler(1) is None


def test_a_row_has_the_known_order_and_the_floor_is_that_of_exact_samples(calibrate, monkeypatch):
    monkeypatch.setattr(calibrate, "EVALUATIONS", (80, 160, 320))
    row = calibrate.run("Heun", "EDM", calibrate.METHODS["Heun"], calibrate.SCHEDULES["EDM"], 200)
    assert row.evaluations == [80, 160, 320]
    assert row.declared == 2
    assert row.order == pytest.approx(2, abs=0.5)  # starts near the ridge between the modes bend the line
    distance, weight = calibrate.floors(400)
    # Two sets of n share a weight up to sqrt(2 p (1 - p) / n) = 0.028, whose mean modulus is 0.8 of that; of ten pairs.
    assert weight == pytest.approx(0.8 * 0.028, rel=0.6)
    assert row.distance[-1] < 3 * distance


def test_a_method_that_is_worse_is_called_worse(peers):
    def row(ours, theirs, error):
        return peers.Row(None, "EDM", 20, ours, theirs, error)

    assert not row(0.1, 0.1, None).worse
    assert not row(0.1005, 0.1, None).worse
    assert row(0.102, 0.1, None).worse
    assert not row(0.12, 0.1, 0.01).worse
    assert row(0.14, 0.1, 0.01).worse
    assert not row(0.05, 0.1, 0.001).worse


def test_a_peer_that_takes_other_steps_is_told_apart(peers, monkeypatch):
    """Against itself a method is equal; against one that stops half way the other is worse."""

    def euler(model, start, times, seed, keep=1.0):
        x = start
        for t, s in pairwise(times):
            if t >= times[0] * (1 - keep):
                x = x + (s - t) * model(x, t.expand(len(x))).velocity
        return x

    pair = peers.Pair("Euler", Euler(), peers.METHODS["Euler"].grid, "itself", euler)
    same = peers.compare(pair, "EDM", 20, 50, 2)
    assert same.ours == pytest.approx(same.theirs, rel=1e-9)
    assert same.standard_error is None
    lame = peers.Pair("Euler", Euler(), pair.grid, "lame", lambda *a: euler(*a, keep=0.5))
    assert peers.compare(lame, "EDM", 20, 50, 2).theirs > 2 * same.ours
    assert "| Euler | EDM | itself | 20 |" in peers.table([same], 50, 2)
    assert torch.get_default_dtype() == torch.float64
