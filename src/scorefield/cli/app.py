"""What every command has in common: where conf/ is, and how a user's mistake is answered."""

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
from omegaconf import DictConfig

from scorefield.cli.runs import UserError

PACKAGE = Path(__file__).parents[1]


def conf_dir() -> str:
    """The configuration folder: beside src/ in a checkout, inside the package once installed."""
    packaged = PACKAGE / "conf"
    return str(packaged if packaged.is_dir() else PACKAGE.parents[1] / "conf")


def run_app(config_name: str, action: Callable[[DictConfig], None]) -> None:
    """Compose ``config_name`` with the command line's overrides and act on it.

    A `UserError` ends the process with its message and code 2, without a traceback.
    """

    def guarded(config: DictConfig) -> None:
        try:
            action(config)
        except UserError as error:
            print(f"scorefield: {error}", file=sys.stderr)
            sys.exit(2)

    hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(guarded)()
