"""Latent codes and densities against the mixture's exact ones, and the independence of samples."""

import itertools
import math

import pytest
import torch

from scorefield.data.transforms import Affine, Compose, Identity
from scorefield.divergence import Hutchinson
from scorefield.metrics.bits_per_dim import bits_per_dim
from scorefield.models import MixtureModel, ScoreModel
from scorefield.noise import StreamNoise
from scorefield.ode import RK4, DormandPrince, FixedGrid, OdeError
from scorefield.prediction import Data, Noise, Prediction, Score, Velocity
from scorefield.probability_flow import ProbabilityFlow, spherical
from scorefield.schedules import VE, VP, SubVP
from tests.conftest import MIXTURE

N = 16
# Of the truth, in nats: what solvers at 1e-5 leave. VE's states reach 50, where 1e-5 of the state is 1e-3.
ACCURACY = {"vp": (VP(), 1e-4), "subvp": (SubVP(), 1e-4), "ve": (VE(0.01, 50.0), 2e-3)}
TIGHT = DormandPrince(1e-9, 1e-9)


def at(time, x):
    return torch.full((len(x),), time, dtype=torch.float64)


def data(model, n=N, seed=0):
    return model.sample_like(torch.empty(n, 2), at(model.schedule.t_min, torch.empty(n)), StreamNoise(seed))


@pytest.mark.parametrize("name", ACCURACY)
def test_density_is_the_mixtures_own(name):
    """Against the exact density at t_max, so that only the solver's error is left."""
    schedule, tolerance = ACCURACY[name]
    model = MixtureModel(schedule, **MIXTURE)
    x = data(model)
    code = ProbabilityFlow().encode(model, x)
    found = model.log_prob(code.z, at(schedule.t_max, x)) + code.log_abs_det
    error = (found - model.log_prob(x, at(schedule.t_min, x))).abs().max()
    assert error < tolerance
    # The solver's own error, shown by a tighter one.
    code = ProbabilityFlow(TIGHT).encode(model, x)
    found = model.log_prob(code.z, at(schedule.t_max, x)) + code.log_abs_det
    assert (found - model.log_prob(x, at(schedule.t_min, x))).abs().max() < 1e-3 * tolerance


@pytest.mark.parametrize("name", ACCURACY)
def test_error_of_the_prior_is_its_own_and_bounded(name):
    """log_prob takes N(0, prior_std^2) for the marginal at t_max: an error of first order in alpha / sigma there."""
    schedule = ACCURACY[name][0]
    model = MixtureModel(schedule, **MIXTURE)
    x, end = data(model), torch.tensor([schedule.t_max])
    flow = ProbabilityFlow(TIGHT)
    z = flow.encode(model, x).z
    prior_error = schedule.prior_log_prob(z) - model.log_prob(z, at(schedule.t_max, x))
    found = flow.log_prob(model, x) - model.log_prob(x, at(schedule.t_min, x))
    # What log_prob is wrong by is the prior's error and nothing else, up to the solver at 1e-9.
    assert torch.allclose(found, prior_error, rtol=0, atol=2e-6)
    # Each component's log-density differs from the prior's by h u + h^2 (1 + u^2) (|mu|^2 + v) at most, with h =
    # alpha / sigma, u = |z| / sigma and VP's own 1 - sigma^2 = alpha^2 within the factor of two.
    h, u = float(schedule.alpha(end) / schedule.sigma(end)), z.norm(dim=1) / schedule.sigma(end)
    bound = h * u * model.means.norm(dim=1).max() + 2 * h**2 * (1 + u.square())
    assert (prior_error.abs() < bound).all()
    # And it is there: 1e-3 or more, far above the flow's error.
    assert prior_error.abs().max() > 1e-3


def test_decoding_undoes_encoding(mixture):
    x, flow = data(mixture, 8), ProbabilityFlow(TIGHT)
    back = flow.decode(mixture, flow.encode(mixture, x).z)
    # From t_max = 80 with states of size 80 solved to 1e-9 of that, the flow contracts on the way to the data.
    assert torch.allclose(back, x, rtol=0, atol=1e-6)


