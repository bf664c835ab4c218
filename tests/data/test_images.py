import gzip
import io
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from scorefield.data.base import Split, stratified_order
from scorefield.data.images import CIFAR10, MNIST, Digits, FashionMNIST
from scorefield.torchvision_ops import declare_missing_operators

SHARED = Path(__file__).parents[2] / "../shared/data"


def needs(path):
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not beside the repository")


# --- splits


def rows(split):
    return [(bytes(x.flatten().tolist()), int(label)) for x, label in zip(split.x, split.labels, strict=True)]


def test_digits_are_split_without_overlap_or_loss():
    data = Digits()
    parts = [data.train(), data.validation(), data.test()]
    assert [len(part) for part in parts] == [1347, 150, 300]
    images, labels = load_digits(return_X_y=True)
    together = sorted(row for part in parts for row in rows(part))
    assert together == sorted(rows(Split(torch.from_numpy(images).byte(), torch.from_numpy(labels))))
    assert len({image for image, _ in together}) == 1797  # no image occurs twice, so none is in two splits


def test_digits_splits_hold_the_classes_in_proportion():
    data = Digits()
    share = torch.cat([s.labels for s in (data.train(), data.validation(), data.test())]).bincount() / 1797
    for split in (data.train(), data.validation(), data.test()):
        # a prefix of the order is within one example of each class's share, a difference of prefixes within two
        assert ((split.labels.bincount(minlength=10) - share * len(split)).abs() < 2).all()


def test_digits_are_these_very_splits():
    """Every recorded number depends on them."""
    data = Digits()
    assert {name: getattr(data, name)().checksum()[:16] for name in ("train", "validation", "test")} == CHECKSUMS


CHECKSUMS = {"train": "13ccb901b70cf237", "validation": "68a7c04b4a2bc448", "test": "02a4647d4e23eaa3"}


def test_stratified_order_is_a_permutation_with_balanced_prefixes():
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 37)[torch.randperm(937, generator=generator)]
    order = stratified_order(labels, torch.randperm(937, generator=generator))
    assert torch.equal(order.sort().values, torch.arange(937))
    counts = torch.nn.functional.one_hot(labels[order]).cumsum(0)
    expected = torch.arange(1, 938)[:, None] * labels.bincount() / 937
    assert (counts - expected).abs().max() <= 1.5  # half an example from each of the three classes' places


def test_importing_data_does_not_import_torchvision():
    code = "import sys, scorefield.data.images, scorefield.data.toys; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- readers, on small files of the true formats


def idx(array):
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


def write_mnist(folder, packed, n=(60, 20)):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    written = {}
    for part, size in zip(("train", "t10k"), n, strict=True):
        images = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = (np.arange(size) % 10).astype(np.uint8)
        written[part] = images, labels
        for name, array in ((f"{part}-images-idx3-ubyte", images), (f"{part}-labels-idx1-ubyte", labels)):
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
            else:
                (folder / name).write_bytes(idx(array))
    return written


@pytest.mark.parametrize(
    ("kind", "inside", "packed"),
    [(MNIST, ".", True), (MNIST, "MNIST/raw", False), (FashionMNIST, "FashionMNIST/raw", True)],
)
def test_idx_files_are_read_wherever_they_usually_lie(tmp_path, kind, inside, packed):
    written = write_mnist(tmp_path / inside, packed)
    data = kind(tmp_path, held_out=10)
    images, labels = written["t10k"]
    assert torch.equal(data.test().x[:, 0], torch.from_numpy(images))
    assert data.test().labels.tolist() == labels.tolist()
    assert (len(data.train()), len(data.validation())) == (50, 10)
    assert data.validation().labels.bincount().tolist() == [1] * 10
    images, labels = written["train"]
    expected = sorted(rows(Split(torch.from_numpy(images), torch.from_numpy(labels).long())))
    assert sorted(rows(data.train()) + rows(data.validation())) == expected  # carved from train, nothing lost


def test_padding_adds_a_black_frame(tmp_path):
    write_mnist(tmp_path, packed=False)
    padded, plain = MNIST(tmp_path, 10, pad=2), MNIST(tmp_path, 10)
    assert padded.test().x.shape[1:] == padded.shape == (1, 32, 32)
    assert torch.equal(padded.test().x[..., 2:-2, 2:-2], plain.test().x)
    assert int(padded.test().x.sum()) == int(plain.test().x.sum())


def test_cifar_batches_are_read_with_torchvision(tmp_path, monkeypatch):
    declare_missing_operators()
    from torchvision import datasets

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    content = {}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        content[name] = rng.integers(0, 256, (10, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": content[name], "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(datasets.CIFAR10, "_check_integrity", lambda self: True)  # these are not the published files
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *a: True)
    data = CIFAR10(tmp_path, held_out=10)
    assert torch.equal(data.test().x, torch.from_numpy(content["test_batch"]).view(-1, 3, 32, 32))
    assert data.source == "batches"
    assert (len(data.train()), len(data.validation())) == (40, 10)


@pytest.mark.parametrize("zipped", [True, False])
def test_folders_of_images_are_read(tmp_path, zipped):
    rng = np.random.default_rng(0)
    images = {}
    for part in ("train", "test"):
        files = {}
        for label, name in enumerate(("cat", "dog")):
            for i in range(6):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                images[part, label, i] = pixels
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                files[f"{name}/{i:04d}.png"] = buffer.getvalue()
        if zipped:
            with zipfile.ZipFile(tmp_path / f"{part}.zip", "w") as archive:
                for name, content in reversed(files.items()):  # the order of the files must not matter
                    archive.writestr(name, content)
        else:
            for name, content in files.items():
                path = tmp_path / part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    data = CIFAR10(tmp_path, held_out=4)
    test = data.test()
    assert test.labels.tolist() == [0] * 6 + [1] * 6
    for row, (label, i) in enumerate((label, i) for label in range(2) for i in range(6)):
        assert torch.equal(test.x[row].permute(1, 2, 0), torch.from_numpy(images["test", label, i]))
    assert data.validation().labels.bincount().tolist() == [2, 2]


@pytest.mark.parametrize(("kind", "words"), [(MNIST, "train-images-idx3-ubyte"), (CIFAR10, "cifar-10-batches-py")])
def test_a_missing_folder_is_named_with_what_belongs_there(tmp_path, kind, words):
    with pytest.raises(FileNotFoundError, match=words) as error:
        kind(tmp_path / "nowhere").train()
    assert "nowhere" in str(error.value)
    assert "download=True" in str(error.value)


@needs(SHARED / "mnist")
def test_real_mnist():
    data = MNIST(SHARED / "mnist")
    assert (len(data.train()), len(data.validation()), len(data.test())) == (55000, 5000, 10000)
    pixels = torch.cat([data.train().x, data.validation().x]).double() / 255
    assert float(pixels.mean()) == pytest.approx(0.1307, abs=5e-5)  # the published mean, to its last digit
    assert data.test().labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs(SHARED / "cifar10_jpg")
def test_real_cifar_as_jpeg():
    test = CIFAR10(SHARED / "cifar10_jpg").test()
    assert test.x.shape == (10000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10
    # published per-channel means of the test split, to which JPEG adds less than a grey level
    published = torch.tensor([0.4942, 0.4851, 0.4504])
    assert (test.x.float().mean((0, 2, 3)) / 255 - published).abs().max() < 1 / 255
