"""Dequantisation against the probabilities of the levels themselves, which a mixture has in closed form."""

import math

import pytest
import torch
from torch.special import ndtr

from scorefield.data import Data, Split
from scorefield.data.transforms import to_symmetric_unit
from scorefield.dequantisation import FlowDequantiser, UniformDequantisation, VariationalDequantisation
from scorefield.errors import NumericalError
from scorefield.models import MixtureModel
from scorefield.nets.coupling import ConditionalCouplings
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.probability_flow import ProbabilityFlow
from scorefield.schedules import VE, VP
from tests.nets.test_coupling import trained

LEVELS, WEIGHTS, STD = 4, torch.tensor([0.3, 0.7], dtype=torch.float64), 0.12
MEANS = torch.tensor([[-0.55, 0.3], [0.4, -0.1]], dtype=torch.float64)  # in model space


class Pairs(Data):
    """Images of two pixels and four levels, drawn from the mixture and rounded down."""

    name, shape, levels = "pairs", (1, 1, 2), LEVELS
    transform = to_symmetric_unit(LEVELS)

    def __init__(self):
        model = MixtureModel(VE(1e-9, 1.0), WEIGHTS, MEANS.reshape(2, 1, 1, 2), [STD**2] * 2)
        like, t = torch.empty(3000, 1, 1, 2, dtype=torch.float64), torch.full((3000,), 1e-6, dtype=torch.float64)
        self.split = Split(self.from_model(model.sample_like(like, t, StreamNoise(0))))

    def train(self):
        return self.split

    validation = test = train


def log_probability(k):
    """ln P(k), the mixture's mass in the cell of k: products of differences of normal distribution functions."""
    low, high = (Pairs.transform.forward(k.double() + end).reshape(len(k), 1, 2) for end in (0.0, 1.0))
    mass = ndtr((high - MEANS) / STD) - ndtr((low - MEANS) / STD)
    return (mass.prod(2) @ WEIGHTS).log()


@pytest.fixture(scope="module")
def data():
    return Pairs()


@pytest.fixture(scope="module")
def model():
    return MixtureModel(VP(t_min=1e-4), WEIGHTS, MEANS.reshape(2, 1, 1, 2), [STD**2] * 2)


def nothing(examples):
    return None


def bound(model, data, dequantiser, n=500):
    """E_q [ln p(k + u) - ln q], on the first examples."""
    k = data.split.x[:n].double()
    x, log_q = dequantiser(k, IndexedNoise(1, "u", range(n)))
    return ProbabilityFlow().log_prob(model, data.transform.forward(x)) + data.transform.log_abs_det(x) - log_q


def test_uniform_is_below_the_probability_and_a_fitted_flow_in_between(model, data):
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        recipe = VariationalDequantisation(steps=300, batch_size=64, lr=1e-2)
        flow = recipe.dequantiser(model, data, data.split, nothing, 0, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), before)
    uniform = UniformDequantisation().dequantiser(model, data, data.split, nothing, 0, torch.device("cpu"))
    exact = log_probability(data.split.x[:500]).mean()
    gap = {name: float(exact - bound(model, data, q).mean()) for name, q in (("uniform", uniform), ("flow", flow))}
    # Of the uniform law: the mean of ln P(k) - int_0^1 ln p(k + u) du, by a midpoint rule in the cell.
    u = torch.cartesian_prod(*[(torch.arange(40, dtype=torch.float64) + 0.5) / 40] * 2)
    k = data.split.x[:500].double().reshape(-1, 1, 2)
    y = data.transform.forward(k + u)
    log_p = torch.stack(
        [w.log() - ((y - m) / STD).square().sum(2) / 2 for w, m in zip(WEIGHTS, MEANS, strict=True)]
    ).logsumexp(0) - math.log(2 * math.pi * STD**2) - 2 * math.log(LEVELS / 2)  # fmt: skip
    expected = float((log_probability(data.split.x[:500]) - log_p.mean(1)).mean())
    # 500 draws of a quantity whose deviation is about 2 nats.
    assert gap["uniform"] == pytest.approx(expected, abs=4 * 2 / math.sqrt(500))
    assert gap["uniform"] > 1
    assert -0.05 < gap["flow"] < 0.35 * gap["uniform"], gap


def test_before_the_fit_it_is_uniform(data):
    k = data.split.x[:200].double()
    flow = FlowDequantiser(ConditionalCouplings(data.shape).double(), data)
    x, log_q = flow(k, IndexedNoise(0, "u", range(200)))
    assert torch.allclose(log_q, torch.zeros(200, dtype=torch.float64), atol=1e-12)
    expected = k + IndexedNoise(0, "u", range(200)).uniform_like(k)
    assert torch.allclose(x, expected, atol=1e-12)


def test_the_density_of_u_is_that_of_its_map(data):
    """ln q = -ln |det du/dv| at uniform v, by the Jacobian of the whole map; and u stays within its cell."""
    flow, k = FlowDequantiser(trained(data.shape), data), data.split.x[:20].double()
    v = IndexedNoise(0, "u", range(20)).uniform_like(k)

    class Given:
        def __init__(self, v):
            self.v = v

        def uniform_like(self, x):
            return self.v

    x, log_q = flow(k, Given(v))
    assert torch.equal(x.floor(), k)
    for i in range(20):
        whole = torch.func.jacrev(lambda w, i=i: flow(k[i : i + 1], Given(w))[0])(v[i : i + 1]).reshape(2, 2)
        assert float(log_q[i]) == pytest.approx(-float(torch.linalg.slogdet(whole).logabsdet), abs=1e-8)


def test_a_fit_depends_on_its_seed_alone(model, data):
    recipe = VariationalDequantisation(steps=3, batch_size=8, width=4)
    one, again, other = (
        recipe.dequantiser(model, data, data.split, nothing, seed, torch.device("cpu")) for seed in (0, 0, 1)
    )
    for a, b, _ in zip(*(q.parameters() for q in (one, again, other)), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, c) for a, c in zip(one.parameters(), other.parameters(), strict=True))


def test_a_fit_that_breaks_says_so(data):
    class Broken(MixtureModel):
        def forward(self, x, t, cond=None):
            return super().forward(x * torch.nan, t)

    broken = Broken(VP(t_min=1e-4), WEIGHTS, MEANS.reshape(2, 1, 1, 2), [STD**2] * 2)
    with pytest.raises(NumericalError, match=r"step 1; take a smaller lr than 0\.002"):
        VariationalDequantisation(batch_size=4).dequantiser(broken, data, data.split, nothing, 0, torch.device("cpu"))


@pytest.mark.parametrize("name", ["steps", "batch_size", "width", "lr"])
def test_impossible_recipes_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0"):
        VariationalDequantisation(**{name: 0})
