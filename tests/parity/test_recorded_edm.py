"""Samplers, losses and noise levels of EDM's implementation with the exact denoiser of the mixture."""

import pytest
import torch

from scorefield.grids import Given, Karras, LogRatio, Transferred
from scorefield.grids import Uniform as UniformGrid
from scorefield.kernels import Euler, Heun
from scorefield.models import MixtureModel, ScoreModel
from scorefield.objectives import Denoising
from scorefield.prediction import Data, Noise, Prediction
from scorefield.prediction import Karras as KarrasTarget
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VE, VP, Brownian, Tabulated
from tests.conftest import MIXTURE
from tests.parity.conftest import Replay, pixels

STEPS = 17  # EDM's 18 levels; its last step to sigma = 0 is the final denoising


class Watched(ScoreModel):
    """Notes the noise-to-signal ratio of each call; computes in a narrower precision if asked.

    Args:
        model: answers.
        dtype: precision of its input and output; the state keeps its own.
    """

    def __init__(self, model: ScoreModel, dtype=torch.float64) -> None:
        super().__init__(model.schedule)
        self.model, self.dtype, self.levels = model, dtype, []

    def forward(self, x, t, cond=None) -> Prediction:
        self.levels.append(float(self.schedule.ratio(t)[0]))
        data = self.model(x.to(self.dtype), t.to(self.dtype).double(), cond).data.to(x)
        return Prediction(self.schedule, x, t, data, Data())


@pytest.fixture
def numbers(recorded):
    return recorded("edm_sampler_and_loss")


def start(numbers, schedule, t):
    at = torch.tensor([t])
    return numbers["latents"].double() * schedule.sigma(at)


def check(found, model, numbers, key, rtol=1e-9, atol=1e-9):
    assert torch.allclose(found, numbers[f"{key}/x"], rtol=rtol, atol=atol), (found - numbers[f"{key}/x"]).abs().max()
    levels = numbers[f"{key}/sigma_of_each_network_call"]
    # Grids are exact to a few roundings of float64; float32 calls are recorded in float32.
    assert torch.allclose(torch.tensor(model.levels), levels, rtol=1e-7 if "float32" in key else 1e-10)


@pytest.mark.parametrize(("precision", "dtype"), [("float64", torch.float64), ("float32", torch.float32)])
def test_heun(numbers, precision, dtype):
    key = f"heun/{precision}_denoiser"
    model = Watched(MixtureModel(EDM(), **MIXTURE), dtype)
    samples = Sampler(Karras(), STEPS, Heun(), denoise_last=True)(model, start(numbers, EDM(), 80.0))
    # The peer's denoiser works in float32 throughout, ours rounds only what goes in and out: 6e-8 of sigma = 80 in the
    # first steps, which the flow contracts.
    tolerance = 1e-9 if precision == "float64" else 2e-6
    check(samples.x, model, numbers, key, tolerance, tolerance)
    assert samples.nfe == len(model.levels) == numbers.manifest["nfe"][f"{key}/nfe"]


def test_churn(numbers):
    model = Watched(MixtureModel(EDM(), **MIXTURE))
    kernel = Heun(churn=40.0, churn_min=0.05, churn_max=50.0, churn_noise=1.003)
    noise = Replay(numbers["stochastic/noise"])
    samples = Sampler(Karras(), STEPS, kernel, denoise_last=True)(model, start(numbers, EDM(), 80.0), noise=noise)
    check(samples.x, model, numbers, "stochastic")


@pytest.mark.parametrize(("name", "midpoint"), [("edm_heun", 1.0), ("edm_alpha0.5", 0.5)])
def test_ablation_of_the_second_order_step(numbers, name, midpoint):
    model = Watched(MixtureModel(EDM(), **MIXTURE))
    kernel = Heun(midpoint=midpoint)
    samples = Sampler(Karras(), STEPS, kernel, denoise_last=True)(model, start(numbers, EDM(), 80.0))
    check(samples.x, model, numbers, f"ablation/{name}")


