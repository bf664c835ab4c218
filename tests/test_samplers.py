"""Predictor-corrector sampling: its order, cost and precision, the independence of samples, and what it samples."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import nn

from scorefield.grids import Given, Karras, LogRatio, Uniform
from scorefield.kernels import (
    Ancestral,
    BatchSignalToNoise,
    Consistent,
    DPMSolver2,
    DPMSolver2M,
    DPMSolver3,
    DPMSolver3M,
    Euler,
    EulerMaruyama,
    Heun,
    Kernel,
    Langevin,
    ReverseDiffusion,
    SigmaStep,
    SignalToNoise,
    Stay,
    UniPC,
)
from scorefield.models import MixtureModel, NetworkModel, Parametrization, ScoreModel
from scorefield.nets.embeddings import Fourier
from scorefield.nets.mlp import MLP
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.ode import RK4, DormandPrince, FixedGrid
from scorefield.prediction import Prediction, Velocity
from scorefield.probability_flow import ProbabilityFlow
from scorefield.samplers import FlowSampler, NonFiniteSamplesError, Path, Sampler
from scorefield.schedules import EDM, VE, VP, SubVP
from tests.conftest import MIXTURE

SNR = Langevin(SignalToNoise(0.16))
PREDICTORS: list[Kernel] = [
    Stay(),
    Euler(),
    Heun(),
    Heun(churn=10.0),
    Ancestral(),
    Ancestral(eta=0.0),
    Consistent(eta=1.0),
    DPMSolver2M(),
    DPMSolver2M(eta=1.0),
    DPMSolver3M(),
    DPMSolver2(),
    DPMSolver3(),
    UniPC(),
    EulerMaruyama(),
    ReverseDiffusion(),
    ReverseDiffusion(eta=0.0),
]


class Counted(ScoreModel):
    """Counts calls and samples, and notes what it is asked."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model.schedule)
        self.model, self.asked = model, []

    def forward(self, x, t, cond=None) -> Prediction:
        self.asked.append((x, t, cond))
        return self.model(x, t, cond)


@dataclass(frozen=True)
class Noted(Kernel):
    """Adds one to the state and writes down its name, its times and how often its own memory says it ran."""

    name: str
    notes: list
    calls = 0

    def init(self, x, grid):
        return {"runs": torch.tensor(0)}

    def step(self, model, x, t, s, state, noise, cond=None):
        self.notes.append((self.name, float(t[0]), float(s[0]), int(state["runs"])))
        return x + 1, {"runs": state["runs"] + 1}


def test_corrector_runs_before_the_predictor_leaves_each_time():
    notes, times = [], (0.9, 0.5, 0.2)
    sampler = Sampler(Given(times), 2, Noted("predict", notes), Noted("correct", notes), corrections=2)
    samples = sampler(MixtureModel(VP(), **MIXTURE), torch.zeros(3, 2))
    # Each kernel keeps its own memory along the run.
    assert notes == [
        ("correct", 0.9, 0.9, 0),
        ("correct", 0.9, 0.9, 1),
        ("predict", 0.9, 0.5, 0),
        ("correct", 0.5, 0.5, 2),
        ("correct", 0.5, 0.5, 3),
        ("predict", 0.5, 0.2, 1),
    ]
    assert samples.x.tolist() == [[6.0, 6.0]] * 3


@pytest.mark.parametrize("predictor", PREDICTORS, ids=repr)
@pytest.mark.parametrize("corrections", [0, 1, 3])
@pytest.mark.parametrize("denoise_last", [False, True])
def test_network_evaluations_are_those_reported(predictor, corrections, denoise_last):
    model = Counted(MixtureModel(VP(t_min=1e-3), **MIXTURE))
    corrector = SNR if corrections else None
    for correct_last in (False, True) if corrections else (False,):
        model.asked.clear()
        sampler = Sampler(
            LogRatio(), 5, predictor, corrector, max(corrections, 1), denoise_last, correct_last=correct_last
        )
        samples = sampler(model, torch.randn(3, 2), noise=StreamNoise(0))
        assert samples.nfe == sampler.nfe == len(model.asked)
        assert all(len(x) == len(t) == 3 for x, t, _ in model.asked)


def test_the_last_time_is_corrected_where_asked_for():
    notes, times, path = [], (0.9, 0.5), Path()
    model = Counted(MixtureModel(VP(), **MIXTURE))
    predictor, corrector = Noted("predict", notes), Noted("correct", notes)
    samples = Sampler(Given(times), 1, predictor, corrector, correct_last=True)(model, torch.zeros(3, 2), trace=path)
    assert notes == [("correct", 0.9, 0.9, 0), ("predict", 0.9, 0.5, 0), ("correct", 0.5, 0.5, 1)]
    assert path.x[-1].tolist() == samples.x.tolist() == [[3.0, 3.0]] * 3
    denoised = Sampler(Given(times), 1, predictor, corrector, 1, True, correct_last=True)(model, torch.zeros(3, 2))
    assert torch.equal(denoised.x, model(samples.x, torch.full((3,), 0.5, dtype=torch.float64)).data)
    with pytest.raises(ValueError, match=r"correct_last=True .* needs a corrector"):
        Sampler(Given(times), 1, predictor, correct_last=True)


