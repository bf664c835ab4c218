"""A tiny run of two processes of which the first ends while it still waits for the other; run as a module."""

import atexit
from ctypes import PyDLL

# Registered first, this comes last before the interpreter ends: one second in which no other thread gets its lock.
atexit.register(PyDLL(None).usleep, 1_000_000)

import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from torch import distributed  # noqa: E402

from scorefield.torchvision_ops import declare_missing_operators  # noqa: E402

declare_missing_operators()

from tests.training.tiny import fit, plane  # noqa: E402

if __name__ == "__main__":
    torch.set_num_threads(1)
    fit(plane(Path(sys.argv[1]), "trainer=ddp_cpu", "callbacks.likelihood=null", "steps=1"))
    shared = torch.ones(1)
    if distributed.get_rank() == 1:
        time.sleep(0.5)
    distributed.all_reduce(shared, async_op=distributed.get_rank() == 0)
