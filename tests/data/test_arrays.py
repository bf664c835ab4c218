"""Images from one file of NumPy."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from scorefield.data import Affine, ArrayImages
from scorefield.data.files import stored_arrays
from scorefield.errors import BadFileError

IMAGES = np.random.default_rng(0).integers(0, 256, (30, 4, 6, 3), dtype=np.uint8)


def test_every_image_is_in_one_split_and_channels_may_come_first_or_last(tmp_path):
    np.save(tmp_path / "last.npy", IMAGES)
    np.savez(tmp_path / "first.npz", images=IMAGES.transpose(0, 3, 1, 2), labels=np.arange(30) % 5)
    last = ArrayImages(tmp_path / "last.npy", (3, 4, 6), held_out=5, tested=7)
    first = ArrayImages(tmp_path / "first.npz", (3, 4, 6), held_out=5, tested=7, classes=5)
    parts = [last.train(), last.validation(), last.test()]
    assert [len(p) for p in parts] == [18, 5, 7]
    together = torch.cat([p.x for p in parts]).permute(0, 2, 3, 1).numpy()
    assert sorted(image.tobytes() for image in together) == sorted(image.tobytes() for image in IMAGES)
    assert last.test().checksum() != first.test().checksum()  # the second has labels
    assert torch.equal(last.test().x, first.test().x)
    place = [next(i for i in range(30) if (IMAGES[i] == image).all()) for image in together]
    labels = torch.cat([p.labels for p in (first.train(), first.validation(), first.test())])
    assert labels.tolist() == [i % 5 for i in place]


def test_levels_survive_the_way_to_model_space_and_back(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    for transform in (None, Affine(0.0, 256.0), Affine(128.0, 127.5)):
        data = ArrayImages(tmp_path / "a.npy", (3, 4, 6), 5, 5, transform=transform)
        x = data.train().x
        middle = data.transform.forward(x.double() + 0.5)
        assert torch.equal(data.from_model(middle), x)


@pytest.mark.parametrize("kind", ["text", "floats", "shape", "labels", "few", "objects"])
def test_other_files_are_refused_in_words(tmp_path, kind):
    path = tmp_path / "a.npz"
    content = {
        "floats": {"images": IMAGES / 255},
        "shape": {"images": IMAGES[:, :3]},
        "labels": {"images": IMAGES, "labels": np.full(30, 5)},
        "few": {"images": IMAGES[:9], "labels": np.zeros(9, int)},
        "objects": {"images": np.array([{}], dtype=object)},
    }
    if kind == "text":
        path.write_text("no array")
    else:
        np.savez(path, **content[kind])
    with pytest.raises(ValueError, match=r"expected (images|labels)|no file of NumPy|leave none to train on") as error:
        ArrayImages(path, (3, 4, 6), 5, 5, classes=5).train()
    assert isinstance(error.value, BadFileError) == (kind != "few")
    with pytest.raises(FileNotFoundError, match=r"expected a .npy or .npz"):
        ArrayImages(tmp_path / "absent.npy", (3, 4, 6)).train()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="open files are listed by Linux alone")
def test_a_refused_file_is_closed(tmp_path):
    """Also while the error, whose frames know the file, is still at hand."""
    path = tmp_path / "a.npz"
    np.savez(path, images=np.array([{}], dtype=object))
    with pytest.raises(BadFileError, match="no file of NumPy") as error:
        stored_arrays(path)
    opened = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    assert str(path) not in opened
    assert error.value.__cause__ is not None