@pytest.mark.parametrize("solver", [DormandPrince(), FixedGrid(RK4, 20, rho=4.0)], ids=["adaptive", "grid"])
@pytest.mark.parametrize("denoise_last", [False, True])
def test_flow_reports_the_mean_over_samples(solver, denoise_last):
    model = Counted(MixtureModel(VP(), **MIXTURE))
    samples = FlowSampler(solver, denoise_last=denoise_last)(model, torch.randn(6, 2))
    assert samples.nfe == pytest.approx(sum(len(x) for x, _, _ in model.asked) / 6, rel=1e-12)


def test_churn_is_shared_out_over_the_levels():
    """gamma = S_churn / N with N network levels, the last of which only denoises (Karras et al. 2022, algorithm 2)."""
    model, grid = Counted(MixtureModel(EDM(), **MIXTURE)), Karras()
    sampler = Sampler(grid, 9, Heun(churn=2.0), denoise_last=True)
    sampler(model, 80 * torch.randn(3, 2), noise=StreamNoise(0))
    first_halves = torch.stack([t[0] for _, t, _ in model.asked[:-1:2]])
    assert torch.allclose(first_halves, 1.2 * grid(EDM(), 9)[:-1], rtol=1e-12)


def test_conditions_reach_every_kernel():
    model, cond = Counted(MixtureModel(VP(t_min=1e-3), **MIXTURE)), {"label": torch.tensor([1, 0])}
    for predictor in PREDICTORS:
        Sampler(LogRatio(), 2, predictor, SNR, denoise_last=True)(model, torch.randn(2, 2), cond)
    assert all(given is cond for _, _, given in model.asked)


@pytest.mark.parametrize(
    "make",
    [
        lambda last: Sampler(LogRatio(), 4, Heun(), denoise_last=last),
        lambda last: FlowSampler(FixedGrid(RK4, 9), denoise_last=last),
    ],
    ids=["grid", "flow"],
)
def test_denoising_last_is_the_posterior_mean_at_the_last_time(make):
    model, x = MixtureModel(EDM(t_min=0.1, t_max=5.0), **MIXTURE), 5 * torch.randn(4, 2)
    noisy, denoised = (make(last)(model, x) for last in (False, True))
    expected = model(noisy.x, torch.full((4,), 0.1)).data
    assert torch.allclose(denoised.x, expected, rtol=1e-14)
    assert not torch.allclose(noisy.x, expected, atol=1e-3)
    assert denoised.nfe == noisy.nfe + 1


def test_trace_shows_every_state_with_its_time():
    model, x, seen = MixtureModel(VP(), **MIXTURE), torch.randn(3, 2), []
    keep = lambda step, t, state: seen.append((step, t, state.clone()))  # noqa: E731
    grid = LogRatio()
    samples = Sampler(grid, 3, Euler(), denoise_last=True)(model, x, trace=keep)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3, 4]
    assert [t for _, t, _ in seen] == [*grid(model.schedule, 3).tolist(), 0.0]
    assert torch.equal(seen[0][2], x)
    assert torch.equal(seen[-1][2], samples.x)
    for (_, t, before), (_, s, after) in pairwise(seen[:-1]):
        moved = Euler().step(model, before, torch.full((3,), t), torch.full((3,), s), {}, StreamNoise(0))[0]
        assert torch.equal(after, moved)
    # The flow shows its two ends, and looking changes nothing.
    seen.clear()
    flow = FlowSampler(DormandPrince(), denoise_last=True)
    samples = flow(model, x, trace=keep)
    assert [(step, t) for step, t, _ in seen] == [(0, 1.0), (1, 1e-5), (2, 0.0)]
    assert torch.equal(seen[-1][2], samples.x)
    assert torch.equal(flow(model, x).x, samples.x)


def small_network(schedule, dtype=torch.float64):
    model = NetworkModel(MLP((2,), 16, 1, Fourier(8)), schedule, Parametrization.edm(0.5))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


