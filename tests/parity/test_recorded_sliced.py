"""Score matching losses of the reference implementations and their gradients, through the public objectives."""

import pytest
import torch
from torch import nn

from scorefield.divergence import Exact, Hutchinson
from scorefield.models import EnergyModel, NetworkModel, Parametrization, ScoreModel
from scorefield.objectives import Denoising, Implicit, SigmaPower, Sliced
from scorefield.prediction import Prediction, Score
from scorefield.schedules import VE, Constant
from tests.parity.conftest import pixels

WEIGHTS = ("W1", "b1", "W2", "b2", "We", "Ws", "bs")


class RecordedMLP(nn.Module):
    """h = tanh(W2 tanh(W1 x + b1) + b2), with the weights of the record."""

    def __init__(self, numbers, scalar):
        super().__init__()
        names = ("W1", "b1", "W2", "b2", "We", "be") if scalar else ("W1", "b1", "W2", "b2", "Ws", "bs")
        for name in names:
            setattr(self, name, nn.Parameter(numbers[f"mlp/{name}"].clone()))
        self.scalar = scalar

    def forward(self, x, label):
        h = (x @ self.W1.T + self.b1).tanh()
        h = (h @ self.W2.T + self.b2).tanh()
        if self.scalar:
            return (h @ self.We.T + self.be)[:, 0] + 0.05 * x.square().sum(1)
        return h @ self.Ws.T + self.bs - 0.1 * x


@pytest.fixture
def numbers(recorded):
    return recorded("losses_sliced_score_matching")


def model(numbers, scalar, sigma=0.0):
    kind = EnergyModel if scalar else NetworkModel
    return kind(RecordedMLP(numbers, scalar), Constant(sigma), Parametrization(Score()))


def agree(numbers, key, found, loss, weights):
    """Value and every recorded gradient; float32 on both sides, sums of up to 18 products of 16 terms."""
    assert torch.allclose(found, numbers[key + "/loss"], rtol=2e-6, atol=1e-6)
    loss.backward()
    gradients = [name for name in WEIGHTS if f"{key}/grad/{name}" in numbers.arrays]
    assert gradients
    for name in gradients:
        expected = numbers[f"{key}/grad/{name}"]
        assert torch.allclose(getattr(weights, name).grad, expected, rtol=1e-5, atol=2e-6), (key, name)


def probes(numbers, kind, particles=1):
    """The recorded Gaussian draws, turned into the probes they were used as."""
    v = numbers[f"vectors_{particles}"].reshape(particles, 6, 3)
    return {"radermacher": v.sign(), "sphere": v / v.norm(dim=-1, keepdim=True) * 3**0.5, "gaussian": v}[kind]


def test_the_model_of_the_record(numbers):
    x, t = numbers["samples"], torch.zeros(6)
    assert torch.allclose(model(numbers, True).energy(x, t), numbers["energy"], rtol=1e-6, atol=1e-6)
    assert torch.allclose(model(numbers, False)(x, t).score, numbers["score"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["radermacher", "sphere", "gaussian"])
def test_single_sliced(numbers, kind):
    energy = model(numbers, True)
    loss = Sliced(Hutchinson()).at(energy, numbers["samples"], torch.zeros(6), probes(numbers, kind)).per_sample.mean()
    agree(numbers, f"single_sliced_score_matching/{kind}", loss, loss, energy.net)


@pytest.mark.parametrize("kind", ["radermacher", "gaussian"])
def test_single_sliced_with_variance_reduction(numbers, kind):
    energy = model(numbers, True)
    objective = Implicit(Hutchinson())
    loss = objective.at(energy, numbers["samples"], torch.zeros(6), probes(numbers, kind)).per_sample.mean()
    agree(numbers, f"sliced_VR_score_matching/{kind}", loss, loss, energy.net)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("name", "scalar"), [("sliced_score_matching", True), ("sliced_score_estimation", False)])
def test_sliced(numbers, name, scalar, particles):
    """The reference's probes have unit length: its loss is 1 / d of ours, whose probes have E[v v^T] = I."""
    trained = model(numbers, scalar)
    v = probes(numbers, "sphere", particles)
    loss = Sliced(Hutchinson(k=particles)).at(trained, numbers["samples"], torch.zeros(6), v).per_sample.mean() / 3
    agree(numbers, f"{name}/{particles}", loss, loss, trained.net)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(("name", "scalar"), [("sliced_score_matching", True), ("sliced_score_estimation", False)])