def test_transport_can_be_done_in_two_legs(mixture):
    schedule, flow = mixture.schedule, ProbabilityFlow(TIGHT)
    x, middle = data(mixture, 6), float(schedule.time_at(torch.tensor([1.0])))
    half, first = flow.transport(mixture, x, schedule.t_min, middle)
    whole, _ = flow.transport(mixture, x, schedule.t_min, schedule.t_max)
    legs, second = flow.transport(mixture, half, middle, schedule.t_max)
    # Two solutions at 1e-9 of states of size 80 at most.
    assert torch.allclose(legs, whole, rtol=1e-6, atol=1e-6)
    assert (first > 0).all()
    assert (second > 0).all()


@pytest.mark.parametrize("name", ACCURACY)
def test_log_determinant_is_that_of_the_maps_jacobian(name):
    """Of the decoder, by differentiating through its steps; encode has the opposite sign."""
    model = MixtureModel(ACCURACY[name][0], **MIXTURE)
    # VE's time is the logarithm of its levels, the others' levels crowd at 0.
    solver = FixedGrid(RK4, 100, rho=1.0 if name == "ve" else 4.0)
    flow, x, schedule = ProbabilityFlow(solver), data(model, 3), model.schedule
    code = flow.encode(model, x)

    def decode(z):
        field = lambda t, state, rows: model(state, t).velocity  # noqa: E731
        return solver.solve(field, z, schedule.t_max, schedule.t_min).x

    assert torch.equal(decode(code.z), flow.decode(model, code.z))
    jacobian = torch.autograd.functional.jacobian(lambda z: decode(z).sum(0), code.z).transpose(0, 1)
    # 100 fourth-order steps along the same path in either direction.
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], -code.log_abs_det, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_a_sample_does_not_depend_on_its_mates(mixture, dtype, tolerance):
    x = data(mixture, 3).to(dtype)
    mates = torch.cat([x, 2 * torch.ones(1, 2, dtype=dtype)])  # one far outside, which takes steps of its own
    flow = ProbabilityFlow()
    together, alone = flow.encode(mixture, mates), [flow.encode(mixture, row[None]) for row in x]
    for i, one in enumerate(alone):
        assert torch.allclose(together.z[i], one.z[0], rtol=tolerance, atol=tolerance)
        assert torch.allclose(together.log_abs_det[i], one.log_abs_det[0], rtol=tolerance, atol=tolerance)
        assert together.nfe[i] == one.nfe[0]


def test_mean_over_all_sign_probes_is_the_exact_divergence():
    """On a grid the estimates are linear in the probes' outer products, whose mean over all signs is the identity."""
    wide = {
        "weights": [0.4, 0.6],
        "means": [[0.5, -0.2, 0.1, 0.3], [-0.4, 0.1, 0.6, -0.5]],
        "variances": [[0.1, 0.2, 0.05, 0.3], [0.2, 0.1, 0.3, 0.1]],
    }
    model, d = MixtureModel(VP(), **wide), 4
    x = data_like(model, (1, 2, 2))
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=d))).reshape(-1, 1, 2, 2)
    solver = FixedGrid(RK4, 20, rho=4.0)
    exact = ProbabilityFlow(solver).encode(model, x).log_abs_det
    flow = ProbabilityFlow(solver, Hutchinson())
    estimates = flow.encode(model, x.expand(len(signs), -1, -1, -1), noise=_Signs(signs)).log_abs_det
    assert float(estimates.std()) > 0.01
    # Sums of 20 steps of order one.
    assert torch.allclose(estimates.mean(), exact[0], rtol=0, atol=1e-11)


def data_like(model, event):
    return model.sample_like(torch.empty(1, *event), at(model.schedule.t_min, torch.empty(1)), StreamNoise(3))


class _Signs:
    """Probes given one by one."""

    def __init__(self, signs) -> None:
        self.signs = signs

    def signs_like(self, x):
        return self.signs.to(x)


def test_probes_stay_with_their_samples_when_others_arrive():
    """Each sample's estimate is the one it has alone with its own probe."""
    model = MixtureModel(VP(), **MIXTURE)
    x = torch.cat([data(model, 3), torch.tensor([[2.0, -2.0]])])
    signs = StreamNoise(1).signs_like(x)
    flow = ProbabilityFlow(divergence=Hutchinson())
    together = flow.encode(model, x, noise=_Signs(signs))
    assert len(together.nfe.unique()) > 1
    for i in range(4):
        alone = flow.encode(model, x[i : i + 1], noise=_Signs(signs[i : i + 1]))
        assert torch.allclose(together.log_abs_det[i], alone.log_abs_det[0], rtol=1e-12, atol=1e-12)


