"""What is remembered of shared times is what would be computed, and nothing else is looked up."""

from itertools import pairwise

import pytest
import torch

from scorefield import levels
from scorefield.grids import Uniform
from scorefield.kernels import DPMSolver2M, Euler, EulerMaruyama
from scorefield.levels import once, shared
from scorefield.models import NetworkModel, Parametrization
from scorefield.nets.embeddings import Fourier
from scorefield.nets.mlp import MLP
from scorefield.noise import IndexedNoise
from scorefield.prediction import Data, Prediction, Score, Velocity
from scorefield.samplers import Sampler
from scorefield.schedules import VE, VP, Preserving, Schedule, Tabulated
from tests.test_samplers import PREDICTORS

TIMES = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
X = torch.zeros(4, 2)


class Calls:
    """A function of times and a value that keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, t: torch.Tensor, power: int = 2) -> torch.Tensor:
        self.asked.append(float(t[0]))
        return t**power


def network(schedule: Schedule, **kwargs) -> NetworkModel:
    torch.manual_seed(0)
    net = MLP((2,), width=8, depth=1, embedding=Fourier(8))
    with torch.no_grad():  # outputs that start at zero would hide what their inputs are
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return NetworkModel(net, schedule, Parametrization.edm(0.5), **kwargs)


def test_a_shared_time_is_computed_once_for_each_time_length_and_value():
    calls = Calls()
    square = once(calls)
    for _ in range(3):
        for row, time in zip(shared(TIMES, X), TIMES, strict=True):
            assert torch.equal(square(row), time.square().expand(4))
    assert calls.asked == TIMES.tolist()
    assert square(shared(TIMES, X[:2])[0]).shape == (2,)
    assert torch.equal(square(shared(TIMES, X)[0], 3), (TIMES[0] ** 3).expand(4))
    assert len(calls.asked) == 5
    single = shared(TIMES.float(), X)[1]  # 0.5 is the same number in both precisions, its square is not the same tensor
    assert square(single).dtype == torch.float32


@pytest.mark.parametrize(
    "derived",
    [lambda t: t[:2], lambda t: t.clone(), lambda t: t + 0, lambda t: t.detach(), lambda t: t.expand(2, 4)[0]],
    ids=["slice", "clone", "sum", "detach", "expand"],
)
def test_what_is_derived_from_a_shared_time_is_computed_with(derived):
    calls = Calls()
    square = once(calls)
    row = shared(TIMES, X)[0]
    square(row)
    square(derived(row))
    square(derived(row))
    assert len(calls.asked) == 3


def test_what_is_kept_has_an_end(monkeypatch):
    monkeypatch.setattr(levels, "_MOST", 2)
    calls = Calls()
    square = once(calls)
    rows = shared(TIMES, X)
    for row in (*rows, rows[2], rows[0]):
        square(row)
    assert calls.asked == [0.9, 0.5, 0.2, 0.9]  # the third makes room, and is kept
    many = shared(TIMES, torch.zeros(513, 1))[2]
    for _ in range(2):
        assert torch.equal(square(many), (TIMES[2] ** 2).expand(513))
    assert calls.asked[4:] == [0.2, 0.2]


@pytest.mark.parametrize("predictor", PREDICTORS, ids=repr)
def test_a_sampler_of_shared_times_walks_as_its_kernel_does(predictor):
    """To the bit, also when it walks for the second time, by all that it remembers."""
    model, sampler = network(VP()), Sampler(Uniform(), 4, predictor)
    start = torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    grid = sampler.grid(model.schedule, 4)
    x, state, noise = start, predictor.init(start, grid), IndexedNoise(0, "test", range(3))
    for t, s in pairwise(torch.full((3,), time, dtype=torch.float64) for time in grid.tolist()):
        with torch.no_grad():
            x, state = predictor.step(model, x, t, s, state, noise)
    for _ in range(2):
        assert torch.equal(sampler(model, start, None, IndexedNoise(0, "test", range(3))).x, x)


def test_a_second_batch_asks_the_schedule_nothing(monkeypatch):
    asked = []
    sigma = VP.sigma
    monkeypatch.setattr(VP, "sigma", lambda self, t: asked.append(t) or sigma(self, t))
    for predictor in (Euler(), DPMSolver2M(), EulerMaruyama()):
        model, sampler = network(VP()), Sampler(Uniform(), 3, predictor)
        sampler(model, X, None, IndexedNoise(0, "test", range(4)))
        assert asked
        asked.clear()
        sampler(model, X + 1, None, IndexedNoise(1, "test", range(4)))
        assert not asked


@pytest.mark.parametrize("around", [lambda schedule: schedule, Preserving], ids=["itself", "within another"])
def test_a_changed_schedule_is_asked_again(around):
    schedule = VE(sigma_max=50.0)
    model, sampler = network(around(schedule)), Sampler(Uniform(), 3, Euler())
    before = sampler(model, X + 1).x
    schedule.sigma_max = 2.0
    schedule._log_range = VE(sigma_max=2.0)._log_range
    after = sampler(model, X + 1).x
    assert not torch.equal(before, after)
    assert torch.equal(after, sampler(network(around(VE(sigma_max=2.0))), X + 1).x)


def test_tables_that_differ_are_told_apart():
    """Their public fields are the same, the number of levels and the two ends."""
    tables = Tabulated.linear(10), Tabulated.linear(10, beta_first=1e-3, beta_last=0.1)
    walked = [Sampler(Uniform(), 3, Euler())(network(table), X + 1).x for table in tables]
    assert not torch.equal(*walked)


def test_derivatives_in_time_go_through_a_shared_time():
    """d/dt of the posterior mean at fixed x_t and F, against the quotient of neighbouring times."""
    x, out = torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def data(t: torch.Tensor) -> torch.Tensor:
        return Prediction(VP(), x, t, out, Score()).view(Data())

    t, h = shared(TIMES, x)[1], 1e-6
    data(t)  # remembered from here on
    found = torch.func.jvp(data, (t.contiguous(),), (torch.ones_like(t),))[1]
    slope = (data(t + h) - data(t - h)) / (2 * h)
    assert torch.allclose(found, slope, rtol=1e-7, atol=1e-8)  # O(h^2) and 1e-16 / h
    with torch.enable_grad():
        for time in (t.clone().requires_grad_(), t.requires_grad_()):
            (gradient,) = torch.autograd.grad(data(time).sum(), time)
            assert torch.allclose(gradient, slope.sum(1), rtol=1e-7, atol=1e-8)


def test_what_is_made_in_inference_mode_enters_a_graph_later():
    x, schedule = torch.ones(4, 2), VP()
    with torch.inference_mode():
        row = shared(TIMES, x)[0]
        Prediction(schedule, x, row, x, Score()).view(Velocity())
    at = x.clone().requires_grad_()
    value = Prediction(schedule, at, shared(TIMES, x)[0], at.square(), Score()).view(Velocity())
    (gradient,) = torch.autograd.grad(value.sum(), at)
    f, g_sq = schedule.drift(TIMES[:1]), schedule.diffusion_sq(TIMES[:1])
    assert torch.allclose(gradient, (f - g_sq).expand(4, 2), rtol=1e-12)  # of f x - g^2 / 2 x^2 at x = 1
