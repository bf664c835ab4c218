"""Laws of schedules: derivatives, transitions, inverses, and the marginals of the SDE they claim."""

import inspect
import math

import pytest
import torch
from scipy.integrate import solve_ivp

from scorefield import schedules as module
from scorefield.prediction import Velocity
from scorefield.schedules import (
    EDM,
    VE,
    VP,
    Brownian,
    Constant,
    Exploding,
    Linear,
    Preserving,
    Schedule,
    SubVP,
    Tabulated,
)
from tests.conftest import CONTINUOUS, SCHEDULES, inside

# For the laws of this page alone: rates that begin at 0, a sigma that does not, one schedule under another scaling.
EDGES: dict[str, Schedule] = {
    "vp from rate 0": VP(0.0, 20.0),
    "subvp from rate 0": SubVP(0.0, 20.0),
    "linear from sigma_min": Linear(1e-3, 0.99, sigma_min=0.05),
    "exploding": Exploding(VP(0.1, 20.0)),
    "preserving": Preserving(EDM(0.002, 80.0)),
}


@pytest.fixture(params=[*SCHEDULES.values(), *EDGES.values()], ids=[*SCHEDULES, *EDGES])
def schedule(request) -> Schedule:
    return request.param


@pytest.fixture(params=[*CONTINUOUS.values(), *EDGES.values()], ids=[*CONTINUOUS, *EDGES])
def continuous(request) -> Schedule:
    return request.param


def test_every_schedule_is_covered():
    classes = {
        c
        for _, c in inspect.getmembers(module, inspect.isclass)
        if issubclass(c, Schedule) and not inspect.isabstract(c) and not c.__name__.startswith("_")
    }
    assert classes - {Constant} == {type(s) for s in [*SCHEDULES.values(), *EDGES.values()]}


def test_derivatives_equal_central_differences(continuous):
    t = inside(continuous)
    h = 1e-5 * t
    for value, derivative in ((continuous.alpha, continuous.alpha_dot), (continuous.sigma, continuous.sigma_dot)):
        difference = (value(t + h) - value(t - h)) / (2 * h)
        # Relative truncation (h/t)^2 = 1e-10 and rounding 1e-16 / 1e-5, times the function's own scale.
        scale = difference.abs() + value(t) / t
        assert ((derivative(t) - difference).abs() / scale).max() < 1e-8


def test_closed_forms_equal_the_derived_ones(continuous):
    t = inside(continuous)
    for name in ("alpha_dot", "sigma_dot", "drift", "diffusion_sq"):
        derived = getattr(Schedule, name)(continuous, t)
        assert torch.allclose(getattr(continuous, name)(t), derived, rtol=1e-9, atol=1e-12), name


def test_the_closed_form_of_a_transition_equals_the_derived_one(schedule):
    s, t = inside(schedule)[:-1], inside(schedule)[1:]
    for found, derived in zip(schedule.transition(s, t), Schedule.transition(schedule, s, t), strict=True):
        assert torch.allclose(found, derived, rtol=1e-10, atol=0)


def test_variance_and_mean_solve_the_sde_moments(continuous):
    """d mean = f mean dt and d var = (2 f var + g^2) dt, integrated independently by scipy."""
    t = inside(continuous, 7)
    start, end = float(t[1]), float(t[-2])

    def moments(time, m):
        now = torch.tensor([time])
        f, g_sq = float(continuous.drift(now)), float(continuous.diffusion_sq(now))
        return [f * m[0], 2 * f * m[1] + g_sq]

    initial = [float(continuous.alpha(t[1:2])), float(continuous.sigma(t[1:2]).square())]
    mean, variance = solve_ivp(moments, (start, end), initial, method="DOP853", rtol=1e-11, atol=1e-14).y[:, -1]
    assert mean == pytest.approx(float(continuous.alpha(t[-2:-1])), rel=1e-8)
    assert variance == pytest.approx(float(continuous.sigma(t[-2:-1]).square()), rel=1e-8)


