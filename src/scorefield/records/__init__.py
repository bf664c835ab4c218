"""A run's own files: the journal, the final record, pictures, plots, the page that shows them, tables of many runs.

Names are loaded when they are asked for: a table of a thousand runs is read faster than torch is loaded, which pictures
need. `scorefield.records.figures` is not here at all, as it loads matplotlib: import it where something is drawn.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scorefield.records.comparison import Comparison, compare
    from scorefield.records.journal import Journal, Phase
    from scorefield.records.pictures import image_grid, save_gif, save_png
    from scorefield.records.report import write_report
    from scorefield.records.result import Measurement, Result, config_hash, git_state, versions
    from scorefield.records.rundir import RunDir, step_of
    from scorefield.records.runs import Run, Unread, find_runs

__all__ = [
    "Comparison",
    "Journal",
    "Measurement",
    "Phase",
    "Result",
    "Run",
    "RunDir",
    "Unread",
    "compare",
    "config_hash",
    "find_runs",
    "git_state",
    "image_grid",
    "save_gif",
    "save_png",
    "step_of",
    "versions",
    "write_report",
]

_HOMES = {
    "comparison": ("Comparison", "compare"),
    "journal": ("Journal", "Phase"),
    "pictures": ("image_grid", "save_gif", "save_png"),
    "report": ("write_report",),
    "result": ("Measurement", "Result", "config_hash", "git_state", "versions"),
    "rundir": ("RunDir", "step_of"),
    "runs": ("Run", "Unread", "find_runs"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
