"""Peak memory of a training step, in a process of its own.

    python -m measure.memory DEVICE BATCH OVERRIDE...

prints the peak bytes over three steps, and those in use before the model was made: on a CPU the resident bytes of the
process, on a GPU what the allocator has given out, without CUDA's own and what the allocator keeps in reserve.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

CPU = torch.device("cpu")


def resident(what: str) -> int:
    """Resident bytes of this process on Linux, now ("VmRSS") or at their most ("VmHWM").

    What getrusage calls the maximum begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(what))


def peak(batch: int, overrides: list[str], device: torch.device = CPU, threads: int = 1) -> dict[str, float]:
    """Bytes at the peak of three training steps and before, and the seconds of the fastest, freed memory given back."""
    variables = {"OMP_NUM_THREADS": str(threads), "MALLOC_TRIM_THRESHOLD_": "0"}
    return steps(batch, [*overrides, "compute.keep_memory=false"], variables, device)


def steps(batch: int, overrides: list[str], variables: dict[str, str], device: torch.device = CPU) -> dict[str, float]:
    """The same under these environment variables.

    Raises:
        torch.OutOfMemoryError: the device's memory does not hold the step.
        RuntimeError: the process failed otherwise, with the last line that it said.
    """
    environment = {**os.environ, **variables}
    command = [sys.executable, "-W", "ignore", "-m", "measure.memory", str(device), str(batch), *overrides]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"a training step of {overrides} with {batch} images failed: {said[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    if "out of memory" in found:
        raise torch.OutOfMemoryError(f"a training step of {overrides} with {batch} images does not fit {device}")
    return found


def main(arguments: list[str]) -> None:
    """Take three steps and say what they took."""
    from measure.lines import seconds
    from measure.machine import whole_products
    from measure.steps import Work

    on, size, *overrides = arguments
    device, batch = torch.device(on), int(size)
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.init()  # there is no allocator to ask before
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else resident("VmRSS")
    try:
        with whole_products():
            work = Work(overrides, batch, device)
            took = [seconds(work.step, device) for _ in range(3)]
    except torch.OutOfMemoryError:
        print(json.dumps({"out of memory": True}))
        return
    most = torch.cuda.max_memory_allocated(device) if cuda else resident("VmHWM")
    print(json.dumps({"peak": most, "before": before, "seconds": min(took), "weights": work.parameter_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1:])