def test_transition_is_a_semigroup(schedule):
    r, s, t = (inside(schedule)[i::3] for i in range(3))
    gain_rs, var_rs = schedule.transition(r, s)
    gain_st, var_st = schedule.transition(s, t)
    gain_rt, var_rt = schedule.transition(r, t)
    assert torch.allclose(gain_st * gain_rs, gain_rt, rtol=1e-12, atol=0)
    assert torch.allclose(gain_st.square() * var_rs + var_st, var_rt, rtol=1e-10, atol=0)
    assert (var_rt > 0).all()


def test_transition_connects_the_marginals(schedule):
    s, t = inside(schedule)[:-1], inside(schedule)[1:]
    gain, variance = schedule.transition(s, t)
    assert torch.allclose(gain * schedule.alpha(s), schedule.alpha(t), rtol=1e-12, atol=0)
    total = gain.square() * schedule.sigma(s).square() + variance
    assert torch.allclose(total, schedule.sigma(t).square(), rtol=1e-12, atol=0)


def test_transition_keeps_its_accuracy_in_float32(schedule):
    """Neighbouring times in float32: the variance must not drown in cancellation."""
    t64 = inside(schedule)
    # A ratio step of 1 % costs two digits of the seven; 1e-4 leaves a factor of ten for the ratio's own rounding.
    s64 = schedule.time_at(0.99 * schedule.ratio(t64))
    s32, t32 = s64.float(), t64.float()
    _, narrow = schedule.transition(s32, t32)
    _, wide = schedule.transition(s32.double(), t32.double())
    assert ((narrow - wide).abs() / wide).max() < 1e-4


def test_time_at_inverts_the_ratio(schedule):
    t = inside(schedule)
    assert torch.allclose(schedule.time_at(schedule.ratio(t)), t, rtol=1e-9, atol=0)
    bisection = Schedule.time_at(schedule, schedule.ratio(t))
    assert torch.allclose(bisection, t, rtol=1e-9, atol=1e-12)


def test_ratio_increases_and_diffusion_is_positive(schedule):
    t = inside(schedule, 200)
    assert (schedule.ratio(t).diff() > 0).all()
    assert (schedule.diffusion_sq(t) >= 0).all()


@pytest.mark.parametrize("shape", [(2,), (1, 8, 8), (3, 4, 4)])
def test_perturb_scales_each_sample_by_its_own_time(schedule, shape):
    t = inside(schedule, 5)
    x, eps = torch.randn(5, *shape), torch.randn(5, *shape)
    x_t = schedule.perturb(x, t, eps)
    for i in range(5):
        expected = float(schedule.alpha(t[i : i + 1])) * x[i] + float(schedule.sigma(t[i : i + 1])) * eps[i]
        assert torch.allclose(x_t[i], expected, rtol=1e-13)


def test_prior_is_a_normalised_gaussian_near_the_marginal(schedule):
    grid = torch.linspace(-12, 12, 4001)[:, None] * schedule.prior_std
    density = schedule.prior_log_prob(grid).exp()
    assert float(torch.trapezoid(density, grid[:, 0])) == pytest.approx(1, abs=1e-8)
    second = float(torch.trapezoid(density * grid[:, 0].square(), grid[:, 0]))
    sigma = float(schedule.sigma(torch.tensor([schedule.t_max])))
    # Linear stops at 0.99 of the prior's scale, the ladder of 50 steps at alpha^2 = 0.08; the others within 1e-4.
    assert second == pytest.approx(sigma**2, rel=0.09)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rate_from_0_begins_with_clean_data(dtype):
    """Close to t = 0 the integral of the rate is beta_max t^2 / 2: VP's sigma is its root, sub-VP's the integral."""
    t = torch.tensor([1e-7, 1e-6, 1e-5], dtype=dtype)
    vp, subvp = VP(0.0, 20.0), SubVP(0.0, 20.0)
    # The next term is relatively beta_max t^2 / 4 < 1e-9; the rest is rounding, of 10 operations at most.
    near = {"rtol": 1e-9 + 10 * torch.finfo(dtype).eps, "atol": 0}
    assert torch.allclose(vp.sigma(t), 10**0.5 * t, **near)
    assert torch.allclose(vp.sigma_dot(t), torch.full_like(t, 10**0.5), **near)
    assert torch.allclose(subvp.sigma(t), 10 * t.square(), **near)
    assert torch.allclose(subvp.sigma_dot(t), 20 * t, **near)
    for schedule in (vp, subvp):
        assert torch.allclose(schedule.time_at(schedule.ratio(t)), t, **near)
        assert schedule.time_at(torch.zeros(1, dtype=dtype)).tolist() == [0.0]
        assert torch.allclose(schedule.transition(torch.zeros_like(t), t)[1], schedule.sigma(t).square(), **near)


