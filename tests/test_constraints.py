"""What is observed is held: to the last digit at the end, with the right law on the way, for every sample by itself."""

import math

import pytest
import torch

from scorefield.constraints import Constraint, Projection, Replacement
from scorefield.grids import Given, Karras, LogRatio, Resampled
from scorefield.kernels import Ancestral, DPMSolver2M, DPMSolver3M, EulerMaruyama, Heun, Langevin, SignalToNoise, Stay
from scorefield.models import MixtureModel
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.ode import DormandPrince
from scorefield.operators import Averaging, Dense, Fourier, Grey, Inpainting
from scorefield.samplers import FlowSampler, Path, Sampler
from scorefield.schedules import EDM, VE, VP
from tests.test_samplers import Counted

SHAPE = (3, 4, 4)
OPERATORS = [
    Inpainting.rows(SHAPE),
    Inpainting.random(SHAPE, 0.3),
    Grey(SHAPE),
    Averaging(SHAPE, 2),
    Fourier.lowest(SHAPE, 0.5),
]
SNR = Langevin(SignalToNoise(0.1))
SAMPLERS = {
    "heun": Sampler(Karras(), 8, Heun(), denoise_last=True),
    "not_denoised": Sampler(Karras(), 8, Heun()),
    "churn": Sampler(Karras(), 8, Heun(churn=4.0), denoise_last=True),
    "multistep": Sampler(LogRatio(), 8, DPMSolver2M(), denoise_last=True),
    "corrector": Sampler(LogRatio(), 8, Ancestral(), SNR, 2, denoise_last=True),
    "annealed": Sampler(LogRatio(), 8, Stay(), SNR, 2, denoise_last=True),
    "repaint": Sampler(Resampled(LogRatio(), 2, 3), 8, Ancestral(), denoise_last=True),
    "flow": FlowSampler(DormandPrince(1e-2, 1e-2), denoise_last=True, stops=6),
}


def images(schedule):
    """A mixture of three random images."""
    means = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return MixtureModel(schedule, [0.2, 0.5, 0.3], means, [0.05] * 3)


def with_constraint(sampler, constraint):
    return type(sampler)(**{**vars(sampler), "constraint": constraint})


def test_every_constraint_is_covered():
    assert Constraint.__subclasses__() == [Projection]
    assert Projection.__subclasses__() == [Replacement]


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda o: type(o).__name__)
def test_what_was_observed_comes_out(operator, sampler):
    """Pixels, the grey channel, blocks, frequencies: to 1e-5 in float32, with every kind of sampler."""
    schedule = EDM(0.01, 20.0)
    model = images(schedule).float()
    truth = model.sample_like(torch.empty(4, *SHAPE, dtype=torch.float32), torch.zeros(4), StreamNoise(2))
    y = operator.forward(truth)
    x = schedule.prior_like(torch.empty_like(truth), StreamNoise(0))
    constrained = with_constraint(sampler, Replacement(operator))
    samples = constrained(model, x, {"observed": y}, StreamNoise(1)).x
    assert float((operator.forward(samples) - y).abs().max()) < 1e-5
    # The rest is not the truth's: it was sampled.
    assert float((samples - truth).abs().max()) > 0.1


def test_inpainted_pixels_are_the_observed_ones():
    """Compared in the picture itself, without the operator."""
    model, operator = images(EDM(0.01, 20.0)), OPERATORS[0]
    truth = torch.randn(2, *SHAPE)
    x = model.schedule.prior_like(torch.empty_like(truth), StreamNoise(0))
    sampler = with_constraint(SAMPLERS["heun"], Replacement(operator))
    out = sampler(model, x, {"observed": operator.forward(truth)}, StreamNoise(1)).x
    assert float((out - truth)[:, :, :2].abs().max()) < 1e-12
    assert float((out - truth)[:, :, 2:].abs().min()) > 1e-6


