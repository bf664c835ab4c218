"""CelebA and LSUN in torchvision's layouts, written here at a smaller size."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data import LSUN, CelebA
from scorefield.data.photographs import square
from scorefield.errors import BadFileError


def picture(i, width=178, height=218):
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_the_middle_is_cut_out_and_averaged():
    image = picture(0, 12, 20)
    middle = torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 6:14, 2:10].float()
    means = middle.reshape(3, 4, 2, 4, 2).mean((2, 4))
    assert (
        square(image, 8, 4).float() - means
    ).abs().max() <= 1  # rounded to whole grey levels twice, along rows and along columns
    assert torch.equal(square(image, 12, 12), torch.from_numpy(np.array(image)).permute(2, 0, 1)[:, 4:16])
    assert square(image.convert("L"), None, 4).shape == (3, 4, 4)
    with pytest.raises(BadFileError, match="12x20 pixels is smaller than crop=13"):
        square(image, 13, 4)


@pytest.fixture
def celeba(tmp_path, monkeypatch):
    """Nine faces, of which the list gives five, two and two to the parts."""
    declared = pytest.importorskip("scorefield.torchvision_ops")
    declared.declare_missing_operators()
    from torchvision import datasets

    # The checksums are those of the published files.
    monkeypatch.setattr(datasets.CelebA, "_check_integrity", lambda self: True)
    root = tmp_path / "celeba"
    (root / "img_align_celeba").mkdir(parents=True)
    names = [f"{i:06d}.jpg" for i in range(1, 10)]
    for i, name in enumerate(names):
        picture(i).save(root / "img_align_celeba" / name, quality=95)
    parts = [0] * 5 + [1] * 2 + [2] * 2
    (root / "list_eval_partition.txt").write_text("".join(f"{n} {p}\n" for n, p in zip(names, parts, strict=True)))
    (root / "identity_CelebA.txt").write_text("".join(f"{n} 1\n" for n in names))
    for file, columns in (("list_bbox_celeba", 4), ("list_landmarks_align_celeba", 10), ("list_attr_celeba", 40)):
        head = " ".join(f"c{k}" for k in range(columns))
        lines = "".join(f"{n} {' '.join(['1'] * columns)}\n" for n in names)
        (root / f"{file}.txt").write_text(f"9\n{head}\n{lines}")
    return tmp_path


def test_celeba_has_the_published_split(celeba):
    data = CelebA(celeba, resolution=8, crop=140)
    assert [len(p) for p in (data.train(), data.validation(), data.test())] == [5, 2, 2]
    with Image.open(celeba / "celeba" / "img_align_celeba" / "000006.jpg") as image:
        assert torch.equal(data.validation().x[0], square(image, 140, 8))
    assert len(CelebA(celeba, resolution=8, examples=2).train()) == 2
    (celeba / "celeba" / "img_align_celeba" / "000002.jpg").write_bytes(b"no image")
    with pytest.raises(BadFileError, match="image 1 of celeba, train"):
        CelebA(celeba, resolution=8).train()


def test_lsun_is_read_from_its_database(tmp_path, monkeypatch):
    lmdb = pytest.importorskip("lmdb", reason="LSUN is read by the package lmdb")
    monkeypatch.chdir(tmp_path)  # torchvision keeps a list of keys in the working folder
    for part, n in (("train", 6), ("val", 2)):
        with (
            lmdb.open(str(tmp_path / f"church_outdoor_{part}_lmdb"), map_size=1 << 24) as base,
            base.begin(write=True) as put,
        ):
            for i in range(n):
                buffer = io.BytesIO()
                picture(i, 20, 16).save(buffer, "PNG")
                put.put(f"{i:04d}".encode(), buffer.getvalue())
    data = LSUN(tmp_path, "church_outdoor", resolution=16, held_out=2)
    assert [len(p) for p in (data.train(), data.validation(), data.test())] == [4, 2, 2]
    assert torch.equal(data.test().x[1], square(picture(1, 20, 16), None, 16))
    every = {image.numpy().tobytes() for part in (data.train(), data.validation()) for image in part.x}
    assert every == {square(picture(i, 20, 16), None, 16).numpy().tobytes() for i in range(6)}


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="img_align_celeba"):
        CelebA(tmp_path).train()
    with pytest.raises(FileNotFoundError, match=r"bedroom_train_lmdb in it is no LMDB folder"):
        LSUN(tmp_path, "bedroom").train()
    for wrong in ({"resolution": 0}, {"crop": 0}, {"examples": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
            CelebA(tmp_path, **wrong)
    with pytest.raises(ValueError, match="held_out=-1"):
        LSUN(tmp_path, "bedroom", held_out=-1)
