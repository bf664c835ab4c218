"""How Lightning's trainer writes and reads a checkpoint file in a run."""

import io
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins.io import CheckpointIO

from scorefield.records.checkpoints import read_checkpoint


class RunCheckpointIO(CheckpointIO):
    """Reads through `read_checkpoint`; writes plainly, and a failure to write is an ``OSError`` with the file's name.

    Lightning's own writer takes a detour through the system's folder for temporary files and keeps silent about a
    folder that it may not write to.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        buffer = io.BytesIO()  # torch's writer, given a file, reports a full disk as a RuntimeError
        torch.save(checkpoint, buffer)
        try:
            Path(path).write_bytes(buffer.getbuffer())
        except OSError as error:
            error.filename = str(path)
            raise

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
