"""Checkpoints and stored configurations that are damaged, foreign or hostile; disks that are full."""

import errno
import os
import pickle
import shutil
import struct
import subprocess
import sys
import time
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from scorefield.cli import resume
from scorefield.cli.app import conf_dir
from scorefield.cli.exits import answered
from scorefield.cli.runs import load_run, newest_checkpoint
from scorefield.cli.stored import is_part_of_a_run, stored_config
from scorefield.cli.train import execute
from scorefield.errors import BadFileError, Exit, UserError
from scorefield.records import files
from scorefield.records.checkpoints import read_checkpoint
from scorefield.records.rundir import RunDir
from tests.training.tiny import checkpoint, compose_config, differences, plane

TINY = ["callbacks.likelihood=null", "callbacks.samples=null", "callbacks.loss_by_noise=null", "optim=adam", "steps=6"]
SAVING = ["callbacks.checkpoint.every=2", "callbacks.checkpoint.keep=3", "trainer.val_check_interval=6"]


def tiny(run_dir, *overrides):
    return plane(run_dir, *TINY, *SAVING, *overrides)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of six steps with checkpoints at 2, 4 and 6."""
    torch.set_num_threads(1)  # as in every test; sums in another order would be other weights
    run = RunDir(tmp_path_factory.mktemp("finished") / "run")
    execute(tiny(run.path), run)
    return run


@pytest.fixture
def run(finished, tmp_path):
    """The same run, killed before its result was written."""
    shutil.copytree(finished.path, tmp_path / "run")
    copy = RunDir(tmp_path / "run")
    copy.result.unlink()
    return copy


def command(module, monkeypatch, *arguments):
    """A command's exit code, run in this process."""
    monkeypatch.setattr(sys, "argv", ["scorefield", *map(str, arguments)])
    try:
        module.main()
    except SystemExit as ended:
        return ended.code
    return Exit.FINISHED


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


# --- stored configurations


SHIPPED = [p.stem for p in Path(conf_dir(), "experiment").glob("*.yaml")]


def targets(node):
    if isinstance(node, dict):
        return {node["_target_"]} if "_target_" in node else set().union(*map(targets, node.values()))
    return set().union(*map(targets, node)) if isinstance(node, list) else set()


@pytest.mark.parametrize("experiment", SHIPPED)
def test_every_shipped_configuration_can_be_stored_and_read(tmp_path, experiment, monkeypatch):
    monkeypatch.setenv("SCOREFIELD_DATA", str(tmp_path))
    config = compose_config(f"experiment={experiment}", "logger=wandb", f"run_dir={tmp_path}")
    RunDir(tmp_path).config.write_text(yaml.safe_dump(config))
    assert stored_config(RunDir(tmp_path)) == config


@pytest.mark.parametrize("group", ["on_nonfinite", "schedule", "sampler", "ema", "times", "likelihood", "grid"])
def test_every_option_of_a_group_names_parts_of_a_run(group):
    for path in Path(conf_dir(), group).glob("*.yaml"):
        found = targets(yaml.safe_load(path.read_text()))
        assert all(map(is_part_of_a_run, found))


HOSTILE = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "torch.load",
    "torch.hub.load",
    "torch.save",
    "torch.nn.Module.__init__",
    "torch.nn.Module.apply",
    "torch.nn.modules.module.functools.partial",
    "torch.optim.optimizer.functools.partial",
    "torch.optim.swa_utils.warnings.warn",
    "torch.nn.utils.clip_grad_norm_",
    "torch.serialization.os.system",
    "pytorch_lightning.trainer.trainer.os.system",
    "pytorch_lightning.Trainer.save_checkpoint",
    "pytorch_lightning.utilities.parsing.inspect.os.system",
    "scorefield.records.files.os.remove",
    "scorefield.records.files.write_atomically",
    "scorefield.records.rundir.Path.unlink",
    "scorefield.cli.train.set_aside",
    "scorefield.cli.main.runpy.run_path",
    "scorefield.cli.main.main",
    "scorefield.data.images.tempfile.NamedTemporaryFile",
    "scorefield.data.files.zipfile.ZipFile",
    "scorefield..os.system",
    "scorefield",
    "scorefield.",
    "",
    "scorefieldx.system",
    None,
    ["os.system"],
    {"_target_": "os.system"},
]


@pytest.mark.parametrize("target", HOSTILE, ids=str)
@pytest.mark.parametrize("place", ["data", "deep", "list", "partial"])
def test_a_stored_configuration_may_not_name_anything_else(run, target, place):
    config = yaml.safe_load(run.config.read_text())
    node = {"_target_": target, "_args_": ["touch ran"], "_partial_": place == "partial"}
    if place == "data":
        config["data"]["dataset"] = node
    elif place == "deep":
        config["model"]["net"]["embedding"]["_extra"] = {"a": {"b": node}}
    elif place == "list":
        config["callbacks"]["samples"] = {"_target_": "scorefield.training.callbacks.TrainingLog", "x": [[node]]}
    else:
        config["optim"]["optimizer"] = node
    run.config.write_text(yaml.safe_dump(config))
    with pytest.raises(BadFileError, match=r"config\.yaml asks for"):
        stored_config(run)


