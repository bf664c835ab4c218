"""scorefield resume RUN_DIR: go on with an interrupted run, exactly as it was configured."""

import argparse
from pathlib import Path

from scorefield.cli.app import refuse
from scorefield.cli.exits import answered
from scorefield.cli.runs import relocated, stored_config
from scorefield.cli.train import execute, finished
from scorefield.records.rundir import RunDir


def main() -> None:
    """Read the stored configuration and run it from the newest checkpoint to the end."""
    parser = argparse.ArgumentParser(prog="scorefield resume", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="directory of the run")
    run_dir = RunDir(parser.parse_args().run_dir)
    with answered():
        config = stored_config(run_dir)
        if run_dir.result.exists():
            finished(run_dir)
            return
        refuse(config, "train", str(run_dir.config))
        # The directory may have been moved since; what matters is where it is now.
        execute(relocated(config, str(run_dir.path)), run_dir)


if __name__ == "__main__":
    main()
