"""Augmented images are those of the stated map, and their labels tell it."""

import math

import pytest
import torch
from torch.nn import functional as F

from scorefield.augmentation import SYM6, Augmentation, Geometry
from scorefield.data import Digits
from scorefield.noise import IndexedNoise, StreamNoise

PIPE = Augmentation()
SIDE = 32
# The filter's centre of gravity lies 0.098 places of the doubled image beyond its largest tap, which is taken for it:
# what is smooth stands half as many pixels further right and down than it is counted, before the map and after it.
OFF = 0.098 / 2


def geometry(n: int = 1, **parts: float | tuple[float, float]) -> Geometry:
    """The same for each of n images: nothing but the given parts."""
    made = {name: torch.zeros(n) for name in ("mirrored", "upended", "scale", "angle", "stretch", "axis")}
    made["shift"] = torch.zeros(n, 2)
    return Geometry(**{**made, **{name: torch.tensor(value).expand(made[name].shape) for name, value in parts.items()}})


def places(height: int = SIDE, width: int = SIDE) -> torch.Tensor:
    """The places (x, y) of the pixels, in pixels from the centre, y down, (H, W, 2)."""
    x, y = torch.arange(width) - (width - 1) / 2, torch.arange(height) - (height - 1) / 2
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1)


NUMBER = 2 * math.pi / 16  # of a wave of 16 pixels a period; also its steepest slope
# What two filters do to it beside moving it: at most 1.3e-3 where nothing is interpolated (measured).
FILTERED = 1.4e-3
# What linear interpolation between places half a pixel apart leaves of it, h^2 / 8 times the second derivative.
INTERPOLATED = NUMBER**2 / 32


def wave(at: torch.Tensor) -> torch.Tensor:
    """A low-frequency cosine that is no two pixels' mirror image, at places (..., 2)."""
    return torch.cos(NUMBER * (0.8 * at[..., 0] - 0.6 * at[..., 1]) + 0.7)


def test_flips_are_exact_and_told():
    x = torch.randn(4, 3, 6, 5)
    both = [torch.tensor([0.0, 1, 0, 1]), torch.tensor([0.0, 0, 1, 1])]
    made = Geometry(both[0], both[1], *torch.zeros(4, 4), torch.zeros(4, 2))
    out = PIPE.apply(x, made)
    expected = torch.stack([x[0], x[1].flip(2), x[2].flip(1), x[3].flip(1, 2)])
    assert torch.equal(out, expected)
    assert torch.equal(made.labels, torch.cat([torch.stack(both, 1), torch.zeros(4, 7)], dim=1))


