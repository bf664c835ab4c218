"""Laws of sampling grids: end points, monotonicity, equal spacing in the coordinate that each names."""

import pytest
import torch

from scorefield.grids import Given, Grid, Karras, Ladder, LogRatio, Resampled, Uniform
from scorefield.schedules import EDM, VP

GRIDS = [Uniform(), LogRatio(), Karras(7.0), Karras(3.0)]


def test_every_grid_is_covered():
    there_are = {g for g in Grid.__subclasses__() if g.__module__ == Grid.__module__}  # an edit has one of its own
    # Resampled goes back up: its laws are those of tests/test_constraints.py
    assert {type(g) for g in GRIDS} | {Given, Ladder, Resampled} == there_are


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_runs_from_noise_to_data_exactly(schedule, grid):
    times = grid(schedule, 20)
    assert times.shape == (21,)
    assert times.dtype == torch.float64
    assert (times.diff() < 0).all()
    assert float(times[0]) == schedule.t_max
    assert float(times[-1]) == schedule.t_min


@pytest.mark.parametrize(
    ("grid", "coordinate"),
    [
        (Uniform(), lambda s, t: t),
        (LogRatio(), lambda s, t: s.ratio(t).log()),
        (Karras(7.0), lambda s, t: s.ratio(t) ** (1 / 7)),
    ],
    ids=["time", "log ratio", "root of the ratio"],
)
def test_steps_are_equal_in_the_named_coordinate(schedule, grid, coordinate):
    steps = coordinate(schedule, grid(schedule, 20)).diff()
    assert torch.allclose(steps, steps.mean().expand_as(steps), rtol=1e-7, atol=0)


def test_own_end_points_replace_the_schedules():
    times = Uniform(t_min=1e-3, t_max=0.7)(VP(), 5)
    assert times[[0, -1]].tolist() == [0.7, 1e-3]
    with pytest.raises(ValueError, match=r"t_min=0\.8"):
        Uniform(t_min=0.8, t_max=0.7)(VP(), 5)


def test_recorded_edm_levels(recorded):
    numbers = recorded("edm_sampler_and_loss")
    levels = numbers["heun/sigma_schedule"]  # ends with the final zero, which is denoise_last here
    times = Karras(7.0)(EDM(0.002, 80.0), len(levels) - 2)
    assert torch.allclose(times, levels[:-1], rtol=1e-12)


def test_wrong_numbers_of_steps_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        Uniform()(VP(), 0)
    with pytest.raises(ValueError, match="3 entries"):
        Given((1.0, 0.5, 0.1))(VP(), 3)
