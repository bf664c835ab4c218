"""Reverse-time drifts, diffusions and discretisations of the reference implementation, read off our kernels."""

import pytest
import torch

from scorefield.kernels import EulerMaruyama, Kernel, ReverseDiffusion
from scorefield.models import ScoreModel
from scorefield.prediction import Prediction, Score
from scorefield.schedules import Tabulated
from tests.parity.conftest import chain, continuous_sde, ones, zeros

N = 1000
SDES = ["ve", "vp", "subvp"]
# The reference keeps float32 tables and constants inside its float64 run: ten of float32's roundings of 6e-8.
FEW_ROUNDINGS = 6e-7
# VE's G^2 = sigma_i^2 - sigma_(i-1)^2 is a float32 difference, which magnifies them by sigma / (2 delta sigma) = 59.
VE_DIFFERENCE = 59 * 1.2e-7


class LinearScore(ScoreModel):
    """score(x, t) = -0.7 x + 0.3 t, whatever time the kernel counts in."""

    def __init__(self, schedule, t) -> None:
        super().__init__(schedule)
        self.t = t

    def forward(self, x, t, cond=None) -> Prediction:
        return Prediction(self.schedule, x, t, -0.7 * x + 0.3 * self.t.reshape(-1, 1, 1, 1), Score())


def move_and_spread(kernel: Kernel, model: ScoreModel, x, t, s):
    """x - x_s without noise, and the noise's factor."""
    mean = kernel.step(model, x, t, s, {}, zeros(x))[0]
    return x - mean, (kernel.step(model, x, t, s, {}, ones(x))[0] - mean)[:, 0, 0, 0]


def close(found, expected, rounding=FEW_ROUNDINGS):
    """Equal up to a rounding relative to each sample's largest value: terms of either sign cancel in places."""
    scale = expected.double().reshape(len(expected), -1).abs().amax(1).reshape(-1, *[1] * (expected.ndim - 1))
    excess = ((found - expected).abs() / scale.clamp(min=1e-12)).max()
    assert excess < rounding, float(excess)


@pytest.fixture
def setting(recorded):
    numbers = recorded("sde_functions")
    return numbers, numbers["x"].double(), numbers["t"].double()


@pytest.mark.parametrize("sde", SDES)
def test_reverse_sde_and_probability_flow(setting, sde):
    numbers, x, t = setting
    model, h = LinearScore(continuous_sde(sde), t), 1e-3
    move, spread = move_and_spread(EulerMaruyama(), model, x, t, t - h)
    close(move / h, numbers[f"{sde}/f64/reverse_drift"])
    close(spread / h**0.5, numbers[f"{sde}/f64/reverse_diffusion"])
    close(model(x, t).velocity, numbers[f"{sde}/f64/pf_drift"])


@pytest.mark.parametrize("sde", ["ve", "vp"])
def test_discretisation_by_the_chain(setting, sde):
    numbers, x, t = setting
    if sde == "ve":
        table = Tabulated([1.0] * N, numbers["ve/discrete_sigmas"].double().tolist())
    else:
        table = Tabulated.ddpm(numbers["vp/discrete_betas"].double().tolist())
    model, index = LinearScore(table, t), (numbers["t"] * (N - 1)).long()
    at, before = (index + 1.0) / N, index / N
    move, spread = move_and_spread(ReverseDiffusion(), model, x, at, before)
    flow = x - ReverseDiffusion(eta=0.0).step(model, x, at, before, {}, zeros(x))[0]
    if sde == "vp":
        # sqrt(1 - beta) is a float32 near 1 in the reference, whose rounding is left where 1 is subtracted.
        rounding = 6e-8 * float(x.abs().max())
        assert float((move - numbers["vp/f64/reverse_f"]).abs().max()) < rounding
        assert float((flow - numbers["vp/f64/pf_f"]).abs().max()) < rounding
        close(spread, numbers["vp/f64/reverse_G"])
    else:
        close(move, numbers["ve/f64/reverse_f"], VE_DIFFERENCE)
        close(flow, numbers["ve/f64/pf_f"], VE_DIFFERENCE)
        close(spread, numbers["ve/f64/reverse_G"], VE_DIFFERENCE)
    # Twice the flow less the reverse SDE is f, the forward chain's own move, where no score is left: three roundings.
    f = 2 * flow - move
    assert float((f - numbers[f"{sde}/f64/f"]).abs().max()) < 3 * 6e-8 * float(x.abs().max())


def test_discretisation_of_sub_vp_is_euler_maruyama(setting):
    numbers, x, t = setting
    model = LinearScore(continuous_sde("subvp"), t)
    move, spread = move_and_spread(EulerMaruyama(), model, x, t, t - 1 / N)
    close(move, numbers["subvp/f64/reverse_f"])
    close(spread, numbers["subvp/f64/reverse_G"])
    close(model(x, t).velocity / N, numbers["subvp/f64/pf_f"])


def test_tables_of_the_chains(setting):
    numbers, _, _ = setting
    levels = (torch.arange(N) + 1.0) / N
    ve, vp = chain("ve", N), chain("vp", N)
    close(ve.sigma(levels), numbers["ve/discrete_sigmas"])
    gain, variance = vp.transition(levels - 1 / N, levels)
    close(variance, numbers["vp/discrete_betas"])
    close(gain.square(), 1 - numbers["vp/discrete_betas"].double())
    # A float32 product of 1000 factors below 1.
    close(vp.alpha(levels).square(), numbers["vp/alphas_cumprod"], 1e-6)
    close(vp.alpha(levels), numbers["vp/sqrt_alphas_cumprod"], 1e-6)
    # 1 - product has float32's absolute rounding, which the root of 1e-4 at the first level magnifies by 50.
    assert float((vp.sigma(levels) - numbers["vp/sqrt_1m_alphas_cumprod"]).abs().max()) < 50 * 6e-8
