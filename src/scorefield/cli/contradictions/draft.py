"""A run before it is built: what the checks of contradictions look at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Draft:
    """A run before it is built.

    Args:
        config: its plain values.
        parts: the same tree with objects in the place of nodes, see `scorefield.cli.rehearsal.rehearse`.
        launcher: what starts it as a job of a sweep, as Hydra's configuration has it; None for a run of its own.
    """

    config: Mapping[str, Any]
    parts: Mapping[str, Any]
    launcher: Mapping[str, Any] | None = None

    @property
    def trainer(self) -> Mapping[str, Any]:
        """The trainer's arguments."""
        trainer: Mapping[str, Any] = self.config["trainer"]
        return trainer

    @property
    def processes(self) -> int | None:
        """Number of processes on this machine; None where only Lightning can tell."""
        devices = self.trainer.get("devices", "auto")
        if isinstance(devices, list):
            return len(devices)
        if isinstance(devices, str) and devices.lstrip("-").isdigit():
            devices = int(devices)
        if devices in ("auto", -1):
            return max(1, torch.cuda.device_count()) if self.wants_gpu else None
        if isinstance(devices, str):
            return len(devices.strip(",").split(","))
        return int(devices)

    @property
    def wants_gpu(self) -> bool:
        """Whether the trainer is to run on a GPU."""
        return self.trainer.get("accelerator", "auto") in ("gpu", "cuda")
