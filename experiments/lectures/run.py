"""Run the claims of the lectures, judge their numbers, and write one page with all of it.

    python experiments/lectures/run.py                 all claims
    python experiments/lectures/run.py L1.3 L1.5       some of them
    python experiments/lectures/run.py --jobs 2        two at a time, one thread each
    python experiments/lectures/run.py --seed 1        with other random numbers than the configurations'
    python experiments/lectures/run.py --pages         write the numbers of the configurations into the pages

Leaves verdicts.json, figures/ and index.html in the output folder. Exits with 0 if every number is met, with 1 if one
is missed, with 2 if there is no such claim.
"""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

# Networks as small as these run fastest on one thread; read when torch is loaded, by the workers too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from lecture import pages
from lecture.claims import Claim, select
from lecture.report import write_page
from lecture.verdicts import Outcome, judge, run, write_verdicts
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from scorefield.records.files import write_atomically
from scorefield.records.markup import duration, plain

OUTPUT = Path("outputs") / "lectures"


def alone(claims: Sequence[Claim], output: Path) -> Iterator[Outcome]:
    """One claim after the other, in this process."""
    torch.set_num_threads(1)
    for claim in claims:
        yield run(claim, output)


def together(claims: Sequence[Claim], output: Path, jobs: int) -> Iterator[Outcome]:
    """Several claims at a time, each in a process with one thread; outcomes come as they are ready."""
    lost = []
    with processes(jobs) as pool:
        waiting: dict[Future[Outcome], Claim] = {pool.submit(run, claim, output): claim for claim in claims}
        for future in as_completed(waiting):
            try:
                yield future.result()
            except BrokenProcessPool:
                lost.append(waiting[future])
    # When a process dies all claims that were waiting are lost, and whose fault it was is not told: each tries alone.
    for claim in lost:
        with processes(1) as pool:
            try:
                yield pool.submit(run, claim, output).result()
            except BrokenProcessPool:
                yield judge(claim, {}, 0.0, "its process was killed, or ended itself; usual cause: memory")


def processes(jobs: int) -> ProcessPoolExecutor:
    """Fresh processes of one thread each."""
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))


def line(outcome: Outcome) -> str:
    """What is told of a claim when it has run."""
    met = sum(verdict.met for verdict in outcome.verdicts)
    word = "met" if outcome.met else "MISSED"
    text = f"{outcome.claim.name:<6} {word:<7} {met}/{len(outcome.verdicts)}  {outcome.seconds:6.1f} s  "
    text += outcome.claim.title
    for verdict in outcome.verdicts:
        if not verdict.met and verdict.value is not None:
            check = verdict.check
            text += f"\n       {check.quantity}: {plain(verdict.value)}, expected {pages.expected(check)} "
            text += f"({check.tolerance})"
    if outcome.error:
        text += "\n       " + outcome.error.strip().splitlines()[-1]
    return text


def judged(claims: Sequence[Claim], output: Path, jobs: int) -> list[Outcome]:
    """Run the claims and tell of each when it is ready; the outcomes in the order of the claims."""
    outcomes = alone(claims, output) if jobs == 1 else together(claims, output, jobs)
    console, done = Console(), {}
    columns = (SpinnerColumn(), TextColumn("{task.completed} of {task.total} claims"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=len(claims))
        for outcome in outcomes:
            done[outcome.claim.name] = outcome
            progress.advance(task)
            if console.is_terminal:
                console.print(line(outcome), markup=False, highlight=False)
            else:
                print(line(outcome), flush=True)
    return [done[claim.name] for claim in claims]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("claims", nargs="*", metavar="CLAIM", help="names such as L1.3; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="how many claims run at a time (default: 1)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"folder of the results (default: {OUTPUT})")
    parser.add_argument("--pages", action="store_true", help="write the configurations' numbers into the pages, no run")
    parser.add_argument("--seed", type=int, help="seed of every claim, in the place of its configuration's")
    given = parser.parse_args(arguments)
    if given.jobs < 1:
        parser.error(f"--jobs {given.jobs} must be at least 1")
    if given.pages:
        for path, text in pages.all_pages().items():
            write_atomically(path, text.encode())
        return 0
    try:
        claims = select(given.claims)
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    if given.seed is not None:
        claims = [claim.seeded(given.seed) for claim in claims]
    begun = time.perf_counter()
    outcomes = judged(claims, given.output, given.jobs)
    seconds = time.perf_counter() - begun
    write_verdicts(outcomes, given.output / "verdicts.json")
    page = write_page(outcomes, seconds, given.output)
    missed = [outcome.claim.name for outcome in outcomes if not outcome.met]
    verdict = f"missed: {', '.join(missed)}" if missed else f"all {len(outcomes)} claims met"
    print(f"{verdict}; {duration(seconds)} in all; see {page}")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
