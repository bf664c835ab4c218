"""Folders and zip files of images, with EDM's labels, folders as classes, or none."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import ImageFolder
from scorefield.data.files import image_set
from scorefield.errors import BadFileError
from tests.data.test_hostile_files import BAD, encoded

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(folder, files, zipped):
    """The files as a folder or a zip file; returns its path."""
    if zipped:
        with zipfile.ZipFile(folder / "images.zip", "w") as out:
            for name, content in files.items():
                out.writestr(name, content)
        return folder / "images.zip"
    for name, content in files.items():
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(content)
    return folder / "images"


both = pytest.mark.parametrize("zipped", [True, False])


@both
def test_edms_layout(tmp_path, zipped):
    """Names of two levels and labels by dataset.json, which decides over the folders."""
    names = [f"{i // 4:05d}/img{i:08d}.png" for i in range(12)]
    files = dict(zip(names, map(png, PIXELS), strict=True))
    labels = {"labels": [[name, i % 3] for i, name in reversed(list(enumerate(names)))]}
    root = write(tmp_path, {**files, "dataset.json": json.dumps(labels).encode()}, zipped)
    x, found = image_set(root)
    assert torch.equal(x, torch.from_numpy(PIXELS).permute(0, 3, 1, 2))
    assert found.tolist() == [i % 3 for i in range(12)]
    data = ImageFolder(root, (3, 6, 5), held_out=2, tested=3, classes=3)
    parts = [data.test(), data.validation(), data.train()]
    assert [len(p) for p in parts] == [3, 2, 7]
    for part in parts:
        for image, label in zip(part.x, part.labels, strict=True):
            assert int(label) == next(i % 3 for i in range(12) if torch.equal(x[i], image))
    none = write(tmp_path, {**files, "dataset.json": b'{"labels": null}'}, zipped)
    assert image_set(none)[1] is None


@both
def test_folders_are_classes_and_loose_images_have_none(tmp_path, zipped):
    (tmp_path / "a").mkdir()
    classes = {f"{'cat' if i % 2 else 'ant'}/{i}.png": png(PIXELS[i]) for i in range(4)}
    assert image_set(write(tmp_path, classes, zipped))[1].tolist() == [0, 0, 1, 1]
    loose = write(tmp_path / "a", {f"{i:02d}.png": png(PIXELS[i, :, :, 0]) for i in range(4)}, zipped)
    x, labels = image_set(loose)
    assert x.shape == (4, 1, 6, 5)  # grey files, of one channel
    assert labels is None
    with pytest.raises(BadFileError, match=r"classes from 0 to 1.*found no labels"):
        ImageFolder(loose, (1, 6, 5), 1, 1, classes=2).train()


@pytest.mark.filterwarnings("error")  # Pillow warns when it is about to decode a bomb
@both
@pytest.mark.parametrize("case", BAD)
def test_whatever_is_no_image_like_the_first_is_refused_by_name(tmp_path, case, zipped):
    root = write(tmp_path, {"a/0.png": encoded(), "b/bad.png": BAD[case]}, zipped)
    with pytest.raises(
        BadFileError, match=r"b/bad\.png in .*expected a PNG or JPEG of 32x32 pixels in mode RGB, found"
    ):
        image_set(root)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "expected"),
        (b'{"labels": [["0.png"]]}', "expected"),
        (b'{"labels": {"0.png": 1}}', "expected"),
        (b"{", "expected"),
        (b'{"labels": []}', r"expected a class from 0 for 0\.png, found None"),
        (b'{"labels": [["0.png", -1]]}', "found -1"),
        (b'{"labels": [["0.png", true]]}', "found True"),
        (b'{"labels": [["0.png", "x"]]}', "found 'x'"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, content, words):
    root = write(tmp_path, {"0.png": encoded(), "dataset.json": content}, True)
    with pytest.raises(BadFileError, match=rf"dataset\.json in .*images\.zip: .*{words}"):
        image_set(root)


def test_more_than_the_memory_is_refused_before_a_pixel_is_read(tmp_path, monkeypatch):
    root = write(tmp_path, {"0.png": encoded(), "1.png": encoded()}, True)
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PAGE_SIZE": 1024, "SC_PHYS_PAGES": 5}[name])
    with pytest.raises(BadFileError, match="take 0 MiB in memory"):
        image_set(root)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        image_set(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no PNG or JPEG"):
        image_set(tmp_path / "empty")
