"""scorefield resume DIR: go on with an interrupted run, or sweep, exactly as it was configured."""

import argparse
import logging
import os
import sys
from pathlib import Path
from typing import NoReturn

from scorefield.cli.app import refuse
from scorefield.cli.exits import answered
from scorefield.cli.launcher import quoted
from scorefield.cli.sweep import RECORD, Sweep
from scorefield.cli.sweep_checks import refuse_foreign
from scorefield.records.rundir import RunDir


def main() -> None:
    """Read the stored configuration and run it from the newest checkpoint to the end."""
    parser = argparse.ArgumentParser(prog="scorefield resume", description=__doc__)
    parser.add_argument("run_dir", type=Path, metavar="DIR", help="directory of the run or sweep")
    run_dir = RunDir(parser.parse_args().run_dir)
    with answered():
        if (run_dir.path / RECORD).exists():
            resume_sweep(run_dir.path)
        from scorefield.cli.runs import relocated, stored_config  # slow: they load torch and Lightning
        from scorefield.cli.train import execute, finished

        logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)  # no banner, as in the command that began
        config = stored_config(run_dir)
        if run_dir.result.exists():
            finished(run_dir)
            return
        refuse(config, "train", str(run_dir.config))
        # The directory may have been moved since; what matters is where it is now.
        execute(relocated(config, str(run_dir.path)), run_dir)


def resume_sweep(path: Path) -> NoReturn:
    """Become the command that started a sweep; it passes over the jobs that are finished."""
    sweep = Sweep.read(path)
    words = [word for word in sweep.command[1:] if not word.startswith("hydra.sweep.dir=")]
    refuse_foreign(path / RECORD, words)
    place = f"hydra.sweep.dir={quoted(str(path))}"  # it may have been moved since
    os.execv(sys.executable, [sys.executable, "-m", "scorefield.cli.main", *words, place])


if __name__ == "__main__":
    main()
