import re

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.records import figures
from scorefield.records.style import PALETTE

rng = np.random.default_rng(0)
POINTS = torch.from_numpy(rng.standard_normal((200, 2)))
STEPS = np.arange(50)
FIELD = np.add.outer(np.arange(20.0), np.arange(20.0))

DRAWINGS = {
    "scatter2d": lambda path: figures.scatter2d(path, {"samples": POINTS, "data": POINTS + 1}),
    "density2d": lambda path: figures.density2d(path, FIELD, (-1, 1, -1, 1), truth=FIELD.T, samples=POINTS),
    "curves": lambda path: figures.curves(path, {"train": (STEPS, np.exp(-STEPS))}, references={"floor": 0.1}),
    "loss_by_noise": lambda path: figures.loss_by_noise(path, STEPS + 1, STEPS, STEPS - 1, STEPS + 1, band="range"),
    "residual_by_noise": lambda path: figures.residual_by_noise(path, STEPS + 1, np.exp(-STEPS)),
    "paths_1d": lambda path: figures.paths(path, POINTS[:, :, None], torch.tensor([1.0, 0.0])),
    "paths_2d": lambda path: figures.paths(path, POINTS.reshape(20, 10, 2)),
    "histogram": lambda path: figures.histogram(path, {"a": POINTS[:, 0], "b": POINTS[:, 1]}, references={"0": 0.0}),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_the_same_drawing_is_the_same_file(tmp_path, name):
    once, again = tmp_path / "once.png", tmp_path / "again.png"
    DRAWINGS[name](once)
    DRAWINGS[name](again)
    assert once.read_bytes() == again.read_bytes()
    with Image.open(once) as picture:
        assert set(picture.info) <= {"dpi"}  # no date, no program, no version
        assert min(picture.size) > 300


def test_nothing_stays_open_and_no_style_leaks(tmp_path):
    import matplotlib

    before = {"axes.edgecolor": "red", "axes.grid": False, "svg.fonttype": "path"}
    with matplotlib.rc_context(before):
        for drawing in DRAWINGS.values():
            drawing(tmp_path / "figure.png")
        figures.curves_svg({"loss": (STEPS, STEPS)})
        assert {name: matplotlib.rcParams[name] for name in before} == before
    from matplotlib import pyplot

    assert pyplot.get_fignums() == []


def colour_near(path, rgb):
    """Row and column, from 0 to 1 and from the top left, of the middle of all pixels near a colour."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    rows, columns = np.nonzero(np.abs(pixels - np.array(rgb)).max(axis=2) < 12)
    return rows.mean() / pixels.shape[0], columns.mean() / pixels.shape[1]


def test_density_rows_go_up_and_columns_go_right(tmp_path):
    """The highest cell, at large x and small y, is drawn at the lower right."""
    field = np.zeros((10, 10))
    field[1, 8] = 1.0
    figures.density2d(tmp_path / "density.png", field, (0, 1, 0, 1))
    with Image.open(tmp_path / "density.png") as picture:
        picture.crop((0, 0, int(0.78 * picture.width), picture.height)).save(tmp_path / "panel.png")  # no colour bar
    row, column = colour_near(tmp_path / "panel.png", (253, 231, 37))  # the top of viridis
    assert row > 0.6
    assert column > 0.6


def ticks(svg):
    return [
        float(text.replace("\N{MINUS SIGN}", "-")) for text in re.findall(r">\s*([\d.\N{MINUS SIGN}]+)</text>", svg)
    ]


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1.0, 10.0, 1000.0], True),
        ([1.0, 2.0, 3.0], False),
        ([-1.0, 10.0, 1000.0], False),
        ([0.0, 10.0, 1000.0], False),
    ],
)
def test_the_axis_is_logarithmic_only_where_that_helps(values, logarithmic):
    svg = figures.curves_svg({"loss": (np.array([0.0, 0.5, 1.0]), np.array(values))})
    levels = np.array([tick for tick in ticks(svg) if tick > 1.0])  # the steps' own ticks are at most 1
    gaps = np.diff(levels)
    assert (gaps.max() > 1.5 * gaps.min()) == logarithmic


def test_svg_takes_the_page_s_colours_and_fetches_nothing():
    lines = {str(i): (STEPS, STEPS + i) for i in range(len(PALETTE))}
    svg = figures.curves_svg(lines)
    assert svg == figures.curves_svg(lines)
    assert svg.startswith("<svg viewBox")
    for i in range(len(PALETTE)):
        assert f"var(--series-{i})" in svg
    assert set(re.findall(r"#[0-9a-f]{6}\b", svg)) == set()
    assert "http" not in svg
    assert "metadata" not in svg


def test_trajectories_of_three_dimensions_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got shape \(2, 3, 3\)"):
        figures.paths(tmp_path / "paths.png", np.zeros((2, 3, 3)))
