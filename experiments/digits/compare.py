"""Five processes from data to noise on the digits, under the same budget, each sampled in three ways.

    python experiments/digits/compare.py                  train, evaluate, write README.md, results.json and samples.png
    python experiments/digits/compare.py --seeds 0 1 2    with several trainings of each
    python experiments/digits/compare.py --steps 1400     with as many steps as the experiments themselves

Network, optimiser and batch are those of conf/experiment/digits*.yaml and the same for all, as is the number of steps;
schedule, parametrisation, law of times and weight are each method's own. Stopped and started again it goes on.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from scorefield.records.files import write_atomically
from scorefield.records.rundir import RunDir
from scorefield.records.style import INK, sheet

HERE = Path(__file__).parent
PROCESSES = {
    "VE": "digits_ve",
    "VP": "digits_vp",
    "sub-VP": "digits_subvp",
    "EDM": "digits_edm",
    "flow matching": "digits_flow_matching",
}
SAMPLERS = {
    "predictor-corrector": ["sampler=pc", "sampler.steps=100"],
    "probability flow": ["sampler=flow"],
    "DPM-Solver++ 2M": ["sampler=dpmpp_2m"],
}
# EDM's time is the level itself, of which equal steps would leave nothing for the small levels; VE's is its logarithm.
OTHERWISE = {("EDM", "predictor-corrector"): ["grid@sampler.grid=log_ratio"]}
SAMPLES = 500
STEPS = 600  # the experiments themselves take 1400


def scorefield(*arguments: str) -> str:
    """One command of scorefield, and what it printed, which is passed on as it comes."""
    print("scorefield", *arguments, flush=True)
    command = [sys.executable, "-m", "scorefield.cli.main", *arguments]
    said = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            said.append(line)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return "".join(said)


def evaluation(run: RunDir, seed: int, arguments: Sequence[str]) -> RunDir:
    """The run's evaluation with a sampler, made unless it is there."""
    mark = run.path / "comparison.json"
    known: dict[str, str] = json.loads(mark.read_text()) if mark.is_file() else {}
    key = " ".join(arguments)
    if key not in known or not RunDir(Path(known[key])).result.is_file():
        said = scorefield("evaluate", f"run_dir={run.path}", f"seed={seed}", f"n={SAMPLES}", *arguments)
        known[key] = str(Path(said[said.rindex("report: ") :].removeprefix("report: ").strip()).parent)
        write_atomically(mark, json.dumps(known, indent=2).encode())
    return RunDir(Path(known[key]))


