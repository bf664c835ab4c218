"""How close to the machine this is: one table of times and memory, each set against what it cannot do without.

    python experiments/speed/bench.py                          everything, more than half an hour on one core
    python experiments/speed/bench.py digits system            some of it
    python experiments/speed/bench.py --save experiments/speed/cpu
    python experiments/speed/bench.py gpu --trainer gpu --save experiments/speed/gpu

Subjects: `published` (the CIFAR-10 networks of NCSN++, DDPM++ and EDM: forward pass, training step and likelihood
evaluation under each compute setting), `memory` (of a step of theirs), `digits` (the default model against its network
calls: every sampler, training through Lightning, likelihood, guards), `switches` (what each setting changes), `system`
(starting, batches, Fréchet distance), `scale` (batch, pixels, width), `peers` (diffusers, azula and physicsnemo, where
installed, on the CPU), `gpu` (utilisation, sampling, latency and memory on one CUDA device; elsewhere a sentence says
what is missing).

Two times of a line are taken in turn, so that a busy machine slows both; the ratio is the median over the turns, with
its quartiles. The machine's limits, matrix rate and copy bandwidth, are measured in the same run. A subject that
fails ends with a line that says so, and the command with exit code 1; the others are measured.

`--trainer gpu` is for one CUDA device, and has not been run on any yet: on a CPU, with small networks, everything has
run but the CUDA calls themselves.
"""

import argparse
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is loaded, by processes that are started too
sys.path.insert(0, str(Path(__file__).parent))

import scorefield.training  # noqa: F401 (makes pytorch_lightning importable beside any build of torch)

# isort: split

import torch
from measure import digits, gpu, machine, peers, published, scale, switches, system
from measure.lines import Line, save
from rich.console import Console
from rich.table import Table

SUBJECTS = ("published", "memory", "digits", "switches", "system", "scale", "peers", "gpu")
FAILED = "failed before its end"


def told(line: Line) -> str:
    """A line as it comes."""
    what, ours, against, _, ratio = line.cells()
    measured = f"{ours}, {ratio} of {against}" if ratio else f"{ours}: {line.note}"
    return f"{line.subject}: {what}  {measured}"


def shown(lines: list[Line]) -> Table:
    """All lines for a terminal."""
    table = Table("", "measured", "set against", "", "ratio", title="speed")
    for line in lines:
        table.add_row(*line.cells())
    return table


def main() -> int:
    """Measure, print as it comes, and save where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)}; all by default")
    parser.add_argument("--trainer", default="cpu", choices=("cpu", "gpu"), help="trainer group")
    parser.add_argument("--run", type=Path, help="digits run whose weights are sampled; those of a short training else")
    parser.add_argument("--repeats", type=int, default=5, help="turns of each comparison, at least 2 (default: 5)")
    parser.add_argument("--save", type=Path, help="write the table to <SAVE>.md and <SAVE>.json")
    asked = parser.parse_args()
    unknown = sorted(set(asked.subjects) - set(SUBJECTS))
    if unknown or asked.repeats < 2:
        parser.error(f"no subject {unknown[0]!r}; there are {', '.join(SUBJECTS)}" if unknown else "--repeats >= 2")
    if asked.trainer == "gpu" and not torch.cuda.is_available():
        parser.error("--trainer gpu: torch sees no GPU here, so that nothing on one can be measured")
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    with machine.whole_products():
        lines = measured(asked, torch.device("cuda" if asked.trainer == "gpu" else "cpu"))
    console = Console()
    if console.is_terminal:
        console.print(shown(lines))
    if asked.save:
        print(f"{asked.save}.md, {asked.save}.json" if lines else f"nothing was measured, and {asked.save} not written")
    return 1 if any(line.subject == FAILED for line in lines) else 0


def measured(asked: argparse.Namespace, device: torch.device) -> list[Line]:
    """The lines of all subjects that were asked for, printed as they come, and saved."""
    known = machine.describe(device)
    for name, value in known.items():
        print(f"{name}: {value}", flush=True)
    sources: dict[str, Callable[[], Iterator[Line]]] = {
        "published": lambda: published.measure(asked.repeats, device),
        "memory": lambda: published.memory(device),
        "digits": lambda: digits.measure(asked.repeats, asked.trainer, asked.run),
        "switches": lambda: switches.measure(asked.repeats, device),
        "system": lambda: system.measure(asked.repeats, device),
        "scale": lambda: scale.measure(device),
        "peers": lambda: peers.measure(asked.repeats),
        "gpu": lambda: gpu.measure(asked.repeats, device),
    }
    lines: list[Line] = []
    for subject in asked.subjects or SUBJECTS:
        for line in to_the_end(subject, sources[subject]):
            print(told(line), flush=True)
            lines.append(line)
            if asked.save:  # each time: what has been measured is not lost with what follows
                save(asked.save.parent, asked.save.name, known, lines, "Speed")
    return lines


def to_the_end(subject: str, source: Callable[[], Iterator[Line]]) -> Iterator[Line]:
    """The lines of a subject and, where it fails, one that says so: the other subjects are measured all the same."""
    try:
        yield from source()
    except Exception as error:  # whatever it is: another library's, a process that died
        traceback.print_exc()
        yield Line.missing(FAILED, subject, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


if __name__ == "__main__":
    sys.exit(main())
