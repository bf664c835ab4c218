"""Make tables of papers: train what they need, sample it as they say, and set it beside what was published.

    python experiments/paper_tables/run.py                                    all tables at scale=small
    python experiments/paper_tables/run.py score_sde_table1                   one table
    python experiments/paper_tables/run.py score_sde_table1:ve_ancestral_p50  one row
    python experiments/paper_tables/run.py ncsn_table1 --scale paper          with the authors' settings, for GPUs
    python experiments/paper_tables/run.py ncsn_table1 --print                only show the commands
    python experiments/paper_tables/run.py --jobs 2                           two runs at a time, one thread each
    python experiments/paper_tables/run.py --render                           write the pages from the records
    python experiments/paper_tables/run.py --check                            compare the runs here with the records

Each distinct model is trained once, whichever tables need it, in outputs/paper_tables/<scale>/. Finished runs are
compared with their configuration and used again, so the same command goes on where it was interrupted. Leaves
records.<scale>.json, table.md and table.png in each table's folder. Exits with 0 if everything has run, whether or not
a table says what the paper says; with 1 if something failed or --check found a change; with 2 if there is no such
table.
"""

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

# Networks as small as these run fastest on one thread; read when torch is loaded, by the workers too.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

from paper_table import pages, records, render
from paper_table.jobs import OUTPUTS, Done, Job, jobs, run
from paper_table.tables import SCALES, Plan, Row, Table, everything, read_plan, select
from paper_table.verdicts import tally
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from scorefield.records.markup import duration

Chosen = Mapping[str, Sequence[Row]]


def chains(chosen: Chosen, scale: str, seeds: Sequence[int], plan: Plan, outputs: Path) -> list[list[Job]]:
    """The jobs of all rows, those on one run in one chain, the first seed of everything first."""
    by_run: dict[Path, list[Job]] = {}
    for seed in seeds:
        for rows in chosen.values():
            for row in rows:
                for job in jobs(row, scale, seed, plan, outputs):
                    chain = by_run.setdefault(job.run_dir, [])
                    if job not in chain:
                        chain.append(job)
    return list(by_run.values())


def show(chosen: Chosen, scale: str, seeds: Sequence[int], plan: Plan, outputs: Path) -> None:
    """Print the commands of all rows, each once."""
    shown = set()
    for name, rows in chosen.items():
        for row in rows:
            print(f"# {name}:{row.key}  {row.name(scale)}  scale={scale}")
            made = [job for seed in seeds for job in jobs(row, scale, seed, plan, outputs)]
            for job in made:
                print(job.line if job.line not in shown else f"# as above: {job.line}")
                shown.add(job.line)
            if not made:
                print(f"# not made: {row.missing[scale]}")


def told(done: Done) -> str:
    """One line about a job."""
    name = f"{done.job.run_dir.name}{'' if done.job.program == 'train' else ' ' + ' '.join(done.job.overrides)}"
    if done.error:
        return f"FAILED  {name}\n        " + done.error.replace("\n", "\n        ")
    return f"{'there' if done.seconds is None else duration(done.seconds):<8}{name}"


def execute(todo: Sequence[Sequence[Job]], side_by_side: int) -> list[Done]:
    """Run what has not been run; returns what failed."""
    console, failed = Console(), []
    total = sum(len(chain) for chain in todo)
    columns = (SpinnerColumn(), TextColumn("{task.completed} of {task.total} commands"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        for done in run(todo, side_by_side):
            progress.advance(task)
            if console.is_terminal:
                console.print(told(done), markup=False, highlight=False)
            else:
                print(told(done), flush=True)
            if done.error:
                failed.append(done)
    return failed


def collect(table: Table, scale: str, seeds: Sequence[int], plan: Plan, outputs: Path) -> None:
    """Write the records of a table from the runs that are there; rows without a run here keep their records."""
    kept = records.load(table, scale)
    for key, row in table.own.items():
        chained = [chain for seed in seeds if (chain := jobs(row, scale, seed, plan, outputs))]
        found = [one for chain in chained if (one := records.record(table, scale, chain)) is not None]
        seen = {one["seed"] for one in found}
        found += [one for one in kept.get(key, []) if one["seed"] not in seen]
        if found:
            kept[key] = sorted(found, key=lambda one: one["seed"])
    if kept:
        records.save(table, scale, {key: kept[key] for key in table.own if key in kept})


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("tables", nargs="*", metavar="TABLE[:ROW]", help="tables, or rows of them; all by default")
    made.add_argument(
        "--scale", choices=SCALES, default="small", help="the authors' settings or minutes (default: small)"
    )
    made.add_argument("--seeds", type=int, nargs="+", help="seeds; those of models.yaml by default")
    made.add_argument("--jobs", type=int, default=1, help="how many runs at a time (default: 1)")
    made.add_argument("--outputs", type=Path, default=OUTPUTS, help=f"folder of the runs (default: {OUTPUTS})")
    made.add_argument("--print", action="store_true", dest="show", help="show the commands and do nothing")
    made.add_argument("--render", action="store_true", help="write the pages from the records and do nothing else")
    made.add_argument("--check", action="store_true", help="compare the runs here with the records")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    asked = parser().parse_args(arguments)
    if asked.jobs < 1:
        parser().error(f"--jobs {asked.jobs} must be at least 1")
    tables, plan = everything(), read_plan()
    try:
        chosen = select(asked.tables, tables)
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    named = [table for table in tables if table.name in chosen]
    seeds = asked.seeds or plan.scales[asked.scale]["seeds"]
    if asked.check:
        differing = [line for table in named for line in records.changed(table, asked.scale)]
        print("\n".join(differing) or f"{len(named)} tables: no record differs from the runs that are here")
        return int(bool(differing))
    if asked.show:
        show(chosen, asked.scale, seeds, plan, asked.outputs)
        return 0
    failed: list[Done] = []
    begun = time.perf_counter()
    if not asked.render:
        failed = execute(chains(chosen, asked.scale, seeds, plan, asked.outputs), asked.jobs)
        for table in named:
            collect(table, asked.scale, seeds, plan, asked.outputs)
    for table in named:
        verdicts = render.write(table, plan)
        print(f"{table.name:<28} statements: {tally(verdicts)}; see {table.folder / 'table.md'}")
    pages.write_index(tables)
    print(f"{duration(time.perf_counter() - begun)}" + (f"; {len(failed)} failed" if failed else ""))
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
