"""Integrators against closed forms, their declared orders, scipy's solvers, and the independence of samples."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from scorefield.ode import EULER, HEUN, RK4, DormandPrince, FixedGrid, OdeError

SOLVERS = [FixedGrid(HEUN, 50), FixedGrid(RK4, 50, rho=2.0), DormandPrince()]


def two_laws(t, x, rows):
    """x' = x cos t and the logistic x' = 2 x (1 - x): one depends on time, the other is nonlinear."""
    return torch.stack([x[:, 0] * t.cos(), 2 * x[:, 1] * (1 - x[:, 1])], 1)


def two_laws_closed(x, t):
    growth = x[:, 1] * math.exp(2 * t)
    return torch.stack([x[:, 0] * math.exp(math.sin(t)), growth / (1 - x[:, 1] + growth)], 1)


def rows_of(*values):
    """A batch in float64, which is not yet the default while this file is imported."""
    return torch.tensor(values, dtype=torch.float64)


START = rows_of([1.0, 0.1], [-0.5, 0.6], [2.0, 1.5])


class Watched:
    """A field that notes what it is asked."""

    def __init__(self, field):
        self.field, self.times, self.rows = field, [], []

    def __call__(self, t, x, rows):
        self.times.append(t.clone())
        self.rows.append(rows.clone())
        assert len(t) == len(x) == len(rows)
        return self.field(t, x, rows)


def graded(steps):
    """A grid whose steps shrink towards 0, with its last time exactly 2."""
    return tuple(2 * (i / steps) ** 2 for i in range(steps + 1))


@pytest.mark.parametrize("tableau", [EULER, HEUN, RK4], ids=lambda tableau: tableau.name)
@pytest.mark.parametrize(
    "solver",
    [
        lambda tableau, n: FixedGrid(tableau, n),
        lambda tableau, n: FixedGrid(tableau, n, rho=3.0),
        lambda tableau, n: FixedGrid(tableau, times=graded(n)),
    ],
    ids=["equal", "rho", "given"],
)
def test_fixed_grids_converge_at_their_declared_order(tableau, solver):
    counts = [40, 80, 160]
    closed = two_laws_closed(START, 2.0)
    errors = [(solver(tableau, n).solve(two_laws, START, 0.0, 2.0).x - closed).abs().max() for n in counts]
    slopes = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # At 160 steps the next term of the error expansion changes the slope by a few hundredths.
    assert abs(slopes[-1] - tableau.order) < 0.15, slopes


@pytest.mark.parametrize("tableau", [EULER, HEUN, RK4], ids=lambda tableau: tableau.name)
def test_fixed_grids_integrate_polynomials_of_their_order_exactly(tableau):
    degree = tableau.order - 1
    slope = lambda t, x, rows: ((degree + 1) * t**degree)[:, None] * torch.ones_like(x)  # noqa: E731
    found = FixedGrid(tableau, 3).solve(slope, torch.zeros(1, 1), 0.5, 2.0).x
    assert abs(float(found) - (2.0 ** (degree + 1) - 0.5 ** (degree + 1))) < 1e-13


def test_fixed_grid_steps_where_it_says():
    def visited(solver, start, end):
        field = Watched(two_laws)
        solver.solve(field, START, start, end)
        return torch.stack([t[0] for t in field.times])

    equal = visited(FixedGrid(EULER, 8), -1.0, 3.0)
    torch.testing.assert_close(equal, torch.arange(-1.0, 3.0, 0.5), rtol=0, atol=1e-15)
    roots = visited(FixedGrid(EULER, 8, rho=7.0), 2.0, 0.01) ** (1 / 7)
    torch.testing.assert_close(roots.diff(), ((0.01 ** (1 / 7) - 2 ** (1 / 7)) / 8) * torch.ones(7), rtol=1e-12, atol=0)
    times = graded(6)
    assert visited(FixedGrid(EULER, times=times), 0.0, 2.0).tolist() == list(times[:-1])
    assert visited(FixedGrid(EULER, times=times), 2.0, 0.0).tolist() == list(times[:0:-1])
    with pytest.raises(ValueError, match=r"times end at 2.0 and 0.0, but the interval is 1.0"):
        FixedGrid(EULER, times=times).solve(two_laws, START, 1.0, 2.0)


def test_adaptive_error_is_proportional_to_the_tolerance():
    tolerances = [10.0**-k for k in range(4, 11)]
    closed = two_laws_closed(START, 2.0)
    errors = []
    for tolerance in tolerances:
        found = DormandPrince(tolerance, tolerance).solve(two_laws, START, 0.0, 2.0).x
        errors.append(float((found - closed).abs().max()))
    # A handful of steps each leave an error near the tolerance; growth along these paths is at most e^2.
    assert all(0.01 < error / tolerance < 20 for error, tolerance in zip(errors, tolerances, strict=True)), errors
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.15, errors


def relaxation(rates):
    """x' = -rate (x - cos t), a different rate for each row of the batch."""
    return lambda t, x, rows: -rates[rows][:, None] * (x - t.cos()[:, None])


