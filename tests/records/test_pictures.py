import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from scorefield.records import image_grid, save_gif, save_png


def random_images(count, channels, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("columns", "scale"), [(3, 6), (1, 1), (7, 2), (20, 3)])
def test_every_pixel_of_every_image_is_in_its_place(tmp_path, channels, columns, scale):
    images = random_images(7, channels, 5, 4)
    path = tmp_path / "grid.png"
    save_png(path, image_grid(images, columns, scale))
    with Image.open(path) as picture:
        assert picture.mode == {1: "L", 3: "RGB"}[channels]
        pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)

    top = left = 0
    used = np.zeros(pixels.shape[:2], dtype=bool)
    for i, image in enumerate(images.numpy()):
        if i and i % columns == 0:
            top, left = top + 5 * scale + 4, 0
        block = pixels[top : top + 5 * scale, left : left + 4 * scale]
        # nearest enlargement is undone by any one pixel of each square
        for shift in {0, scale - 1}:
            np.testing.assert_array_equal(block[shift::scale, shift::scale], image.transpose(1, 2, 0))
        used[top : top + 5 * scale, left : left + 4 * scale] = True
        left += 4 * scale + 4
    assert len(np.unique(pixels[~used])) <= 1  # the rest is one grey level
    assert used.any(axis=1)[[0, -1]].all()
    assert used.any(axis=0)[[0, -1]].all()  # no margin


def test_intensities_are_never_stretched():
    faint = torch.full((4, 1, 8, 8), 100, dtype=torch.uint8)
    faint[:, :, 0, 0] = 101
    assert set(np.unique(np.asarray(image_grid(faint, columns=4, scale=1))[:, :8])) == {100, 101}


@pytest.mark.parametrize(("side", "shown"), [(8, 48), (28, 56), (32, 64), (64, 64)])
def test_small_images_are_made_visible(side, shown):
    assert image_grid(random_images(1, 1, side, side)).size == (shown, shown)


def test_refusals():
    with pytest.raises(ValueError, match=r"uint8, got torch\.float"):
        image_grid(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"got shape \(1, 2, 8, 8\)"):
        image_grid(torch.zeros(1, 2, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got shape \(0, 1, 8, 8\)"):
        image_grid(torch.zeros(0, 1, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="columns and scale must be at least 1, got 0 and 6"):
        image_grid(random_images(1, 1, 8, 8), columns=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_has_every_frame_its_time_and_an_end_that_rests(tmp_path, channels):
    frames = [image_grid(random_images(4, channels, 8, 8, seed)) for seed in range(9)]
    path = tmp_path / "trajectory.gif"
    save_gif(path, frames, frame_ms=70, hold_ms=1500)
    with Image.open(path) as animation:
        assert animation.n_frames == 9
        assert animation.info["loop"] == 0
        durations, shown = [], []
        for frame in ImageSequence.Iterator(animation):
            durations.append(frame.info["duration"])
            shown.append(np.asarray(frame.convert(frames[0].mode)))
    assert durations == [70] * 8 + [1500]
    if channels == 1:  # colour loses what a 256-colour palette cannot hold
        for frame, original in zip(shown, frames, strict=True):
            np.testing.assert_array_equal(frame, np.asarray(original))


def test_gif_refuses_nothing_and_mixed_sizes(tmp_path):
    small, large = (image_grid(random_images(1, 1, side, side), scale=1) for side in (8, 9))
    for frames in ([], [small, large]):
        with pytest.raises(ValueError, match="frames must be one or more of one size"):
            save_gif(tmp_path / "no.gif", frames)
    assert list(tmp_path.iterdir()) == []