def test_a_colourised_picture_has_the_observed_grey():
    model = images(EDM(0.01, 20.0))
    grey = torch.rand(2, 1, 4, 4)
    x = model.schedule.prior_like(torch.empty(2, *SHAPE), StreamNoise(0))
    sampler = with_constraint(SAMPLERS["corrector"], Replacement(Grey(SHAPE)))
    out = sampler(model, x, {"observed": math.sqrt(3) * grey}, StreamNoise(1)).x
    assert float((out.mean(1, keepdim=True) - grey).abs().max()) < 1e-12


@pytest.mark.parametrize("schedule", [VP(), VE(), EDM()], ids=repr)
def test_on_the_way_the_observed_part_is_perturbed_as_its_level_asks(schedule):
    """A x_t ~ N(alpha y, sigma^2 I), and the unobserved part has not moved."""
    n, operator = 4000, Averaging((1, 2, 4), 2)
    x, y = torch.randn(n, 1, 2, 4), torch.tensor([[[[2.0, -1.0]]]]).expand(n, -1, -1, -1)
    t = schedule.time_at(torch.tensor(0.5)).expand(n)
    held = Replacement(operator).hold(schedule, x, t, {"observed": y}, StreamNoise(0))
    alpha, sigma = float(schedule.alpha(t[:1])), float(schedule.sigma(t[:1]))
    seen = operator.forward(held)
    # Four standard errors of a mean and of a variance.
    assert float((seen.mean(0) - alpha * y[0]).abs().max()) < 4 * sigma / n**0.5
    assert float((seen.var(0) / sigma**2 - 1).abs().max()) < 4 * (2 / n) ** 0.5
    moved = held - x
    assert torch.allclose(moved, operator.adjoint(operator.forward(moved)), atol=1e-12)


def test_a_projection_minimises_what_it_says():
    """(1 - w) |x' - x|^2 + w |x' - u|^2 over u with A u = y_t: stationary in x', by differentiation."""
    operator, schedule, t = Grey(SHAPE), VP(), torch.full((2,), 0.4)
    x, y, w = torch.randn(2, *SHAPE), torch.randn(2, 1, 4, 4), 0.3
    found = Projection(operator, w).hold(schedule, x, t, {"observed": y}, StreamNoise(7)).requires_grad_()
    noise = StreamNoise(7).normal_like(y)
    y_t = schedule.perturb(y, t, noise)
    nearest = found + operator.adjoint(y_t - operator.forward(found))  # of all u
    loss = (1 - w) * (found - x).square().sum() + w * (found - nearest).square().sum()
    (slope,) = torch.autograd.grad(loss, found)
    assert float(slope.abs().max()) < 1e-12
    assert float((found - x).detach().abs().max()) > 0.1


@pytest.mark.parametrize("constraint", [Replacement, Projection], ids=lambda c: c.__name__)
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_a_constrained_sample_depends_on_its_index_alone(constraint, sampler):
    model, operator = images(VP(t_min=1e-3)), OPERATORS[1]
    y = operator.forward(torch.randn(5, *SHAPE))

    def run(rows):
        noise = IndexedNoise(0, "samples", rows)
        x = model.schedule.prior_like(torch.empty(len(rows), *SHAPE), noise)
        return with_constraint(sampler, constraint(operator))(model, x, {"observed": y[rows]}, noise).x

    together = run([0, 1, 2, 3, 4])
    for rows in ([3], [4, 0]):
        # Sums may be taken in another order for another number of rows.
        assert torch.allclose(run(rows), together[rows], rtol=1e-8, atol=1e-9)


def test_the_path_shows_the_constrained_end():
    model, path = images(VP(t_min=1e-3)), Path()
    sampler = with_constraint(SAMPLERS["not_denoised"], Replacement(OPERATORS[2]))
    x = sampler(model, torch.randn(2, *SHAPE), {"observed": torch.zeros(2, 1, 4, 4)}, StreamNoise(0), path).x
    assert torch.equal(path.x[-1], x)