def test_a_sample_does_not_depend_on_its_mates():
    rates = torch.tensor([1.0, 2000.0, 3.0, 0.1])
    x = torch.randn(4, 6)
    together = DormandPrince().solve(relaxation(rates), x, 0.0, 2.0)
    for i in range(4):
        alone = DormandPrince().solve(relaxation(rates[i : i + 1]), x[i : i + 1], 0.0, 2.0)
        # Elementwise arithmetic is the same for every batch size; only the norm's sum may be taken in another order.
        torch.testing.assert_close(together.x[i : i + 1], alone.x, rtol=1e-12, atol=1e-12)
        assert together.nfe[i] == alone.nfe[0]
    assert together.nfe[1] > 20 * together.nfe[0]
    assert together.calls == together.nfe.max()


def test_evaluations_are_counted_and_none_is_spent_on_who_has_arrived():
    rates = torch.tensor([1.0, 2000.0, 3.0, 0.1])
    field = Watched(relaxation(rates))
    solution = DormandPrince().solve(field, torch.randn(4, 6), 0.0, 2.0)
    assert solution.calls == len(field.times)
    assert solution.nfe.tolist() == torch.cat(field.rows).bincount(minlength=4).tolist()
    # Two evaluations to begin, six for each attempted step, the seventh stage being the next step's first.
    assert (solution.nfe % 6 == 2).all()
    for tableau in (EULER, HEUN, RK4):
        field = Watched(two_laws)
        solution = FixedGrid(tableau, 9).solve(field, START, 0.0, 1.0)
        assert solution.calls == len(field.times) == 9 * len(tableau.b)
        assert solution.nfe.tolist() == [solution.calls] * 3


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (1.0, 1e-5), (0.1, 0.7), (1e-3, 80.0), (80.0, 2e-3)])
def test_times_stay_inside_the_interval_and_reach_both_ends(solver, start, end):
    field = Watched(lambda t, x, rows: -x / (1 + t[:, None]))
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]])
    solution = solver.solve(field, x, start, end)
    times = torch.cat(field.times)
    assert times.dtype == torch.float64
    assert times.min() == min(start, end)
    assert times.max() == max(start, end)
    assert (field.times[0] == start).all()
    assert field.times[-1][-1] == end
    if isinstance(solver, DormandPrince):
        # x / x_0 = (1 + start) / (1 + end); the factor is the path's own growth times the number of steps.
        torch.testing.assert_close(solution.x, x * (1 + start) / (1 + end), rtol=2e-3, atol=2e-3 * max(1.0, start))


def test_time_itself_is_integrated_exactly():
    x = torch.zeros(3, 2)
    for start, end in [(0.1, 0.7), (1.0, 1e-5), (-3.0, 4.0)]:
        for solver in (DormandPrince(), FixedGrid(RK4, 7)):
            found = solver.solve(lambda t, x, rows: torch.ones_like(x), x, start, end).x
            # A step missed or overshot at the end would show in full; a few roundings do not.
            torch.testing.assert_close(found, torch.full_like(x, end - start), rtol=0, atol=5e-15)


