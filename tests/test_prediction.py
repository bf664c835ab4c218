"""Laws of the target algebra: one output determines every view, and the native view is the output itself."""

import itertools
from types import SimpleNamespace

import pytest
import torch

from scorefield.kernels import Ancestral
from scorefield.prediction import (
    Combination,
    Data,
    Karras,
    Noise,
    PosteriorMean,
    Prediction,
    ScaledScore,
    Score,
    Target,
    Velocity,
)
from scorefield.schedules import EDM, VP, Constant, Tabulated
from tests.conftest import inside

ANY = Combination(torch.linspace(0.2, 1.5, 9, dtype=torch.float64), torch.linspace(-2, -0.1, 9, dtype=torch.float64))
TARGETS: list[Target] = [Data(), Noise(), Score(), ScaledScore(), Velocity(), Karras(0.7), PosteriorMean(0.05), ANY]


def sample(schedule, shape=(3, 4, 4), n=9):
    t = inside(schedule, n)
    x, eps = torch.randn(n, *shape), torch.randn(n, *shape)
    return t, x, eps, schedule.perturb(x, t, eps)


def value(target: Target, schedule, t, x, eps):
    """p x + q eps, the target of known x and eps."""
    p, q = (c.reshape(-1, *(1,) * (x.ndim - 1)) for c in target.coefficients(schedule, t))
    return p * x + q * eps


class Known:
    """A model that knows what it is asked for."""

    def __init__(self, schedule, prediction):
        self.schedule, self.prediction = schedule, prediction

    def __call__(self, x, t, cond=None):
        return self.prediction


def test_every_target_is_covered():
    assert {type(t) for t in TARGETS} == set(Target.__subclasses__())


@pytest.mark.parametrize(("native", "asked"), list(itertools.product(TARGETS, TARGETS)), ids=str)
def test_every_view_of_every_target_is_the_true_value(schedule, native, asked):
    t, x, eps, x_t = sample(schedule)
    prediction = Prediction(schedule, x_t, t, value(native, schedule, t, x, eps), native)
    expected = value(asked, schedule, t, x, eps)
    # The combination may cancel by the ratio of the scales of the two terms; 1e-9 of the larger term is five digits
    # above the worst such loss on these schedules (u = 5000 at both ends of EDM).
    p, q = (c.abs().reshape(-1, 1, 1, 1) for c in asked.coefficients(schedule, t))
    assert ((prediction.view(asked) - expected).abs() <= 1e-9 * (p + q + expected.abs())).all()


@pytest.mark.parametrize("native", TARGETS, ids=str)
def test_native_view_is_the_output_itself(schedule, native):
    t, _, _, x_t = sample(schedule)
    out = torch.randn_like(x_t)
    assert Prediction(schedule, x_t, t, out, native).view(native) is out


def test_velocity_is_the_probability_flow_field(continuous):
    """f x - g^2 score / 2 from the SDE's side equals the velocity view of the pair's side."""
    t, _, eps, x_t = sample(continuous)
    prediction = Prediction(continuous, x_t, t, eps, Noise())
    f, g_sq = (c.reshape(-1, 1, 1, 1) for c in (continuous.drift(t), continuous.diffusion_sq(t)))
    field = f * x_t - 0.5 * g_sq * prediction.score
    scale = (f * x_t).abs() + (g_sq * prediction.score).abs()
    assert ((prediction.velocity - field).abs() <= 1e-11 * scale).all()


def test_karras_data_view_is_edms_preconditioning():
    """c_skip = d^2 / (sigma^2 + d^2) and c_out = sigma d / sqrt(sigma^2 + d^2)."""
    schedule, d = EDM(), 0.5
    t, _, _, x_t = sample(schedule)
    out = torch.randn_like(x_t)
    sigma = t.reshape(-1, 1, 1, 1)
    expected = d**2 / (sigma**2 + d**2) * x_t + sigma * d / (sigma**2 + d**2).sqrt() * out
    assert torch.allclose(Prediction(schedule, x_t, t, out, Karras(d)).data, expected, rtol=1e-10, atol=1e-12)