def test_resampling_walks_down_and_up():
    grid = Resampled(Given((0.9, 0.7, 0.5, 0.3, 0.1)), jump=2, repeats=3)
    down = [0.9, 0.7, 0.5]
    assert grid(VP(), 4).tolist() == down * 3 + [0.3, 0.1] + [0.5, 0.3, 0.1] * 2
    assert Resampled(LogRatio(), 3, 1)(VP(), 7).tolist() == LogRatio()(VP(), 7).tolist()
    for steps, jump, repeats in ((4, 2, 3), (7, 3, 2), (5, 5, 4), (6, 1, 2)):
        sampler = Sampler(Resampled(LogRatio(), jump, repeats), steps, Heun(), SNR, denoise_last=True)
        model = Counted(images(VP(t_min=1e-3)))
        assert sampler(model, torch.randn(2, *SHAPE)).nfe == sampler.nfe == len(model.asked)
        moves = sampler.grid(VP(), steps).diff()
        assert int((moves < 0).sum()) == sampler.grid.descents(steps)
        assert len(moves) == sampler.moves
    with pytest.raises(ValueError, match=r"jump=0"):
        Resampled(LogRatio(), 0)
    with pytest.raises(ValueError, match=r"jump=9 is more than the 4 steps"):
        Resampled(LogRatio(), 9)(VP(), 4)


@pytest.mark.parametrize("predictor", [EulerMaruyama(), DPMSolver3M()], ids=repr)
def test_without_a_constraint_resampling_samples_the_same(predictor):
    """Down and up again is a way from the marginal to itself."""
    n, schedule = 4000, VP(t_min=1e-3)
    model = MixtureModel(schedule, [0.3, 0.7], [[-0.6, 0.4], [0.5, -0.3]], [[0.04, 0.09], [0.16, 0.02]])
    x = schedule.prior_like(torch.empty(n, 2), StreamNoise(0))
    samples = Sampler(Resampled(LogRatio(), 10, 2), 100, predictor)(model, x, noise=StreamNoise(1)).x
    mean, covariance = model.moments(schedule.t_min)
    error = 4 * (covariance.diagonal() / n).sqrt()
    # First order of steps of 0.07 in the log ratio, as for these samplers without resampling.
    assert ((samples.mean(0) - mean).abs() < error + 0.01).all()
    assert float((samples.T.cov() - covariance).abs().max()) < 4 * float(covariance.max()) * (2 / n) ** 0.5 + 0.02


def test_resampling_makes_the_rest_agree():
    """One of four coordinates is observed; with replacement alone the other three often choose the other mode."""
    n, schedule, ones = 1000, EDM(0.05, 10.0), torch.ones(4)
    model = MixtureModel(schedule, [0.5, 0.5], torch.stack([-ones, ones]), [0.05, 0.05])
    operator, y = Dense(torch.eye(4)[:1]), torch.ones(n, 1)  # the other mode is 40 nats away
    wrong = {}
    for repeats in (1, 10):
        sampler = Sampler(Resampled(LogRatio(), 5, repeats), 40, Ancestral(), constraint=Replacement(operator))
        x = schedule.prior_like(torch.empty(n, 4), StreamNoise(0))
        samples = sampler(model, x, {"observed": y}, StreamNoise(1)).x
        wrong[repeats] = float((samples[:, 1] < 0).double().mean())
    assert wrong[1] > 0.15  # the known bias
    assert wrong[10] < wrong[1] / 3


def test_what_cannot_be_held_is_refused():
    model, sampler = images(VP(t_min=1e-3)), with_constraint(SAMPLERS["heun"], Replacement(OPERATORS[0]))
    with pytest.raises(ValueError, match=r"nothing was observed"):
        sampler(model, torch.randn(2, *SHAPE))
    with pytest.raises(ValueError, match=r"holds 3 observations for 2 samples"):
        sampler(model, torch.randn(2, *SHAPE), {"observed": torch.zeros(3, 24)})
    with pytest.raises(ValueError, match=r"weight=0.0"):
        Projection(OPERATORS[0], 0.0)
    with pytest.raises(ValueError, match=r"weight=0.5 of a Replacement"):
        Replacement(OPERATORS[0], 0.5)
    with pytest.raises(ValueError, match=r"stops=1 holds the constraint at the end only"):
        FlowSampler(DormandPrince(), constraint=Replacement(OPERATORS[0]))
