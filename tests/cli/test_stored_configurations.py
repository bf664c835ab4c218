"""Stored configurations: they name parts of a run and nothing else, and damage is refused."""

import sys
import time
from pathlib import Path

import pytest
import yaml

from scorefield.cli import resume
from scorefield.cli.app import conf_dir
from scorefield.cli.runs import load_run
from scorefield.cli.stored import is_part_of_a_run, stored_config
from scorefield.errors import BadFileError, Exit, UserError
from scorefield.records.rundir import RunDir
from tests.cli.checkpointed import command
from tests.training.tiny import compose_config

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
