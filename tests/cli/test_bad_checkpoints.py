"""Checkpoints that are damaged, foreign or hostile."""

import os
import pickle
import shutil
import struct
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from scorefield.cli import resume
from scorefield.cli.runs import load_run, newest_checkpoint
from scorefield.cli.stored import stored_config
from scorefield.cli.train import execute
from scorefield.errors import BadFileError, Exit
from scorefield.records.checkpoints import read_checkpoint
from scorefield.records.rundir import RunDir
from tests.cli.checkpointed import command, tiny
from tests.training.tiny import checkpoint, differences


def flip(path, where, bit=1):
    content = bytearray(path.read_bytes())
    content[where] ^= bit
    path.write_bytes(content)


def in_a_tensor(path):
    """An offset in the middle of the largest tensor of a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if "/data/" in member.filename]
    member = max(members, key=lambda m: m.file_size)
    header = path.read_bytes()[member.header_offset :][:30]
    name, extra = struct.unpack("<HH", header[26:])
    return member.header_offset + 30 + name + extra + member.file_size // 2


class Payload:
    """A pickle that touches a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-4096] + bytes(4096)),
    "one bit of one weight": lambda path: flip(path, in_a_tensor(path)),
    "text": lambda path: path.write_text("not a checkpoint"),
    "an archive of something else": lambda path: zipfile.ZipFile(path, "w").writestr("readme.txt", "hello"),
    "no checkpoint of a run": lambda path: torch.save({"weights": torch.ones(3)}, path),
    "without its layout": lambda path: torch.save({"global_step": 6, "state_dict": {}}, path),
    "an old pickle": lambda path: torch.save({"global_step": 6}, path, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_reported_and_passed_over(run, damage, capsys):
    DAMAGE[damage](run.checkpoint(6))
    assert newest_checkpoint(run) == run.checkpoint(4)
    said = capsys.readouterr().err
    assert str(run.checkpoint(6)) in said
    assert said.rstrip().endswith("passing over it")


def test_resuming_past_a_damaged_checkpoint_is_the_run_that_was_never_damaged(run, finished, monkeypatch, capsys):
    DAMAGE["one bit of one weight"](run.checkpoint(6))
    assert command(resume, monkeypatch, run.path) == Exit.FINISHED
    assert "resuming step-00000004.ckpt" in capsys.readouterr().out
    again, whole = checkpoint(run.path), checkpoint(finished.path)
    for key in ("state_dict", "ema", "optimizer_states", "global_step"):
        assert differences(again[key], whole[key], key) == []


def test_damage_is_never_loaded_in_silence(run):
    """torch itself does not notice the changed bit; this is what the checksums are for."""
    before = torch.load(run.checkpoint(6), weights_only=True)
    DAMAGE["one bit of one weight"](run.checkpoint(6))
    assert differences(before, torch.load(run.checkpoint(6), weights_only=True)) != []
    with pytest.raises(BadFileError, match="does not match its checksum"):
        read_checkpoint(run.checkpoint(6))


def test_the_newest_is_found_by_what_it_stores_and_not_by_its_name(run):
    run.checkpoint(6).rename(run.checkpoint(1))
    run.checkpoint(2).rename(run.checkpoint(99))
    assert newest_checkpoint(run) == run.checkpoint(1)
    run.checkpoint(1).rename(run.checkpoint_folder / "last.ckpt")
    assert newest_checkpoint(run) == run.checkpoint_folder / "last.ckpt"


def test_where_none_is_whole_nothing_is_started_over(run, monkeypatch, capsys):
    for path in run.checkpoints():
        DAMAGE["truncated"](path)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert command(resume, monkeypatch, run.path) == Exit.USER
    said = capsys.readouterr().err
    assert "none of its 3 checkpoints is whole" in said
    assert "Traceback" not in said
    assert {p: c for p, c in before.items() if "checkpoints" in str(p)} == {
        path: path.read_bytes() for path in run.checkpoint_folder.iterdir()
    }


def test_a_passed_over_file_does_not_displace_a_whole_one(run, monkeypatch):
    """With one checkpoint kept, the damaged one with the larger step must not be the one that stays."""
    content = stored_config(run)
    content["callbacks"]["checkpoint"] |= {"keep": 1, "every": 1}
    run.config.write_text(yaml.safe_dump(content))
    run.checkpoint(6).rename(run.checkpoint(9))
    DAMAGE["truncated"](run.checkpoint(9))
    assert command(resume, monkeypatch, run.path) == Exit.FINISHED
    assert newest_checkpoint(run) == run.checkpoint(6)


# --- hostile checkpoints


@pytest.mark.parametrize("inside", [lambda p: p, lambda p: {"global_step": 9, "state_dict": {"a": p}}])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_executed(run, tmp_path, inside, zipped, monkeypatch, capsys):
    marker = tmp_path / "ran"
    content = inside(Payload(marker))
    if zipped:
        torch.save(content, run.checkpoint(9))
    else:
        run.checkpoint(9).write_bytes(pickle.dumps(content))
    load_run(run.path)
    assert command(resume, monkeypatch, run.path) == Exit.FINISHED
    assert not marker.exists()
    said = capsys.readouterr().err
    assert "step-00000009.ckpt" in said
    assert "posix.system" in said or not zipped
    assert "weights_only" not in said  # torch's advice to load it all the same is not passed on


def test_a_compressed_member_is_not_unpacked(run):
    path = run.checkpoint(6)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"global_step": 9}))
        archive.writestr("archive/data/0", bytes(200 << 20))
    tracemalloc.start()
    with pytest.raises(BadFileError, match="compressed or overlap"):
        read_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_tensor_larger_than_its_storage_is_refused(run, tmp_path):
    """Every checksum is right here; only what the pickle says about the size of a member is not."""
    whole = tmp_path / "whole.ckpt"
    shutil.copy(run.checkpoint(6), whole)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(run.checkpoint(6), "w") as out:
        for member in archive.infolist():
            content = archive.read(member)
            out.writestr(member.filename, content[:4] if member.filename.endswith("data/5") else content)
    with pytest.raises(BadFileError, match="record size"):
        read_checkpoint(run.checkpoint(6))


# --- checkpoints of another model


def test_a_checkpoint_of_another_model_is_refused_with_both_shapes(run, tmp_path, monkeypatch, capsys):
    other = RunDir(tmp_path / "other")
    execute(tiny(other.path, "net.width=24", "steps=8"), other)
    shutil.copy(other.checkpoint(8), run.checkpoint(8))
    assert command(resume, monkeypatch, run.path) == Exit.USER
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"{run.checkpoint(8)} holds another model" in said
    assert "(24, " in said
    assert "expected (16, " in said
    with pytest.raises(BadFileError, match=r"\(24, .* expected \(16, "):
        load_run(run.path)
    with pytest.raises(BadFileError, match=r"\(24, .* expected \(16, "):
        load_run(run.path, "raw")


def test_a_checkpoint_without_the_average_that_the_run_keeps_is_refused(run, monkeypatch, capsys):
    content = torch.load(run.checkpoint(6), weights_only=True)
    del content["ema"]
    torch.save(content, run.checkpoint(6))
    assert command(resume, monkeypatch, run.path) == Exit.USER
    assert "is missing" in capsys.readouterr().err


def test_loading_a_damaged_run_is_refused_too(run):
    for path in run.checkpoints():
        DAMAGE["text"](path)
    with pytest.raises(BadFileError, match="none of its 3 checkpoints is whole"):
        load_run(run.path)
