"""NCSNv2's losses and its annealed Langevin dynamics, through the public objective and sampler."""

import numpy as np
import pytest
import torch

from scorefield.grids import Ladder as LadderGrid
from scorefield.kernels import Langevin, SigmaStep
from scorefield.objectives import Denoising, SigmaPower
from scorefield.prediction import Score
from scorefield.samplers import Sampler
from scorefield.schedules import VE
from tests.parity.conftest import Replay, pixels

LEVELS = 232


@pytest.fixture
def numbers(recorded):
    return recorded("losses_ncsnv2")


def test_the_ladder(numbers):
    schedule = VE(0.01, 50.0, t_min=0.0)
    found = schedule.sigma(schedule.ladder(LEVELS))
    # The reference makes its levels in float32 by exp(linspace(log ...)).
    assert torch.allclose(found, numbers["sigmas"].double(), rtol=2e-6)


@pytest.mark.parametrize("power", ["2.0", "2.5", "0.0"])
def test_annealed_denoising(numbers, power):
    """Half the sum over 8 dimensions is 4 times the mean over them."""
    schedule = VE(0.01, 50.0, t_min=0.0)
    x, eps, t = (
        numbers["samples"].double(),
        numbers["noise"].double(),
        schedule.ladder(LEVELS)[numbers["labels"]],
    )
    objective = Denoising(Score(), SigmaPower(float(power)))
    found = 4 * objective.at(pixels(schedule, Score(), 0.9, 0.05), x, t, eps).per_sample
    # float32 in the reference: the square of a difference of terms of up to 1 / sigma.
    assert torch.allclose(found, numbers[f"anneal_dsm/power_{power}/per_sample"].double(), rtol=1e-4, atol=1e-6)
    assert float(found.mean()) == pytest.approx(float(numbers[f"anneal_dsm/power_{power}"]), rel=2e-5)


def test_annealed_langevin_dynamics(numbers):
    facts, sigmas = numbers.manifest["values"]["ald"], numbers["ald/sigmas"].double()
    schedule = VE(float(sigmas[-1]), float(sigmas[0]), t_min=0.0)
    assert np.allclose(schedule.sigma(schedule.ladder(len(sigmas))), sigmas, rtol=2e-6)
    corrector = Langevin(SigmaStep.ncsn(facts["step_lr"], float(sigmas[-1])))
    model = pixels(schedule, Score())
    for last, name in ((False, "ald/x"), (True, "ald/x_denoised")):
        sampler = Sampler(
            LadderGrid(), len(sigmas), corrector=corrector, corrections=facts["n_steps_each"], denoise_last=last
        )
        found = sampler(model, numbers["ald/x_init"].double(), noise=Replay(numbers["ald/noise"])).x
        # 36 steps in float32, whose roundings the steps do not amplify.
        assert float((found - numbers[name].double()).abs().max()) < 1e-5, name