class Labelled(ScoreModel):
    """One mixture for each label, of very different widths: a label that strays to another sample shows."""

    def __init__(self, schedule) -> None:
        super().__init__(schedule)
        spread = {**MIXTURE, "variances": [[9.0, 4.0], [5.0, 7.0]]}
        self.parts = [MixtureModel(schedule, **MIXTURE), MixtureModel(schedule, **spread)]

    def forward(self, x, t, cond=None) -> Prediction:
        scores = torch.stack([part(x, t).score for part in self.parts])
        return Prediction(self.schedule, x, t, scores[cond["label"], torch.arange(len(x))], Score())


@pytest.mark.parametrize("solver", [DormandPrince(), FixedGrid(RK4, 12, rho=4.0)], ids=["adaptive", "grid"])
def test_conditions_follow_their_samples(solver):
    model, flow = Labelled(VP()), ProbabilityFlow(solver)
    x, label = data(model.parts[0], 8), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    code = flow.encode(model, x, {"label": label})
    if isinstance(solver, DormandPrince):
        assert len(code.nfe.unique()) > 1  # samples leave the batch one after the other
    log_prob = flow.log_prob(model, x, {"label": label})
    back = flow.decode(model, code.z, {"label": label})
    for i in range(8):
        part = model.parts[label[i]]
        alone = flow.encode(part, x[i : i + 1])
        assert torch.allclose(code.z[i], alone.z[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(code.log_abs_det[i], alone.log_abs_det[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(log_prob[i], flow.log_prob(part, x[i : i + 1])[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(back[i], flow.decode(part, alone.z)[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "transform",
    [Affine(0.0, 128.0), Affine(3.0, -0.5), Compose((Affine(-1.0, 2.0), Affine(0.5, 5.0)))],
    ids=repr,
)
def test_bits_per_dim_do_not_depend_on_the_data_transform(transform):
    """The same data modelled in other units, their noise levels in the same units, have the same density per datum."""

    def bits(transform, scale):
        means = transform.forward(torch.tensor(MIXTURE["means"]))
        variances = torch.tensor(MIXTURE["variances"]) / scale**2
        model = MixtureModel(VE(0.01 / abs(scale), 50.0 / abs(scale)), MIXTURE["weights"], means, variances)
        flow = ProbabilityFlow(DormandPrince(1e-9, 1e-9 / abs(scale)))
        code = flow.encode(model, transform.forward(y))
        log_prob = model.log_prob(code.z, at(1.0, y)) + code.log_abs_det
        return bits_per_dim(log_prob + transform.log_abs_det(y), 2)

    y = data(MixtureModel(VE(0.01, 50.0), **MIXTURE), 8)
    scale = float(transform.inverse(torch.ones(1, 1)) - transform.inverse(torch.zeros(1, 1)))
    # Paths scale with the units; the log-determinants' error is 1e-9 a step for some 300 steps.
    assert torch.allclose(bits(transform, scale), bits(Identity(), 1.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    model = MixtureModel(VP(), **MIXTURE)
    x = data(model, 4)
    expected = ProbabilityFlow().log_prob(model, x)
    with mode():
        found = ProbabilityFlow().log_prob(model, x * 1)
    assert torch.equal(found, expected)
    assert not found.requires_grad


def test_t_min_stands_for_the_data():
    """From a larger time the density is that of the data perturbed to it."""
    model = MixtureModel(VP(), **MIXTURE)
    x, flow = data(model, 8), ProbabilityFlow(TIGHT, t_min=0.1)
    code = flow.encode(model, x)
    found = model.log_prob(code.z, at(1.0, x)) + code.log_abs_det
    assert torch.allclose(found, model.log_prob(x, at(0.1, x)), rtol=0, atol=1e-7)
    assert (found - model.log_prob(x, at(1e-5, x))).abs().max() > 0.1
    assert torch.allclose(flow.decode(model, code.z), x, rtol=0, atol=1e-6)


def test_event_shape_is_kept():
    model = MixtureModel(VP(), **MIXTURE)
    x = data(model, 3)
    flat, image = (ProbabilityFlow().encode(model, x.reshape(3, *event)) for event in ((2,), (2, 1, 1)))
    assert image.z.shape == (3, 2, 1, 1)
    assert torch.equal(image.z.flatten(1), flat.z)
    assert torch.equal(image.log_abs_det, flat.log_abs_det)


def test_a_failing_solver_says_where():
    model = MixtureModel(VP(), **MIXTURE)
    x = data(model, 3)
    with pytest.raises(OdeError, match="max_nfe=20 evaluations are spent: sample 0 at t="):
        ProbabilityFlow(DormandPrince(max_nfe=20)).log_prob(model, x)
    x[2, 0] = math.nan
    with pytest.raises(OdeError, match="initial state is not finite: sample 2"):
        ProbabilityFlow().log_prob(model, x)


def test_standard_error_over_probes_is_that_of_the_probes():
    """Estimates from many draws are unbiased, and spread by the standard error that few draws tell."""
    model, flow = MixtureModel(VP(), **MIXTURE), ProbabilityFlow(DormandPrince(1e-6, 1e-6), Hutchinson())
    x = data(model, 1, seed=3)
    exact = ProbabilityFlow(DormandPrince(1e-6, 1e-6)).log_prob(model, x)
    # 60 copies of one point are 60 independent estimates from 4 draws each.
    many = x.expand(60, 2)
    found = flow.log_density(model, [many] * 4, noise=StreamNoise(0))
    told = float(found.standard_error.square().mean().sqrt())
    # The spread of 60 means has a relative error of 1 / sqrt(2 * 59) = 9 %, that of 60 variances from 4 draws 11 %.
    assert float(found.log_prob.std()) == pytest.approx(told, rel=4 * 0.14)
    assert abs(float(found.log_prob.mean() - exact)) < 4 * told / 60**0.5
    once = flow.encode(model, many, noise=StreamNoise(0)).nfe
    assert float(found.nfe.double().mean()) == pytest.approx(4 * float(once.double().mean()), rel=0.1)
    assert flow.log_density(model, [x]).standard_error.isnan().all()


def test_standard_error_over_dequantisation():
    """For draws that differ by their noise alone: the mean and error of the exact densities, and the determinant."""
    model, flow = MixtureModel(VP(), **MIXTURE), ProbabilityFlow(TIGHT)
    x = data(model, 3)
    draws = [x + 0.05 * StreamNoise(0, k).normal_like(x) for k in range(3)]
    each = torch.stack([flow.log_prob(model, draw) for draw in draws])
    found = flow.log_density(model, draws, log_abs_det=torch.tensor([1.0, 2.0, 3.0]))
    assert torch.allclose(found.log_prob, each.mean(0) + torch.tensor([1.0, 2.0, 3.0]), rtol=1e-12)
    assert torch.allclose(found.standard_error, each.std(0) / 3**0.5, rtol=1e-12)


def test_spherical_interpolation_keeps_the_length_and_turns_evenly():
    a, b = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    a, b = (4 * v / v.flatten(1).norm(dim=1)[:, None, None] for v in (a, b))
    way = spherical(a, b, torch.linspace(0, 1, 9))
    assert torch.allclose(way[[0, -1]], torch.stack([a, b]))
    assert torch.allclose(way.flatten(2).norm(dim=2), torch.full((9, 5), 4.0), rtol=1e-12)
    turns = (way[1:].flatten(2) * way[:-1].flatten(2)).sum(2).div(16).arccos()
    assert torch.allclose(turns, turns[:1].expand(8, 5), rtol=1e-6)
    # The same direction at two lengths: the straight line.
    same = spherical(a, 2 * a, torch.tensor([0.25]))
    assert torch.allclose(same[0], 1.25 * a, rtol=1e-9)


def test_codes_do_not_depend_on_how_the_score_is_told():
    """The code is the density's alone (Song et al. 2021, appendix D.5): the same by every view, other for another."""

    class Told(ScoreModel):
        def __init__(self, model, target):
            super().__init__(model.schedule)
            self.model, self.target = model, target

        def forward(self, x, t, cond=None):
            return Prediction(self.schedule, x, t, self.model(x, t).view(self.target), self.target)

    model = MixtureModel(VP(t_min=1e-3), **MIXTURE)
    x, flow = data(model), ProbabilityFlow(TIGHT)
    z = flow.encode(model, x).z
    for target in (Data(), Noise(), Velocity()):
        assert torch.allclose(flow.encode(Told(model, target), x).z, z, atol=1e-6)  # of solvers at 1e-9
    other = MixtureModel(VP(t_min=1e-3), [0.5, 0.5], MIXTURE["means"], MIXTURE["variances"])
    assert float((flow.encode(other, x).z - z).abs().max()) > 0.05
