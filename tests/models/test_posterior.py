"""Posterior scores against the exact posterior of a mixture, and each approximation where it is exact."""

import pytest
import torch

from scorefield.grids import Karras, LogRatio
from scorefield.kernels import EulerMaruyama, Heun
from scorefield.models import Guided, MixtureModel, NetworkModel
from scorefield.models.exact_posterior import ExactPosterior
from scorefield.models.parametrization import Parametrization
from scorefield.models.posterior import DPS, MomentMatching, NormalisedDPS, NullSpace, Observed, PiGDM
from scorefield.nets import MLP, Fourier
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.ode import DormandPrince
from scorefield.operators import Averaging, Dense, Inpainting
from scorefield.probability_flow import ProbabilityFlow
from scorefield.samplers import FlowSampler, Sampler
from scorefield.schedules import EDM, VP
from tests.conftest import MIXTURE, inside
from tests.test_operators import rotation

STD = 0.3
METHODS = {
    "dps": lambda model, a: DPS(model, a, STD),
    "normalised": lambda model, a: NormalisedDPS(model, a, STD, scale=0.2),
    "pigdm": lambda model, a: PiGDM(model, a, STD, data_std=0.7),
    "moments": lambda model, a: MomentMatching(model, a, STD, iterations=3),
    "null_space": NullSpace,
}


def test_every_method_is_covered():
    made = {type(make(MixtureModel(VP(), **MIXTURE), Dense(torch.eye(2)[:1]))) for make in METHODS.values()}
    assert made == {*Observed.__subclasses__(), NullSpace}


def gaussian(schedule, d=4, equal=None):
    v = torch.linspace(0.1, 1.5, d) if equal is None else torch.full((d,), equal)
    return MixtureModel(schedule, [1.0], torch.linspace(-1, 1, d)[None], v[None])


def case(model, operator, n=7):
    """Perturbed samples, their times, and an observation for each."""
    t = inside(model.schedule, n)
    x = model.sample_like(torch.empty(n, *operator.shape), t, StreamNoise(0))
    clean = model.sample_like(torch.empty(n, *operator.shape), torch.full((n,), model.schedule.t_min), StreamNoise(1))
    return x, t, {"observed": operator.forward(clean)}


def test_the_exact_law_by_quadrature():
    """Weights, mean and covariance of p(x | y) on a fine grid, for an observation across the axes."""
    mixture, operator, y = MixtureModel(VP(), **MIXTURE), Dense(rotation(1, 2)), torch.tensor([[0.3], [-0.5]])
    law = ExactPosterior(mixture, operator, STD).law(y)
    mean, covariance = law.moments()
    axis = torch.linspace(-4, 4, 801)
    x = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    parts = torch.stack(
        [
            w * torch.exp(-0.5 * ((x - torch.tensor(m)) ** 2 / torch.tensor(v)).sum(1)) / torch.tensor(v).prod().sqrt()
            for w, m, v in zip(*MIXTURE.values(), strict=True)
        ],
        1,
    )
    for i in range(2):
        seen = torch.exp(-0.5 * ((y[i] - operator.forward(x)) / STD).square())
        weights = (parts * seen).sum(0) / (parts * seen).sum()
        density = (parts.sum(1, keepdim=True) * seen)[:, 0]
        density = density / density.sum()
        expected = density @ x
        # The narrowest feature, 0.14 wide, spans 14 cells: the rule is exact to rounding.
        assert torch.allclose(law.weights[i], weights, atol=1e-9)
        assert torch.allclose(mean[i], expected, atol=1e-9)
        assert torch.allclose(covariance[i], ((x - expected) * density[:, None]).T @ (x - expected), atol=1e-9)


