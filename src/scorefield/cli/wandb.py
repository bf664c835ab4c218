"""scorefield wandb upload DIR...: send offline runs to W&B. scorefield wandb report SWEEP: write a sweep's report."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from scorefield.cli.exits import answered
from scorefield.errors import Exit, UserError
from scorefield.records.comparison import compare
from scorefield.records.runs import Run, find_runs
from scorefield.records.tables import markdown, tabulate
from scorefield.training.wandb_runs import offline_runs, require_login, upload, write_report


def options() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="scorefield wandb", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sending = commands.add_parser("upload", help="send offline runs to the server")
    sending.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="runs, sweeps, or folders that hold them")
    writing = commands.add_parser("report", help="write the report of a sweep")
    writing.add_argument("sweep", type=Path, help="the sweep's directory")
    writing.add_argument("--entity", help="owner of the project; by default whoever is logged in")
    writing.add_argument("--project", help="W&B project; by default that of the runs")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Upload or report."""
    asked = options().parse_args(arguments)
    with answered():
        if asked.command == "upload":
            sys.exit(send([run for folder in asked.folders for run in offline_runs(folder)]))
        report(asked.sweep, asked.project, asked.entity)


def send(runs: Sequence[Path]) -> int:
    """Upload runs one after the other; those that fail are named and stay where they are."""
    if not runs:
        print("there is no offline run that has not been uploaded")
        return Exit.FINISHED
    require_login()
    failed = 0
    for number, run in enumerate(runs, 1):
        why = upload(run)
        failed += bool(why)
        print(f"[{number}/{len(runs)}] {run}: {why or 'uploaded'}", flush=True)
    return Exit.FAULT if failed else Exit.FINISHED


def report(sweep: Path, project: str | None, entity: str | None) -> None:
    """Write the report of the runs in a sweep's directory."""
    found = find_runs([sweep])
    if not found.runs:
        raise UserError(f"{sweep} holds no finished run; a report is about finished ones")
    comparison = compare(found.runs)
    projects = {_project(run) for run in found.runs} - {None}
    if project is None and len(projects) != 1:
        raise UserError(f"the runs of {sweep} are in {len(projects)} W&B projects; name one, --project NAME")
    require_login()
    names = [metric.name for metric in comparison.metrics]
    curves = ["train/loss", *(f"validation/{name}" for name in names)]
    table = markdown(tabulate(comparison, found.unread))
    address = write_report(project or str(projects.pop()), entity, sweep.resolve().name, table, curves, names)
    print(f"report: {address}")


def _project(run: Run) -> str | None:
    """The W&B project of a run; None where it was not mirrored."""
    project = run.config.get("logger.wandb.project")
    return None if project is None else str(project)


if __name__ == "__main__":
    main()
