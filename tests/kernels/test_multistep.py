"""The stochastic multistep solver samples the marginals, and its memory is its own."""

import pytest
import torch

from scorefield.grids import LogRatio
from scorefield.kernels import Ancestral, DPMSolver2M, DPMSolver3M
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
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


@pytest.mark.parametrize("kernel", [DPMSolver2M(), DPMSolver3M()], ids=repr)
def test_without_a_past_it_is_ddim(kernel):
    """One step, from any state: the first-order method that all of them start with."""
    model, x = MixtureModel(VP(t_min=1e-3), **MIXTURE), torch.randn(5, 2)
    ours, ddim = (Sampler(LogRatio(t_min=0.3), 1, k)(model, x).x for k in (kernel, Ancestral(eta=0.0)))
    assert torch.allclose(ours, ddim, rtol=1e-10)


@pytest.mark.parametrize("kernel", [DPMSolver2M(), DPMSolver3M()], ids=repr)
def test_one_call_and_no_memory_of_another_run(kernel):
    """Kernels are values: a second run from the same start is the same run."""
    model, x = MixtureModel(VP(t_min=1e-3), **MIXTURE), torch.randn(5, 2)
    sampler = Sampler(LogRatio(), 7, kernel)
    assert sampler.nfe == 7
    assert torch.equal(sampler(model, x).x, sampler(model, x).x)


def test_impossible_noise_is_refused():
    with pytest.raises(ValueError, match=r"eta=1\.5"):
        DPMSolver2M(1.5)