def test_the_exact_score_is_that_of_the_law_perturbed(continuous):
    """Where a coordinate is observed the posterior is a mixture that `MixtureModel` knows, at every level."""
    mixture = MixtureModel(continuous, **MIXTURE)
    operator = Dense(torch.tensor([[1.0, 0.0]]))
    posterior = ExactPosterior(mixture, operator, STD)
    x, t, cond = case(mixture, operator)
    law = posterior.law(cond["observed"])
    for i in range(len(x)):
        variances = law.covariances[i].diagonal(dim1=1, dim2=2)
        known = MixtureModel(continuous, law.weights[i], law.means[i], variances)
        one = {"observed": cond["observed"][i : i + 1]}
        ours = posterior(x[i : i + 1], t[i : i + 1], one).score
        assert torch.allclose(ours, known(x[i : i + 1], t[i : i + 1]).score, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("m", [1, 2, 3])
def test_moment_matching_is_exact_for_a_gaussian(continuous, m):
    prior, operator = gaussian(continuous), Dense(rotation(m, 4))
    x, t, cond = case(prior, operator)
    exact = ExactPosterior(prior, operator, STD)(x, t, cond).score
    ours = MomentMatching(prior, operator, STD, iterations=m)(x, t, cond).score
    assert torch.allclose(ours, exact, rtol=1e-6, atol=1e-7 * float(exact.detach().abs().max()))
    # and the others are not, which has three variances at once
    for other in (DPS(prior, operator, STD), PiGDM(prior, operator, STD)):
        assert not torch.allclose(other(x, t, cond).score, exact, rtol=1e-2)


def test_pigdm_is_exact_for_equal_variances(continuous):
    prior, operator = gaussian(continuous, equal=0.49), Dense(rotation(2, 4))
    x, t, cond = case(prior, operator)
    exact = ExactPosterior(prior, operator, STD)(x, t, cond).score
    ours = PiGDM(prior, operator, STD, data_std=0.7)(x, t, cond).score
    assert torch.allclose(ours, exact, rtol=1e-7, atol=1e-8 * float(exact.abs().max()))


def test_noise_may_differ_between_observations():
    """A diagonal covariance: the exact answer of two observations with one noise each, by Bayes' rule."""
    prior, operator = gaussian(EDM(0.01, 10.0), d=2), Dense(torch.eye(2))
    x, t, cond = case(prior, operator)
    std = torch.tensor([0.2, 1.5])
    mu, v = prior.means[0], prior.variances[0]
    precision = 1 / v + 1 / std.square()
    posterior_mean = (mu / v + cond["observed"] / std.square()) / precision
    sigma = prior.schedule.sigma(t)[:, None]
    expected = -(x - posterior_mean) / (1 / precision + sigma.square())
    assert torch.allclose(MomentMatching(prior, operator, std, 2)(x, t, cond).score, expected, rtol=1e-8)


@pytest.mark.parametrize("name", ["dps", "normalised", "pigdm", "moments"])
def test_the_term_is_the_gradient_that_it_claims(mixture, name):
    """grad_x log N(y; A m(x), C) by central differences, C held where the method holds it."""
    operator = Dense(rotation(1, 2))
    model = METHODS[name](mixture, operator)
    x, t, cond = case(mixture, operator, 5)
    term = model(x, t, cond).score - mixture(x, t).score
    alpha, sigma = (value[:, None] for value in (mixture.schedule.alpha(t), mixture.schedule.sigma(t)))

    def estimate(at):
        return operator.forward(mixture(at, t).data)

    step, columns = 1e-5 * (alpha + sigma), []
    for e in torch.eye(2):
        columns.append((estimate(x + step * e) - estimate(x - step * e)) / (2 * step))
    slopes = torch.stack(columns, 2)[:, 0]  # d A m / dx, (B, 2)
    residual = cond["observed"] - estimate(x)
    spread = {
        "dps": torch.full_like(residual, STD**2),
        "normalised": mixture.schedule.diffusion_sq(t)[:, None] * residual.abs() / 0.2,
        "pigdm": 1 / (1 / 0.49 + (alpha / sigma).square()) + STD**2,  # precisions of prior and observation add
        "moments": sigma.square() / alpha * (slopes @ operator.matrix().T) + STD**2,
    }[name]
    expected = slopes * residual / spread
    assert torch.allclose(term, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()) + 1e-7)


def test_the_null_space_keeps_what_was_observed(mixture):
    operator = Dense(rotation(1, 2))
    x, t, cond = case(mixture, operator)
    data = NullSpace(mixture, operator)(x, t, cond).data
    assert torch.allclose(operator.forward(data), cond["observed"], atol=1e-12)
    rest = torch.eye(2) - operator.matrix().T @ operator.matrix()
    assert torch.allclose(data @ rest, mixture(x, t).data @ rest, atol=1e-12)


def test_the_normalised_rule_moves_by_a_fixed_length():
    """With the reverse SDE x moves by scale dt |grad |y - A m||, along it: 1000 steps of zeta, as published."""
    mixture, operator = MixtureModel(VP(), **MIXTURE), Dense(rotation(1, 2))
    x, _, cond = case(mixture, operator, 4)
    t, s = torch.full((4,), 0.5), torch.full((4,), 0.499)
    ours, plain = (
        EulerMaruyama().step(model, x, t, s, {}, StreamNoise(0), cond)[0]
        for model in (NormalisedDPS(mixture, operator, scale=1000 * 0.4), mixture)
    )
    at = x.clone().requires_grad_()
    distance = (cond["observed"] - operator.forward(mixture_data(mixture, at, t))).abs().sum()
    (slope,) = torch.autograd.grad(distance, at)
    assert torch.allclose(ours - plain, -0.4 * slope, rtol=1e-9)


def mixture_data(mixture, x, t):
    return mixture(x, t).data