def test_sliced_with_variance_reduction(numbers, name, scalar, particles):
    trained = model(numbers, scalar)
    v = probes(numbers, "gaussian", particles)
    loss = Implicit(Hutchinson(k=particles)).at(trained, numbers["samples"], torch.zeros(6), v).per_sample.mean()
    agree(numbers, f"{name}_vr/{particles}", loss, loss, trained.net)


@pytest.mark.parametrize("sigma", [0.3, 1.0])
def test_denoising_at_one_level(numbers, sigma):
    """The reference's loss is sigma^4 / 2 times the squared error summed over the 3 dimensions."""
    energy = model(numbers, True, sigma)
    noise = numbers["vectors_1"]
    error = Denoising(Score(), SigmaPower(4.0)).at(energy, numbers["samples"], torch.zeros(6), noise).per_sample
    loss = error.mean() * 3 / 2
    agree(numbers, f"dsm/sigma_{sigma}", loss, loss, energy.net)


def test_exact(numbers):
    energy, x = model(numbers, True), numbers["samples"]
    each = Implicit(Exact()).at(energy, x, torch.zeros(6), x.new_empty(0, 6, 3)).per_sample
    assert torch.allclose(each.mean(), numbers["exact_score_matching_old/eval/loss"], rtol=2e-6)
    for key in ("exact_score_matching/train", "exact_score_matching/eval"):
        assert torch.allclose(each, numbers[f"{key}/loss"], rtol=2e-6, atol=1e-6)
    agree(numbers, "exact_score_matching/train", each, each.sum(), energy.net)


class Labelled(ScoreModel):
    """0.9 score + 0.05 at the level of each sample: a ladder is VE at the times 1 - i / (L - 1)."""

    def __init__(self, schedule):
        super().__init__(schedule)
        self.exact = pixels(schedule, Score(), 0.9, 0.05)

    def forward(self, x, t, cond=None):
        return Prediction(self.schedule, x, t, self.exact(x, t).score, Score())


@pytest.fixture
def ncsn(recorded):
    return recorded("losses_ncsn")


@pytest.mark.parametrize("power", ["2.0", "2.5", "0.0"])
def test_annealed_denoising(ncsn, power):
    """Half the sum over 8 dimensions is 4 times the mean; the reference is float32 and recomputes its noise."""
    x, eps, t = ncsn["samples"].double(), ncsn["noise"].double(), 1 - ncsn["labels"] / 9
    found = Denoising(Score(), SigmaPower(float(power))).at(Labelled(VE(0.01, 1.0)), x, t, eps).per_sample.mean() * 4
    # x~ - x loses what x carries: 6e-8 |x| / sigma = 6e-6 of the noise at sigma = 0.01.
    assert float(found) == pytest.approx(float(ncsn[f"anneal_dsm/power_{power}"]), rel=2e-5)


def test_denoising_estimation_at_one_level(ncsn):
    constant = Constant(0.3)
    x, eps = ncsn["samples"].double(), ncsn["noise"].double()
    found = Denoising(Score()).at(Labelled(constant), x, torch.zeros(8), eps).per_sample.mean() * 4
    assert float(found) == pytest.approx(float(ncsn["dsm_score_estimation"]), rel=2e-6)


@pytest.mark.parametrize("particles", [1, 2])
def test_annealed_sliced(ncsn, particles):
    schedule, t = VE(0.01, 1.0), 1 - ncsn["labels"] / 9
    y = schedule.perturb(ncsn["samples"].double(), t, ncsn["noise"].double())
    v = ncsn["ssm_vectors"].double()[: 8 * particles].reshape(particles, 8, 2, 2, 2)
    found = Implicit(Hutchinson(k=particles), SigmaPower(2.0)).at(Labelled(schedule), y, t, v).per_sample.mean()
    # float32 in the reference, with terms of both signs up to 30 times the mean.
    assert float(found) == pytest.approx(float(ncsn[f"anneal_ssm_vr_{particles}"]), rel=1e-4)
