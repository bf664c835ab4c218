"""The score Fokker-Planck equation: exact scores obey it, others do not, by how much in closed form."""

import pytest
import torch

from scorefield.divergence import Hutchinson
from scorefield.fokker_planck import residual, squared_norm
from scorefield.models import LadderIndex, MixtureModel, NetworkModel, Parametrization, ScoreModel
from scorefield.nets import MLP, Sinusoidal
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, FokkerPlanck, Sum
from scorefield.prediction import Prediction, Score
from scorefield.schedules import VE, VP, Constant
from scorefield.times import Ladder
from tests.conftest import inside


class Scaled(ScoreModel):
    """A score times a factor."""

    def __init__(self, model, factor):
        super().__init__(model.schedule)
        self.model, self.factor = model, factor

    def forward(self, x, t, cond=None):
        return Prediction(self.schedule, x, t, self.factor * self.model(x, t).score, Score())


def points(mixture, n=40):
    t = inside(mixture.schedule, n)
    return mixture.sample_like(torch.empty(n, 2), t, StreamNoise(0)), t


def test_exact_scores_obey_it(mixture):
    x, t = points(mixture)
    with torch.no_grad():
        found = residual(mixture, x, t)
    # Relative to the rate of the score at each point, whose own rounding is a few units in the last place.
    assert found.relative() < 1e-12


def test_the_rate_is_the_time_derivative(mixture):
    x, t = points(mixture)
    h = 1e-5 * t
    ahead, behind = (mixture(x, t + sign * h).score for sign in (1, -1))
    expected = (ahead - behind) / (2 * h)[:, None]
    scale = expected.abs().max(1, keepdim=True).values
    assert ((residual(mixture, x, t).rate - expected).abs() / scale).max() < 1e-4


def test_a_scaled_score_misses_it_by_a_closed_form():
    """For (1 + k) s under N(0, v): d_t s' (1 + k) - k (1 + k) grad(g^2 / 2 |s|^2) remains, with s = -x / w."""
    schedule, k = VP(), 0.05
    model = MixtureModel(schedule, [1.0], [[0.0, 0.0]], [0.5])
    x, t = torch.randn(30, 2), inside(schedule, 30)
    w = (schedule.alpha(t).square() * 0.5 + schedule.sigma(t).square())[:, None]
    expected = -k * (1 + k) * schedule.diffusion_sq(t)[:, None] * x / w.square()
    found = residual(Scaled(model, 1 + k), x, t).value
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-12 * float(expected.abs().max()))


def test_probes_estimate_the_same(mixture):
    """The mean over many probes at one point is the exact transport, within four standard errors."""
    model, n = Scaled(mixture, 1.1), 4000
    x, t = points(mixture, 3)
    x, t = x[1:2], t[1:2]
    found = residual(model, x.expand(n, 2), t.expand(n), divergence=Hutchinson(), noise=StreamNoise(1)).transport
    exact = residual(model, x, t).transport[0]
    error = found.std(0) / n**0.5
    assert ((found.mean(0) - exact).abs() <= 4 * error + 1e-12 * exact.abs()).all()


def test_a_score_that_does_not_move_has_no_rate():
    model = MixtureModel(Constant(0.5), [1.0], [[0.0]], [1.0])
    found = residual(model, torch.randn(4, 1), torch.full((4,), 0.5))
    assert (found.rate == 0).all()


def network(seed, schedule=None, label=None):
    torch.manual_seed(seed)
    parametrization = Parametrization() if label is None else Parametrization(label=label)
    model = NetworkModel(
        MLP((2,), 8, 1, Sinusoidal(8)), VP(t_min=0.05) if schedule is None else schedule, parametrization
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_the_regulariser_is_the_residuals_square_and_trains():
    model, x = network(0), torch.randn(16, 2)
    objective = FokkerPlanck(Hutchinson(k=3))
    loss = objective.at(model, x, torch.full((16,), 0.4), StreamNoise(5))
    found = residual(model, x, torch.full((16,), 0.4), divergence=Hutchinson(k=3), noise=StreamNoise(5))
    weight = VP().sigma(torch.tensor([0.4])).square()
    assert torch.allclose(loss.per_sample, weight * found.value.square().mean(1), rtol=1e-10)
    assert torch.equal(squared_norm(found), loss.log["residual"])
    # The derivative with respect to a weight, by a central difference of the loss.
    parameter = model.net.enter.weight
    loss.per_sample.mean().backward()
    slope, h, values = float(parameter.grad[3, 1]), 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            parameter[3, 1] += sign * h
            values.append(float(objective.at(model, x, loss.t, StreamNoise(5)).per_sample.mean()))
            parameter[3, 1] -= sign * h
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-5)


def test_a_label_without_time_derivative_is_no_continuous_family():
    """Between the levels of a ladder the network is told nothing of time: its score moves by the input scale alone."""
    model = network(1, VE(0.1, 10.0, t_min=0.0), LadderIndex(6))
    objective = FokkerPlanck(times=Ladder(6))
    assert objective(model, torch.randn(5, 2), None, StreamNoise(0)).per_sample.isfinite().all()


def test_a_sum_is_the_weighted_sum_and_tells_each_term():
    model, x = network(2), torch.randn(8, 2)
    terms = {"a": Denoising(), "b": FokkerPlanck()}
    total = Sum(terms, {"a": 2.0, "b": 0.5})(model, x, None, StreamNoise(3))
    noise = StreamNoise(3)
    first = terms["a"](model, x, None, noise)
    second = terms["b"](model, x, None, noise)
    assert torch.allclose(total.per_sample, 2 * first.per_sample + 0.5 * second.per_sample, rtol=1e-12)
    assert torch.equal(total.t, first.t)
    assert torch.equal(total.log["a"], first.per_sample.detach())
    assert torch.equal(total.log["residual"], second.log["residual"])


def test_a_sum_hands_on_what_a_process_must_keep():
    class Remembering(Denoising):
        def process_state(self):
            return {"chains": torch.ones(2)}

        def load_process_state(self, state):
            self.loaded = state

    objective = Sum({"a": Denoising(), "b": Remembering()}, {"a": 1.0, "b": 1.0})
    state = objective.process_state()
    assert set(state) == {"b.chains"}
    objective.load_process_state(state)
    assert torch.equal(objective.terms["b"].loaded["chains"], torch.ones(2))


@pytest.mark.parametrize(
    ("terms", "coefficients", "named"),
    [({}, {}, "at least one"), ({"a": Denoising()}, {"b": 1.0}, "same names"), ({"a": Denoising()}, {"a": -1.0}, "-1")],
)
def test_sums_that_cannot_be_are_refused(terms, coefficients, named):
    with pytest.raises(ValueError, match=named):
        Sum(terms, coefficients)
