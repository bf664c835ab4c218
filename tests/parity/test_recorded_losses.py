"""Losses of the reference implementation with given times and noise, through `Denoising.at`."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from scorefield.cli.app import conf_dir
from scorefield.cli.runs import make
from scorefield.noise import StreamNoise
from scorefield.objectives import Denoising, Likelihood, SigmaPower, Unit
from scorefield.prediction import Noise, Score
from scorefield.schedules import VE
from scorefield.times import Uniform
from tests.parity.conftest import Replay, chain, continuous_sde, pixels

SDES = ["ve", "vp", "subvp"]
D = 8


@pytest.fixture
def numbers(recorded):
    return recorded("losses_score_sde")


@pytest.mark.parametrize("sde", SDES)
@pytest.mark.parametrize("network", ["analytic", "perturbed"])
@pytest.mark.parametrize("likelihood", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_score_sde_losses(numbers, sde, network, likelihood, mean):
    """Mean over dimensions is ours; the reference's other reduction, half the sum, is d / 2 times it."""
    gain, shift = (0.9, 0.05) if network == "perturbed" else (1.0, 0.0)
    model = pixels(continuous_sde(sde), Score() if sde == "ve" else Noise(), gain, shift)
    x, z, u = (numbers[name].double() for name in ("batch", "z", "u"))
    objective = Denoising(Score(), Likelihood() if likelihood else SigmaPower(2.0), Uniform(t_min=1e-5))
    reduction = 1.0 if mean else D / 2
    key = f"sde/{sde}/{network}/reduce_mean_{mean}/likelihood_weighting_{likelihood}"

    t = u * (1 - 1e-5) + 1e-5
    found = reduction * objective.at(model, x, t, z).per_sample
    # float64 on either side; the smallest sigma, 1e-3, is a difference from 1 in the reference: 1e-16 / 1e-6.
    assert torch.allclose(found, numbers[f"{key}/per_sample_f64"], rtol=1e-9, atol=0)
    assert torch.allclose(found.mean(), numbers[f"{key}/f64"], rtol=1e-9, atol=0)
    # Against float32, up to the reference's own distance between its two precisions (1e-3 where t is 1e-3).
    gap = (numbers[f"{key}/per_sample"] / numbers[f"{key}/per_sample_f64"] - 1).abs()
    assert ((found / numbers[f"{key}/per_sample"] - 1).abs() <= 1.01 * gap + 1e-6).all()
    assert torch.allclose(numbers[f"sde/{sde}/t"].double(), t, rtol=1e-6)

    # The same through the law that draws the times: u first, then the noise.
    drawn = objective(model, x, None, Replay([u, z]))
    assert torch.allclose(reduction * drawn.per_sample, found, rtol=1e-12)


@pytest.mark.parametrize("sde", SDES)
def test_half_the_sum_by_configuration(numbers, sde):
    """objective=score_sde_sum is what the reference minimises with reduce_mean=False."""
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        config = compose("train", ["objective=score_sde_sum", f"objective.coefficients.score={D / 2}", "times=uniform"])
    objective = make(config["objective"])
    model = pixels(continuous_sde(sde), Score() if sde == "ve" else Noise(), 0.9, 0.05)
    x, z, u = (numbers[name].double() for name in ("batch", "z", "u"))
    found = objective(model, x, None, Replay([u, z]))
    key = f"sde/{sde}/perturbed/reduce_mean_False/likelihood_weighting_False"
    # float64 on either side; the smallest sigma, 1e-3, is a difference from 1 in the reference: 1e-16 / 1e-6.
    assert torch.allclose(found.per_sample, numbers[f"{key}/per_sample_f64"], rtol=1e-9, atol=0)


def test_smld_loss(numbers):
    """A geometric ladder of L levels is VE at 1 - i / (L - 1), labels counting from the largest level."""
    ve, labels = VE(0.01, 50.0), numbers["smld/labels"]
    model = pixels(ve, Score(), 0.9, 0.05)
    x, z = numbers["batch"].double(), numbers["z"].double()
    found = Denoising(Score(), SigmaPower(2.0)).at(model, x, 1 - labels / 999, z).per_sample
    # float32 in the reference: its table of sigmas is good to 3e-7, the loss to a few times that.
    for key, reduction in (("smld/reduce_mean_True", 1.0), ("smld/reduce_mean_False", D / 2)):
        assert torch.allclose(reduction * found, numbers[f"{key}/per_sample"].double(), rtol=3e-6)
        assert float(reduction * found.mean()) == pytest.approx(float(numbers[key]), rel=3e-6)


def test_ddpm_loss(numbers):
    labels = numbers["ddpm/labels"]
    model = pixels(chain("vp", 1000), Noise(), 0.9, 0.05)
    x, z = numbers["batch"].double(), numbers["z"].double()
    found = Denoising(weight=Unit()).at(model, x, (labels + 1) / 1000, z).per_sample
    # float32 in the reference: a product of up to 538 factors, 4e-7, then a few roundings.
    for key, reduction in (("ddpm/reduce_mean_True", 1.0), ("ddpm/reduce_mean_False", D / 2)):
        assert torch.allclose(reduction * found, numbers[f"{key}/per_sample"].double(), rtol=3e-6)
        assert float(reduction * found.mean()) == pytest.approx(float(numbers[key]), rel=3e-6)


def test_the_product_density_is_the_mixture_pixel_by_pixel():
    """The test's own model: its score is the gradient of the sum of log-densities."""
    model, t = pixels(continuous_sde("vp"), Score()), torch.tensor([0.2, 0.7])
    x = StreamNoise(0).normal_like(torch.empty(2, 2, 2, 2)).requires_grad_()
    total = sum(model.model.log_prob(x[:, :, i, j], t).sum() for i in range(2) for j in range(2))
    (gradient,) = torch.autograd.grad(total, x)
    assert torch.allclose(model(x.detach(), t).score, gradient, rtol=1e-10, atol=1e-12)
