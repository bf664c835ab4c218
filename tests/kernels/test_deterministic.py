"""Deterministic kernels converge to the exact flow at their declared order, on every schedule."""

import functools
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scorefield.grids import Karras, LogRatio, Transferred, Uniform
from scorefield.kernels import (
    Ancestral,
    DPMSolver2,
    DPMSolver2M,
    DPMSolver3,
    DPMSolver3M,
    Euler,
    Heun,
    Kernel,
    ReverseDiffusion,
    UniPC,
)
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VE, VP, Brownian, Exploding, Preserving, Tabulated
from tests.conftest import MIXTURE

KERNELS: list[Kernel] = [
    Euler(),
    Heun(),
    Heun(midpoint=0.5),
    Ancestral(eta=0.0),
    ReverseDiffusion(eta=0.0),
    DPMSolver2M(),
    DPMSolver3M(),
    DPMSolver2(),
    DPMSolver3(),
    UniPC(1),
    UniPC(2),
    UniPC(3),
]
N = 6


def exact_flow(model: MixtureModel, x: torch.Tensor, start: float, end: float) -> torch.Tensor:
    """The flow's end points by scipy's eighth-order method in log time, far more accurate than any kernel here."""

    def field(log_t, y):
        t = float(np.exp(log_t))
        state = torch.from_numpy(y).reshape(x.shape)
        return t * model(state, torch.full((len(x),), t)).velocity.flatten().numpy()

    solution = solve_ivp(
        field, (np.log(start), np.log(end)), x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-12
    )
    return torch.from_numpy(solution.y[:, -1]).reshape(x.shape)


@pytest.mark.parametrize("kernel", KERNELS, ids=repr)
def test_measured_order_is_the_declared_one(mixture, kernel):
    schedule = mixture.schedule
    t = torch.full((N,), schedule.t_max)
    x = mixture.sample_like(torch.empty(N, 2), t, StreamNoise(0))
    truth = exact_flow(mixture, x, schedule.t_max, schedule.t_min)
    steps = np.array([160, 320, 640])
    errors = [float((Sampler(LogRatio(), int(n), kernel)(mixture, x).x - truth).norm()) for n in steps]
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    # The next order's contribution at these step sizes bends the line by up to 0.1.
    assert slope == pytest.approx(kernel.order, abs=0.15), errors


SCALINGS = {"none": Exploding, "vp": Preserving}
LEVELS = {"vp": VP(0.1, 20.0, t_min=1e-3), "ve": Brownian(0.02**2, 100.0**2), "linear": EDM(0.002, 80.0)}
# The discretisations as levels, for whatever schedule: of VP, VE, iDDPM (as a continuous chain) and EDM.
DISCRETISATIONS = {
    "vp": Transferred(Uniform(), VP(0.1, 20.0, t_min=1e-3)),
    "ve": LogRatio(),
    "iddpm": Transferred(Uniform(t_max=0.992), Tabulated.cosine(1000)),
    "edm": Karras(7.0),
}


