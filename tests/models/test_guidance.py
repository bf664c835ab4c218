"""Guidance against what it says: scores of p(x) p(c|x)^w at each level, and what is sampled of it in the end."""

import pytest
import torch

from scorefield.models import Classifier, ClassifierGuided, EnergyModel, Guided, MixtureModel, NetworkModel
from scorefield.models.guidance import drop_labels
from scorefield.models.parametrization import Parametrization
from scorefield.nets import MLP, EnergyMLP, Fourier
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.ode import DormandPrince
from scorefield.prediction import Data, Karras, Noise, Score, Velocity
from scorefield.probability_flow import ProbabilityFlow
from scorefield.samplers import FlowSampler
from scorefield.schedules import EDM, VP
from tests.conftest import MIXTURE, inside

THREE = {
    "weights": [0.3, 0.5, 0.2],
    "means": [[-0.6, 0.4], [0.5, -0.3], [0.9, 0.8]],
    "variances": [[0.04, 0.09], [0.16, 0.02], [0.05, 0.05]],
    "classes": [0, 1, 0],
}


class Bayes(Classifier):
    """The classifier that knows the mixture: log p(c, x_t) of each class."""

    def __init__(self, mixture: MixtureModel) -> None:
        super().__init__(MLP((2,), 4, 1, Fourier(2)), mixture.schedule, Parametrization())
        self.mixture = mixture

    def logits(self, x, t):
        joint = self.mixture._components(x, t)[0]
        return torch.stack([joint[:, self.mixture.classes == c].logsumexp(1) for c in (0, 1)], 1)


@pytest.fixture
def three(continuous):
    return MixtureModel(continuous, **THREE)


def points(model, n=6):
    t = inside(model.schedule, n)
    return model.sample_like(torch.empty(n, 2), t, StreamNoise(0)), t, torch.tensor([0, 1, 0, 1, 0, 1])[:n]


def test_a_class_of_a_mixture_is_the_mixture_of_its_components(three):
    x, t, _ = points(three)
    ours = MixtureModel(three.schedule, [0.6, 0.4], THREE["means"][::2], THREE["variances"][::2])
    of_class = {"label": torch.zeros(6, dtype=torch.long)}
    assert torch.allclose(three(x, t, of_class).score, ours(x, t).score, rtol=1e-10)
    assert torch.allclose(three.log_prob(x, t, of_class), ours.log_prob(x, t), rtol=1e-12)
    free = three(x, t, {"label": torch.full((6,), -1)})
    assert torch.allclose(free.score, three(x, t).score, rtol=1e-12)
    with pytest.raises(ValueError, match=r"label 2 is no class of this mixture; it has \[0, 1\]"):
        three(x, t, {"label": torch.full((6,), 2)})
    with pytest.raises(ValueError, match=r"classes"):
        MixtureModel(three.schedule, **{**THREE, "classes": [0, 1]})


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, -1.0])
def test_the_guided_score_is_that_of_the_tilted_density(three, scale):
    """grad [log p_t(x) + w log p_t(c | x)], by differentiating the densities, in both guidances."""
    x, t, label = points(three)
    x.requires_grad_()
    cond = {"label": label}
    conditional, free = three.log_prob(x, t, cond), three.log_prob(x, t)
    (expected,) = torch.autograd.grad((free + scale * (conditional - free)).sum(), x)
    at = x.detach()
    assert torch.allclose(Guided(three, scale)(at, t, cond).score, expected, rtol=1e-8, atol=1e-8)
    # log p(c | x) = log p(x | c) - log p(x) + log p(c), whose last term has no gradient.
    assert torch.allclose(
        ClassifierGuided(three, Bayes(three), scale)(at, t, cond).score, expected, rtol=1e-8, atol=1e-8
    )


