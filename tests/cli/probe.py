"""What each process of a job of a sweep was started with."""

import json
import os
import sys
from pathlib import Path

import pytorch_lightning as pl


class Probe(pl.Callback):
    """Writes a process's command line and what its configuration comes to.

    Args:
        folder: where to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_start(self, trainer, pl_module) -> None:
        from scorefield.cli.compose import jobs
        from scorefield.cli.runs import fingerprint

        (composed,) = jobs("train", [word for word in sys.argv[1:] if not word.startswith("hydra.")])
        told = {
            "fingerprint": fingerprint(composed.values),
            "seed": composed.values["seed"],
            "run_dir": composed.values["run_dir"],
            "rank": trainer.global_rank,
            "threads": os.environ.get("OMP_NUM_THREADS"),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{trainer.global_rank}-{os.getpid()}.json").write_text(json.dumps(told))