def test_the_filter_is_orthonormal_to_its_even_shifts_and_smooth():
    """What a symlet of six vanishing moments is defined by; with it doubling and halving undo each other."""
    h, n = torch.tensor(SYM6), len(SYM6)
    k = torch.arange(n)
    for shift in range(0, n, 2):
        # The numbers are published to 17 digits, and computed to eleven.
        assert float(h[shift:] @ h[: n - shift]) == pytest.approx(float(shift == 0), abs=1e-11)
    assert float(h.sum()) == pytest.approx(2**0.5, abs=1e-11)
    for power in range(6):
        # The high-pass filter sees no polynomial of degree 5; a sixth moment there is.
        assert float((h * (-1.0) ** k) @ (k - 5.0) ** power) == pytest.approx(0, abs=1e-7)
    assert abs(float((h * (-1.0) ** k) @ (k - 5.0) ** 6)) > 1
    assert float(h @ k.to(h) / h.sum()) - 5 == pytest.approx(2 * OFF, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_map_that_moves_nothing_changes_nothing(dtype):
    """To rounding: resampled all the same, since a full turn is told by a sine of rounding size."""
    x = torch.rand(2, 3, 16, 12, dtype=dtype) * 2 - 1
    full = geometry(2, angle=2 * math.pi)
    full = Geometry(*(value.to(dtype) for value in vars(full).values()))
    out = PIPE.apply(x, full)
    assert not torch.equal(out, x)
    # The published numbers of the filter are orthonormal to 1e-11. Places lie within 100 of the doubled image and are
    # known to the precision of such numbers; images of noise slope by 2.
    assert torch.allclose(out, x, rtol=0, atol=1e-11 + 100 * 2 * torch.finfo(dtype).eps)
    assert torch.equal(PIPE.apply(x, Geometry(*(torch.zeros_like(value) for value in vars(full).values()))), x)


def test_a_shift_by_whole_pixels_moves_pixels():
    """With the mirror image beyond the edge, outside of which nothing is looked at; right and down are positive."""
    x = torch.randn(1, 2, 12, 16)
    right, down = 3, -2
    out = PIPE.apply(x, geometry(shift=(right / (0.125 * 16), down / (0.125 * 12))))
    mirrored = F.pad(x, (right, right, 2, 2), mode="reflect")
    # Whole pixels are even places of the doubled image, where nothing is interpolated.
    assert torch.allclose(out, mirrored[:, :, 4:16, :16], rtol=0, atol=1e-10)
    assert torch.allclose(out[:, :, :-2, right:], x[:, :, 2:, :-right], rtol=0, atol=1e-10)


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_a_quarter_turn_is_that_of_pixels(quarters):
    """Against the clock, as `torch.rot90` turns; but for where the filter takes a pixel to be."""
    x = wave(places())[None, None]
    out = PIPE.apply(x, geometry(angle=quarters * math.pi / 2))
    inside = slice(6, -6)  # further from the edge than the filters reach, where the mirror image shows
    error = (out - torch.rot90(x, quarters, (2, 3)))[..., inside, inside].abs().max()
    turned_off = 2 * math.sin(quarters * math.pi / 4) * 2**0.5 * OFF  # how far the turn takes (OFF, OFF)
    assert float(error) < NUMBER * turned_off + FILTERED


COSH, SINH = math.cosh(0.2 * math.log(2)), math.sinh(0.2 * math.log(2))
MAPS = {
    "magnified": ({"scale": 1.5}, [[2**0.3, 0], [0, 2**0.3]], (0, 0)),
    "made smaller": ({"scale": -0.5}, [[2**-0.1, 0], [0, 2**-0.1]], (0, 0)),
    "turned": ({"angle": 0.5}, [[math.cos(0.5), math.sin(0.5)], [-math.sin(0.5), math.cos(0.5)]], (0, 0)),
    "stretched across": ({"stretch": 1.0}, [[2**0.2, 0], [0, 2**-0.2]], (0, 0)),
    "stretched up": ({"stretch": 1.0, "axis": math.pi / 2}, [[2**-0.2, 0], [0, 2**0.2]], (0, 0)),
    # Along the diagonal that rises to the right: (1, -1) grows, (1, 1) shrinks.
    "stretched obliquely": (
        {"stretch": 1.0, "axis": math.pi / 4},
        [[COSH, -SINH], [-SINH, COSH]],
        (0, 0),
    ),
    "shifted": ({"shift": (0.3, -0.7)}, [[1, 0], [0, 1]], (0.3 * 4, -0.7 * 4)),
    # First larger, then turned by 90 degrees: right becomes up; then twice the stretch across; then the shift.
    "everything in turn": (
        {"scale": 1.0, "angle": math.pi / 2, "stretch": 0.5, "shift": (0.25, 0.5)},
        [[0, 2**0.2 * 2**0.1], [-(2**0.2) * 2**-0.1, 0]],
        (1, 2),
    ),
}


@pytest.mark.parametrize(("parts", "forward", "shift"), MAPS.values(), ids=MAPS.keys())
def test_a_wave_comes_out_at_the_places_it_is_taken_to(parts, forward, shift):
    """The closed form: what stands at place u afterwards is the wave where u came from."""
    x = wave(places())[None, None]
    out = PIPE.apply(x, geometry(**parts))
    back = torch.linalg.inv(torch.tensor(forward, dtype=torch.float64))
    exact = wave((places() + OFF - torch.tensor(shift)) @ back.T - OFF)
    inside = slice(10, -10)  # mirror images come in from the edges, by up to 4 pixels of shift and the filters' 6
    assert float((out[0, 0] - exact)[inside, inside].abs().max()) < INTERPOLATED + FILTERED  # 0.006
    assert float((x[0, 0] - exact)[inside, inside].abs().max()) > 0.15  # something has been done


def test_each_part_has_its_probability_and_law():
    """Four standard errors of 20,000 draws; every part by itself, the mirroring in half of the cases."""
    n, p = 20_000, 0.12
    made = Augmentation(p=p).draw(torch.zeros(n, 1, 2, 2), StreamNoise(0, "law"))
    labels = made.labels
    assert labels.shape == (n, 9)
    told = {0: 1 / 2, 1: p / 2, 2: p, 4: p, 5: p, 7: p, 8: p}  # columns, and how often each is not zero
    shares = {column: float((labels[:, column] != 0).double().mean()) for column in told}
    for column, share in told.items():
        assert shares[column] == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5), column
    pairs = [(a, b) for a in told for b in told if a < b and (a, b) != (7, 8)]
    for a, b in pairs:
        share = told[a] * told[b]
        both = float(((labels[:, a] != 0) & (labels[:, b] != 0)).double().mean())
        assert both == pytest.approx(share, abs=4 * (share * (1 - share) / n) ** 0.5), (a, b)
    assert torch.equal(labels[:, 7] != 0, labels[:, 8] != 0)  # a shift is one part
    few = p * n
    for column in (2, 7, 8):  # standard normal where they are not zero
        value = labels[:, column][labels[:, column] != 0]
        assert float(value.mean()) == pytest.approx(0, abs=4 * few**-0.5)
        assert float(value.square().mean()) == pytest.approx(1, abs=4 * (2 / few) ** 0.5)
    cos, sin = labels[:, 3][labels[:, 4] != 0] + 1, labels[:, 4][labels[:, 4] != 0]
    assert torch.allclose(cos.square() + sin.square(), torch.ones(()))
    for value in (cos, sin, cos * sin):  # of all directions equally: no first and no mixed second moment
        assert float(value.mean()) == pytest.approx(0, abs=4 * (few * 2) ** -0.5)
    stretched = labels[:, 5:7][labels[:, 5] != 0]
    oblique = float((stretched[:, 1] != 0).double().mean())
    assert oblique == pytest.approx(0.5, abs=4 * (0.25 / few) ** 0.5)
    # E cos^2 is 1 for the horizontal half and 1/2 for the other; b^2 cos^2 has a second moment below 3.
    assert float(stretched[:, 0].square().mean()) == pytest.approx(0.75, abs=4 * (3 / few) ** 0.5)
    assert float(stretched[:, 1].square().mean()) == pytest.approx(0.25, abs=4 * (3 / few) ** 0.5)


