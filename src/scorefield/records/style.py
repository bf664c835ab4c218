"""The one style of all plots, and the sheet they are drawn on.

Loading this module loads matplotlib. Figures are made without pyplot, so no window system is asked for and nothing
stays open.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from scorefield.records.files import write_atomically

# Okabe and Ito's palette, darkest first
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, MUTED, RULE = "#1f2933", "#5f6b76", "#dde2e7"

STYLE: dict[Any, Any] = {
    "figure.dpi": 144,
    "savefig.dpi": 144,
    "figure.facecolor": "white",
    "axes.facecolor": "none",
    "axes.prop_cycle": cycler(color=PALETTE),
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.minor.visible": False,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.labelcolor": INK,
    "text.color": INK,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "scorefield",
}


@contextmanager
def sheet(
    path: Path, panels: int = 1, width: float = 5.4, height: float = 3.4, shared: bool = False, rows: int = 1
) -> Iterator[tuple[Figure, list[Axes]]]:
    """Panels, as many in each row, written to ``path`` as PNG when the block ends."""
    columns = -(-panels // rows)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared)
        yield figure, list(axes.flat)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    write_atomically(path, buffer.getvalue())


def plain_ticks(axis: Axis) -> None:
    """Let the ticks of a logarithmic axis read 0.01, 0.1, 1, 10; powers of ten would need mathematical type."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