def test_the_posterior_mean_is_ddpms():
    """sqrt(bar_(i-1)) beta_i / (1 - bar_i) x + sqrt(1 - beta_i) (1 - bar_(i-1)) / (1 - bar_i) x_i: eq. 7 of DDPM."""
    beta = torch.linspace(1e-3, 0.1, 50)
    bar = torch.cumprod(1 - beta, 0)
    before = torch.cat([torch.ones(1), bar[:-1]])
    schedule = Tabulated.ddpm(beta.tolist())
    t = torch.arange(1, 51) / 50
    x, eps = torch.randn(50, 3), torch.randn(50, 3)
    x_t = schedule.perturb(x, t, eps)
    of_x, of_x_t = before.sqrt() * beta / (1 - bar), (1 - beta).sqrt() * (1 - before) / (1 - bar)
    expected = of_x[:, None] * x + of_x_t[:, None] * x_t
    got = Prediction(schedule, x_t, t, eps, Noise()).view(PosteriorMean(1 / 50))
    assert torch.allclose(got, expected, rtol=1e-10, atol=1e-12)  # a dozen float64 roundings, some cancelling to 1e-3
    assert torch.allclose(got[0], x[0])  # the first step of the chain leads to the data


def test_the_posterior_mean_is_where_ancestral_sampling_goes(schedule):
    """The kernel's step without its noise, at the known x: on every schedule."""
    h = 0.01
    t = inside(schedule, 9)
    t = t[t - h > schedule.t_min]
    x, eps = torch.randn(len(t), 3), torch.randn(len(t), 3)
    x_t = schedule.perturb(x, t, eps)
    truth = Prediction(schedule, x_t, t, eps, Noise())
    silent = SimpleNamespace(normal_like=torch.zeros_like)
    got, _ = Ancestral().step(Known(schedule, truth), x_t, t, t - h, {}, silent)
    scale = x_t.abs() + x.abs()
    assert ((got - truth.view(PosteriorMean(h))).abs() <= 1e-9 * scale).all()


def test_score_in_float32_does_not_pass_through_the_data():
    """A noise-predicting VP network at sigma = 1e-3: the direct pair keeps seven digits where a detour keeps five."""
    schedule = VP()
    t = schedule.time_at(torch.tensor([1e-3]))
    eps, x = torch.randn(1, 100), torch.randn(1, 100)
    x_t = schedule.perturb(x, t, eps)
    truth = Prediction(schedule, x_t, t, eps, Noise()).score
    got = Prediction(schedule, x_t.float(), t, eps.float(), Noise()).score.double()
    assert ((got - truth).norm() / truth.norm()) < 3e-7  # a few float32 roundings of 6e-8


def test_add_score_adds_to_the_score_and_keeps_x_t(schedule):
    t, x, eps, x_t = sample(schedule)
    gradient = torch.randn_like(x_t)
    for native in TARGETS:
        before = Prediction(schedule, x_t, t, value(native, schedule, t, x, eps), native)
        after = before.add_score(gradient)
        scale = before.score.abs() + gradient.abs()
        assert ((after.score - before.score - gradient).abs() <= 1e-9 * scale).all(), native
        alpha, sigma = (c.reshape(-1, 1, 1, 1) for c in (schedule.alpha(t), schedule.sigma(t)))
        assert torch.allclose(alpha * after.data + sigma * after.noise, x_t, rtol=1e-8, atol=1e-8), native


def test_score_of_clean_data_is_native_only():
    clean = Constant(0.0)
    x, t = torch.randn(3, 2), torch.full((3,), 0.5)
    prediction = Prediction(clean, x, t, torch.randn(3, 2), Score())
    assert prediction.score is prediction.out
    with pytest.raises(ValueError, match="does not follow"):
        _ = prediction.data
