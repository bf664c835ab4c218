"""Time on a machine that others use, too."""

import time
from collections.abc import Callable, Mapping


def cpu_seconds(work: Mapping[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """The least CPU time of each piece of work, which take turns: neither pauses nor slow phases count.

    Args:
        work: by name; each is also run once before, to warm up.
        turns: how often each is timed, >= 1.
    """
    for piece in work.values():
        piece()
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(turns):
        for name, piece in work.items():
            begun = time.process_time()
            piece()
            taken[name].append(time.process_time() - begun)
    return {name: min(seconds) for name, seconds in taken.items()}
