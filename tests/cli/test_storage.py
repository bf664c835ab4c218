"""Disks that are full and folders that cannot be written end a run with a message and lose nothing."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from scorefield.cli import resume
from scorefield.cli.exits import answered
from scorefield.cli.runs import newest_checkpoint
from scorefield.cli.train import execute
from scorefield.errors import Exit
from scorefield.records import files
from scorefield.records.checkpoints import read_checkpoint
from scorefield.records.rundir import RunDir
from tests.cli.checkpointed import command, tiny


def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch, capsys):
    run, plain = RunDir(tmp_path / "run"), Path.write_bytes

    def full(path, content):
        if path.suffix == ".tmp" and run.checkpoint(2).exists():
            plain(path, bytes(content)[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return plain(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(SystemExit) as ended, answered():
        execute(tiny(run.path), run)
    assert ended.value.code == Exit.STORAGE
    said = capsys.readouterr().err
    assert said.startswith("scorefield: No space left on device (")
    assert str(run.checkpoint(4).with_suffix(".tmp")) in said
    assert [path.name for path in run.checkpoint_folder.iterdir()] == ["step-00000002.ckpt"]
    monkeypatch.setattr(Path, "write_bytes", plain)
    assert command(resume, monkeypatch, run.path) == Exit.FINISHED
    assert read_checkpoint(run.checkpoint(6))["global_step"] == 6


def test_a_full_disk_leaves_the_old_content_of_any_other_file(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    files.write_atomically(path, b"old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as error:
        files.write_atomically(path, b"new")
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_small_disk_that_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        run = RunDir(disk / "run")
        with pytest.raises(SystemExit) as ended, answered():
            execute(tiny(run.path, "callbacks.checkpoint.keep=99", "callbacks.checkpoint.every=1", "steps=99"), run)
        assert ended.value.code == Exit.STORAGE
        newest = newest_checkpoint(run)
        assert newest is not None
        assert not list(run.checkpoint_folder.glob("*.tmp"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("place", [".", "checkpoints", "logs"])
def test_a_file_where_a_folder_should_be_ends_the_run_with_a_message(tmp_path, place, capsys):
    run = RunDir(tmp_path / "run")
    in_the_way = run.path / place
    in_the_way.parent.mkdir(exist_ok=True)
    in_the_way.write_text("")
    with pytest.raises(SystemExit) as ended, answered():
        execute(tiny(run.path), run)
    assert ended.value.code == Exit.STORAGE
    assert str(in_the_way) in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_folder_that_may_not_be_written_ends_the_run_with_a_message(tmp_path, number, monkeypatch, capsys):
    run = RunDir(tmp_path / "run")

    def refused(self, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(SystemExit) as ended, answered():
        execute(tiny(run.path), run)
    assert ended.value.code == Exit.STORAGE
    assert os.strerror(number) in capsys.readouterr().err


def test_a_fault_of_the_program_keeps_its_traceback():
    for fault in (ValueError("a bug"), OSError(errno.EBADF, "Bad file descriptor"), KeyError("x")):
        with pytest.raises(type(fault)), answered():
            raise fault
