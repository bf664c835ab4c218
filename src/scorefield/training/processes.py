"""Processes of one run end together, whichever of them dies first and whatever it dies of.

A process that waits for another in a collective operation cannot notice by itself that the other is gone: with some
backends it waits for half an hour. So the first process of a machine watches those that it has started, and each of
them watches the first. Where something else starts the processes (torchrun, srun) it watches them likewise.
"""

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch.distributed as dist
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from scorefield.errors import Exit

_STARTED_BY = "SCOREFIELD_STARTED_BY"  # tells a process who has started it, also when that one is gone already
_PERIOD = 0.5  # seconds from one look to the next
# A process whose mate has died usually fails in the same second, in the next operation that they share. It is given
# this many seconds to say so itself, with its own traceback and clean-up.
_GRACE = 5.0


class Launcher(_SubprocessScriptLauncher):
    """Starts the other processes of this machine as Lightning does, and ends with the exit code of one that fails.

    Lightning's own way is to kill the first process in silence.
    """

    def launch(self, function: Callable[..., Any], *args: Any, trainer: pl.Trainer | None = None, **kwargs: Any) -> Any:
        if self.cluster_environment.creates_processes_externally:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        os.environ[_STARTED_BY] = str(os.getpid())
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self._call_children_scripts()
        threading.Thread(target=_watch_started, args=(self.procs,), daemon=True, name="watch-processes").start()
        return super().launch(function, *args, trainer=trainer, **kwargs)  # by now they have been started


def end_together(trainer: pl.Trainer) -> None:
    """Let the processes of a run end together; to be called on each of them before they meet."""
    atexit.register(_leave)
    launcher = trainer.strategy.launcher
    if type(launcher) is _SubprocessScriptLauncher:
        trainer.strategy._launcher = Launcher(launcher.cluster_environment, launcher.num_processes, launcher.num_nodes)
    if trainer.local_rank > 0 and not any(t.name == "watch-first-process" for t in threading.enumerate()):
        first = int(os.environ.get(_STARTED_BY, os.getppid()))
        threading.Thread(target=_watch_first, args=(first,), daemon=True, name="watch-first-process").start()


def _leave() -> None:
    """Wait for the threads of the process group; Lightning sees to it with NCCL only.

    One of gloo's that wants the interpreter's lock to let go of a tensor aborts the process if the interpreter ends
    first.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _watch_started(processes: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Wait until one fails; then end all of them, and this process with the same code."""
    while not (failed := [(rank, p.returncode) for rank, p in enumerate(processes, 1) if p.poll()]):
        if all(p.returncode == 0 for p in processes):
            return
        time.sleep(_PERIOD)
    rank, code = failed[0]
    time.sleep(_GRACE)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    _say(f"process {rank} {how}; its own message is above. A run ends with the first of its processes that does")
    for process in processes:
        process.kill()
    os._exit(code if code > 0 else Exit.FAULT)


def _watch_first(first: int) -> None:
    """Wait until the process that started this one is gone; then end this one."""
    while os.getppid() == first:
        time.sleep(_PERIOD)
    time.sleep(_GRACE)
    _say(f"process {os.environ.get('LOCAL_RANK')} ends: the first one, which started it, is gone")
    os._exit(Exit.FAULT)


def _say(text: str) -> None:
    print(f"scorefield: {text}", file=sys.stderr, flush=True)
