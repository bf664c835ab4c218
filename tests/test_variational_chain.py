"""The bound of a discrete chain against joint Gaussians, high precision, published numbers and its limit."""

import math
from functools import partial
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from scorefield.data import Data
from scorefield.data.transforms import to_symmetric_unit
from scorefield.grids import Ladder, LogRatio, Uniform
from scorefield.kernels import Ancestral
from scorefield.models import MixtureModel, ScoreModel
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.prediction import Data as Clean
from scorefield.prediction import Prediction
from scorefield.schedules import VE, VP, Constant, Linear, SubVP, Tabulated
from scorefield.times import Importance
from scorefield.variational import VariationalBound
from scorefield.variational_chain import ChainBound
from tests.conftest import MIXTURE

CHAINS = {
    "ddpm": lambda n: (Tabulated.linear(n, 2e-3, min(6 / n, 0.6)), ChainBound),
    "vp": lambda n: (VP(t_min=1e-2), partial(ChainBound, n, LogRatio())),
    "subvp": lambda n: (SubVP(t_min=5e-2), partial(ChainBound, n, LogRatio())),
    "ve": lambda n: (VE(0.05, 50.0), partial(ChainBound, n)),
    "linear": lambda n: (Linear(0.05, 0.99), partial(ChainBound, n)),
}
NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(80))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


class Grey(Data):
    """Made-up data of so many grey levels, of which nothing but the levels is there."""

    name = "grey"
    shape = (1,)

    def __init__(self, levels=256):
        self.levels, self.transform = levels, to_symmetric_unit(levels or 2)

    def train(self):
        raise AssertionError("a bound reads no split")

    validation = test = train


