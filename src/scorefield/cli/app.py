"""What every command has in common: its configuration is checked as a whole before anything is built."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig

from scorefield.cli.compose import conf_dir, jobs
from scorefield.cli.composed import Composed, Problem
from scorefield.cli.exits import answered, end_with_the_sweep
from scorefield.cli.launcher import quoted
from scorefield.cli.sweep import conclude, sweep_name
from scorefield.errors import Exit, UserError


def run_app(config_name: str, action: Callable[[DictConfig], Any]) -> None:
    """Compose ``config_name`` with the command line's overrides and act on it.

    Mistakes in the configuration are named all at once and end the process with code 2, before any job is built. What
    else a person can mend ends it with a message and a code of `scorefield.errors.Exit`.
    """

    def guarded(config: DictConfig) -> Any:
        with answered():
            return action(config)

    end_with_the_sweep()
    found = refuse_mistakes(config_name, sys.argv[1:])
    start = hydra.main(version_base="1.3", config_path=conf_dir(), config_name=config_name)(guarded)
    asked = get_args_parser().parse_args(sys.argv[1:])
    if asks_to_be_shown(sys.argv[1:]) or not is_sweep(asked):
        start()
        return
    directory = _sweep_dir(config_name, asked.overrides, found)
    sys.argv.append(f"hydra.sweep.dir={quoted(str(directory))}")
    own = next((str(job.hydra["launcher"]["_target_"]) for job in found if job.hydra), "").endswith(".Processes")
    if config_name == "train" and not own:  # its runs name their folders themselves: below the sweep's
        sys.argv.append(f"outputs={quoted(str(directory))}")
    start()
    sys.exit(conclude(directory))


def _sweep_dir(config_name: str, overrides: Sequence[str], jobs: Sequence[Composed]) -> Path:
    """Where a sweep's directory is: the one that was asked for, or one that the same command finds again."""
    given = [o.partition("=")[2] for o in overrides if o.startswith("hydra.sweep.dir=")]
    if given:
        return Path(given[-1].strip("'\""))
    values = (jobs[0].values or {}) if jobs else {}
    outputs = Path(str(values.get("outputs", "outputs")))
    return outputs / "sweeps" / sweep_name(config_name, values.get("name"), overrides)


def is_sweep(asked: Namespace) -> bool:
    """Whether a command line asks for a sweep."""
    return bool(asked.multirun) or "hydra.mode=MULTIRUN" in asked.overrides


def asks_to_be_shown(arguments: Sequence[str]) -> bool:
    """Whether a command line asks Hydra for help or for a configuration, and for no run."""
    asked = get_args_parser().parse_args(list(arguments))
    return bool(asked.help or asked.hydra_help or asked.info or asked.cfg or asked.shell_completion)


def refuse_mistakes(config_name: str, arguments: Sequence[str], thorough: bool = True) -> list[Composed]:
    """End the process with code 2 if a command line asks for something wrong; what is wrong is on stderr.

    Args:
        config_name: name of the command's configuration.
        arguments: the command line after the command's name.
        thorough: also load the classes that the configuration names; without, only reads and composes.

    Returns:
        The jobs that the command line asks for; none where it asks to be shown something.
    """
    asked = get_args_parser().parse_args(list(arguments))
    if asks_to_be_shown(arguments):
        return []
    said, found = list[str](), list[Composed]()
    try:
        found = _find(asked, asked.config_name or config_name, thorough, said)
    except Exception as error:  # what has been asked for is so odd that not even the check foresaw it
        said.append("")
        print(f"scorefield: the configuration is wrong ({type(error).__name__}: {error})", file=sys.stderr)
    if said:
        print(f"scorefield: {len(said)} to mend; nothing was started", file=sys.stderr, flush=True)
        sys.exit(Exit.USER)
    return found


def _find(asked: Namespace, root: str, thorough: bool, said: list[str]) -> list[Composed]:
    """Say what is wrong with each job, composition first; returns the jobs."""
    if asked.config_dir and not Path(asked.config_dir).is_dir():
        _say(Composed(), [Problem("", f"--config-dir {asked.config_dir} is no folder")], root, said)
        return []
    found, swept = [], is_sweep(asked)
    for composed in jobs(root, asked.overrides, swept, asked.config_dir, asked.config_path):
        _say(composed, composed.problems, root, said)
        if (thorough or said) and composed.values is not None:
            from scorefield.cli.check import mistakes  # slow: it loads torch and Lightning

            _say(composed, mistakes(composed, root, swept), root, said)
        found.append(composed)
    if swept:
        from scorefield.cli.sweep_checks import mistakes_of_a_sweep

        _say(Composed(), list(mistakes_of_a_sweep(root, found, os.environ, thorough and not said)), root, said)
    return found


def _say(composed: Composed, problems: Sequence[Problem], root: str, said: list[str]) -> None:
    """Print problems that have not been said yet, each with the file that it is about."""
    for problem in problems:
        line = problem.text + (f"  [{composed.file(problem.path, root)}]" if problem.path else "")
        if not problem.fatal:
            print(f"scorefield: note: {line}", file=sys.stderr, flush=True)
        elif line not in said:
            said.append(line)
            print(f"scorefield: {line}", file=sys.stderr, flush=True)


def refuse(values: Mapping[str, Any], root: str, where: str) -> None:
    """Raise a `UserError` that names everything wrong in plain values, such as a stored configuration."""
    from scorefield.cli.check import mistakes

    composed = Composed(dict(values), read=set(values))  # what a run has accepted as read is not asked again
    found = [problem for problem in mistakes(composed, root, multirun=False) if problem.fatal]
    if found:
        raise UserError("\n".join([f"{where} cannot be run:", *dict.fromkeys(f"  {p.text}" for p in found)]))
