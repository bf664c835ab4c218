"""What can be wrong with a sweep as a whole, beside the mistakes in its jobs."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser

from scorefield.cli.compose import jobs
from scorefield.cli.composed import Composed, Problem
from scorefield.cli.launcher import Launcher, gpu_slots
from scorefield.errors import BadFileError, UserError


def mistakes_of_a_sweep(
    command: str, sweep: Sequence[Composed], environment: Mapping[str, str], thorough: bool
) -> Iterator[Problem]:
    """What is wrong with a sweep as a whole.

    Args:
        command: what is swept.
        sweep: its jobs.
        environment: the process's environment variables.
        thorough: also compare the jobs with each other, which loads torch.
    """
    if int(environment.get("WORLD_SIZE") or 1) > 1 or "LOCAL_RANK" in environment:
        yield Problem(
            "",
            "this is one of several processes (WORLD_SIZE, LOCAL_RANK), each of which would run the whole sweep; "
            "start the sweep alone: it starts the processes of its jobs",
        )
    node = next((dict(job.hydra["launcher"]) for job in sweep if job.hydra), {})
    if str(node.pop("_target_", "")).endswith(".Processes"):
        try:
            launcher = Launcher(**node)
            if thorough:
                list(gpu_slots(launcher.jobs, launcher.gpus, environment))
        except UserError as error:
            yield Problem("", str(error))
        except TypeError as error:
            yield Problem("", f"hydra.launcher: {error}")
    if any(text.startswith("sweep=") for job in sweep for text in job.swept):
        yield Problem("", "sweep=a,b would run one sweep after the other; sweep=[a,b] is their product")
    if command != "train":
        return
    composed = [(job, job.values) for job in sweep if job.values is not None]
    if any(values["fresh"] for _, values in composed):
        yield Problem(
            "",
            "fresh=true would start every job over each time that the sweep goes on; give the sweep another "
            "directory, hydra.sweep.dir=...",
        )
    if any(values["run_dir"] != "." for _, values in composed):
        yield Problem("", "run_dir is the directory of one run; a sweep's is hydra.sweep.dir=...")
    if thorough:
        yield from _repeated(composed)


def _repeated(composed: Sequence[tuple[Composed, Mapping[str, Any]]]) -> Iterator[Problem]:
    """Jobs that are the same run."""
    from scorefield.cli.runs import fingerprint

    seen: dict[tuple[str, int], Composed] = {}
    for job, values in composed:
        first = seen.setdefault((fingerprint(values), values["seed"]), job)
        if first is not job:
            one, other = (" ".join(each.swept) or "the first" for each in (first, job))
            yield Problem("", f"two jobs of the sweep are the same run: {one}, and {other}")


def refuse_foreign(record: Path, words: Sequence[str]) -> None:
    """Refuse a recorded command that asks for something that no sweep of this project is made of.

    Raises:
        BadFileError: it runs another command, or its configuration names foreign classes.
    """
    from scorefield.cli.stored import is_part_of_a_run

    command, *arguments = words or [""]
    if command not in ("train", "evaluate", "sample", "convert", "recipe", "stats"):
        raise BadFileError(f"{record} asks for the command {command!r}, which is none that is swept")
    asked = get_args_parser().parse_args(arguments)
    for job in jobs(command, asked.overrides, True, asked.config_dir, asked.config_path):
        for target in _targets({"values": job.values or {}, "hydra": job.hydra.get("callbacks")}):
            if not is_part_of_a_run(target):
                raise BadFileError(
                    f"{record} asks for {target!r}, which is no part of a run; if you trust it, give the sweep's "
                    "command itself again"
                )


def _targets(node: Any) -> Iterator[Any]:
    """Every ``_target_`` in nested values."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield node["_target_"]
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from _targets(value)
