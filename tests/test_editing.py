"""Edits through a model: what the flow gives back, what noise up to a level keeps, and where the ways end."""

import pytest
import torch

from scorefield.editing import Edit, From, Interpolation, Relabelling, SDEdit
from scorefield.grids import Given, Karras, LogRatio, Resampled, Uniform
from scorefield.kernels import Ancestral, EulerMaruyama, Heun
from scorefield.models import MixtureModel
from scorefield.noise import IndexedNoise, StreamNoise
from scorefield.ode import DormandPrince
from scorefield.probability_flow import ProbabilityFlow
from scorefield.samplers import Sampler
from scorefield.schedules import EDM, VP
from tests.conftest import MIXTURE

FLOW = ProbabilityFlow(DormandPrince(1e-9, 1e-9))
HEUN = Sampler(Karras(), 20, Heun())
EDITS = {
    "sdedit": SDEdit(Sampler(LogRatio(), 12, Ancestral(), denoise_last=True), 0.5, 2),
    "interpolation": Interpolation(3, ProbabilityFlow(DormandPrince(1e-3, 1e-3))),
    "relabelling": Relabelling([1, 0], ProbabilityFlow(DormandPrince(1e-3, 1e-3))),
}


@pytest.fixture
def mixture():
    return MixtureModel(VP(t_min=1e-3), **MIXTURE)


def data(model, n, key=0):
    t = torch.full((n,), model.schedule.t_min)
    return model.sample_like(torch.empty(n, 2), t, StreamNoise(key))


def test_every_edit_is_covered():
    assert {type(edit) for edit in EDITS.values()} == set(Edit.__subclasses__())


@pytest.mark.parametrize("grid", [Uniform(), LogRatio(), Karras(), Resampled(LogRatio(), 2, 3)], ids=repr)
@pytest.mark.parametrize("schedule", [VP(t_min=1e-3), EDM()], ids=repr)
def test_a_grid_begins_at_the_level(grid, schedule):
    begun = From(grid, 0.7)
    times = begun(schedule, 6)
    assert float(schedule.ratio(times[:1])) == pytest.approx(0.7, rel=1e-9)
    assert float(times[-1]) == schedule.t_min
    assert len(times) == len(grid(schedule, 6))
    assert begun.descents(6) == grid.descents(6)
    # The same rule, told the same end.
    if not isinstance(grid, Resampled):
        assert torch.allclose(times, type(grid)(t_max=float(times[0]))(schedule, 6), rtol=1e-9)
    assert schedule.t_max != times[0]  # and the schedule has not been touched


def test_levels_that_a_schedule_has_not_are_refused(mixture):
    for level in (1e-9, 1e9):
        with pytest.raises(ValueError, match=r"level=.* must be a noise level"):
            SDEdit(HEUN, level)(mixture, data(mixture, 2), None, StreamNoise(0))
    with pytest.raises(ValueError, match=r"leave its t_max away"):
        From(Uniform(t_max=0.9), 0.5)(mixture.schedule, 4)
    with pytest.raises(ValueError, match=r"leave its t_max away"):
        From(Given((0.9, 0.1)), 0.5)(mixture.schedule, 1)
    with pytest.raises(ValueError, match=r"copies=0"):
        SDEdit(HEUN, 1.0, 0)
    with pytest.raises(ValueError, match=r"points=1"):
        Interpolation(1)
    with pytest.raises(ValueError, match=r"labels"):
        Relabelling([])


def test_sdedit_of_data_are_data(mixture):
    """Noise up to a level and back leaves the law of the data, whatever the level: moments within the CLT."""
    n = 4000
    x = data(mixture, n)
    for level in (0.3, 3.0):
        edit = SDEdit(Sampler(LogRatio(), 60, EulerMaruyama()), level)
        edited = edit(mixture, x, None, StreamNoise(1))[0]
        mean, covariance = mixture.moments(mixture.schedule.t_min)
        # Four standard errors and the bias of first-order steps of a tenth in the log ratio.
        assert ((edited.mean(0) - mean).abs() < 4 * (covariance.diagonal() / n).sqrt() + 0.01).all()
        assert float((edited.T.cov() - covariance).abs().max()) < 4 * float(covariance.max()) * (2 / n) ** 0.5 + 0.03


