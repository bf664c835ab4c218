"""Contrastive divergence: its gradient and bias in closed form, and the bookkeeping of persistent chains."""

import pytest
import torch
from torch import nn

from scorefield.kernels import FixedStep, Langevin, Mala, TemperedLangevin
from scorefield.models import DensityModel, NetworkModel, Parametrization
from scorefield.nets import MLP, Fourier
from scorefield.noise import StreamNoise
from scorefield.objectives import ContrastiveDivergence, PersistentContrastiveDivergence
from scorefield.prediction import Prediction, Score
from scorefield.schedules import VP, Constant


class Quadratic(DensityModel):
    """E = theta |x|^2 / 2: N(0, 1 / theta)."""

    def __init__(self, theta=1.0, schedule=None):
        super().__init__(Constant(0.0) if schedule is None else schedule)
        self.theta = nn.Parameter(torch.tensor(theta))

    def energy(self, x, t, cond=None):
        return self.theta * x.square().sum(1) / 2

    def forward(self, x, t, cond=None):
        return Prediction(self.schedule, x, t, -self.theta * x, Score())


def gradient(objective, model, x, noise):
    """Mean and standard error of d loss / d theta, from the energies' own derivative x^2 / 2 at data and chains."""
    chains = {}

    class Watched(type(objective)):
        def negatives(self, *args):
            chains["y"], state = super().negatives(*args)
            return chains["y"], state

    objective.__class__ = Watched
    (slope,) = torch.autograd.grad(objective(model, x, None, noise).per_sample.mean(), model.theta)
    each = (x.square().sum(1) - chains["y"].square().sum(1)) / 2
    return float(slope), float(each.std()) / len(x) ** 0.5


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_bias_of_few_steps_is_the_known_one(k):
    """theta = 1, data N(0, 4), x <- (1 - e) x + sqrt(2 e) z: the gradient is a known fraction of the likelihood's."""
    epsilon, n, s2 = 0.01, 100_000, 4.0
    x = s2**0.5 * torch.randn(n, 1)
    slope, error = gradient(ContrastiveDivergence(Langevin(FixedStep(epsilon)), k), Quadratic(), x, StreamNoise(k))
    a, v = 1 - epsilon, 1 / (1 - epsilon / 2)
    expected = (1 - a ** (2 * k)) * (s2 - v) / 2  # (E_data x^2 - E_chain x^2) / 2
    assert slope == pytest.approx(expected, abs=4 * error)
    assert 4 * error < 0.5 * expected  # the bound tells the steps from each other


@pytest.mark.parametrize("kernel", [Mala(FixedStep(0.5)), Mala(FixedStep(0.05))], ids=["long", "short"])
def test_at_the_truth_an_exact_chain_gives_no_gradient(kernel):
    """The Metropolis test leaves the data's law invariant, at any step size."""
    x = torch.randn(100_000, 1)
    slope, error = gradient(ContrastiveDivergence(kernel, 3), Quadratic(), x, StreamNoise(0))
    assert abs(slope) < 4 * error
    wrong, _ = gradient(ContrastiveDivergence(kernel, 3), Quadratic(1.3), x, StreamNoise(0))
    assert abs(wrong) > 8 * error


def test_the_gap_is_the_loss_and_the_penalty_is_added():
    x = torch.randn(50, 2)
    plain, penalised = (
        ContrastiveDivergence(Langevin(FixedStep(0.01)), 2, penalty)(Quadratic(), x, None, StreamNoise(0))
        for penalty in (0.0, 0.3)
    )
    log = plain.log
    assert torch.equal(plain.per_sample.detach(), log["energy_gap"])
    assert torch.allclose(log["energy_gap"], log["energy_data"] - log["energy_chains"])
    squares = log["energy_data"].square() + log["energy_chains"].square()
    assert torch.allclose(penalised.per_sample - plain.per_sample, 0.3 * squares)


def test_temperature_and_acceptance_are_told():
    x = torch.randn(50, 2)
    for kernel, name, value in (
        (Langevin(FixedStep(0.1)), "temperature", 1.0),
        (TemperedLangevin(10.0, 0.005), "temperature", 0.005**2 / 20),
    ):
        log = ContrastiveDivergence(kernel, 1)(Quadratic(), x, None, StreamNoise(0)).log
        assert torch.allclose(log[name], torch.tensor(value))
    log = ContrastiveDivergence(Mala(FixedStep(0.5)), 4)(Quadratic(), x, None, StreamNoise(0)).log
    assert 0.3 < float(log["acceptance"].mean()) < 1


