"""Mutated checkpoint, image and idx files: each is refused as a bad file or read as it was, and nothing is executed."""

import gzip
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from scorefield.data.images import CIFAR10, MNIST
from scorefield.errors import BadFileError
from scorefield.records.checkpoints import newest_checkpoint, read_checkpoint
from scorefield.records.rundir import RunDir
from tests.data.test_images import write_mnist
from tests.training.tiny import differences

DEFAULT, SLOW = 60, 500


class Payload:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.makedirs, (str(self.marker),)


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """What was read, and the refusal; one of the two. Any other error is the test's."""
    try:
        return read(), ""
    except (BadFileError, FileNotFoundError) as error:
        return None, str(error)


def flipped(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(draw.choice([1, 1, 2, 16, 200])):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def spliced(content: bytes, draw: random.Random) -> bytes:
    a, b = sorted(draw.randrange(len(content)) for _ in range(2))
    return content[:a] + draw.choice([b"", draw.randbytes(b - a), bytes(b - a), content[a:b] * 2]) + content[b:]


def rezipped(content: bytes, draw: random.Random) -> bytes:
    """An archive whose checksums are right and whose members are not: mutated, missing, exchanged or compressed."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as source:
        members = {name: source.read(name) for name in source.namelist()}
    names = list(members)
    a, b = draw.choice(names), draw.choice(names)
    kind = draw.randrange(4)
    if kind == 0:
        members[a] = flipped(members[a], draw) if members[a] else b"x"
    elif kind == 1:
        del members[a]
    elif kind == 2:
        members[a], members[b] = members[b], members[a]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if kind == 3 else zipfile.ZIP_STORED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return out.getvalue()


def hostile(marker: Path, draw: random.Random) -> bytes:
    """A checkpoint with code somewhere in it, or a bare pickle of it."""
    payload, out = Payload(marker), io.BytesIO()
    content = draw.choice(
        [payload, {"global_step": payload}, {"global_step": 9, "state_dict": {"w": payload}}, [payload]]
    )
    if draw.random() < 0.3:
        return pickle.dumps(content, protocol=draw.randrange(5))
    torch.save(content, out, _use_new_zipfile_serialization=draw.random() < 0.7)
    return out.getvalue()


def written(folder: Path) -> bytes:
    """A checkpoint of a run, small."""
    weights = {f"model.layer{i}.weight": torch.arange(64.0).view(8, 8) + i for i in range(4)}
    content = {
        "global_step": 8,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": weights,
        "ema": {"updates": 8, "state_dict": {name.removeprefix("model."): w + 1 for name, w in weights.items()}},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(8.0)}}, "param_groups": [{"lr": 1e-3}]}],
        "lr_schedulers": [],
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
    }
    torch.save(content, folder / "whole.ckpt")
    return (folder / "whole.ckpt").read_bytes()


def fuzz_checkpoints(folder: Path, count: int) -> dict[str, int]:
    """How many were refused, and how many are what they were or a mutation that carries its own right checksums."""
    whole, marker, run = written(folder), folder / "ran", RunDir(folder / "run").create()
    before = read_checkpoint(folder / "whole.ckpt")
    outcome = {"refused": 0, "read": 0}
    for case in range(count):
        draw = random.Random(case)
        mutate: Callable[[bytes, random.Random], bytes] = draw.choice([flipped, truncated, spliced, rezipped, rezipped])
        bare = draw.random() < 0.2
        content = hostile(marker, draw) if bare else mutate(whole, draw)
        path = run.checkpoint(9)
        path.write_bytes(content)
        read, refusal = attempt(lambda path=path: read_checkpoint(path))
        outcome["read" if read else "refused"] += 1
        assert read or str(path) in refusal
        if read:
            assert mutate is rezipped or differences(read, before) == [], case
            assert all(isinstance(w, torch.Tensor) for w in read["state_dict"].values())
        assert not marker.exists(), case
        run.checkpoint(4).write_bytes(whole)
        said: list[str] = []
        assert newest_checkpoint(run, said.append) in (path, run.checkpoint(4))
    return outcome


def images(folder: Path) -> bytes:
    draw = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "whole.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, kind in enumerate(("png", "jpeg", "png", "jpeg")):
            buffer = io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, kind)
            archive.writestr(f"class{i % 2}/{i}.{kind}", buffer.getvalue())
    return (folder / "whole.zip").read_bytes()


def fuzz_images(folder: Path, count: int) -> dict[str, int]:
    whole, outcome = images(folder), {"refused": 0, "read": 0}
    for part in ("train.zip", "test.zip"):
        (folder / part).write_bytes(whole)
    before = CIFAR10(folder, held_out=1).test()
    for case in range(count):
        draw = random.Random(case)
        mutate = draw.choice([flipped, truncated, spliced, rezipped, rezipped])
        (folder / "test.zip").write_bytes(mutate(whole, draw))
        split, refusal = attempt(lambda: CIFAR10(folder, held_out=1).test())
        outcome["read" if split else "refused"] += 1
        assert split or "test.zip" in refusal
        if split:
            assert split.x.shape[1:] == (3, 32, 32)
            same = {bytes(x.flatten()) for x in split.x} <= {bytes(x.flatten()) for x in before.x}
            assert mutate is rezipped or same, case
    return outcome


def fuzz_idx(folder: Path, count: int) -> dict[str, int]:
    outcome = {"refused": 0, "read": 0}
    for packed in (False, True):
        part = folder / f"packed-{packed}"
        write_mnist(part, packed, n=(20, 20))
        files = sorted(part.glob("t10k-*"))
        before = {path: path.read_bytes() for path in files}
        reference = MNIST(part, held_out=1).test()
        for case in range(count // 2):
            draw = random.Random(case)
            path = draw.choice(files)
            content = before[path]
            mutate = draw.choice([flipped, truncated, spliced])
            inside = packed and draw.random() < 0.5
            path.write_bytes(gzip.compress(mutate(gzip.decompress(content), draw)) if inside else mutate(content, draw))
            split, refusal = attempt(lambda part=part: MNIST(part, held_out=1).test())
            outcome["read" if split else "refused"] += 1
            assert split or path.name in refusal or "labels" in refusal
            if split:
                assert split.x.shape == (20, 1, 28, 28)
                # An idx file has no checksum of its own; a gzip file has.
                assert not packed or inside or torch.equal(split.x, reference.x), case
            path.write_bytes(content)
    return outcome


FUZZ = {"checkpoints": fuzz_checkpoints, "images": fuzz_images, "idx": fuzz_idx}


@pytest.mark.parametrize("kind", FUZZ)
@pytest.mark.parametrize("count", [DEFAULT, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_mutated_files_are_refused_or_read_as_they_were(tmp_path, kind, count):
    outcome = FUZZ[kind](tmp_path, count)
    print(kind, outcome)
    assert sum(outcome.values()) == count
    assert outcome["refused"] > count // 2  # else the mutations are too kind to say anything