def test_constant_has_one_level_and_no_dynamics():
    clean, noisy = Constant(0.0), Constant(0.3)
    t = torch.linspace(0, 1, 5)
    assert (clean.sigma(t) == 0).all()
    assert (noisy.sigma(t) == 0.3).all()
    for schedule in (clean, noisy):
        assert (schedule.drift(t) == 0).all()
        assert (schedule.diffusion_sq(t) == 0).all()
        gain, variance = schedule.transition(t, t)
        assert (gain == 1).all()
        assert (variance == 0).all()
    with pytest.raises(ValueError, match="no time belongs"):
        noisy.time_at(t)


def test_lines_to_a_noise_of_sigma_min_are_lipmans():
    """psi_s(x0) = (1 - (1 - sigma_min) s) x0 + s x1 with s = 1 - t and noise x0, and its velocity (eq. 22 and 23)."""
    schedule, least, t = Linear(0.0, 1.0, sigma_min=0.1), 0.1, torch.tensor([0.0, 0.3, 1.0])
    data, noise = torch.randn(3, 2), torch.randn(3, 2)
    s = 1 - t[:, None]
    assert torch.allclose(schedule.perturb(data, t, noise), (1 - (1 - least) * s) * noise + s * data, rtol=1e-13)
    p, q = Velocity().coefficients(schedule, t)
    theirs = data - (1 - least) * noise  # along s, which runs the other way
    assert torch.allclose(p[:, None] * data + q[:, None] * noise, -theirs, rtol=1e-13)
    assert schedule.sigma(t)[[0, 2]].tolist() == [least, 1.0]


def test_geometric_ladder_is_ve_at_equal_times():
    levels, low, high = 10, 0.01, 1.0
    ladder = torch.logspace(0, -2, levels)
    times = 1 - torch.arange(levels) / (levels - 1)
    assert torch.allclose(VE(low, high).sigma(times), ladder, rtol=1e-13)


def test_tabulated_chain_has_the_given_transitions():
    betas = torch.linspace(1e-4, 0.02, 100)
    chain = Tabulated.ddpm(betas.tolist())
    t = torch.arange(101) / 100  # the first transition starts from the clean data
    gain, variance = chain.transition(t[:-1], t[1:])
    assert torch.allclose(gain.square(), 1 - betas, rtol=1e-11)
    assert torch.allclose(variance, betas, rtol=1e-9)


def test_tabulated_ladder_begins_with_clean_data_and_rises_through_its_levels():
    ladder = Tabulated([1.0, 0.9, 0.5], [0.1, 0.3, 0.8])
    assert (float(ladder.alpha(torch.zeros(1))), float(ladder.sigma(torch.zeros(1)))) == (1.0, 0.0)
    at_levels = torch.tensor([1, 2, 3]) / 3
    assert torch.allclose(ladder.alpha(at_levels), torch.tensor([1.0, 0.9, 0.5]), rtol=1e-14)
    assert torch.allclose(ladder.sigma(at_levels), torch.tensor([0.1, 0.3, 0.8]), rtol=1e-14)
    t = torch.linspace(0, 1, 601)
    ratio = ladder.ratio(t)
    assert (ratio.diff() > 0).all()
    # Steps of 1/600 in t are at most 1 % of the way from level to level, where u grows by 4.8 at most: no jumps.
    assert float(ratio.diff().max()) < 0.02
    assert torch.allclose(ladder.time_at(ratio[1:]), t[1:], rtol=1e-12)


