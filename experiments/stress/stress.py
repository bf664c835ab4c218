"""Kill runs at random moments, resume them, and compare them bit for bit with the run that was never killed.

    python experiments/stress/stress.py --kills 50 --pairs 20 --aimed 12

Every trial starts the same short digits run, kills all its processes with SIGKILL after a time drawn over the whole
run (start-up, training, validation, saving and the final evaluation), resumes it until it ends, and compares weights,
averaged weights, optimiser state, every journal line (but for the clock), every final metric and the final samples.
``--pairs`` of the trials run on two processes. Saving takes a small part of the time and is rarely hit by chance, so
``--aimed`` more trials wait for a save, a validation or the final evaluation and kill in it, in turn. Exits with 1 if
any trial differs.

Runs are forked from this process, which has imported everything already: start-up would else be most of the time, and
most of the kills.
"""

import argparse
import atexit
import json
import os
import random
import runpy
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

import scorefield.cli.resume
import scorefield.cli.train  # noqa: F401 (both for the runs that are forked from here)
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
AIMS = (("saving", 0.02), ("validation", 0.3), ("final evaluation", 0.5))  # and the longest wait in it, in seconds
ROOT = Path(__file__).parents[2]


def command(run_dir: Path, processes: int) -> list[str]:
    """The run under test."""
    trainer = ["trainer=ddp_cpu"] if processes == 2 else []
    phase = [
        "+callbacks.phase._target_=experiments.stress.phases.Phase",
        f"+callbacks.phase.path={run_dir.parent / 'phase.txt'}",
    ]
    return ["scorefield.cli.train", f"run_dir={run_dir}", *trainer, *SETTINGS, *phase]


class Run:
    """A command in a process group of its own, so that all of the run's processes can be killed at once.

    Args:
        arguments: the command's module and its arguments.
        log: file that takes what it says.
    """

    def __init__(self, arguments: list[str], log: Path) -> None:
        sys.stdout.flush()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_carry_out(arguments, log))

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it has not ended after so many seconds."""
        end = time.monotonic() + seconds
        while self.code is None and self._ask() is None and time.monotonic() < end:
            time.sleep(0.0005)
        return self.code

    def _ask(self, options: int = os.WNOHANG) -> int | None:
        pid, status = os.waitpid(self.pid, options)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self) -> None:
        """Kill all of its processes."""
        os.killpg(self.pid, signal.SIGKILL)
        self._ask(0)


def _carry_out(arguments: list[str], log: Path) -> int:
    """Be the command, from its process group to its exit code."""
    os.setsid()
    with log.open("ab") as out, open(os.devnull, "rb") as nothing:
        for mine, theirs in ((0, nothing), (1, out), (2, out)):
            os.dup2(theirs.fileno(), mine)
    sys.argv = arguments
    try:
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        code: Any = 0
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code)


def finish(arguments: list[str], log: Path) -> None:
    """Run to the end; a failure shows the log."""
    run = Run(arguments, log)
    if run.wait(600) != 0:
        if run.code is None:
            run.kill()
        sys.exit(f"the run ended with {run.code}; its log {log}:\n{log.read_text()[-3000:]}")


def phase_of(folder: Path) -> str:
    """What the run in a trial's folder is doing."""
    file = folder / "phase.txt"
    phase = file.read_text() if file.exists() else ""
    return phase or "start-up"


def killed(arguments: list[str], folder: Path, after: float, aim: str | None = None) -> str | None:
    """Start and kill; where it was when it died, or None if the run had ended before.

    Args:
        arguments: the command line.
        folder: the trial's.
        after: seconds from the start, or from the beginning of the phase that is aimed at.
        aim: phase to wait for.
    """
    (folder / "phase.txt").unlink(missing_ok=True)
    run = Run(arguments, folder / "log.txt")
    while aim and run.wait(0.0005) is None and phase_of(folder) != aim:
        pass
    if run.wait(after) is not None:
        return None
    run.kill()
    half = any((folder / "run" / "checkpoints").glob("*.tmp"))
    return "saving, half a file left" if half else phase_of(folder)


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


def trial(
    folder: Path,
    processes: int,
    reference: dict[str, Any],
    length: float,
    rng: random.Random,
    aim: tuple[str, float] | None,
) -> tuple[list[str], str | None]:
    """Kill once, and sometimes a second time; resume; compare. Where it died, and the first difference."""
    run_dir = folder / "run"
    folder.mkdir(parents=True)
    phase, longest = aim or (None, length)
    places = [killed(command(run_dir, processes), folder, rng.uniform(0.0, longest), phase)]
    if places[0] and rng.random() < 0.3:
        places.append(killed(again(run_dir, processes), folder, rng.uniform(0.0, length)))
    if not RunDir(run_dir).result.exists():
        finish(again(run_dir, processes), folder / "log.txt")
    return [place for place in places if place], difference(reference, outcome(run_dir))


def again(run_dir: Path, processes: int) -> list[str]:
    """Resume, or start anew where the run was killed before it had written its configuration."""
    if RunDir(run_dir).config.exists():
        return ["scorefield.cli.resume", str(run_dir)]
    return command(run_dir, processes)


def main() -> None:
    """Run all trials and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="number of trials at random times")
    parser.add_argument("--pairs", type=int, default=20, help="how many of them run on two processes")
    parser.add_argument(
        "--aimed", type=int, default=12, help="number of further trials, aimed at saves and validations"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of death")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in; a temporary one by default")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "SCOREFIELD_PLUGINS": "experiments.stress"}
    torch.set_num_threads(1)
    folder = arguments.keep or Path(tempfile.mkdtemp(prefix="scorefield-stress-"))
    rng, failures = random.Random(arguments.seed), []
    references, places = {}, Counter[str]()
    for processes in (1, 2) if arguments.pairs else (1,):
        path = folder / f"reference-{processes}"
        path.mkdir(parents=True)
        begun = time.monotonic()
        finish(command(path / "run", processes), path / "log.txt")
        references[processes] = (outcome(path / "run"), time.monotonic() - begun)
        print(f"reference on {processes} process(es): {references[processes][1]:.1f} s", flush=True)
    number = arguments.kills + arguments.aimed
    for i in range(number):
        aimed = i - arguments.kills
        aim = None if aimed < 0 else AIMS[aimed % len(AIMS)]
        processes = 2 if i < arguments.pairs or (aimed >= 0 and 2 in references and aimed // len(AIMS) % 2) else 1
        died, found = trial(folder / f"trial-{i:03d}", processes, *references[processes], rng, aim)
        places.update(died)
        print(f"trial {i}, {processes} process(es): {', then '.join(died) or 'ended before'}", flush=True)
        if found is not None:
            failures.append(i)
            print(f"trial {i} differs at {found}", flush=True)
    print(
        f"{places.total()} kills in {number} trials: {', '.join(f'{n} in {what}' for what, n in places.most_common())}"
    )
    print(f"{number - len(failures)} of {number} resumed runs are equal bit for bit; runs in {folder}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