def test_landing_takes_no_second_step_and_no_time_outside():
    generator = np.random.default_rng(0)
    # Ends near 0 are where start + (end - start) misses the end.
    for size, scale in [(1.0, 3.0), (1e6, 3.0), (1e6, 1e-5)] * 25:
        start, end = (float(v) for v in generator.normal(size=2) * (1.0, scale))
        field = Watched(lambda t, x, rows: torch.ones_like(x))
        DormandPrince().solve(field, torch.full((1, 1), size), start, end)
        times = torch.cat(field.times)
        assert times.min() == min(start, end)
        assert times.max() == max(start, end)
        # The last two stages of the last step; a start whose trial step spans the interval looks there as well.
        assert (times == end).sum() == 2 + (times[1] == end)


@pytest.mark.parametrize("solver", [FixedGrid(RK4, 200), DormandPrince(1e-8, 1e-8)], ids=["RK4", "adaptive"])
def test_forwards_then_backwards_is_the_identity(solver):
    there = solver.solve(two_laws, START, 0.0, 2.0)
    back = solver.solve(two_laws, there.x, 2.0, 0.0)
    # The way back expands what the logistic law contracts near 1, by up to e^4 = 55: a few tolerances become 200.
    torch.testing.assert_close(back.x, START, rtol=0, atol=2e-6)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_an_interval_or_batch_of_nothing_costs_nothing(solver):
    field = Watched(two_laws)
    still = solver.solve(field, START, 0.3, 0.3)
    assert torch.equal(still.x, START)
    empty = solver.solve(field, START[:0], 0.0, 1.0)
    assert empty.x.shape == (0, 2)
    assert (still.calls, empty.calls, still.nfe.tolist(), field.times) == (0, 0, [0, 0, 0], [])


def lorenz(t, x, rows):
    a, b, c = x.unbind(1)
    return torch.stack([10 * (b - a), a * (28 - c) - b + t.sin(), a * b - 8 / 3 * c], 1)


def as_numpy(field, row=0):
    index = torch.tensor([row])
    return lambda t, y: field(torch.tensor([t]), torch.from_numpy(y)[None], index)[0].numpy()