class Nodes:
    """The nodes of a Gauss-Hermite rule in the place of normal numbers, the middle in that of uniform ones.

    A batch is copies of images of one dimension, one for each node, and the rule's weights take its expectation.
    """

    def normal_like(self, x):
        return NODES.repeat(len(x) // len(NODES))[:, None]

    def uniform_like(self, x):
        return torch.full_like(x, 0.5)

    @staticmethod
    def copies(levels):
        return torch.as_tensor(levels).repeat_interleave(len(NODES))[:, None]

    @staticmethod
    def mean(value):
        return value.view(-1, len(NODES)) @ WEIGHTS


class Fixed(Nodes):
    """One number in the place of all normal ones."""

    def __init__(self, value):
        self.value = value

    def normal_like(self, x):
        return torch.full_like(x, self.value)


def moved(kernel, model, x, z, t, s):
    """Where a kernel puts a number, given the normal number that it draws."""
    x, t, s = torch.tensor([[float(x)]]), t[None], s[None]
    return float(kernel.step(model, x, t, s, {}, Fixed(float(z)))[0])


def drawn(model, times, kernel):
    """Mean and covariance of all levels of the model's chain, from what the kernel makes of 0 and 1."""
    std = model.schedule.prior_std
    mean, root = [0.0], torch.zeros(len(times), len(times))
    root[0, 0] = std
    for i, (t, s) in enumerate(pairwise(times)):
        shift = moved(kernel, model, 0, 0, t, s)
        gain, spread = moved(kernel, model, 1, 0, t, s) - shift, moved(kernel, model, 0, 1, t, s) - shift
        mean.append(gain * mean[-1] + shift)
        root[i + 1] = gain * root[i]
        root[i + 1, i + 1] = spread
    return torch.tensor(mean), root @ root.T


def diffused(schedule, times, x):
    """The same of the forward chain from x: of two levels the noisier is the other one times a gain, and noise."""
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    later = torch.minimum(torch.arange(len(times))[:, None], torch.arange(len(times)))
    earlier = torch.maximum(torch.arange(len(times))[:, None], torch.arange(len(times)))
    return alpha * x, alpha[later] / alpha[earlier] * sigma[earlier].square()


@pytest.mark.parametrize("forward_variance", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_the_rate_is_the_divergence_of_the_two_chains(name, forward_variance):
    """By the chain rule the terms add up to KL(q(x_1..x_T | x) || p(x_1..x_T)), two Gaussians of as many dimensions."""
    schedule, chain = CHAINS[name](7)
    model, data = MixtureModel(schedule, [1.0], [[0.4]], [0.3]), Grey()
    bound = chain(forward_variance=forward_variance)
    times = bound.times(schedule)
    assert len(times) == 7
    for k in (0, 30, 200):
        found = bound(model, Nodes.copies([k]), data, noise=Nodes())
        q = MultivariateNormal(*diffused(schedule, times, (2 * k + 1) / 256 - 1))
        p = MultivariateNormal(*drawn(model, times, Ancestral(forward_variance=forward_variance)))
        # Inverses of covariances of condition 1e4 at most.
        assert float(Nodes.mean(found.rate)) == pytest.approx(float(kl_divergence(q, p)), rel=1e-9)
        assert torch.equal(found.nll, found.rate + found.distortion)


@pytest.mark.parametrize("forward_variance", [False, True])
@pytest.mark.parametrize("name", CHAINS)
def test_it_is_above_what_the_chain_gives_to_each_level(name, forward_variance):
    """The model's chain and its decoder are one Gaussian in one dimension, which gives each level its probability."""
    data = Grey(17)
    for n in (7, 300):
        schedule, chain = CHAINS[name](n)
        model, bound = MixtureModel(schedule, [1.0], [[0.4]], [0.3]), chain(forward_variance=forward_variance)
        times = bound.times(schedule)
        mean, covariance = drawn(model, times, Ancestral(forward_variance=forward_variance))
        ends = model(torch.tensor([[0.0], [1.0]]), times[-1].expand(2)).data.flatten()
        gain = ends[1] - ends[0]
        variance = gain.square() * covariance[-1, -1] + schedule.ratio(times[-1]).square()
        centre, std = float(gain * mean[-1] + ends[0]), float(variance.sqrt())
        inner = [mpmath.ncdf((2 * k / 17 - 1 - centre) / std) for k in range(1, 17)]
        exact = [-float(mpmath.log(above - below)) for below, above in pairwise([mpmath.mpf(0), *inner, mpmath.mpf(1)])]
        gap = Nodes.mean(bound(model, Nodes.copies(range(17)), data, noise=Nodes()).nll) - torch.tensor(exact)
        assert float(gap.min()) > 0
    assert float(gap.median()) < 0.4  # with many steps, of the exact model; the two last levels have wider intervals


@pytest.mark.parametrize("posterior_decoder", [False, True])
@pytest.mark.parametrize("place", [-1.3, 0.02, 0.999])
def test_the_probabilities_of_all_levels_add_up_to_one(posterior_decoder, place):
    schedule, data = Tabulated.linear(20), Grey()
    model, bound = MixtureModel(schedule, [1.0], [[0.4]], [0.3]), ChainBound(posterior_decoder=posterior_decoder)
    last = torch.tensor([1 / 20])

    class To(Nodes):  # noise that leads every image to one place at the last level
        def normal_like(self, x):
            return (place - schedule.alpha(last) * x) / schedule.sigma(last)

    found = bound(model, torch.arange(256)[:, None], data, noise=To()).distortion
    assert float(torch.exp(-found).sum()) == pytest.approx(1, abs=1e-12)


class Off(ScoreModel):
    """A model whose denoised image lies a given way off the truth, of which it is told."""

    def __init__(self, schedule, truth, off):
        super().__init__(schedule)
        self.truth, self.off = truth, off

    def forward(self, x, t, cond=None):
        return Prediction(self.schedule, x, t, self.truth + self.off, Clean())


@pytest.mark.parametrize("k", [0, 3, 128, 255])
def test_each_levels_probability_in_high_precision(k):
    """The decoder's mean up to 200 levels from the truth, where the density itself is no number any more."""
    schedule, data = Tabulated.linear(20), Grey()
    off = torch.tensor([-1.5, -0.1, -0.004, 0.0, 0.003, 0.2, 1.5])[:, None]
    levels = torch.full((7, 1), k)
    model = Off(schedule, data.observable(levels), off)
    found = ChainBound(posterior_decoder=True)(model, levels, data, noise=StreamNoise(0)).distortion
    betas = [mpmath.mpf(1) / 10000 + i * (mpmath.mpf(199) / 10000) / 19 for i in range(2)]
    first, second = 1 - betas[0], (1 - betas[0]) * (1 - betas[1])
    std = mpmath.sqrt((1 - first) / (1 - second) * betas[1])  # Ho et al. 2020, eq. 7, at t = 2
    with mpmath.workdps(40):
        for value, way in zip(found.tolist(), off.flatten().tolist(), strict=True):
            above = mpmath.inf if k == 255 else (mpmath.mpf(1) / 256 - way) / std
            below = -mpmath.inf if k == 0 else (-mpmath.mpf(1) / 256 - way) / std
            low, high = (below, above) if below + above < 0 else (-above, -below)
            exact = -mpmath.log(mpmath.ncdf(high) - mpmath.ncdf(low))
            assert value == pytest.approx(float(exact), rel=1e-9, abs=1e-9)


def test_the_decoder_is_that_of_the_published_numbers():
    """An error of 0.95 grey levels of 256 makes 1.97 bits a dimension (Ho et al. 2020, section 4.3)."""
    n, schedule, data = 20_000, Tabulated.linear(), Grey()
    levels = torch.full((n, 1), 100)
    off = 0.95 * 2 / 256 * StreamNoise(1).normal_like(torch.empty(n, 1))
    model = Off(schedule, data.observable(levels), off)
    found = ChainBound(posterior_decoder=True, draws=2)(model, levels, data, noise=StreamNoise(0))
    assert float(found.squared_error.mean().sqrt()) == pytest.approx(0.95, rel=0.02)  # 4 / sqrt(2 n)
    bits = float(found.distortion.mean()) / math.log(2)
    # Half a unit of both last digits: 0.005 bits, and 0.005 levels, by the slope of a Gaussian's -ln p 0.008 bits.
    assert bits == pytest.approx(1.97, abs=0.013 + 0.01)  # and chance: 4 * 0.5 / ln 2 sqrt(2 / n)


@pytest.mark.parametrize("forward_variance", [False, True])
def test_with_ever_more_levels_it_is_the_bound_in_continuous_time(forward_variance):
    """The excess of N levels is of order 1 / N, so that twice the one less the other is the limit."""
    schedule, data = VP(t_min=1e-3), Grey(2**16)
    model = MixtureModel(schedule, [0.3, 0.7], [[-0.5], [0.4]], [0.02, 0.01])
    levels = Nodes.copies([2**14, 40_000])
    bounds = [ChainBound(n, LogRatio(), forward_variance)(model, levels, data, noise=Nodes()).nll for n in (400, 800)]
    coarse, fine = (Nodes.mean(nll) + math.log(2 / 2**16) for nll in bounds)  # of a density, not of an interval
    x = data.observable(levels)
    limit = Nodes.mean(VariationalBound(1000, Importance())(model, x, noise=Nodes()).nll)  # the middles of the slices
    # Terms of order 1 / N^2 remain: the square of a step of ln u, 0.02, in parts of a sum of some nats.
    assert (2 * fine - coarse).tolist() == pytest.approx(limit.tolist(), abs=1e-3)
    assert float((coarse - limit).max()) > 0.02


@pytest.mark.parametrize("forward_variance", [False, True])
def test_steps_that_are_drawn_agree_with_all_of_them(forward_variance):
    schedule, data, n = Tabulated.linear(100, 1e-3, 0.1), Grey(), 20_000
    model = MixtureModel(schedule, **MIXTURE)
    levels = torch.tensor([[60, 150]]).expand(n, 2)
    whole, drawn = (
        ChainBound(forward_variance=forward_variance, draws=draws)(
            model, levels[:m], data, noise=StreamNoise(draws or 0)
        )
        for draws, m in ((None, 2000), (5, n))
    )
    error = math.hypot(float(whole.nll.std()) / math.sqrt(2000), float(drawn.nll.std()) / math.sqrt(n))
    assert abs(float(whole.nll.mean() - drawn.nll.mean())) < 4 * error
    assert error < 0.01 * float(whole.nll.mean())
    # What each is told of its own error is too large rather than too small; 2000 know theirs to 1.6 percent.
    for found in (whole, drawn):
        assert 0.95 < float(found.standard_error.square().mean().sqrt() / found.nll.std()) < 1.3
    assert torch.equal(whole.prior[:1], drawn.prior[:1])


@pytest.mark.parametrize("draws", [None, 4])
def test_an_image_does_not_depend_on_its_mates(draws):
    schedule, data, bound = VP(t_min=1e-3), Grey(), ChainBound(30, draws=draws, forward_variance=True)
    model = MixtureModel(schedule, **MIXTURE)
    levels = torch.randint(256, (6, 2))
    together = bound(model, levels, data, noise=IndexedNoise(0, "probes", range(6)))
    for i in range(6):
        alone = bound(model, levels[[i]], data, noise=IndexedNoise(0, "probes", [i]))
        for name in ("nll", "standard_error", "squared_error"):
            assert getattr(alone, name)[0] == pytest.approx(float(getattr(together, name)[i]), rel=1e-12)


@pytest.mark.parametrize("forward_variance", [False, True])
def test_of_a_mixture_it_is_above_the_entropy_and_falls_towards_it(forward_variance):
    """No code of the levels is shorter than their entropy; the exact model's gets nearer to it with more steps."""
    data, grey = Grey(32), torch.arange(32)
    excess = []
    for n in (10, 40, 160):
        schedule = Tabulated.linear(n, 1e-3, min(4 / n, 0.9))
        model = MixtureModel(schedule, [0.3, 0.7], [[-0.5], [0.4]], [0.04, 0.02])
        # The law of the levels: what the mixture gives to their intervals.
        ends = torch.cat([torch.tensor([-math.inf]), 2 * grey[1:] / 32 - 1, torch.tensor([math.inf])])
        parts = Normal(model.means.T, model.variances.T.sqrt()).cdf(ends[:, None]) @ model.weights
        law = parts.diff()
        entropy = -(law * law.log()).sum()
        found = ChainBound(forward_variance=forward_variance)(model, Nodes.copies(grey), data, noise=Nodes())
        excess.append(float(law @ Nodes.mean(found.nll) - entropy))
    assert excess[0] > excess[1] > excess[2] > 0
    assert excess[2] < 0.3 * excess[0]


def test_what_makes_no_chain_is_refused():
    with pytest.raises(ValueError, match="levels=2 must be at least 3"):
        ChainBound(2)
    with pytest.raises(ValueError, match="draws=1 must be at least 2"):
        ChainBound(draws=1)
    with pytest.raises(ValueError, match="levels=None takes those of a table, and VP"):
        ChainBound().times(VP())
    with pytest.raises(ValueError, match=r"grid=Ladder\(\) does not fall"):
        ChainBound(10, Ladder()).times(VP())
    with pytest.raises(ValueError, match=r"does not fall from level to level on Constant"):
        ChainBound(10, Uniform(t_min=0.0, t_max=1.0)).times(Constant(1.0))
    model = MixtureModel(VP(), [1.0], [[0.0]], [1.0])
    with pytest.raises(ValueError, match="grey has no grey levels"):
        ChainBound(10)(model, torch.zeros(2, 1), Grey(None))


def test_the_calls_are_those_that_are_made():
    class Counted(Off):
        calls = 0

        def forward(self, x, t, cond=None):
            self.calls += 1
            return super().forward(x, t, cond)

    data, levels, schedule = Grey(), torch.zeros(2, 1, dtype=torch.uint8), Tabulated.linear(20)
    for bound in (ChainBound(), ChainBound(8), ChainBound(draws=4)):
        model = Counted(schedule, data.observable(levels), 0.01)
        bound(model, levels, data, noise=StreamNoise(0))
        assert model.calls == bound.calls(schedule)
