"""How a command answers what a person can mend: with one message, and a code of `scorefield.errors.Exit`."""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from scorefield.errors import Exit, NumericalError, UserError

STARTED_BY_SWEEP = "SCOREFIELD_STARTED_BY_SWEEP"  # tells a job of a sweep which process has started it

# The disk or a folder, not the program: what is full, read-only, gone or in the way.
_STORAGE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.EFBIG,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
}


@contextmanager
def answered() -> Iterator[None]:
    """End the process with a message and a code where a person can mend what went wrong; let faults through."""
    try:
        yield
    except UserError as error:
        _end(Exit.USER, str(error))
    except FileNotFoundError as error:
        if error.errno is not None:  # the system's own says nothing of what was expected
            raise
        _end(Exit.USER, str(error))
    except NumericalError as error:
        _end(Exit.NUMERICS, str(error))
    except OSError as error:
        if error.errno not in _STORAGE:
            raise
        where = f" ({error.filename})" if error.filename else ""
        _end(
            Exit.STORAGE,
            f"{error.strerror}{where}; make room or give another run_dir. Checkpoints already written are whole: the "
            "same command, or scorefield resume, goes on from the newest",
        )


def _end(code: Exit, message: str) -> None:
    print(f"scorefield: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


def end_with_the_sweep() -> None:
    """Let a job of a sweep save itself and stop, as if it had been told to, once the sweep's process is gone.

    A sweep that is killed outright cannot pass anything on, and its jobs would train on beside those of the next one.
    """
    sweep = os.environ.pop(STARTED_BY_SWEEP, None)
    if sweep is None:  # a command of its own, or a process that a job has started, which ends with the job
        return

    def watch() -> None:
        while os.getppid() == int(sweep):
            time.sleep(0.5)
        print("scorefield: the sweep that started this job is gone; it saves itself and stops", file=sys.stderr)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="watch-sweep").start()