def test_agrees_with_an_eighth_order_solver():
    x = torch.tensor([[1.0, 1.0, 20.0], [-5.0, 3.0, 25.0]])
    found = DormandPrince(1e-11, 1e-11).solve(lorenz, x, 0.0, 1.0).x
    for row, start in zip(found, x, strict=True):
        reference = solve_ivp(as_numpy(lorenz), (0, 1), start.numpy(), "DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
        # Errors of 1e-11 grow by a factor of about e^(0.9) times the steps taken here, a few hundred.
        torch.testing.assert_close(row, torch.from_numpy(reference), rtol=0, atol=2e-8)


def harmonic(t, x, rows):
    return torch.stack([3 * x[:, 1], -3 * x[:, 0]], 1)


def mixture_flow(t, x, rows):
    """-t score of (N(-1, 1/400) + 3 N(1, 1/400)) / 4 blurred by t: sharp where a path chooses its mode."""
    variance = 1 / 400 + t[:, None] ** 2
    log_ratio = (x + 1) ** 2 / (2 * variance) - (x - 1) ** 2 / (2 * variance) + math.log(3)
    centre = 2 * torch.sigmoid(log_ratio) - 1
    return t[:, None] * (x - centre) / variance


COMPARISONS = {
    "linear": (lambda t, x, rows: -2 * x, rows_of([1.0], [-0.3], [10.0]), 0.0, 3.0),
    "harmonic": (harmonic, rows_of([1.0, 0.0], [0.2, 3.0]), 0.0, 4.0),
    "two laws": (two_laws, START, 0.0, 2.0),
    "mixture": (mixture_flow, rows_of([-15.0], [-3.0], [-0.3], [0.1], [8.0], [20.0]), 10.0, 0.01),
    "mixture back": (mixture_flow, rows_of([-1.05], [-0.97], [1.02], [0.9]), 0.01, 10.0),
}


@pytest.mark.parametrize("name", COMPARISONS)
def test_needs_no_more_evaluations_than_scipy_at_equal_error(name):
    field, x, start, end = COMPARISONS[name]
    ours = DormandPrince().solve(field, x, start, end)
    for row in range(len(x)):
        theirs, truth = (
            solve_ivp(as_numpy(field, row), (start, end), x[row].numpy(), method, rtol=tolerance, atol=tolerance)
            for method, tolerance in (("RK45", 1e-5), ("DOP853", 1e-12))
        )
        assert int(ours.nfe[row]) <= 1.05 * theirs.nfev
        error = np.abs(ours.x[row].numpy() - truth.y[:, -1]).max()
        # The truth itself is good to about 1e-10 here.
        assert error <= 1.05 * np.abs(theirs.y[:, -1] - truth.y[:, -1]).max() + 1e-9


def test_every_component_enters_the_error_control():
    # The state rests; only the last component, where a log-determinant would be, has something to integrate.
    def field(t, x, rows):
        return torch.cat([torch.zeros_like(x[:, :-1]), (40 * (40 * t).cos())[:, None]], 1)

    found = DormandPrince(1e-6, 1e-6).solve(field, torch.zeros(2, 5), 0.0, 1.0).x
    # The norm is a mean over five components, so one may err sqrt(5) tolerances in each of some 60 steps.
    torch.testing.assert_close(found[:, -1], torch.full((2,), math.sin(40.0)), rtol=0, atol=1e-4)


def test_float32_states_keep_float64_times():
    seen = []

    def field(t, x, rows):
        seen.append((t.dtype, x.dtype))
        return two_laws(t, x.double(), rows).float()

    for solver in (DormandPrince(), FixedGrid(RK4, 50), DormandPrince(state_dtype=torch.float64)):
        found = solver.solve(field, START.float(), 0.0, 2.0).x
        assert found.dtype == torch.float32
        # Tolerance 1e-5 per step for about ten steps.
        torch.testing.assert_close(found.double(), two_laws_closed(START, 2.0), rtol=0, atol=1e-4)
    assert set(seen) == {(torch.float64, torch.float32)}


def test_wider_state_keeps_what_small_steps_add():
    x = torch.full((1, 1), 1e4, dtype=torch.float32)
    solve = lambda dtype: float(  # noqa: E731
        FixedGrid(EULER, 4000, state_dtype=dtype).solve(lambda t, x, rows: torch.ones_like(x), x, 0.0, 1.0).x
    )
    # float32 near 1e4 has a spacing of 1e-3: steps of 2.5e-4 vanish one by one.
    assert solve(None) == 1e4
    assert solve(torch.float64) == 1e4 + 1


@pytest.mark.parametrize("solver", [FixedGrid(RK4, 50), DormandPrince(1e-8, 1e-8)], ids=["RK4", "adaptive"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fields_may_differentiate_in_any_mode(solver, mode):
    def field(t, x, rows):
        assert not torch.is_grad_enabled()
        with torch.enable_grad():
            at = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((at.square() * t[:, None]).sum() / 2, at)
        return -gradient

    with mode():
        x = torch.ones(2, 3) * torch.tensor([[1.0], [2.0]])
        found = solver.solve(field, x, 0.0, 1.5).x
    torch.testing.assert_close(found, x * math.exp(-(1.5**2) / 2), rtol=0, atol=2e-7)


def test_fixed_grids_are_differentiable():
    x = START.clone().requires_grad_()
    found = FixedGrid(RK4, 100).solve(two_laws, x, 0.0, 2.0).x
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), x)
    torch.testing.assert_close(gradient[:, 0], torch.full((3,), math.exp(math.sin(2.0))), rtol=0, atol=1e-6)


def test_a_step_out_of_the_domain_is_taken_again():
    met = []

    def field(t, x, rows):
        met.append(bool((x < 0).any()))
        return torch.where(x < 0, torch.nan, -50 * x * (t > 0.2)[:, None])

    found = DormandPrince().solve(field, torch.ones(1, 1), 0.0, 1.0).x
    assert any(met)
    torch.testing.assert_close(found, torch.zeros(1, 1), rtol=0, atol=1e-4)


def test_a_start_that_tries_a_time_out_of_the_domain():
    # The large component allows a first trial in which the small one, decaying fast, would change its sign.
    met = []

    def field(t, x, rows):
        met.append(bool((x < 0).any()))
        return torch.where((x < 0).any(), torch.nan, torch.stack([-50 * x[:, 0], torch.ones_like(t)], 1))

    found = DormandPrince().solve(field, torch.tensor([[1e-3, 1e3]]), 0.0, 0.1).x
    assert met[1]
    torch.testing.assert_close(found, torch.tensor([[1e-3 * math.exp(-5), 1e3 + 0.1]]), rtol=0, atol=1e-4)


def spoiled(value, after=0.5, row=2):
    """Decay whose slope for one row becomes ``value`` after some time."""

    def field(t, x, rows):
        return torch.where(((t > after) & (rows == row))[:, None], value, -x)

    return field


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_field_that_breaks_is_named_with_its_place(value):
    x = torch.ones(4, 9)
    field = Watched(spoiled(value))
    with pytest.raises(OdeError, match="field is not finite however short the step: sample 2") as caught:
        DormandPrince().solve(field, x, 0.0, 1.0)
    message = str(caught.value)
    assert 0.499 < float(re.search(r"at t=([\d.]+)", message)[1]) <= 0.5
    # |x| = 3 exp(-0.5) there.
    assert abs(float(re.search(r"\|x\|=([\d.]+)", message)[1]) - 1.8196) < 1e-3
    for part in ("float64", "rtol=1e-05", "fixed grid", "t_min"):
        assert part in message
    # Each rejection shortens the step five times, down to 1e-15 of the interval: far from max_nfe.
    assert len(field.times) < 1000

    with pytest.raises(OdeError, match=r"field is not finite in the step of 0.1: sample 2 at t=0.[45]"):
        FixedGrid(HEUN, 10).solve(spoiled(value), x, 0.0, 1.0)
    with pytest.raises(OdeError, match=r"field is not finite at the start: sample 2 at t=0,"):
        DormandPrince().solve(spoiled(value, after=-1.0), x, 0.0, 1.0)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_a_state_that_breaks_is_told_from_a_field_that_does(solver):
    x = torch.ones(4, 2)
    x[3, 1] = math.nan
    with pytest.raises(OdeError, match="initial state is not finite: sample 3"):
        solver.solve(two_laws, x, 0.0, 1.0)
    if isinstance(solver, FixedGrid):
        with pytest.raises(OdeError, match="state is not finite after the step"):
            solver.solve(lambda t, x, rows: torch.full_like(x, 1.7e308), START * 0, 0.0, 1e4)


def test_max_nfe_ends_a_hopeless_sample():
    rates = torch.tensor([1.0, 1e6])
    field = Watched(relaxation(rates))
    with pytest.raises(OdeError, match="max_nfe=200 evaluations are spent: sample 1 at t="):
        DormandPrince(max_nfe=200).solve(field, torch.randn(2, 3), 0.0, 2.0)
    assert torch.cat(field.rows).bincount().max() <= 200


def test_blow_up_is_reported_where_it_happens():
    # x' = x^2 from 1 leaves every bound at t = 1.
    with pytest.raises(OdeError) as caught:
        DormandPrince().solve(lambda t, x, rows: x.square(), torch.ones(1, 1), 0.0, 2.0)
    assert abs(float(re.search(r"at t=([\d.]+)", str(caught.value))[1]) - 1) < 1e-3


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="flat states"):
        DormandPrince().solve(two_laws, torch.zeros(2, 3, 4), 0.0, 1.0)
    for wrong in (
        lambda: FixedGrid(steps=0),
        lambda: FixedGrid(rho=0.0),
        lambda: FixedGrid(times=(0.0,)),
        lambda: FixedGrid(times=(0.0, 1.0, 0.5)),
        lambda: FixedGrid(rho=2.0).solve(two_laws, START, -1.0, 1.0),
        lambda: DormandPrince(rtol=0.0),
        lambda: DormandPrince(atol=-1.0),
        lambda: DormandPrince(max_nfe=7),
    ):
        with pytest.raises(ValueError, match=r"steps|rho|times|tol|max_nfe"):
            wrong()