def measure(output: Path, seed: int, steps: int) -> list[dict[str, Any]]:
    """Train and evaluate all with one seed; a row for each process and sampler."""
    rows = []
    for process, experiment in PROCESSES.items():
        run = RunDir(output / f"{experiment}-{steps}-seed{seed}")
        if not run.result.is_file():
            budget = [f"steps={steps}", f"trainer.val_check_interval={steps}", "sampler=dpmpp_2m"]
            budget += [f"callbacks.quality.n_final={SAMPLES}", f"callbacks.checkpoint.every={steps}"]
            scorefield("train", f"experiment={experiment}", *budget, f"seed={seed}", f"run_dir={run.path}")
        own = json.loads(run.result.read_text())
        for sampler, arguments in SAMPLERS.items():
            made = evaluation(run, seed, [*arguments, *OTHERWISE.get((process, sampler), [])])
            distance = json.loads(made.result.read_text())["metrics"]["fd_digits"]
            bits = own["metrics"]["bits_per_dim"]
            rows.append(
                {
                    "process": process,
                    "sampler": sampler,
                    "seed": seed,
                    "fd_digits": distance,
                    "bits_per_dim": bits,
                    "train_seconds": own["cost"]["train_seconds"],
                    "commands": [own["command"], json.loads(made.result.read_text())["command"]],
                    "samples": str(made.final_samples),
                }
            )
    return rows


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and with several seeds the standard deviation behind it."""
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def page(rows: Sequence[dict[str, Any]]) -> str:
    """The table, with each number's protocol below it."""
    seeds = sorted({row["seed"] for row in rows})
    first = rows[0]
    lines = [
        "<!-- written by `python experiments/digits/compare.py` -->",
        "# Five processes on the digits, one budget",
        "",
        "![Samples: a row for each process, a column for each sampler](samples.png)",
        "",
        f"Network, optimiser, {first['fd_digits']['step']} steps and batch are the same for all. Seeds: "
        f"{', '.join(map(str, seeds))}" + (", mean ± standard deviation." if len(seeds) > 1 else "."),
        "",
        "| process | bits/dim | " + " | ".join(f"{s}: fd_digits | calls" for s in SAMPLERS) + " |",
        "|---|---|" + "---|---|" * len(SAMPLERS),
    ]
    for process in PROCESSES:
        own = [row for row in rows if row["process"] == process]
        bits = spread([row["bits_per_dim"]["value"] for row in own if row["sampler"] == next(iter(SAMPLERS))], 3)
        cells = []
        for sampler in SAMPLERS:
            found = [row["fd_digits"] for row in own if row["sampler"] == sampler]
            calls = sum(f["nfe"] for f in found) / len(found)
            cells += [spread([f["value"] for f in found], 3), f"{calls:.0f}"]
        lines.append(f"| {process} | {bits} | " + " | ".join(cells) + " |")
    distance, bits = first["fd_digits"], first["bits_per_dim"]
    lines += [
        "",
        f"`fd_digits`: Fréchet distance of {distance['n']} samples to the {distance['n_reference']} training images in "
        f"the digits' features, {distance['weights']} weights; the test split's own is {distance['floor']:.3f}. "
        f"bits/dim: probability flow, {bits['n']} test images, `{bits['dequantisation']}`, `{bits['flow']}`. "
        "[docs/protocols.md](../../docs/protocols.md) says how each is computed; `results.json` has every protocol and "
        "command.",
        "",
        "Predictor-corrector has the signal-to-noise ratio that was published for VE, 0.16, on all processes, and "
        "steps that are equal in time; for EDM, whose time is the level, in the level's logarithm. The "
        "probability flow solves to a tolerance of 1e-3; its calls are the mean over samples.",
    ]
    return "\n".join(lines) + "\n"


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """The grids of the first seed, processes downwards and samplers across."""
    seed = min(row["seed"] for row in rows)
    shown = {(row["process"], row["sampler"]): row["samples"] for row in rows if row["seed"] == seed}
    with sheet(path, panels=len(shown), width=2.6, height=2.8, rows=len(PROCESSES)) as (_, panels):
        cells = ((process, sampler) for process in PROCESSES for sampler in SAMPLERS)
        for axes, (process, sampler) in zip(panels, cells, strict=True):
            axes.imshow(Image.open(shown[process, sampler]), cmap="gray", interpolation="nearest")
            axes.set_title(f"{process}, {sampler}", fontsize=8, color=INK)
            axes.set_axis_off()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one training of each process for each seed")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimiser steps of each (default: {STEPS})")
    parser.add_argument("--output", type=Path, default=Path("outputs") / "comparison", help="folder of the runs")
    parser.add_argument("--pages", type=Path, default=HERE, help="folder of README.md, results.json and samples.png")
    given = parser.parse_args(arguments)
    if min(given.seeds) < 0 or len(set(given.seeds)) < len(given.seeds):
        parser.error(f"--seeds {given.seeds} must be different numbers of at least 0")
    if given.steps < 1:
        parser.error(f"--steps {given.steps} must be at least 1")
    try:
        rows = [row for seed in given.seeds for row in measure(given.output, seed, given.steps)]
    except subprocess.CalledProcessError as error:
        print(f"stopped: the command above ended with {error.returncode}; the same command again goes on from there")
        return error.returncode
    given.pages.mkdir(parents=True, exist_ok=True)
    draw(rows, given.pages / "samples.png")
    kept = [{key: value for key, value in row.items() if key != "samples"} for row in rows]
    write_atomically(given.pages / "results.json", (json.dumps(kept, indent=1) + "\n").encode())
    write_atomically(given.pages / "README.md", page(rows).encode())
    print(given.pages / "README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
