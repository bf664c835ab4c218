"""Processes that train together have been started alike."""

from pathlib import Path

import pytorch_lightning as pl
import torch.distributed as dist

from scorefield.errors import UserError


class Agreement(pl.Callback):
    """Refuses, on every process and before the first step, to train processes with different configurations together.

    Whoever starts the processes by hand, on several machines or through a sweep, may give them different settings, and
    nothing else would notice: gradients are averaged all the same.

    Args:
        named: what names the run's configuration and seed.

    Raises:
        UserError: configurations, checkpoints to go on from, or the number of processes are not the same everywhere.
    """

    def __init__(self, named: str) -> None:
        self.named = named

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        together = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if together != trainer.world_size:
            raise UserError(
                f"this run is to have {trainer.world_size} processes, but {together} have met; start it in a process "
                "of its own, not after another run in the same one"
            )
        if together == 1:
            return
        start = f"from {Path(trainer.ckpt_path).name}" if trainer.ckpt_path else "from the start"
        told: list[str] = [""] * together
        dist.all_gather_object(told, f"{self.named}, {start}")
        if len(set(told)) > 1:
            each = "; ".join(f"process {rank}: {text}" for rank, text in enumerate(told))
            raise UserError(
                f"the processes of this run are not the same: {each}. Start them with the same command, and let all of "
                "them see the same run_dir"
            )
