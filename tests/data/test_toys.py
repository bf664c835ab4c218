import math

import pytest
import torch

from scorefield.data.toys import Checkerboard, Mixture, Rings, SwissRoll, TwoMoons
from scorefield.models import MixtureModel
from scorefield.noise import StreamNoise
from scorefield.schedules import Constant

WITH_DENSITY = [
    Mixture.ring(),
    Mixture.grid(),
    Mixture.unequal_pair(),
    Checkerboard(),
    Checkerboard(squares=6, width=3.0),
    Rings(),
    Rings(radii=(0.0, 0.5), std=0.5),
]
ALL = [*WITH_DENSITY, SwissRoll(), TwoMoons()]
N = 40000


def lattice(toy):
    """Points and cell area of a fine lattice that holds all of the toy's mass, with the boards' edges on its lines."""
    half, n = (12.0, 1200) if 5.0 in toy.__dict__.get("means", torch.zeros(1)) else (6.0, 600)
    line = (torch.arange(n, dtype=torch.float64) + 0.5) / n * 2 * half - half
    return torch.cartesian_prod(line, line), (2 * half / n) ** 2


@pytest.mark.parametrize("toy", WITH_DENSITY, ids=lambda toy: toy.name)
def test_density_integrates_to_one_and_has_the_samples_moments(toy):
    points, area = lattice(toy)
    mass = toy.log_prob(points).exp() * area
    # the midpoint rule is exact on the checkerboards' squares and spectrally accurate on Gaussians wider than its cells
    assert float(mass.sum()) == pytest.approx(1, abs=1e-6)
    x = toy.sample(N, StreamNoise(3)).x.double()
    for power in (1, 2, 3):
        moment = (mass[:, None] * points**power).sum(0)
        spread = ((mass[:, None] * points ** (2 * power)).sum(0) - moment.square()).sqrt()
        # five standard errors, for 42 comparisons; the lattice adds the variance of a cell
        assert ((x**power).mean(0) - moment).abs().max() < (5 * spread / math.sqrt(N) + 1e-3).max()
    cross = (mass * points.prod(1)).sum()
    spread = ((mass * points.prod(1).square()).sum() - cross.square()).sqrt()
    assert abs(float(x.prod(1).mean() - cross)) < 5 * float(spread) / math.sqrt(N)


@pytest.mark.parametrize("toy", WITH_DENSITY, ids=lambda toy: toy.name)
def test_samples_have_the_densitys_entropy(toy):
    """The mean of log p over samples is minus the entropy, found here by quadrature."""
    points, area = lattice(toy)
    log_p = toy.log_prob(points)
    weight = log_p.exp() * area
    log_p = log_p.nan_to_num(neginf=0.0)
    entropy = -(weight * log_p).sum()
    spread = ((weight * log_p.square()).sum() - entropy.square()).clamp(min=0).sqrt()
    sampled = -toy.log_prob(toy.sample(N, StreamNoise(4)).x.double()).mean()
    # five standard errors; float32 samples may sit on a square's edge only with density inside
    assert abs(float(sampled - entropy)) < 5 * float(spread) / math.sqrt(N) + 1e-6


@pytest.mark.parametrize("toy", [Mixture.ring(), Mixture.unequal_pair()], ids=["ring", "pair"])
def test_mixture_and_the_exact_model_are_one_distribution(toy):
    model = MixtureModel(Constant(0.0), toy.weights, toy.means, toy.variances)
    x = toy.test().x.double()[:200]
    exact = model.log_prob(x, torch.zeros(200, dtype=torch.float64))
    assert torch.allclose(toy.log_prob(x), exact, rtol=0, atol=1e-10)  # two float64 routes to sums of order 100


def test_swiss_roll_without_noise_lies_on_its_spiral():
    x = SwissRoll(radius=4.0, std=0.0).sample(2000, StreamNoise(0)).x.double()
    turn = torch.linalg.vector_norm(x, dim=1) * 4.5 * math.pi / 4.0  # the angle that belongs to a distance
    assert (1.5 * math.pi - 1e-4 < turn).all()
    assert (turn < 4.5 * math.pi + 1e-4).all()
    # uniform on an interval of length 3 pi around 3 pi: mean within five standard errors, deviation 3 pi / sqrt 12
    spread = 3 * math.pi / math.sqrt(12)
    assert float(turn.mean()) == pytest.approx(3 * math.pi, abs=5 * spread / math.sqrt(2000))
    assert float(turn.std()) == pytest.approx(spread, rel=5 * 0.45 / math.sqrt(2000))
    error = torch.stack([turn.cos(), turn.sin()], 1) - x / torch.linalg.vector_norm(x, dim=1, keepdim=True)
    assert error.abs().max() < 1e-5  # float32 coordinates times an angle of up to 14


def test_two_moons_without_noise_are_half_circles_and_reflections():
    moons = TwoMoons(radius=2.0, std=0.0).sample(4000, StreamNoise(0))
    for label, sign in ((0, 1.0), (1, -1.0)):
        arc = moons.x[moons.labels == label] * sign - torch.tensor([-1.0, -0.5])
        assert torch.allclose(torch.linalg.vector_norm(arc, dim=1), torch.tensor(2.0), atol=1e-5)  # float32
        assert (arc[:, 1] > -1e-6).all()
        # the mean height of a half circle is 2 r / pi; deviation 0.62, about 2000 points, five standard errors
        assert float(arc[:, 1].mean()) == pytest.approx(4 / math.pi, abs=5 * 0.62 / math.sqrt(1900))


@pytest.mark.parametrize("toy", [Mixture.unequal_pair(), Rings(), TwoMoons()], ids=lambda toy: toy.name)
def test_labels_name_the_part_a_point_was_drawn_from(toy):
    split = toy.sample(N, StreamNoise(5))
    weights = getattr(toy, "weights", torch.full((toy.classes,), 1 / toy.classes, dtype=torch.float64))
    share = split.labels.bincount(minlength=toy.classes) / N
    assert ((share - weights).abs() < 5 * (weights * (1 - weights) / N).sqrt()).all()  # five standard errors
    if isinstance(toy, Mixture):
        nearest = torch.cdist(split.x.double(), toy.means).argmin(1)
        assert torch.equal(nearest, split.labels)  # the pair is ten standard deviations apart
    if isinstance(toy, Rings):
        radius = torch.linalg.vector_norm(split.x, dim=1).double()
        nearest = (radius[:, None] - toy.radii).abs().argmin(1)
        assert torch.equal(nearest, split.labels)  # rings are twelve standard deviations apart


@pytest.mark.parametrize("toy", ALL, ids=lambda toy: toy.name)
def test_splits_are_fixed_and_different(toy):
    again = type(toy).__new__(type(toy))
    again.__dict__.update({k: v for k, v in toy.__dict__.items() if k not in ("_train", "_validation", "_test")})
    assert again.train().checksum() == toy.train().checksum()
    assert (len(toy.train()), len(toy.validation()), len(toy.test())) == (20000, 2000, 2000)
    assert not torch.equal(toy.validation().x, toy.test().x)
    assert not torch.equal(toy.train().x[:2000], toy.test().x)


def test_continuous_data_have_nothing_to_quantise():
    toy = TwoMoons()
    assert torch.equal(toy.to_model(toy.test().x, StreamNoise(0)), toy.test().x)
    with pytest.raises(TypeError, match="two_moons holds continuous data"):
        toy.quantise(toy.test().x)
