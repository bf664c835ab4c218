"""Peak memory of a training step, in a process of its own.

    python -m measure.memory BATCH OVERRIDE...

prints the peak resident bytes of the process over three steps, and those resident before the model was made. On a GPU
it is the allocator's peak.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch


def resident(what: str) -> int:
    """Resident bytes of this process on Linux, now ("VmRSS") or at their most ("VmHWM").

    What getrusage calls the maximum begins with that of the process that started this one.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(what))


def peak(batch: int, overrides: list[str], threads: int = 1) -> dict[str, float]:
    """Bytes at the peak of three training steps and before, and the seconds of the fastest, freed memory given back."""
    return steps(batch, overrides, {"OMP_NUM_THREADS": str(threads), "MALLOC_TRIM_THRESHOLD_": "0"})


def steps(batch: int, overrides: list[str], variables: dict[str, str]) -> dict[str, float]:
    """The same under these environment variables."""
    environment = {**os.environ, **variables}
    command = [sys.executable, "-W", "ignore", "-m", "measure.memory", str(batch), *overrides]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(arguments: list[str]) -> None:
    """Take three steps and say what they took."""
    from measure.lines import seconds
    from measure.steps import Work

    batch, *overrides = arguments
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = resident("VmRSS")
    work = Work(overrides, int(batch), device)
    took = [seconds(work.step, device) for _ in range(3)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident("VmHWM")
    print(json.dumps({"peak": peak, "before": before, "seconds": min(took), "weights": work.parameter_bytes()}))


if __name__ == "__main__":
    main(sys.argv[1:])
