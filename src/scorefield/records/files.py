"""Writing files so that a reader, or a run killed half-way, never finds half a file."""

import os
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file holding ``content``: the old one stands until the new one is whole.

    The bytes go to a hidden neighbour first, reach the disk, and take the name in one step (``os.replace``). Missing
    parent folders are made. Should anything fail, the old file is untouched and the neighbour is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:  # a write does not say which file it failed on
        error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)