def test_iddpms_chain_is_karras_recursion_of_its_ratios():
    """u_(j-1)^2 = (u_j^2 + 1) / max(abar_(j-1) / abar_j, C_1) - 1 from u_M = 0, abar_j = sin^2(pi j / 2M (C_2 + 1))."""
    m, u = 1000, [0.0]
    for j in range(m, 0, -1):
        before, now = (math.sin(math.pi / 2 * k / (m * 1.008)) ** 2 for k in (j - 1, j))
        u.append(math.sqrt((u[-1] ** 2 + 1) / max(before / now, 0.001) - 1))
    chain = Tabulated.cosine(m)
    # From u_M = 0 upwards: the first is 1 + 4e-5 less 1, five digits of sixteen.
    assert torch.allclose(chain.ratio(torch.arange(1, m + 1) / m), torch.tensor(u[1:]), rtol=1e-10)


def test_scalings_of_one_schedule_have_its_levels():
    """Karras et al. 2022, table 1: of VP the level sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), and s of either."""
    t = inside(VP())
    level = torch.sqrt(torch.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)
    # exp - 1 cancels 1e-16 against 1e-6 here, not in the schedule.
    assert torch.allclose(Exploding(VP()).sigma(t), level, rtol=1e-9)
    for name in ("alpha", "sigma", "drift", "diffusion_sq"):
        ours, of = (getattr(schedule, name)(t) for schedule in (Preserving(VP()), VP()))
        assert torch.allclose(ours, of, rtol=1e-9), name
        ours, of = (getattr(schedule, name)(t) for schedule in (Exploding(Preserving(VE())), VE()))
        assert torch.allclose(ours, of, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: VE(1.0, 0.5), "sigma_max=0.5"),
        (lambda: VP(20.0, 0.1), "beta_max=0.1"),
        (lambda: SubVP(-0.1, 20.0), "beta_min=-0.1"),
        (lambda: Linear(0.5, 0.1), "t_max=0.1"),
        (lambda: Linear(sigma_min=1.0), "sigma_min=1.0"),
        (lambda: Constant(-1.0), "sigma=-1.0"),
        (lambda: Brownian(0.0), "t_min=0.0"),
        (lambda: Tabulated.cosine(1000, beta_last=1.0), "beta_last=1.0"),
        (lambda: Tabulated([1.0, 0.9], [0.5, 0.1]), "increase"),
    ],
)
def test_impossible_parameters_are_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("sde", ["ve", "vp", "subvp"])
def test_recorded_coefficients(recorded, sde):
    """Drift, diffusion, marginals and prior of the reference implementation in float64."""
    numbers = recorded("sde_functions")
    schedule = {"ve": VE(0.01, 50.0), "vp": VP(0.1, 20.0), "subvp": SubVP(0.1, 20.0)}[sde]
    t, x = numbers["t"].double(), numbers["x"].double()
    expand = (-1, 1, 1, 1)
    got = {
        "drift": schedule.drift(t).reshape(expand) * x,
        "diffusion": schedule.diffusion_sq(t).sqrt(),
        "mean": schedule.alpha(t).reshape(expand) * x,
        "std": schedule.sigma(t),
        "prior_logp": schedule.prior_log_prob(numbers[f"{sde}/z"].double()),
    }
    for name, value in got.items():
        expected = numbers[f"{sde}/f64/{name}"].double()
        # The reference multiplies by float32 constants in places; a few of float32's roundings of 6e-8.
        assert torch.allclose(value, expected, rtol=4e-7, atol=1e-9), name


def test_single_precision_keeps_the_digits_of_sigma():
    """Networks are asked at times of float32: the level of such a time to two roundings, and not to the ten of exp."""
    t = torch.linspace(0, 1, 4001, dtype=torch.float32)
    found, exact = VE().sigma(t), VE().sigma(t.double())
    assert (found / exact - 1).abs().max() < 2.5e-7
