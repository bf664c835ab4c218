"""Processes that were started differently are not trained together."""

import pytest
import torch.distributed as dist

from scorefield.errors import UserError
from scorefield.training.callbacks import Agreement
from tests.training.tiny import fit, plane


class Trainer:
    def __init__(self, world_size: int, ckpt_path: str | None = None) -> None:
        self.world_size, self.ckpt_path = world_size, ckpt_path


@pytest.fixture
def two(monkeypatch):
    """This process as one of two; returns what the other one tells."""
    other: list[str] = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_gather_object", lambda told, own: told.__setitem__(slice(None), [own, *other]))
    return other


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("abcd-seed1, from the start", None),
        ("ffff-seed0, from the start", None),
        ("abcd-seed0, from the start", "x/step-3.ckpt"),
    ],
)
def test_another_configuration_seed_or_checkpoint_is_refused_with_both_named(two, theirs, ours):
    two.append(theirs)
    with pytest.raises(UserError, match=r"process 0: abcd-seed0, .*; process 1: " + theirs):
        Agreement("abcd-seed0").setup(Trainer(2, ours), None, "fit")


def test_the_same_goes_on_wherever_its_directory_is_mounted(two):
    two.append("abcd-seed0, from step-3.ckpt")
    Agreement("abcd-seed0").setup(Trainer(2, "/here/step-3.ckpt"), None, "fit")


def test_a_group_of_another_size_is_refused(two):
    """What is left of an earlier run in the same process."""
    with pytest.raises(UserError, match="is to have 4 processes, but 2 have met"):
        Agreement("abcd-seed0").setup(Trainer(4), None, "fit")


def test_every_run_has_it(tmp_path):
    parts = fit(plane(tmp_path, "steps=1"))
    (agreement,) = [c for c in parts.trainer.callbacks if isinstance(c, Agreement)]
    assert agreement.named.endswith("-seed0")