def network():
    torch.manual_seed(5)
    net = MLP((1, 4, 4), 16, 1, Fourier(8), classes=2)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return NetworkModel(net, EDM(0.01, 10.0), Parametrization.edm(0.5))


SAMPLERS = {
    "heun": Sampler(Karras(), 6, Heun(), denoise_last=True),
    "sde": Sampler(LogRatio(), 40, EulerMaruyama()),
    "flow": FlowSampler(DormandPrince(1e-3, 1e-3), denoise_last=True),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("name", METHODS)
def test_a_posterior_sample_depends_on_its_index_alone(name, sampler):
    """With a network, guided besides, and a solver that takes some of the rows only."""
    prior, operator = network(), Averaging((1, 4, 4), 2)
    model = METHODS[name](Guided(prior, 1.5), operator)
    y, labels = 0.3 * torch.randn(5, 1, 2, 2), torch.tensor([0, 1, 1, -1, 0])

    def run(rows):
        noise = IndexedNoise(0, "samples", rows)
        x = prior.schedule.prior_like(torch.empty(len(rows), 1, 4, 4), noise)
        return sampler(model, x, {"observed": y[rows], "label": labels[rows]}, noise).x

    together = run([0, 1, 2, 3, 4])
    for rows in ([2], [4, 1]):
        assert torch.allclose(run(rows), together[rows], rtol=1e-7, atol=1e-8)


def test_guidance_and_observation_add_up():
    """Guided first or observed last: the guided prior's score plus the term of its own estimate."""
    prior, operator = network(), Inpainting.rows((1, 4, 4))
    guided = Guided(prior, 3.0)
    x, t = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 1.0, 5.0])
    cond = {"label": torch.tensor([0, 1, 0]), "observed": torch.randn(3, 8)}
    ours = PiGDM(guided, operator, STD)(x, t, cond)
    mean = guided(x, t, cond).data
    r_sq = t.square() / (1 + t.square())
    at = x.clone().requires_grad_()
    residual = cond["observed"] - operator.forward(guided(at, t, cond).data)
    (slope,) = torch.autograd.grad((-0.5 * residual.square().sum(1) / (r_sq + STD**2)).sum(), at)
    assert torch.allclose(ours.score, guided(x, t, cond).score + slope, rtol=1e-8)
    assert not torch.allclose(mean, prior(x, t, cond).data, rtol=1e-2)


def test_its_likelihood_can_be_taken():
    """Twice differentiable: the flow's log-density is that of the Gaussian posterior."""
    prior, operator = gaussian(EDM(0.01, 300.0), d=2), Dense(rotation(1, 2))
    y = torch.tensor([[0.4]]).expand(4, -1)
    law = ExactPosterior(prior, operator, STD).law(y)
    x = law.means[:, 0] + torch.randn(4, 2) @ torch.linalg.cholesky(law.covariances[0, 0]).T
    ours = ProbabilityFlow(DormandPrince(1e-8, 1e-8)).log_prob(
        MomentMatching(prior, operator, STD, 1), x, {"observed": y}
    )
    covariance = law.covariances[0, 0] + 0.01**2 * torch.eye(2)
    exact = torch.distributions.MultivariateNormal(law.means[0, 0], covariance).log_prob(x)
    # The prior stands in for the marginal at sigma = 300, whose mean is off by 1 / 300 of it, at up to 3 deviations.
    assert torch.allclose(ours, exact, atol=1e-2)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_it_works_in_every_gradient_mode(context):
    mixture, operator = MixtureModel(VP(), **MIXTURE), Dense(rotation(1, 2))
    x, t, cond = case(mixture, operator, 3)
    expected = PiGDM(mixture, operator, STD)(x, t, cond).score
    with context():
        inside_it = PiGDM(mixture, operator, STD)(x.clone(), t.clone(), {"observed": cond["observed"].clone()}).score
        assert not inside_it.requires_grad or context is torch.enable_grad
    assert torch.equal(inside_it.clone(), expected)


def test_what_makes_no_sense_is_refused():
    mixture, operator = MixtureModel(VP(), **MIXTURE), Dense(rotation(1, 2))
    x, t, _ = case(mixture, operator, 2)
    for make in METHODS.values():
        with pytest.raises(ValueError, match=r"nothing was observed"):
            make(mixture, operator)(x, t)
    with pytest.raises(ValueError, match=r"std=0.0 of DPS must be positive"):
        DPS(mixture, operator, 0.0)
    with pytest.raises(ValueError, match=r"std=-1.0 of PiGDM must be at least 0"):
        PiGDM(mixture, operator, -1.0)
    with pytest.raises(ValueError, match=r"data_std=0.0"):
        PiGDM(mixture, operator, 0.1, data_std=0.0)
    with pytest.raises(ValueError, match=r"iterations=0"):
        MomentMatching(mixture, operator, 0.1, iterations=0)
