"""What the check of a single job says."""

from scorefield.cli.check import mistakes
from scorefield.cli.compose import jobs

# Small, and told how images were augmented.
SONGUNET = [
    "net=songunet_ddpmpp",
    "net.channels=8",
    "net.multipliers=[1,2]",
    "net.attention=[]",
]


def found(*overrides: str, command: str = "train") -> list[str]:
    """What is wrong with a single job."""
    (composed,) = jobs(command, overrides)
    if composed.values is None:
        return [problem.text for problem in composed.problems]
    problems = [*composed.problems, *mistakes(composed, command, multirun=False)]
    return [problem.text for problem in problems if problem.fatal]
