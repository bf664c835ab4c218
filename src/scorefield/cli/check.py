"""Whether a configuration can be built: every node against the signature and annotations of what it names.

First `mismatches` compares values with annotations and builds nothing. Where that is clean, `rehearse` calls the
constructors of this project, which only check and store their arguments: networks on the meta device, where they take
no memory, data sets before they have read anything. Everything else (optimisers, Lightning's trainer, loggers) is
compared with its signature alone.
"""

from collections.abc import Iterable

from scorefield.cli.composed import Composed, Problem
from scorefield.cli.contradictions import CHECKS, REMARKS, Draft
from scorefield.cli.rehearsal import rehearse
from scorefield.cli.schema import SCHEMAS
from scorefield.cli.signatures import A_NODE, Unread, mismatches


def mistakes(composed: Composed, root: str, multirun: bool) -> list[Problem]:
    """Everything wrong with a configuration: first types, then constructors, then what does not go together.

    Args:
        composed: the configuration.
        root: name of the primary configuration.
        multirun: whether it is one job of a sweep.
    """
    assert composed.values is not None
    schema = root if root in SCHEMAS else "train"
    problems = [p for p in mismatches(composed.values, SCHEMAS[schema]) if not _read_elsewhere(p, composed)]
    if not problems and not composed.problems:  # an override that was left out makes the rest meaningless
        parts = rehearse(composed.values, problems)
        if not problems:
            draft = Draft(composed.values, parts, composed.hydra.get("launcher") if multirun else None)
            problems = [Problem("", text) for check in CHECKS[schema] for text in check(draft)]
            problems += [Problem("", text, fatal=False) for remark in REMARKS[schema] for text in remark(draft)]
    return _at_home(problems, composed)


def _read_elsewhere(problem: Problem, composed: Composed) -> bool:
    """Whether a key that no command reads is there to be interpolated."""
    return isinstance(problem, Unread) and problem.path in composed.read


def _at_home(problems: Iterable[Problem], composed: Composed) -> list[Problem]:
    """Each problem once, at the key where its value is written."""
    moved = []
    for problem in problems:
        path = composed.home(problem.path)
        text = problem.text.replace(problem.path, path, 1) if problem.path else problem.text
        choice = composed.choice(path)
        if choice is not None and text.endswith(A_NODE):
            text += f"; to choose a file of conf/ write {choice}=NAME"
        moved.append(Problem(path, text, problem.fatal))
    return list(dict.fromkeys(moved))