def test_sdedit_keeps_what_is_coarser_than_the_noise(mixture):
    """At a small level a sample stays in its mode; at a large one it forgets where it was."""
    x = torch.tensor([[-0.6, 0.4]]).expand(500, -1)
    kept = {}
    for level in (0.1, 20.0):
        edited = SDEdit(HEUN, level)(mixture, x, None, StreamNoise(2))[0]
        times = torch.full((500,), mixture.schedule.t_min)
        kept[level] = float((mixture.responsibilities(edited, times)[:, 0] > 0.5).double().mean())
    assert kept[0.1] > 0.99
    assert abs(kept[20.0] - 0.3) < 4 * (0.3 * 0.7 / 500) ** 0.5  # the mode's weight


def test_interpolation_begins_and_ends_at_the_pictures(mixture):
    x = data(mixture, 5)
    between = Interpolation(5, FLOW)(mixture, x, None, StreamNoise(0))
    # The solver's tolerance, carried there and back.
    assert torch.allclose(between[0], x, atol=1e-5)
    assert torch.allclose(between[-1], x.roll(-1, 0), atol=1e-5)
    # The middle of a great circle has the length of its ends where these are equal.
    codes = FLOW.transport(mixture, between[2], mixture.schedule.t_min, 1.0)[0]
    ends = FLOW.transport(mixture, x, mixture.schedule.t_min, 1.0)[0]
    a, b = ends, ends.roll(-1, 0)
    angle = torch.acos((a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
    middle = (a + b) / (2 * torch.cos(angle / 2))[:, None]
    assert torch.allclose(codes, middle, atol=1e-4)


def test_relabelling_moves_a_sample_into_the_other_class(mixture):
    """Each class is one Gaussian, so a code is its standard score, which the move keeps."""
    mu, v = mixture.means, mixture.variances
    labels = torch.tensor([0, 0, 1, 1])
    z = torch.randn(4, 2)
    x = mu[labels] + v[labels].sqrt() * z
    same, other = Relabelling([0, 1], FLOW)(mixture, x, {"label": labels}, StreamNoise(0))
    # sigma at t_min is 0.03, beside deviations of 0.14 and more: 3% of a standard score of up to 3.
    assert torch.allclose(same[:2], x[:2], atol=1e-5)
    assert torch.allclose(other[2:], x[2:], atol=1e-5)
    assert torch.allclose(other[:2], mu[1] + v[1].sqrt() * z[:2], atol=0.05)
    assert torch.allclose(same[2:], mu[0] + v[0].sqrt() * z[2:], atol=0.05)
    with pytest.raises(ValueError, match=r"pictures of known classes"):
        Relabelling([0], FLOW)(mixture, x, None, StreamNoise(0))


@pytest.mark.parametrize("edit", [EDITS["sdedit"], EDITS["relabelling"]], ids=["sdedit", "relabelling"])
def test_an_edited_picture_depends_on_its_index_alone(edit, mixture):
    x, labels = data(mixture, 5), torch.tensor([0, 1, 1, 0, 1])

    def run(rows):
        return edit(mixture, x[rows], {"label": labels[rows]}, IndexedNoise(0, "edit", rows))

    together = run([0, 1, 2, 3, 4])
    for rows in ([2], [4, 1]):
        assert torch.allclose(run(rows), together[:, rows], rtol=1e-9, atol=1e-10)


def test_interpolation_depends_on_the_two_ends_alone(mixture):
    x = data(mixture, 4)
    flow = EDITS["interpolation"]
    together = flow(mixture, x, None, StreamNoise(0))
    pair = flow(mixture, x[1:3], None, StreamNoise(0))
    assert torch.allclose(pair[:, 0], together[:, 1], rtol=1e-9, atol=1e-10)
