"""Solvers without a memory follow the noise along a step as far as their calls show it."""

import math

import pytest
import torch
from scipy.integrate import quad

from scorefield.grids import LogRatio
from scorefield.kernels import Ancestral, DPMSolver2, DPMSolver3
from scorefield.models import MixtureModel, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.prediction import Noise, Prediction
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VP
from tests.conftest import MIXTURE


class Line(ScoreModel):
    """A model whose noise prediction is a line in lambda = ln(alpha / sigma), whatever x is."""

    def __init__(self, schedule, slope):
        super().__init__(schedule)
        self.slope, self.asked = slope, []

    def noise_at(self, lam):
        return 0.3 + self.slope * lam

    def forward(self, x, t, cond=None):
        lam = -self.schedule.ratio(t).log()
        self.asked.append(float(lam))
        return Prediction(self.schedule, x, t, self.noise_at(lam)[:, None].expand(x.shape), Noise())


@pytest.mark.parametrize("schedule", [VP(t_min=1e-3), EDM(0.01, 50.0)], ids=repr)
@pytest.mark.parametrize(("kernel", "slope"), [(DPMSolver2(), 0.0), (DPMSolver3(), 0.0), (DPMSolver3(), -0.2)])
def test_a_line_is_integrated_exactly(schedule, kernel, slope):
    """alpha_s / alpha_t x - alpha_s int e^-lambda eps dlambda: of a constant by both, of a line by the third order."""
    model, t, s = Line(schedule, slope), *schedule.time_at(torch.tensor([[9.0], [2.0]]))
    found = kernel.step(model, torch.ones(1, 1), t, s, {}, StreamNoise(0))[0]
    low, high = (-float(schedule.ratio(u).log()) for u in (t, s))
    integral = quad(lambda lam: math.exp(-lam) * model.noise_at(lam), low, high, epsabs=1e-13)[0]
    exact = float(schedule.alpha(s) / schedule.alpha(t)) - float(schedule.alpha(s)) * integral
    assert float(found) == pytest.approx(exact, rel=1e-10)


@pytest.mark.parametrize(("kernel", "parts"), [(DPMSolver2(), (0, 1 / 2)), (DPMSolver3(), (0, 1 / 3, 2 / 3))])
def test_the_network_is_asked_along_the_step(kernel, parts):
    model, t, s = Line(VP(t_min=1e-3), 0.0), torch.tensor([0.7]), torch.tensor([0.3])
    kernel.step(model, torch.ones(1, 1), t, s, {}, StreamNoise(0))
    low, high = (-float(model.schedule.ratio(u).log()) for u in (t, s))
    assert model.asked == pytest.approx([low + part * (high - low) for part in parts], rel=1e-9)


def test_the_middle_is_reached_by_ddim():
    """DPM-Solver-2 by itself: DDIM to the middle of lambda, and DDIM's step with the noise that is found there."""
    model = MixtureModel(VP(t_min=1e-3), **MIXTURE)
    x, (t, s) = torch.randn(5, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.8, 0.4])
    u_t, u_s = (model.schedule.ratio(v[None]) for v in (t, s))
    m = model.schedule.time_at((u_t * u_s).sqrt())
    middle, times = Ancestral(eta=0.0).step(model, x, t.expand(5), m.expand(5), {}, StreamNoise(0))[0], m.expand(5)
    alpha_t, alpha_s = (model.schedule.alpha(v[None]) for v in (t, s))
    expected = alpha_s / alpha_t * x + alpha_s * (u_s - u_t) * model(middle, times).noise  # DDIM in x / alpha and u
    found = DPMSolver2().step(model, x, t.expand(5), s.expand(5), {}, StreamNoise(0))[0]
    assert torch.allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize(("kernel", "calls"), [(DPMSolver2(), 14), (DPMSolver3(), 21)])
def test_calls_are_counted(kernel, calls):
    model, x = Line(VP(t_min=1e-3), 0.1), torch.ones(1, 1)
    assert Sampler(LogRatio(), 7, kernel)(model, x).nfe == len(model.asked) == calls