def test_no_gradient_flows_through_the_chain():
    """The chain's end is a sample: its dependence on theta does not enter the gradient of the likelihood."""
    model, x = Quadratic(), torch.randn(5, 2)
    objective = ContrastiveDivergence(Langevin(FixedStep(0.3)), 5)
    ends, _ = objective.negatives(model, x, torch.zeros(5), StreamNoise(0), None)
    assert not ends.requires_grad


def persistent(**settings):
    return PersistentContrastiveDivergence(
        Langevin(FixedStep(0.1)), settings.pop("k", 1), chains=20, restart=settings.pop("restart", 0.0)
    )


def test_chains_go_on_where_they_ended():
    """Without restarts, steps of one batch after the other are the steps of long chains: the variance grows as theirs.

    From 0, x <- 0.9 x + sqrt(0.2) z has variance (1 - 0.81^n) / 0.95 after n steps.
    """
    n, steps = 20_000, 4
    objective = PersistentContrastiveDivergence(Langevin(FixedStep(0.1)), 1, chains=n, restart=0.0)
    objective.buffer = torch.zeros(n, 1)
    for step in range(steps):
        objective(Quadratic(), torch.zeros(n, 1), None, StreamNoise(step))
    assert float(objective.buffer.var()) == pytest.approx((1 - 0.81**steps) / (1 - 0.1 / 2), rel=4 * (2 / n) ** 0.5)


def test_only_the_chains_of_a_batch_move_and_they_are_put_back():
    objective, noise = persistent(), StreamNoise(0)
    objective(Quadratic(), torch.zeros(6, 2), None, noise)
    before = objective.buffer.clone()
    objective(Quadratic(), torch.zeros(6, 2), None, noise)
    assert int((objective.buffer != before).any(1).sum()) == 6


def test_restarted_chains_come_from_the_prior():
    """All of them restart: their variance is that of the schedule's start, whatever was in the buffer."""
    n = 20_000
    objective = PersistentContrastiveDivergence(Langevin(FixedStep(1e-12)), 1, chains=n, restart=1.0)
    objective.buffer = torch.full((n, 1), 100.0)
    objective(Quadratic(schedule=Constant(0.0, start=3.0)), torch.zeros(n, 1), None, StreamNoise(0))
    assert float(objective.buffer.std()) == pytest.approx(3.0, rel=4 / (2 * n) ** 0.5)


def test_the_buffer_is_the_state_of_a_process():
    objective, other = persistent(), persistent()
    assert objective.process_state() == {}
    objective(Quadratic(), torch.zeros(6, 2), None, StreamNoise(0))
    assert not objective.state_dict()  # nothing that distributed training would make equal
    other.load_process_state(objective.process_state())
    a, b = (o(Quadratic(), torch.ones(6, 2), None, StreamNoise(1)).per_sample for o in (objective, other))
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: ContrastiveDivergence(Langevin(FixedStep(0.1)), 0), "k=0"),
        (lambda: ContrastiveDivergence(Langevin(FixedStep(0.1)), 1, -1.0), "penalty=-1.0"),
        (lambda: PersistentContrastiveDivergence(Langevin(FixedStep(0.1)), chains=0), "chains=0"),
        (lambda: PersistentContrastiveDivergence(Langevin(FixedStep(0.1)), restart=2.0), "restart=2.0"),
        (lambda: persistent()(Quadratic(), torch.zeros(21, 2), None, StreamNoise(0)), "chains=20"),
        (lambda: persistent()(Quadratic(schedule=VP()), torch.zeros(2, 2), None, StreamNoise(0)), "one noise level"),
        (
            lambda: persistent()(Quadratic(), torch.zeros(2, 2), {"label": torch.zeros(2)}, StreamNoise(0)),
            "belongs to one class",
        ),
        (lambda: TemperedLangevin(0.0, 1.0), "epsilon=0.0"),
    ],
)
def test_impossible_settings_are_refused(act, words):
    with pytest.raises(ValueError, match=words):
        act()


def test_a_score_without_energy_is_refused():
    model = NetworkModel(MLP((2,), 8, 1, Fourier(4)), Constant(0.0), Parametrization(Score()))
    with pytest.raises(TypeError, match=r"trains an energy.*model=energy"):
        ContrastiveDivergence(Langevin(FixedStep(0.1)))(model, torch.zeros(2, 2), None, StreamNoise(0))
