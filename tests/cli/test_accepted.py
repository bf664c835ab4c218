"""Configurations: what is shipped, and what goes together, is accepted."""

from pathlib import Path

import pytest

from scorefield.cli.compose import conf_dir
from tests.cli.checked import SONGUNET, found

CONF = Path(conf_dir())


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("experiment", options("experiment"))
def test_every_experiment_is_accepted(experiment):
    assert found(f"experiment={experiment}") == []


CHAINS = {"cd", "pcd", "cd_tempered"}  # objectives that train energies alone
OTHERS = CHAINS | {"cross_entropy"}  # and classifiers


@pytest.mark.parametrize("objective", sorted(CHAINS))
def test_chains_are_accepted_for_energies(objective):
    assert found("experiment=toy_exact_sm", f"objective={objective}") == []


@pytest.mark.parametrize(
    "choice",
    [
        f"{group}={option}"
        for group in ("parametrization", "times", "objective", "optim", "ema", "likelihood", "logger", "on_nonfinite")
        for option in options(group)
        if option not in OTHERS
    ]
    + [f"debug={option}" for option in options("debug")]
    + [f"trainer={option}" for option in ("cpu", "ddp_cpu")],
)
def test_every_option_is_accepted(choice):
    assert found(choice) == []


@pytest.mark.parametrize("schedule", [s for s in options("schedule") if s not in ("clean", "constant")])
def test_every_sampler_is_accepted_on_every_schedule_with_more_than_one_level(schedule):
    special = {"mala"}  # which needs a density
    if schedule not in ("vp", "subvp"):
        special.add("euler_maruyama_vp")  # whose last time is one of theirs
    for sampler in set(options("sampler")) - special:
        assert found(f"schedule={schedule}", f"sampler={sampler}") == []
    assert found(f"schedule={schedule}", "sampler=mala", "model=energy", "net=energy_conv") == []


@pytest.mark.parametrize("option", options("augmentation"))
def test_augmentations_are_accepted_for_networks_that_are_told(option):
    assert found(f"augmentation={option}", *SONGUNET) == []


def test_whole_observations_are_accepted():
    for more in (
        ["constraint=replacement"],
        ["posterior=moments", "std=0.1"],
        ["constraint=projection", "guidance=cfg"],
    ):
        assert found("run_dir=x", "examples=2", "observation=grey", *more, command="sample") == []
    assert found("run_dir=x", "edit=interpolate", "images=x", command="edit") == []
    assert found("run_dir=x", command="edit") == [
        "give either images=FILE_OR_FOLDER or examples=NUMBER, the first so many of the test split"
    ]


def test_points_on_a_curve_are_accepted_where_no_likelihood_is_taken():
    assert found("experiment=toy_swiss_roll", "+data.dataset.std=0", "callbacks.likelihood=null") == []


def test_chains_are_accepted_for_images_on_any_schedule():
    assert found("schedule=ddpm", "bound=chain") == []
    assert found("bound=chain", "callbacks.bound.chain.levels=100", "grid@callbacks.bound.chain.grid=karras") == []


def test_a_key_that_an_interpolation_reads_is_accepted():
    assert found("+width=16", "net.channels=${width}") == []
    assert "width is read by nothing" in found("+width=16")[0]