def test_without_probability_images_come_back_to_the_bit_and_nothing_is_told():
    x = torch.randn(50, 1, 8, 8)
    out, labels = Augmentation(p=0.0, p_mirror=0.0)(x, StreamNoise(0))
    assert torch.equal(out, x)
    assert torch.equal(labels, torch.zeros(50, 9))
    out, labels = Augmentation(p=0.0)(x, StreamNoise(0))  # flips alone
    assert torch.equal(out, torch.where(labels[:, :1, None, None] == 1, x.flip(3), x))
    assert torch.equal(labels[:, 1:], torch.zeros(50, 8))


def test_an_image_depends_on_its_own_stream_alone():
    """Whatever else is in the batch; and images that are not told of anything are as they were."""
    x, indices = torch.randn(24, 2, 8, 8), list(range(24))
    out, labels = PIPE(x, IndexedNoise(0, "augment", indices))
    for i in (0, 7, 23):
        alone, told = PIPE(x[i : i + 1], IndexedNoise(0, "augment", [i]))
        assert torch.equal(told[0], labels[i])
        assert torch.allclose(alone[0], out[i], rtol=0, atol=1e-12)  # sums in another order
    untold = (labels == 0).all(1)
    assert 0 < int(untold.sum()) < 24
    assert torch.equal(out[untold], x[untold])
    assert not (out[~untold] == x[~untold]).flatten(1).all(1).any()


def test_one_stream_is_one_augmentation():
    x = Digits().train()[:32].x.double()
    first, again, other = (PIPE(x, StreamNoise(0, "augment", 0, number)) for number in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[1], other[1])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"p": 1.2}, r"p=1.2 is a probability"),
        ({"p_mirror": -0.1}, r"p_mirror=-0.1 is a probability"),
        ({"p_oblique": math.nan}, r"p_oblique=nan is a probability"),
        ({"scale": -1.0}, r"scale=-1.0 is a deviation"),
        ({"stretch": math.inf}, r"stretch=inf is a deviation"),
        ({"shift": math.nan}, r"shift=nan is a deviation"),
    ],
)
def test_wrong_numbers_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**wrong)


@pytest.mark.parametrize("shape", [(3, 2), (3, 8, 8), (3, 1, 1, 8)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"but images are \(B, C, H, W\) with two or more pixels"):
        PIPE(torch.zeros(shape), StreamNoise(0))