def conditional_network(target, energy=False):
    torch.manual_seed(3)
    net = (EnergyMLP if energy else MLP)((2,), 16, 1, Fourier(8), classes=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return (EnergyModel if energy else NetworkModel)(net, VP(), Parametrization(target))


class Counted(NetworkModel):
    calls = 0

    def forward(self, x, t, cond=None):
        type(self).calls += 1
        return super().forward(x, t, cond)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("target", [Data(), Noise(), Score(), Velocity(), Karras(0.5)], ids=repr)
def test_scale_one_is_the_conditional_model(target, dtype):
    """To the last bit, although 1e-6 is asked for; and scale 0 is the unconditional one, up to rounding."""
    model = conditional_network(target).to(dtype)
    x, t, cond = torch.randn(6, 2, dtype=dtype), inside(VP(), 6), {"label": torch.tensor([0, 1, 0, 1, 0, 1])}
    assert torch.equal(Guided(model, 1.0)(x, t, cond).score, model(x, t, cond).score)
    # Rows at scale 1 beside guided ones go the other way through the code.
    t[:3] = 0.01
    mixed = Guided(model, 4.0, low=0.5)(x, t, cond)
    assert torch.equal(mixed.out[:3], model(x, t, cond).out[:3])
    assert not torch.allclose(mixed.out[3:], model(x, t, cond).out[3:], rtol=1e-2)
    nothing = Guided(model, 0.0)(x, t, cond).out
    assert torch.allclose(nothing, model(x, t).out, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-13)


@pytest.mark.parametrize("target", [Data(), Noise(), Velocity(), Karras(0.5)], ids=repr)
def test_any_target_may_be_combined(target):
    """The output is affine in the score: combining outputs or scores is the same."""
    model, cond = conditional_network(target), {"label": torch.tensor([0, 1, 0, 1])}
    x, t = torch.randn(4, 2), inside(VP(), 4)
    free, conditional = model(x, t).score, model(x, t, cond).score
    assert torch.allclose(Guided(model, 2.5)(x, t, cond).score, free + 2.5 * (conditional - free), rtol=1e-9)


def test_levels_outside_of_the_interval_cost_one_call():
    model = Counted(MLP((2,), 8, 1, Fourier(4), classes=2), VP(), Parametrization())
    guided, cond = Guided(model, 3.0, low=0.1, high=1.0), {"label": torch.tensor([0, 1])}
    for level, calls in ((0.05, 1), (0.5, 2), (2.0, 1)):
        Counted.calls = 0
        guided(torch.randn(2, 2), VP().time_at(torch.tensor([level, level])), cond)
        assert Counted.calls == calls


def test_energies_are_guided_too():
    model, cond = conditional_network(Noise(), energy=True), {"label": torch.tensor([0, 1])}
    x, t = torch.randn(2, 2), inside(VP(), 2)
    free, conditional = model(x, t).score, model(x, t, cond).score
    assert torch.allclose(Guided(model, 2.0)(x, t, cond).score, 2 * conditional - free, rtol=1e-9)


@pytest.mark.parametrize("kind", ["free", "classifier"])
def test_a_guided_sample_depends_on_its_index_alone(three, kind):
    model = Guided(three, 2.0, high=1.0) if kind == "free" else ClassifierGuided(three, Bayes(three), 2.0)
    labels = torch.tensor([0, 1, -1, 1, 0])
    sampler = FlowSampler(DormandPrince(1e-4, 1e-4))

    def run(rows):
        noise = IndexedNoise(0, "samples", rows)
        x = three.schedule.prior_like(torch.empty(len(rows), 2), noise)
        return sampler(model, x, {"label": labels[rows]}, noise).x

    together = run([0, 1, 2, 3, 4])
    for rows in ([3], [4, 2, 0]):
        assert torch.allclose(run(rows), together[rows], rtol=1e-9, atol=1e-10)


def test_a_sample_without_a_class_is_not_steered(three):
    x, t, _ = points(three, 2)
    none = {"label": torch.tensor([-1, -1])}
    for model in (Guided(three, 5.0), ClassifierGuided(three, Bayes(three), 5.0)):
        assert torch.allclose(model(x, t, none).score, three(x, t).score, rtol=1e-10)


def distribution(model, axis, label):
    """Density that the flow of a model makes on a line, by the change of variables along it."""
    flow, cond = ProbabilityFlow(DormandPrince(1e-7, 1e-7)), {"label": torch.full((len(axis),), label)}
    return flow.log_prob(model, axis[:, None], cond).exp()


def test_the_flow_of_a_guided_model_samples_another_density_than_the_tilted_one():
    """Two overlapping classes on a line: what comes out, what p(x) p(c|x)^w is, and that only w = 1 gives it.

    The guided scores at different levels belong to no one density, so the flow's end is not their product at t = 0.
    """
    line = MixtureModel(EDM(0.05, 20.0), [0.5, 0.5], [[-1.0], [1.0]], [1.0, 1.0])
    axis = torch.linspace(-5, 9, 281)
    t, cell = torch.full((len(axis),), 0.05), float(axis[1] - axis[0])
    posterior = line.responsibilities(axis[:, None], t)[:, 1].log()
    found = {}
    for scale in (1.0, 3.0):
        tilted = (line.log_prob(axis[:, None], t) + scale * posterior).exp()
        tilted = tilted / (tilted.sum() * cell)
        ours = distribution(Guided(line, scale), axis, 1)
        assert float(ours.sum() * cell) == pytest.approx(1, abs=2e-3)  # the line holds all of it
        mean = float((ours * axis).sum() * cell)
        found[scale] = (float((ours - tilted).abs().sum() * cell / 2), mean, float((tilted * axis).sum() * cell))
        # And samples of the flow have that mean: 4 standard errors of a spread of about 1.
        x = line.schedule.prior_like(torch.empty(2000, 1), StreamNoise(0))
        cond = {"label": torch.ones(2000, dtype=torch.long)}
        samples = FlowSampler(DormandPrince(1e-5, 1e-5))(Guided(line, scale), x, cond).x
        assert float(samples.mean()) == pytest.approx(mean, abs=4 / 2000**0.5)
    # w = 1 is the conditional density, up to the flow starting from N(0, t_max^2): a mean of 1 / 20 of a deviation.
    assert found[1.0][0] < 0.03
    # At w = 3 a quarter of the mass is elsewhere, further out than the tilted density.
    assert found[3.0][0] > 0.2
    assert found[3.0][1] > found[3.0][2] + 0.3


def test_dropping_labels():
    labels, noise = torch.arange(4000) % 10, IndexedNoise
    cond = {"label": labels, "other": torch.ones(4000)}
    kept = drop_labels(cond, 0.25, StreamNoise(0))
    dropped = kept["label"] == -1
    assert abs(float(dropped.double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5
    assert torch.equal(kept["label"][~dropped], labels[~dropped])
    assert kept["other"] is cond["other"]
    assert torch.equal(drop_labels(cond, 0.25, StreamNoise(0))["label"], kept["label"])
    vectors = drop_labels({"label": torch.eye(3)}, 0.999999, StreamNoise(0))["label"]
    assert torch.equal(vectors, torch.zeros(3, 3))
    assert drop_labels(cond, 0.0, noise) is cond  # and draws nothing: a class is no source of noise
    assert drop_labels(None, 0.5, noise) is None


def test_what_cannot_be_guided_is_refused(three):
    x, t, _ = points(three, 2)
    with pytest.raises(ValueError, match=r"was told none"):
        Guided(three, 2.0)(x, t)
    with pytest.raises(ValueError, match=r"was told none"):
        ClassifierGuided(three, Bayes(three))(x, t, {})
    with pytest.raises(ValueError, match=r"was told none"):
        Bayes(three)(x, t)
    with pytest.raises(ValueError, match=r"scale=inf"):
        Guided(three, float("inf"))
    with pytest.raises(ValueError, match=r"low=2.0 and high=1.0"):
        Guided(three, 2.0, low=2.0, high=1.0)
    with pytest.raises(ValueError, match=r"classifier is a MixtureModel"):
        ClassifierGuided(three, three)
    with pytest.raises(ValueError, match=r"noise levels of the one"):
        ClassifierGuided(three, Bayes(MixtureModel(EDM(0.1, 3.0), **MIXTURE)))
