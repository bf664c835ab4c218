import copy
import errno
import json
import math
import subprocess

import pytest

from scorefield.errors import BadFileError
from scorefield.records import Measurement, Result, config_hash, git_state, versions
from scorefield.records.result import SCHEMA

CONFIG = {
    "experiment": "digits",
    "seed": 7,
    "model": {"width": 64, "levels": [1, 2, 2], "dropout": 0.1, "attention": True, "name": None},
    "optim": {"lr": 2e-3, "betas": [0.9, 0.99]},
}


def result(**changes):
    fields = {
        "experiment": "digits",
        "seed": 7,
        "config_hash": config_hash(CONFIG),
        "metrics": {"fd_digits": Measurement(0.1 + 0.2, {"floor": 0.55, "split": "train", "σ": "ü"})},
        "cost": {"train_seconds": 118.4, "steps": 4000},
        "versions": {"torch": "2.13.0"},
        "git": None,
        "command": "scorefield train",
    }
    return Result(**{**fields, **changes})


def test_file_layout_and_round_trip(tmp_path):
    path = tmp_path / "result.json"
    result().write(path)
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["schema"] == "scorefield-result/1"
    assert record["metrics"] == {"fd_digits": {"value": 0.30000000000000004, "floor": 0.55, "split": "train", "σ": "ü"}}
    assert set(record) >= {"metrics", "cost", "versions", "git", "config_hash", "seed", "experiment"}
    assert Result.read(path) == result()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_metrics_are_refused_by_name(bad):
    with pytest.raises(ValueError, match=r"metrics\['kid'\] is -?(nan|inf)"):
        result(metrics={"kid": Measurement(bad)})


def test_non_numbers_and_shadowed_values_are_refused():
    with pytest.raises(TypeError, match="Python number, got '3'"):
        Measurement("3")
    with pytest.raises(TypeError, match="Python number, got True"):
        Measurement(True)
    with pytest.raises(ValueError, match="field 'value'"):
        Measurement(1.0, {"value": 2.0})


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"metrics": {"fd": Measurement(1.0, {"floor": math.nan})}}, r"metrics\['fd'\]"),
        ({"cost": {"nfe": math.inf}}, "cost"),
        ({"versions": {"torch": object()}}, "versions"),
    ],
)
def test_a_record_that_cannot_be_written_leaves_the_old_file_whole(tmp_path, changes, name):
    path = tmp_path / "result.json"
    result().write(path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=f"^{name} = .*cannot be written to result.json"):
        result(**changes).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    result().write(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "no space left")))
    with pytest.raises(OSError, match="no space"):
        result(seed=8).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_whoever_is_reading_the_old_file_keeps_it_whole(tmp_path):
    path = tmp_path / "result.json"
    result().write(path)
    before = path.read_bytes()
    with path.open("rb") as reader:
        result(seed=8).write(path)
        assert reader.read() == before
    assert path.read_bytes() != before


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"schema": "other/1", "metrics": {}}')
    with pytest.raises(ValueError, match="not a scorefield-result/1"):
        Result.read(path)


def turned_round(value):
    """The same config with every mapping's keys in reverse order."""
    if isinstance(value, dict):
        return {key: turned_round(value[key]) for key in reversed(value)}
    return [turned_round(inner) for inner in value] if isinstance(value, list) else value


def leaves(value, path=()):
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*path, key))
    else:
        yield path


def test_config_hash_ignores_key_order():
    assert list(turned_round(CONFIG)) != list(CONFIG)
    assert config_hash(turned_round(CONFIG)) == config_hash(CONFIG)


def test_config_hash_sees_every_single_value():
    changed = []
    for path in leaves(CONFIG):
        config = copy.deepcopy(CONFIG)
        parent = config
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = "changed"
        changed.append(config_hash(config))
    assert len(changed) == 12
    assert len({config_hash(CONFIG), *changed}) == 13


def test_config_hash_tells_types_keys_and_list_order_apart():
    configs = [{"a": v} for v in (1, 1.0, True, "1", None, [1], {"1": 1}, {1: 1}, [1, 2], [2, 1])] + [{"b": 1}, {}]
    assert len({config_hash(config) for config in configs}) == len(configs)
    with pytest.raises(TypeError, match="plain values only"):
        config_hash({"a": object()})


def test_config_hash_is_the_same_in_every_release():
    # recorded once: runs of different releases are compared by it
    assert config_hash({"b": [1, 2.5, None], "a": {"x": "ü"}}) == "7d2be2490178ba9f"


def git(folder, *arguments):
    identity = ("-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false")
    subprocess.run(("git", "-C", str(folder), *identity, *arguments), check=True, capture_output=True)


def test_git_state_follows_the_working_tree(tmp_path):
    assert git_state(tmp_path) is None  # no repository
    assert git_state(tmp_path / "absent") is None
    git(tmp_path, "init")
    (tmp_path / "code.py").write_text("x = 1\n")
    assert git_state(tmp_path) is None  # nothing tracked
    git(tmp_path, "add", "code.py")
    assert git_state(tmp_path) is None  # no commit yet
    git(tmp_path, "commit", "-m", "first")
    state = git_state(tmp_path)
    head = (tmp_path / ".git" / "HEAD").read_text().split()[1]
    assert state == {"commit": (tmp_path / ".git" / head).read_text().strip(), "dirty": False}
    (tmp_path / "code.py").write_text("x = 2\n")
    assert git_state(tmp_path) == {**state, "dirty": True}
    (tmp_path / "installed").mkdir()
    assert git_state(tmp_path / "installed") is None  # inside a repository that does not track it


def test_git_state_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state() is None


def test_versions_are_those_imported():
    import platform

    import numpy
    import torch

    found = versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] == numpy.__version__
    assert torch.__version__.startswith(found["torch"])


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema": "SCHEMA"}', '{"schema": "SCHEMA", "metrics": {"a": 1}}']
)
def test_a_damaged_record_is_refused_by_name(tmp_path, content):
    path = tmp_path / "result.json"
    path.write_text(content.replace("SCHEMA", SCHEMA))
    with pytest.raises(BadFileError, match=r"result\.json is (damaged|not a)"):
        Result.read(path)
