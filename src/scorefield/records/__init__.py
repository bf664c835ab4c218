"""A run's own files: the journal, the final record, pictures, plots and the page that shows them.

`scorefield.records.figures` is not imported here: it loads matplotlib, so import it where something is drawn.
"""

from scorefield.records.journal import Journal, Phase
from scorefield.records.pictures import image_grid, save_gif, save_png
from scorefield.records.report import write_report
from scorefield.records.result import Measurement, Result, config_hash, git_state, versions
from scorefield.records.rundir import RunDir, step_of

__all__ = [
    "Journal",
    "Measurement",
    "Phase",
    "Result",
    "RunDir",
    "config_hash",
    "git_state",
    "image_grid",
    "save_gif",
    "save_png",
    "step_of",
    "versions",
    "write_report",
]