def test_ablation_of_the_iddpm_levels(numbers):
    key = "ablation/iddpm_heun"
    calls = numbers[f"{key}/sigma_of_each_network_call"]
    levels = [*calls[:1].tolist(), *calls[1::2].tolist()]
    model = Watched(MixtureModel(EDM(), **MIXTURE))
    sampler = Sampler(Given(levels), STEPS, Heun(), denoise_last=True)
    check(sampler(model, start(numbers, EDM(), levels[0])).x, model, numbers, key)

    grid = Transferred(UniformGrid(t_max=0.992, levels=1000), Tabulated.cosine(1000))
    ours, recorded = grid(EDM(), STEPS), torch.tensor(levels)
    # The peer's sines are of float32, 6e-8, which 1 is taken from where u^2 is small. Over the thousand levels of its
    # recursion roundings add up like a random walk, to 2e-6.
    assert ((ours / recorded - 1).abs() < 2e-6 + 6e-8 / recorded.square()).all()
    samples = Sampler(grid, STEPS, Heun(), denoise_last=True)(model, start(numbers, EDM(), float(ours[0])))
    assert torch.allclose(samples.x, numbers[f"{key}/x"], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "schedule", "grid", "kernel"),
    [
        ("vp_euler", VP(0.1, 20.0), UniformGrid(t_min=1e-3), Euler(to_zero=True)),
        ("vp_heun", VP(0.1, 20.0), UniformGrid(t_min=1e-3), Heun(to_zero=True)),
        ("ve_euler", Brownian(0.02**2, 100.0**2), LogRatio(), Euler(to_zero=True)),
    ],
)
def test_ablation_of_the_schedule(numbers, name, schedule, grid, kernel):
    model = Watched(MixtureModel(schedule, **MIXTURE))
    samples = Sampler(grid, STEPS, kernel, denoise_last=True)(model, start(numbers, schedule, schedule.t_max))
    assert samples.nfe == len(model.levels) == numbers.manifest["nfe"][f"ablation/{name}/nfe"]
    check(samples.x, model, numbers, f"ablation/{name}")


@pytest.mark.parametrize("name", ["edm", "vp", "ve"])
def test_losses(numbers, name):
    """The peer's weighted sums of squared data errors are unit-weight losses in a natural view, times d = 8."""
    images, noise = numbers["loss/images"].double(), numbers["loss/noise"].double()
    normal, uniform = (numbers[f"loss/rnd_{law}"].double().flatten() for law in ("normal", "uniform"))
    schedule, t, view = {
        "edm": (EDM(), torch.exp(1.2 * normal - 1.2), KarrasTarget(0.5)),
        "vp": (VP(0.1, 20.0), 1 + uniform * (1e-5 - 1), Noise()),
        "ve": (VE(0.01, 50.0), uniform, Noise()),
    }[name]
    model = pixels(schedule, Data(), 0.9, 0.05)
    found = 8 * Denoising(view).at(model, images, t, noise).per_sample
    # float32 in the peer: the error D - y has roundings of 6e-8 sigma, relative to a difference of 0.1 sigma or more.
    assert torch.allclose(found, numbers[f"loss/{name}"].double().flatten(1).sum(1), rtol=4e-6)


def test_noise_levels_of_the_vp_preconditioning(numbers):
    vp, t = VP(0.1, 20.0), numbers["vpprecond/t"]
    # exp(y) - 1 at t = 1e-5 cancels 1e-16 against 1e-6 in the peer, which the root halves.
    assert torch.allclose(vp.ratio(t), numbers["vpprecond/sigma"], rtol=1e-9, atol=0)
    assert torch.allclose(vp.time_at(numbers["vpprecond/sigma"]), numbers["vpprecond/sigma_inv"], rtol=1e-9, atol=0)