@functools.cache
def flow_of_levels(start: float, end: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Points x / alpha at one level sigma / alpha, and where the exact flow has them at another: under any schedule."""
    model = MixtureModel(EDM(), **MIXTURE)
    x = model.sample_like(torch.empty(2, 2), torch.full((2,), start), StreamNoise(0))
    return x, exact_flow(model, x, start, end)


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("discretisation", DISCRETISATIONS)
def test_every_combination_of_the_ablation_is_second_order(discretisation, levels, scaling):
    """Karras et al. 2022, algorithm 3 and table 1: any discretisation, sigma(t) and s(t) leads to the same samples."""
    schedule, grid = SCALINGS[scaling](LEVELS[levels]), DISCRETISATIONS[discretisation]
    model, ends = MixtureModel(schedule, **MIXTURE), grid(schedule, 1)
    first, last = schedule.alpha(ends).tolist()
    x, truth = flow_of_levels(*(round(u, 9) for u in schedule.ratio(ends).tolist()))
    errors = [float((Sampler(grid, n, Heun())(model, first * x).x / last - truth).norm()) for n in (100, 200)]
    # Coarse steps of levels that do not suit the schedule converge faster than they will, so no bound from above.
    assert np.log2(errors[0] / errors[1]) > 1.85, errors


def test_the_step_to_time_0_needs_clean_data_there():
    """Data of variance 1 keep it under VP: the flow and its step to 0 stand still, where E[x | x_t] is alpha x_t."""
    model, t = MixtureModel(VP(), [1.0], [[0.0]], [[1.0]]), torch.tensor([0.3])
    x = torch.tensor([[0.7]])
    for kernel in (Euler(to_zero=True), Heun(to_zero=True)):
        assert torch.allclose(kernel.denoise(model, x, t, {}, StreamNoise(0)), x, rtol=1e-12)
        with pytest.raises(ValueError, match=r"to_zero=True .* VE"):
            kernel.denoise(MixtureModel(VE(), **MIXTURE), torch.ones(1, 2), t, {}, StreamNoise(0))
    shrunk = Euler().denoise(model, x, t, {}, StreamNoise(0))
    assert torch.allclose(shrunk, VP().alpha(t) * x, rtol=1e-12)


def test_ddim_is_euler_in_the_noise_to_signal_ratio():
    """With alpha = 1 and time = sigma the two are the same step."""
    model = MixtureModel(EDM(), **MIXTURE)
    x = 80 * torch.randn(N, 2)
    a, b = (Sampler(Karras(), 20, kernel)(model, x).x for kernel in (Ancestral(eta=0.0), Euler()))
    assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


def test_ddim_does_not_depend_on_alpha():
    """The same ratios give the same samples of x / alpha under VP and under a schedule with alpha = 1."""
    vp = VP(t_min=1e-3)
    end = float(vp.ratio(torch.tensor([1e-3])))
    edm = EDM(t_min=end, t_max=float(vp.ratio(torch.tensor([1.0]))))
    x = torch.randn(N, 2)
    a = Sampler(LogRatio(), 30, Ancestral(eta=0.0))(MixtureModel(vp, **MIXTURE), x).x
    b = Sampler(LogRatio(), 30, Ancestral(eta=0.0))(MixtureModel(edm, **MIXTURE), x / vp.alpha(torch.tensor([1.0]))).x
    assert torch.allclose(a / vp.alpha(torch.tensor([1e-3])), b, rtol=1e-8, atol=1e-10)


def test_churn_keeps_the_marginals():
    """With the exact score, added noise is removed again: mean and covariance stay within the CLT bound."""
    n, model = 4000, MixtureModel(VE(0.01, 50.0), **MIXTURE)
    x = model.sample_like(torch.empty(n, 2), torch.full((n,), 1.0), StreamNoise(1))
    sampler = Sampler(Karras(), 60, Heun(churn=30.0, churn_min=0.05, churn_max=50.0))
    samples = sampler(model, x, noise=StreamNoise(2)).x
    mean, covariance = model.moments(model.schedule.t_min)
    assert ((samples.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt()).all()
    # Fourth moments of this mixture are below 3 var^2, so the standard error of a covariance is below sqrt(2/n) var.
    error = (torch.cov(samples.T) - covariance).abs()
    assert (error < 4 * (2 / n) ** 0.5 * covariance.diagonal().max()).all()


def test_churn_is_in_every_step_and_the_last_too():
    """Karras et al. 2022, algorithm 2, by itself: Euler's last step, to noise level 0, starts from a raised level."""
    n, churn, model, noise = 9, 5.0, MixtureModel(EDM(), **MIXTURE), StreamNoise(3)
    sigma = [*Karras()(model.schedule, n - 1).tolist(), 0.0]
    start = 80 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0))

    def denoiser(x, level):
        return model(x, torch.full((4,), level)).data

    x = start
    for level, following in pairwise(sigma):
        raised = level * (1 + min(churn / n, 2**0.5 - 1))
        x = x + (raised**2 - level**2) ** 0.5 * noise.normal_like(x)
        slope = (x - denoiser(x, raised)) / raised
        end = x + (following - raised) * slope
        if following > 0:
            slope = (slope + (end - denoiser(end, following)) / following) / 2
        x = x + (following - raised) * slope
    found = Sampler(Karras(), n - 1, Heun(churn=churn), denoise_last=True)(model, start, noise=StreamNoise(3))
    assert torch.allclose(found.x, x, rtol=1e-10, atol=1e-10)
    assert found.nfe == 2 * n - 1


@pytest.mark.parametrize("kernel", [Heun(churn=20.0), *KERNELS], ids=repr)
def test_a_sample_ignores_its_batch_mates(mixture, kernel):
    x = mixture.schedule.prior_std * torch.randn(4, 2)
    both = Sampler(Karras(), 5, kernel)(mixture, x, noise=_Zeros()).x
    alone = torch.cat([Sampler(Karras(), 5, kernel)(mixture, row[None], noise=_Zeros()).x for row in x])
    assert torch.allclose(both, alone, rtol=1e-12, atol=1e-13)


class _Zeros:
    """Noise that is not there."""

    def normal_like(self, x):
        return torch.zeros_like(x)


@pytest.mark.parametrize(
    ("make", "named"), [(lambda: Heun(churn=-1), "churn=-1"), (lambda: Heun(midpoint=0), "midpoint=0")]
)
def test_impossible_parameters_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()
