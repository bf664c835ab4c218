"""Kill runs at random moments, resume them, and compare them bit for bit with the run that was never killed.

    python experiments/stress/stress.py --kills 50 --pairs 20

Every trial starts the same short digits run, kills all its processes with SIGKILL after a time drawn over the whole
run (training, validation, saving and the final evaluation), resumes it until it ends, and compares weights, averaged
weights, optimiser state, every journal line (but for the clock), every final metric and the final samples. ``--pairs``
of the trials run on two processes. Exits with 1 if any trial differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.progress import track

from scorefield.records.rundir import RunDir

# A network and evaluations that take seconds, with a checkpoint every 5 steps, half of them at a validation.
SETTINGS = (
    "steps=40",
    "net.channels=8",
    "data.batch_size=32",
    "trainer.val_check_interval=10",
    "callbacks.checkpoint.every=5",
    "callbacks.log.every=7",
    "callbacks.quality.n=20",
    "callbacks.quality.n_final=40",
    "callbacks.likelihood.n=2",
    "callbacks.likelihood.n_final=4",
    "callbacks.likelihood.n_check=0",
    "+callbacks.samples.n=8",
    "+callbacks.loss_by_noise.n=8",
    "likelihood.solver.rtol=1e-2",
    "likelihood.solver.atol=1e-2",
    "sampler.steps=5",
)
CLOCK = {"time", "steps_per_second"}


def command(run_dir: Path, processes: int, seed: int) -> list[str]:
    """The run under test."""
    trainer = ["trainer=ddp_cpu"] if processes == 2 else []
    return [sys.executable, "-m", "scorefield.cli.train", f"run_dir={run_dir}", f"seed={seed}", *trainer, *SETTINGS]


def start(arguments: list[str], log: Path) -> "subprocess.Popen[bytes]":
    """A process group of its own, so that all of the run's processes can be killed at once."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("ab") as out:
        return subprocess.Popen(
            arguments, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True, env=environment
        )


def finish(arguments: list[str], log: Path) -> None:
    """Run to the end; a failure shows the log."""
    if start(arguments, log).wait(timeout=600) != 0:
        sys.exit(f"the run failed; its log {log}:\n{log.read_text()[-3000:]}")


def killed(arguments: list[str], log: Path, after: float) -> bool:
    """Start and kill after so many seconds; False if the run had ended before."""
    process = start(arguments, log)
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return True


def outcome(path: Path) -> dict[str, Any]:
    """Everything that must be equal."""
    run = RunDir(path)
    checkpoint = torch.load(run.checkpoints()[-1], map_location="cpu", weights_only=True)
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    result = json.loads(run.result.read_text())
    return {
        "weights": checkpoint["state_dict"],
        "average": checkpoint["ema"],
        "optimiser": checkpoint["optimizer_states"],
        "learning rate": checkpoint["lr_schedulers"],
        "step": checkpoint["global_step"],
        "journal": [{k: v for k, v in line.items() if k not in CLOCK} for line in lines],
        "metrics": {
            name: {k: v for k, v in fields.items() if k != "seconds"} for name, fields in result["metrics"].items()
        },
        "samples": run.final_samples.read_bytes(),
        "grids": {grid.name: grid.read_bytes() for grid in run.sample_grids()},
    }


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """The first place where two outcomes differ, or None; tensors are compared bit for bit."""
    if isinstance(a, torch.Tensor):
        return None if torch.equal(a, b) else where
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{where}/{k}")) is not None), None)
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{where}: {len(a)} against {len(b)} entries"
        pairs = enumerate(zip(a, b, strict=True))
        return next((d for i, (x, y) in pairs if (d := difference(x, y, f"{where}/{i}")) is not None), None)
    return None if a == b else f"{where}: {a!r:.80} against {b!r:.80}"


def trial(folder: Path, processes: int, reference: dict[str, Any], length: float, rng: random.Random) -> str | None:
    """Kill once, at a time after the run's directory was made, and sometimes a second time; resume; compare."""
    run_dir, log = folder / "run", folder / "log.txt"
    folder.mkdir(parents=True)
    first = killed(command(run_dir, processes, 0), log, rng.uniform(0.25, 1.0) * length)
    if first and rng.random() < 0.3:
        killed(again(run_dir, processes), log, rng.uniform(0.4, 1.0) * length)
    finish(again(run_dir, processes), log)
    return difference(reference, outcome(run_dir))


def again(run_dir: Path, processes: int) -> list[str]:
    """Resume, or start anew where the run was killed before it had written its configuration."""
    if RunDir(run_dir).config.exists():
        return [sys.executable, "-m", "scorefield.cli.resume", str(run_dir)]
    return command(run_dir, processes, 0)


def main() -> None:
    """Run all trials and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of trials")
    parser.add_argument("--pairs", type=int, default=20, help="how many of them run on two processes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of death")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in; a temporary one by default")
    arguments = parser.parse_args()
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="scorefield-stress-"))
    rng, failures = random.Random(arguments.seed), []
    references = {}
    for processes in (1, 2) if arguments.pairs else (1,):
        begun = time.monotonic()
        path = folder / f"reference-{processes}"
        path.mkdir(parents=True)
        finish(command(path / "run", processes, 0), path / "log.txt")
        references[processes] = (outcome(path / "run"), time.monotonic() - begun)
        print(f"reference on {processes} process(es): {references[processes][1]:.1f} s", flush=True)
    for i in track(range(arguments.kills), description="kills"):
        processes = 2 if i < arguments.pairs else 1
        found = trial(folder / f"trial-{i:03d}", processes, *references[processes], rng)
        if found is not None:
            failures.append(i)
            print(f"trial {i} on {processes} process(es) differs at {found}", flush=True)
    equal = arguments.kills - len(failures)
    print(f"{equal} of {arguments.kills} resumed runs are equal bit for bit; runs in {folder}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