@pytest.mark.parametrize("predictor", PREDICTORS, ids=repr)
def test_state_keeps_its_precision_through_a_narrower_network(predictor):
    schedule = EDM()
    model = small_network(schedule, torch.float32)
    entered = []
    model.net.register_forward_pre_hook(lambda net, inputs: entered.append({value.dtype for value in inputs}))
    x = 80 * torch.randn(4, 2)
    sampler = Sampler(Karras(), 6, predictor, SNR, denoise_last=True)
    wide = sampler(model, x, noise=IndexedNoise(0, "samples", range(4)))
    assert wide.x.dtype == torch.float64
    assert model(x, torch.ones(4)).out.dtype == torch.float64
    assert all(dtypes == {torch.float32} for dtypes in entered)
    narrow = sampler(model, x.float(), noise=IndexedNoise(0, "samples", range(4)))
    assert narrow.x.dtype == torch.float32
    # The same samples up to float32's rounding of states of size 80, 5e-6.
    assert torch.allclose(narrow.x.double(), wide.x, rtol=1e-3, atol=1e-3)


def test_state_in_float64_loses_nothing_to_its_time():
    """Steps too small for float32 add up: the drift of a constant field over 2000 steps."""

    class Unit(ScoreModel):
        def forward(self, x, t, cond=None) -> Prediction:
            return Prediction(self.schedule, x, t, torch.ones_like(x), Velocity())

    x = torch.full((1, 1), 1000.0)
    samples = Sampler(Uniform(), 2000, Euler())(Unit(EDM(t_min=0.5, t_max=1.0)), x)
    assert abs(float(samples.x) - 999.5) < 1e-9


class Broken(ScoreModel):
    """Not a number for the given rows, below a time."""

    def __init__(self, schedule, rows) -> None:
        super().__init__(schedule)
        self.model, self.rows = MixtureModel(schedule, **MIXTURE), rows

    def forward(self, x, t, cond=None) -> Prediction:
        prediction = self.model(x, t)
        prediction.out[self.rows] = torch.where(t[self.rows, None] < 0.5, math.nan, prediction.out[self.rows])
        return prediction


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(
        NonFiniteSamplesError, match=r"2 of 5 samples are not finite \(first: 1\) after Sampler"
    ) as caught:
        Sampler(Uniform(t_min=1e-3), 9, EulerMaruyama())(Broken(VP(), [1, 4]), torch.randn(5, 2))
    kept = caught.value.tensors["samples"]
    assert kept.isnan().any(1).tolist() == [False, True, False, False, True]
    with pytest.raises(ValueError, match="steps=0"):
        Sampler(Uniform(), 0)
    with pytest.raises(ValueError, match="corrections=0"):
        Sampler(Uniform(), 3, corrections=0)


@pytest.mark.parametrize("predictor", [Heun(), Euler(), Ancestral(eta=0.0)], ids=repr)
def test_fixed_steps_agree_with_the_solved_flow(mixture, predictor):
    x = mixture.schedule.prior_std * torch.randn(6, 2)
    solved = FlowSampler(DormandPrince(1e-8, 1e-8))(mixture, x).x
    coarse, fine = (
        float((Sampler(LogRatio(), steps, predictor)(mixture, x).x - solved).abs().max()) for steps in (200, 400)
    )
    # Steps of ln(4e5) / 400 = 0.03 or less in the log ratio, for states and slopes of order one; and it is this
    # solution that they converge to, with a quarter of the rate left for the next order.
    assert fine < (0.1 if predictor.order == 1 else 0.01)
    assert coarse / fine > 0.75 * 2**predictor.order


@pytest.mark.parametrize(
    "make", [lambda: small_network(VE()), lambda: MixtureModel(VE(), **MIXTURE)], ids=["mlp", "mixture"]
)
@pytest.mark.parametrize("predictor", PREDICTORS, ids=repr)
def test_a_sample_depends_on_its_index_alone(make, predictor):
    """Through a whole run, whoever else is in the batch: in another order, fewer, or alone."""
    model, everyone = make(), list(range(6))

    def run(indices, rule=SNR):
        x = model.schedule.prior_like(torch.empty(len(indices), 2), IndexedNoise(0, "prior", indices))
        sampler = Sampler(Karras(), 6, predictor, rule, corrections=2, denoise_last=True)
        return sampler(model, x, noise=IndexedNoise(0, "samples", indices)).x

    together = run(everyone)
    for indices in ([4, 1], [3], [5, 4, 3, 2, 1, 0]):
        # Matrix products may sum in another order for another number of rows; 12 steps pass it on.
        assert torch.allclose(run(indices), together[indices], rtol=1e-9, atol=1e-10)
    # The published rule, for comparison, mixes the batch.
    coupled = Langevin(BatchSignalToNoise(0.16))
    assert not torch.allclose(run([3], coupled), run(everyone, coupled)[3:4], rtol=1e-6)


