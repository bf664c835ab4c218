"""Where commands write what they make: a folder that is sure to be there, files that are whole."""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from scorefield.errors import UserError
from scorefield.records.files import write_atomically


def unused(path: str | Path, file: str, what: str) -> Path:
    """A folder in which there is no such file yet.

    Raises:
        UserError: it is there.
    """
    if (Path(path) / file).exists():
        raise UserError(f"{path} already holds {what}; give another out")
    return Path(path)


@contextmanager
def writing_to(out: Path) -> Iterator[None]:
    """A folder that can be written to, made before anything is computed; it goes again if nothing comes of it.

    Raises:
        UserError: it cannot be made, or not be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UserError(f"out={out} is no folder that can be written to: {error.strerror}; give another out") from None
    try:
        yield
    except BaseException:
        with suppress(OSError):
            out.rmdir()  # an empty one alone
        raise


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())
