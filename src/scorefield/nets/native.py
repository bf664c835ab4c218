"""C beside the Python, compiled for this machine at its first use in a process, which takes about a second."""

import ctypes
import functools
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch


class NoCompilerError(RuntimeError):
    """There is no C compiler, or it refuses, or what it makes cannot be run."""


@functools.cache
def library(source: Path, *definitions: str) -> ctypes.CDLL:
    """The functions of a C file, compiled by ``$CC``, or ``cc``, for the processor of this machine.

    Each process compiles for itself, so that nothing is kept that another machine or version would find.

    Args:
        source: the file.
        definitions: of its macros, as ``NAME=VALUE``.

    Raises:
        NoCompilerError: with what there is to do.
    """
    compiler = shlex.split(os.environ.get("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        raise NoCompilerError(
            f"no C compiler {compiler[0]!r} was found; install one (gcc or clang), or name it in the variable CC"
        )
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, f"{source.stem}.so")
        flags = ["-O3", "-march=native", "-shared", "-fPIC", *(f"-D{d}" for d in definitions)]
        done = subprocess.run([*compiler, *flags, str(source), "-o", str(built)], capture_output=True, text=True)
        if done.returncode:
            told = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise NoCompilerError(f"{compiler[0]} cannot compile {source.name}: {told[0]}; name another compiler in CC")
        try:
            return ctypes.CDLL(str(built))
        except OSError as error:
            raise NoCompilerError(
                f"what {compiler[0]} made of {source.name} cannot be loaded: {error}; if programs may not be run from "
                f"{folder}, name another folder in TMPDIR"
            ) from None


@functools.cache
def _workers(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


def in_threads(part: Callable[[int, int], None], rows: int) -> None:
    """Call part(first, last) for ranges that make up so many rows, in as many threads as torch has."""
    threads = torch.get_num_threads()
    if threads == 1 or rows == 1:
        return part(0, rows)
    step = -(-rows // threads)
    for _ in _workers(threads).map(part, range(0, rows, step), [*range(step, rows, step), rows]):
        pass
    return None
