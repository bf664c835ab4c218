"""A run with checkpoints, and commands run in this process: what tests of its files have in common."""

import sys

from scorefield.errors import Exit
from tests.training.tiny import plane

TINY = ["callbacks.likelihood=null", "callbacks.samples=null", "callbacks.loss_by_noise=null", "optim=adam", "steps=6"]
SAVING = ["callbacks.checkpoint.every=2", "callbacks.checkpoint.keep=3", "trainer.val_check_interval=6"]


def tiny(run_dir, *overrides):
    return plane(run_dir, *TINY, *SAVING, *overrides)


def command(module, monkeypatch, *arguments):
    """A command's exit code, run in this process."""
    monkeypatch.setattr(sys, "argv", ["scorefield", *map(str, arguments)])
    try:
        module.main()
    except SystemExit as ended:
        return ended.code
    return Exit.FINISHED
