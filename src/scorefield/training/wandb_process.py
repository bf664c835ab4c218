"""The process that talks to Weights & Biases for a run; a script, started by `scorefield.training.loggers.WandbLogger`.

Whatever the package or its server does, waiting, dying or holding the interpreter's lock, happens here and cannot stop
or slow the run. Commands arrive on standard input, one JSON list [kind, content] a line; they are read at once and
carried out in their order. When the input ends, the rest may take ``timeout`` more seconds.
"""

import json
import os
import signal
import sys
import threading
from queue import SimpleQueue
from typing import Any

PHASES = ("train", "validation", "final")

Command = tuple[str, Any]


class Mirror:
    """A W&B run and what can be done with it."""

    def __init__(self) -> None:
        self._run: Any = None
        self._pictures = set[str]()

    def start(self, options: dict[str, Any]) -> None:
        import wandb

        mode: Any = os.environ.get("WANDB_MODE") or ("online" if wandb.api.api_key else "offline")
        settings = wandb.Settings(init_timeout=options.pop("timeout"), silent=True, console="off")
        self._run = wandb.init(mode=mode, resume="allow" if mode == "online" else None, settings=settings, **options)
        self._run.define_metric("images")
        for phase in PHASES:
            self._run.define_metric(f"{phase}/*", step_metric="images")
        _say(f"W&B: {mode} run {options['id']}")

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(row)

    def picture(self, content: dict[str, Any]) -> None:
        import wandb

        name = content["name"]
        if name not in self._pictures:
            self._pictures.add(name)
            self._run.define_metric(name, step_metric="images")
        self._run.log({name: wandb.Image(content["path"]), "step": content["step"], "images": content["images"]})

    def summary(self, values: dict[str, float]) -> None:
        self._run.summary.update(values)

    def finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _say(text: str) -> None:
    print(f"scorefield: {text}", file=sys.stderr, flush=True)


def _read(commands: "SimpleQueue[Command | None]") -> None:
    """Take in every command as soon as it comes, so that whoever sends it never waits."""
    timeout = 0.0
    ended = False
    for line in sys.stdin:
        kind, content = json.loads(line)
        timeout = content["timeout"] if kind == "start" else timeout
        ended = ended or kind == "finish"
        commands.put((kind, content))
    if not ended:  # the run was killed
        commands.put(("finish", 1))
    commands.put(None)
    last = threading.Timer(timeout, os._exit, (1,))
    last.daemon = True
    last.start()


def main() -> None:
    """Carry out what comes; on the first failure say so and end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the run, which tells this process what to do
    commands: SimpleQueue[Command | None] = SimpleQueue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    mirror = Mirror()
    while (command := commands.get()) is not None:
        kind, content = command
        try:
            getattr(mirror, kind)(content)
        except BaseException as error:  # whatever it is, the run goes on
            _say(f"W&B failed to {kind} ({type(error).__name__}: {error}); the run goes on without it")
            os._exit(1)  # the package's own way out waits for its server


if __name__ == "__main__":
    main()
