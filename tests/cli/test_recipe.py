"""`scorefield recipe` prints a command that trains on the data that were asked about."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from scorefield.cli import recipe
from scorefield.cli.app import conf_dir
from tests.cli.test_check import found
from tests.training.tiny import compose_config


def asked(*arguments):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        return compose("recipe", list(arguments))


def printed(monkeypatch, capsys, *arguments):
    """What is said, and the command at its end as options."""
    monkeypatch.setattr("sys.argv", ["scorefield recipe", *arguments])
    recipe.main(asked(*arguments))
    said = capsys.readouterr().out
    words = shlex.split(said[said.index("scorefield train") :].replace("\\\n", " "))
    return said, words[2:]


@pytest.mark.parametrize("arguments", [[], ["data=digits", "n=50"], ["data=mixture", "data.batch_size=64", "n=200"]])
def test_the_command_is_of_the_same_data_and_composes(monkeypatch, capsys, arguments):
    _, words = printed(monkeypatch, capsys, *arguments)
    chosen = [a for a in arguments if a.startswith("data")]
    assert words[: len(chosen)] == chosen
    assert found(*words) == []
    data = compose_config(*words, "run_dir=unused")["data"]["dataset"]
    assert data == OmegaConf.to_container(asked(*arguments).data.dataset, resolve=True)


def test_where_no_ratio_overlaps_as_asked_it_is_said(monkeypatch, capsys):
    said, _ = printed(monkeypatch, capsys, "data=mixture", "n=100", "overlap=0.3")
    assert "in 2 dimensions no ratio overlaps by as little as 0.3: levels halve" in said
    said, _ = printed(monkeypatch, capsys, "data=digits", "n=100", "overlap=0.5")
    assert "levels halve" not in said
