"""Image, archive and idx files that are truncated, foreign or hostile are refused by name, and cannot do harm."""

import gzip
import io
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageFile

from scorefield.data.images import CIFAR10, MNIST
from scorefield.errors import BadFileError
from tests.data.test_images import idx, write_mnist


def encoded(shape=(32, 32, 3), kind="PNG", mode=None):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


def archive(folder, files, compression=zipfile.ZIP_DEFLATED):
    for part in ("train", "test"):
        with zipfile.ZipFile(folder / f"{part}.zip", "w", compression) as out:
            for name, content in files.items():
                out.writestr(name, content)
    return CIFAR10(folder, held_out=1)


def png(width, height, data=b""):
    """A PNG that declares any size."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b"")]
    body = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


BAD = {
    "truncated PNG": encoded()[:1000],
    "truncated JPEG": encoded(kind="JPEG")[:-300],
    "no image at all": b"#!/bin/sh\ntouch ran\n",
    "empty": b"",
    "wrong size": encoded((28, 28, 3)),
    "grey": encoded((32, 32)),
    "transparent": encoded((32, 32, 4)),
    "palette": encoded(mode="P"),
    "a GIF under another name": encoded(kind="GIF"),
    "a TIFF under another name": encoded(kind="TIFF"),
    "a decompression bomb": png(60000, 60000, zlib.compress(bytes(1 << 20), 9)),
    "a size that no memory holds": png(2**31 - 1, 2**31 - 1),
    "too little data": png(32, 32, zlib.compress(bytes(100))),
}


@pytest.mark.filterwarnings("error")  # Pillow warns when it is about to decode a bomb
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_image_is_refused_by_name(tmp_path, case, zipped):
    if zipped:
        data = archive(tmp_path, {"cat/0.png": encoded(), "dog/bad.png": BAD[case]})
    else:
        for part in ("train", "test"):
            for name, content in (("cat/0.png", encoded()), ("dog/bad.png", BAD[case])):
                (tmp_path / part / name).parent.mkdir(parents=True)
                (tmp_path / part / name).write_bytes(content)
        data = CIFAR10(tmp_path, held_out=1)
    with pytest.raises(BadFileError) as error:
        data.test()
    assert "dog/bad.png in " in str(error.value)
    assert "expected a PNG or JPEG of 32x32 pixels in mode RGB, found" in str(error.value)


def test_no_pixel_of_a_wrong_image_is_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadFileError, match="found 9000x9000"):  # a size that Pillow itself lets pass
        archive(tmp_path, {"cat/0.png": png(9000, 9000)}).test()


def test_what_a_member_declares_is_refused_before_it_is_unpacked(tmp_path):
    data = archive(tmp_path, {"cat/0.png": encoded(), "cat/1.png": bytes(200 << 20)})
    assert (tmp_path / "test.zip").stat().st_size < 1 << 20
    tracemalloc.start()
    with pytest.raises(BadFileError, match=r"cat/1.png in .*test.zip: expected .* found 209715200 bytes"):
        data.test()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


def test_a_member_that_declares_less_than_it_holds_is_not_unpacked_further(tmp_path):
    archive(tmp_path, {"cat/0.png": bytes(64 << 20)})
    path = tmp_path / "test.zip"
    path.write_bytes(path.read_bytes().replace(struct.pack("<I", 64 << 20), struct.pack("<I", 1000)))
    tracemalloc.start()
    with pytest.raises(BadFileError, match=r"cat/0.png"):
        CIFAR10(tmp_path, held_out=1).test()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("name", ["../../cat/0.png", "/dog/1.png", "cat/../../0.png", "\\\\server\\0.png"])
def test_a_name_that_leads_out_of_the_archive_is_refused_and_nothing_is_written(tmp_path, name):
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    data = archive(inside, {"cat/0.png": encoded(), name: encoded()})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadFileError, match="leads out of the archive"):
        data.test()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b[:200], "test.zip: expected a zip archive"),
        (lambda b: b"", "test.zip: expected a zip archive"),
        (lambda b: b[:100] + bytes([b[100] ^ 1]) + b[101:], "cat/0.png in .*CRC"),
    ],
)
def test_a_damaged_archive_is_refused(tmp_path, damage, words):
    data = archive(tmp_path, {"cat/0.png": encoded(), "cat/1.png": encoded()})
    path = tmp_path / "test.zip"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadFileError, match=words):
        data.test()


def test_an_encrypted_member_is_refused(tmp_path):
    data = archive(tmp_path, {"cat/0.png": encoded()}, zipfile.ZIP_STORED)
    content = bytearray((tmp_path / "test.zip").read_bytes())
    content[6] |= 1  # the flag of encryption, in both headers
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "test.zip").write_bytes(content)
    with pytest.raises(BadFileError, match=r"cat/0.png in .*encrypted"):
        data.test()


def test_batches_that_are_not_the_published_ones_are_not_opened(tmp_path):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    marker = tmp_path / "ran"
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch", "batches.meta"]:
        (folder / name).write_bytes(b"cposix\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    with pytest.raises(BadFileError, match="cifar-10-batches-py does not hold the published batches"):
        CIFAR10(tmp_path).test()
    assert not marker.exists()


# --- idx files

IMAGES = "t10k-images-idx3-ubyte"
LABELS = "t10k-labels-idx1-ubyte"


def test_an_idx_file_of_any_other_length_is_refused(tmp_path):
    write_mnist(tmp_path, packed=False)
    whole = (tmp_path / IMAGES).read_bytes()
    for content in (whole[:-1], whole + b"\0", whole[:16], whole[:10], whole[:3], b""):
        (tmp_path / IMAGES).write_bytes(content)
        with pytest.raises(BadFileError, match=IMAGES):
            MNIST(tmp_path, 10).test()
    (tmp_path / IMAGES).write_bytes(whole)
    assert len(MNIST(tmp_path, 10).test()) == 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            idx(np.zeros((20, 32, 32), np.uint8)),
            r"expected an idx file .*shape \(28, 28\), found 20 of shape \(32, 32\)",
        ),
        (idx(np.zeros(20, np.uint8)), "is no idx file"),
        (struct.pack(">BBBB3i", 0, 0, 8, 3, 2**31 - 1, 28, 28), "found 2147483647"),
        (struct.pack(">BBBB3i", 0, 0, 8, 3, -1, 28, 28), "found -1"),
        (struct.pack(">BBBB3i", 0, 0, 13, 3, 20, 28, 28), "is no idx file"),
        (b"\x80\x04cposix\nsystem\n.", "is no idx file"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_an_idx_file_of_something_else_is_refused(tmp_path, content, words, packed):
    write_mnist(tmp_path, packed)
    name = f"{IMAGES}.gz" if packed else IMAGES
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(BadFileError, match=words) as error:
        MNIST(tmp_path, 10).test()
    assert name in str(error.value)


@pytest.mark.parametrize("damage", [lambda b: b[:-1000], lambda b: b[:40] + b"\xff\xff" + b[42:], lambda b: b[2:]])
def test_a_damaged_gzip_file_is_refused(tmp_path, damage):
    write_mnist(tmp_path, packed=True)
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadFileError, match=rf"{IMAGES}.gz is truncated or damaged"):
        MNIST(tmp_path, 10).test()


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    write_mnist(tmp_path, packed=True)
    header = struct.pack(">BBBB3i", 0, 0, 8, 3, 20, 28, 28)
    (tmp_path / f"{IMAGES}.gz").write_bytes(gzip.compress(header + bytes(200 << 20), 1))
    tracemalloc.start()
    with pytest.raises(BadFileError, match="expected 15680 bytes after the header for 20 examples, found more"):
        MNIST(tmp_path, 10).test()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("labels", [np.zeros(19, np.uint8), np.full(20, 10, np.uint8)])
def test_labels_that_do_not_belong_to_the_images_are_refused(tmp_path, labels):
    write_mnist(tmp_path, packed=False)
    (tmp_path / LABELS).write_bytes(idx(labels))
    with pytest.raises(BadFileError, match=rf"{LABELS}: expected 20 labels below 10, found {len(labels)} up to"):
        MNIST(tmp_path, 10).test()