@pytest.mark.parametrize("schedule", [VP(), SubVP(), VE()], ids=repr)
@pytest.mark.parametrize("kind", ["heun", "flow", "pc"])
def test_samples_from_the_prior_are_the_mixtures(schedule, kind):
    """Mean and covariance within the CLT bound."""
    n, model = 4000, MixtureModel(schedule, **MIXTURE)
    x = schedule.prior_like(torch.empty(n, 2), StreamNoise(0))
    sampler, bias = {
        "heun": (Sampler(LogRatio(), 60, Heun()), 0.01),
        "flow": (FlowSampler(DormandPrince(1e-3, 1e-3)), 0.01),
        # First order in steps of up to 0.1 in the log ratio.
        "pc": (Sampler(LogRatio(), 150, Ancestral(), Langevin(SigmaStep(0.05))), 0.06),
    }[kind]
    samples = sampler(model, x, noise=StreamNoise(1)).x
    mean, covariance = model.moments(schedule.t_min)
    scale = covariance.diagonal().max()
    # Four standard errors. The prior's own error is at most alpha / sigma at t_max, 0.02 of the states there, of which
    # the flow passes on the part within one mode: below 1 % here, as is the solver's.
    assert ((samples.mean(0) - mean).abs() < 4 * (scale / n).sqrt() + bias * scale.sqrt()).all()
    assert ((torch.cov(samples.T) - covariance).abs() < (4 * (2 / n) ** 0.5 + bias) * scale).all()


def test_corrector_mends_the_predictors_coarse_steps():
    """On a Gaussian, whose moments follow exactly: Langevin contracts any variance towards the marginal's.

    One step multiplies the error of the variance by (1 - epsilon / v)^2 and adds a bias of epsilon / 2v relative to it,
    so with epsilon well below v the corrector helps wherever the predictor's error is larger than that bias.
    """
    model = MixtureModel(VP(t_min=1e-3), [1.0], [[0.0]], [[0.25]])

    def variance(sampler):
        # Every kernel here is linear in x and z: gains multiply and variances add along the run.
        v, one = model.moments(1.0)[1], torch.ones(1, 1)
        times = sampler.grid(model.schedule, sampler.steps)
        for t, s in pairwise(times):
            moves = [(sampler.corrector, t, t)] * sampler.corrections if sampler.corrector else []
            for kernel, now, then in [*moves, (sampler.predictor, t, s)]:
                gain, spread = (
                    kernel.step(model, x, now[None], then[None], {}, _Fixed(z))[0]
                    for x, z in ((one, 0.0), (0 * one, 1.0))
                )
                v = gain**2 * v + spread**2
        return float(v)

    truth = float(model.moments(1e-3)[1])
    alone = abs(variance(Sampler(LogRatio(), 30, EulerMaruyama())) - truth)
    helped = abs(variance(Sampler(LogRatio(), 30, EulerMaruyama(), Langevin(SigmaStep(0.3)), corrections=5)) - truth)
    assert helped < 0.5 * alone


class _Fixed:
    """Noise of one given value."""

    def __init__(self, value) -> None:
        self.value = value

    def normal_like(self, x):
        return torch.full_like(x, self.value)


def test_a_path_keeps_the_states_of_any_sampler():
    model, x = MixtureModel(VP(t_min=1e-3), **MIXTURE), torch.randn(6, 2)
    path = Path(every=4, rows=2)
    samples = Sampler(LogRatio(), 10, EulerMaruyama())(model, x, noise=StreamNoise(0), trace=path)
    grid = LogRatio()(model.schedule, 10)
    assert path.t.tolist() == grid[[0, 4, 8, 10]].tolist()
    assert torch.equal(path.x[0], x[:2])
    assert torch.equal(path.x[-1], samples.x[:2])


def test_a_flow_stops_on_its_way():
    """The states at the stops are those of the flow solved to there, and the end is where it goes without stops."""
    model, x = MixtureModel(VP(t_min=1e-3), **MIXTURE), torch.randn(6, 2)
    solver, path = DormandPrince(1e-9, 1e-9), Path()
    samples = FlowSampler(solver, stops=3, denoise_last=True)(model, x, trace=path)
    times = model.schedule.geometric_times(1.0, 1e-3, 4)
    assert path.t.tolist() == [*times.tolist(), 0.0]
    flow = ProbabilityFlow(solver)
    for t, state in zip(path.t[1:4].tolist(), path.x[1:4], strict=True):
        assert torch.allclose(state, flow.transport(model, x, 1.0, t)[0], atol=1e-6)  # of solvers at 1e-9
    assert torch.allclose(FlowSampler(solver, denoise_last=True)(model, x).x, samples.x, atol=1e-6)
    assert torch.equal(path.x[-1], samples.x)
    with pytest.raises(ValueError, match="stops=0"):
        FlowSampler(solver, stops=0)