# --- packages that the user trusts

OWN = """
import os
from pathlib import Path
from scorefield.nets import {net}
Path(__file__).with_name("imported").touch()

class Own({net}):
    pass

def make(**arguments):
    return Own(**arguments)
"""


@pytest.fixture
def own(run, tmp_path, monkeypatch):
    """A run whose network is of a package of the user's own, which leaves a file when it is imported."""
    config = yaml.safe_load(run.config.read_text())
    net = config["model"]["net"]["_target_"].rpartition(".")[2]
    for package in ("own_package", "own_packages"):
        (tmp_path / "lib" / package).mkdir(parents=True)
        (tmp_path / "lib" / package / "__init__.py").write_text(OWN.format(net=net))
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(tmp_path / "lib")
    monkeypatch.delenv("SCOREFIELD_PLUGINS", raising=False)

    def name(target: str) -> RunDir:
        for node in (config["net"], config["model"]["net"]):
            node["_target_"] = target
        run.config.write_text(yaml.safe_dump(config))
        return run

    return name


@pytest.mark.parametrize("target", ["own_package.Own", "own_package.make"])
def test_a_package_of_the_users_own_is_a_part_of_a_run_where_the_user_names_it(own, tmp_path, monkeypatch, target):
    run = own(target)
    with pytest.raises(BadFileError, match="SCOREFIELD_PLUGINS=my_package"):
        load_run(run.path)
    assert not (tmp_path / "lib" / "own_package" / "imported").exists()  # it has not even been looked into
    monkeypatch.setenv("SCOREFIELD_PLUGINS", "another, own_package")
    assert type(load_run(run.path).net).__name__ == "Own"


@pytest.mark.parametrize(
    "target", ["own_package.os.system", "own_package.Path", "own_package.nothing", "own_package", "own_packages.Own"]
)
def test_what_a_trusted_package_imports_is_not_trusted(own, monkeypatch, target):
    monkeypatch.setenv("SCOREFIELD_PLUGINS", "own_package")
    with pytest.raises(BadFileError, match=r"config\.yaml asks for"):
        stored_config(own(target))


@pytest.mark.parametrize("named", ["os.system()", "a b", "/tmp", "a..b"])
def test_plugins_are_names(own, monkeypatch, named):
    monkeypatch.setenv("SCOREFIELD_PLUGINS", named)
    with pytest.raises(UserError, match="give names of packages or modules"):
        stored_config(own("own_package.Own"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "config.yaml is (damaged|no whole configuration)"),
        (lambda text: "", "expected a mapping, found NoneType"),
        (lambda text: "- a\n- b\n", "expected a mapping, found list"),
        (lambda text: "a: [\n", "config.yaml is damaged: expected YAML"),
        (lambda text: "\0\1\2", "config.yaml is damaged"),
        (lambda text: "[" * 5000, "config.yaml is damaged"),
        (lambda text: text.replace("seed: 0\n", "sead: 0\n"), "seed is missing"),
        (lambda text: text + "x: !!python/object/apply:os.system ['touch ran']\n", "config.yaml is damaged"),
        (lambda text: text + "x: ${oc.env:HOME}\n", "is resolved and interpolates nothing"),
        (lambda text: text + "x: &x [*x]\n", "more than 100000 values"),
        (lambda text: text + "x: " + "a" * (2 << 20), "has .* bytes; a configuration has at most"),
    ],
)
def test_a_damaged_or_foreign_stored_configuration_is_refused(run, damage, words, monkeypatch, capsys):
    run.config.write_text(damage(run.config.read_text()))
    with pytest.raises(BadFileError, match=words):
        stored_config(run)
    assert command(resume, monkeypatch, run.path) == Exit.USER
    assert "Traceback" not in capsys.readouterr().err


def test_aliases_cannot_make_a_short_file_endless(run):
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12))
    run.config.write_text(f"{run.config.read_text()}\na0: &a0 [1]\n{levels}\n")
    start = time.monotonic()
    with pytest.raises(BadFileError, match="more than 100000 values"):
        stored_config(run)
    assert time.monotonic() - start < 20  # 10^11 values would take hours


# --- full disks and folders that cannot be written


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


def test_loading_a_damaged_run_is_refused_too(run):
    for path in run.checkpoints():
        DAMAGE["text"](path)
    with pytest.raises(BadFileError, match="none of its 3 checkpoints is whole"):
        load_run(run.path)
