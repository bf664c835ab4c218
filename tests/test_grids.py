"""Laws of sampling grids: end points, monotonicity, equal spacing in the coordinate that each names."""

import pytest
import torch

from scorefield.grids import Given, Grid, Karras, Ladder, LogRatio, Resampled, Transferred, Uniform
from scorefield.schedules import EDM, VP, Brownian, Tabulated

GRIDS = [Uniform(), LogRatio(), Karras(7.0), Karras(3.0)]


def test_every_grid_is_covered():
    there_are = {g for g in Grid.__subclasses__() if g.__module__ == Grid.__module__}  # an edit has one of its own
    # Resampled goes back up: its laws are those of tests/test_constraints.py
    assert {type(g) for g in GRIDS} | {Given, Ladder, Resampled, Transferred} == there_are


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


def test_transferred_levels_are_those_of_the_other_schedule():
    """EDM's levels as variances, and the other way round; ends that agree stay exact."""
    edm, brownian = EDM(0.02, 100.0), Brownian(0.02**2, 100.0**2)
    levels = Karras(7.0)(edm, 20)
    variances = Transferred(Karras(7.0), edm)(brownian, 20)
    assert torch.allclose(variances, levels**2, rtol=1e-12)
    for vp in (VP(), VP(0.0, 20.0)):
        assert Transferred(Karras(7.0), vp)(vp, 20)[[0, -1]].tolist() == [vp.t_max, vp.t_min]
    other = Transferred(Resampled(LogRatio(), jump=2, repeats=3), edm)
    assert (other.moves(6), other.descents(6)) == (24, 18)


def test_times_rounded_to_a_chain_are_its_levels():
    chain = Tabulated.cosine(1000)
    times = Uniform(t_max=0.992, levels=1000)(chain, 17)
    # Karras et al. 2022, table 1: floor(j_0 + (M - 1 - j_0) / (N - 1) i + 1/2) from the noisiest, j_0 = 8.
    expected = [1000 - int(8 + 991 / 17 * i + 0.5) for i in range(18)]
    assert (1000 * times).tolist() == expected
    with pytest.raises(ValueError, match=r"levels=1000 .* 1200 steps"):
        Uniform(levels=1000)(chain, 1200)


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
