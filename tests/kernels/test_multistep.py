"""The stochastic multistep solver samples the marginals, and its memory is its own."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from scorefield.grids import LogRatio
from scorefield.kernels import Ancestral, DPMSolver2M, DPMSolver3M, UniPC
from scorefield.models import MixtureModel, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.prediction import Data, Prediction
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VP
from tests.conftest import MIXTURE


@pytest.mark.parametrize("schedule", [VP(t_min=1e-3), EDM(0.01, 50.0)], ids=repr)
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_the_stochastic_form_keeps_the_marginals(schedule, eta):
    n, model = 4000, MixtureModel(schedule, **MIXTURE)
    x = model.sample_like(torch.empty(n, 2), torch.full((n,), schedule.t_max), StreamNoise(1))
    samples = Sampler(LogRatio(), 80, DPMSolver2M(eta))(model, x, noise=StreamNoise(2)).x
    mean, covariance = model.moments(schedule.t_min)
    assert ((samples.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    # Fourth moments of this mixture are below 3 var^2: the standard error of a covariance is below sqrt(2/n) var.
    error = (torch.cov(samples.T) - covariance).abs()
    assert (error < 4 * (2 / n) ** 0.5 * covariance.diagonal().max()).all()


@pytest.mark.parametrize("kernel", [DPMSolver2M(), DPMSolver3M(), UniPC()], ids=repr)
def test_without_a_past_it_is_ddim(kernel):
    """One step, from any state: the first-order method that all of them start with."""
    model, x = MixtureModel(VP(t_min=1e-3), **MIXTURE), torch.randn(5, 2)
    ours, ddim = (Sampler(LogRatio(t_min=0.3), 1, k)(model, x).x for k in (kernel, Ancestral(eta=0.0)))
    assert torch.allclose(ours, ddim, rtol=1e-10)


@pytest.mark.parametrize("kernel", [DPMSolver2M(), DPMSolver3M(), UniPC()], ids=repr)
def test_one_call_and_no_memory_of_another_run(kernel):
    """Kernels are values: a second run from the same start is the same run."""
    model, x = MixtureModel(VP(t_min=1e-3), **MIXTURE), torch.randn(5, 2)
    sampler = Sampler(LogRatio(), 7, kernel)
    assert sampler.nfe == 7
    assert torch.equal(sampler(model, x).x, sampler(model, x).x)


class Parabola(ScoreModel):
    """A model whose data prediction is a parabola in lambda = ln(alpha / sigma), whatever x is."""

    coefficients = (0.3, -0.2, 0.05)

    def data_at(self, lam):
        a, b, c = self.coefficients
        return a + b * lam + c * lam**2

    def forward(self, x, t, cond=None):
        lam = -self.schedule.ratio(t).log()
        return Prediction(self.schedule, x, t, self.data_at(lam)[:, None].expand(x.shape), Data())


@pytest.mark.parametrize("schedule", [VP(t_min=1e-3), EDM(0.01, 50.0)], ids=repr)
def test_the_third_order_integrates_a_parabola_exactly(schedule):
    """Steps of unlike lengths; with three values the step is sigma_s / sigma_t x + sigma_s int e^lambda D dlambda."""
    model, kernel = Parabola(schedule), DPMSolver3M()
    times = schedule.time_at(torch.tensor([20.0, 9.0, 5.0, 1.0, 0.6], dtype=torch.float64))
    x, state = torch.ones(1, 1, dtype=torch.float64), kernel.init(torch.ones(1, 1))
    for i, (t, s) in enumerate(pairwise(times)):
        before = x
        x, state = kernel.step(model, x, t[None], s[None], state, StreamNoise(0))
        low, high = (-float(schedule.ratio(u).log()) for u in (t, s))
        integral = quad(lambda lam: math.exp(lam) * model.data_at(lam), low, high, epsabs=1e-13)[0]
        exact = float(schedule.sigma(s) / schedule.sigma(t) * before) + float(schedule.sigma(s)) * integral
        error = abs(float(x) - exact)
        assert error < 1e-10 if i >= 2 else error > 1e-4


def through(model: Parabola, lams: list[float]) -> np.poly1d:
    """The polynomial through the model's data prediction at so many places."""
    return np.poly1d(np.polyfit(lams, [model.data_at(lam) for lam in lams], len(lams) - 1))


def moved(schedule, lams, x, polynomial):
    """From place to place: sigma_s / sigma_t x + sigma_s int e^lambda D dlambda, by quadrature."""
    t, s = schedule.time_at(torch.tensor(lams).neg().exp())
    integral = quad(lambda lam: math.exp(lam) * polynomial(lam), *lams, epsabs=1e-13)[0]
    return float(schedule.sigma(s) / schedule.sigma(t)) * x + float(schedule.sigma(s)) * integral


class Cubic(Parabola):
    """No polynomial of three values or fewer has it all."""

    def data_at(self, lam):
        return super().data_at(lam) + 0.03 * lam**3


@pytest.mark.parametrize("schedule", [VP(t_min=1e-3), EDM(0.01, 50.0)], ids=repr)
@pytest.mark.parametrize("p", [1, 2, 3])
def test_unipc_predicts_and_corrects_by_the_polynomials_through_its_values(schedule, p):
    """Steps of unlike lengths: a point is corrected through p + 1 values, its own too, and the next predicted by p."""
    model, kernel, corrected = Cubic(schedule), UniPC(p), 1.0
    times = schedule.time_at(torch.tensor([20.0, 9.0, 5.0, 3.5, 1.0, 0.6]))
    lams = schedule.ratio(times).log().neg().tolist()
    x, state = torch.ones(1, 1), kernel.init(torch.ones(1, 1))
    for i, (t, s) in enumerate(pairwise(times)):
        x, state = kernel.step(model, x, t[None], s[None], state, StreamNoise(0))
        if i > 0:
            corrected = moved(schedule, lams[i - 1 : i + 1], corrected, through(model, lams[max(0, i - p) : i + 1]))
        predicted = moved(schedule, lams[i : i + 2], corrected, through(model, lams[max(0, i - p + 1) : i + 1]))
        assert float(x) == pytest.approx(predicted, rel=1e-9)


def test_unipc_keeps_what_was_done_to_a_point_in_between():
    """Where D does not depend on x, a push goes through the step as the linear part takes it, sigma_s / sigma_t."""
    schedule = VP(t_min=1e-3)
    model, kernel = Parabola(schedule), UniPC()
    t, m, s = torch.tensor([[0.9], [0.6], [0.3]])
    x, state = kernel.step(model, torch.ones(1, 1), t, m, {}, StreamNoise(0))
    pushed, still = (float(kernel.step(model, x + push, m, s, state, StreamNoise(0))[0]) for push in (0.5, 0.0))
    assert pushed - still == pytest.approx(0.5 * float(schedule.sigma(s) / schedule.sigma(m)), rel=1e-9)


def test_unipc_predicts_from_up_to_three_values():
    for p in (0, 4):
        with pytest.raises(ValueError, match=f"p={p} .* 1, 2 or 3"):
            UniPC(p)


def test_impossible_noise_is_refused():
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        DPMSolver2M(1.5)
