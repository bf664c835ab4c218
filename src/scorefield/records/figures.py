"""Plots of a run, all in one style: quiet axes, a palette safe for colour-blind readers, the same bytes every time.

Loading this module loads matplotlib; import it where something is drawn. Arrays may be tensors on any device or NumPy
arrays. The style is in `scorefield.records.style`.
"""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from scorefield.records.style import INK, MUTED, PALETTE, RULE, STYLE, plain_ticks, sheet

Array = Tensor | np.ndarray
Series = Mapping[str, tuple[Array, Array]]

_DENSITY = "viridis"
_LOG_SPAN = 10.0  # positive values spanning more than this ratio are read better on a logarithmic axis


def _array(values: Array) -> np.ndarray:
    plain = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values
    return np.asarray(plain, dtype=np.float64)


def _spans_decades(values: np.ndarray) -> bool:
    """Whether a logarithmic axis suits: everything positive and far apart."""
    finite = values[np.isfinite(values)]
    return finite.size > 0 and finite.min() > 0 and finite.max() / finite.min() > _LOG_SPAN


def _square(axes: Axes, limits: tuple[float, float, float, float]) -> None:
    axes.set_aspect("equal")
    axes.set_xlim(limits[0], limits[1])
    axes.set_ylim(limits[2], limits[3])
    axes.grid(False)


def _bounds(points: np.ndarray) -> tuple[float, float, float, float]:
    """The square around all finite points with a small margin: (left, right, bottom, top)."""
    points = points[np.isfinite(points).all(axis=1)]
    if len(points) == 0:
        return -1.0, 1.0, -1.0, 1.0
    low, high = points.min(axis=0), points.max(axis=0)
    centre, half = (low + high) / 2, max(float((high - low).max()) / 2 * 1.05, 1e-6)
    return centre[0] - half, centre[0] + half, centre[1] - half, centre[1] + half


def scatter2d(path: Path, groups: Mapping[str, Array], limits: tuple[float, float, float, float] | None = None) -> None:
    """Draw clouds of points side by side on the same axes.

    Args:
        path: the PNG file.
        groups: (N, 2) points by title.
        limits: (left, right, bottom, top); by default around all points.
    """
    clouds = {name: _array(points) for name, points in groups.items()}
    limits = _bounds(np.concatenate(list(clouds.values()))) if limits is None else limits
    with sheet(path, len(clouds), width=3.3, height=3.5, shared=True) as (_, panels):
        for i, (axes, (name, points)) in enumerate(zip(panels, clouds.items(), strict=True)):
            # fewer points, larger and stronger marks
            strength = min(1.0, max(0.25, 1000 / max(len(points), 1)))
            colour = PALETTE[i % len(PALETTE)]
            axes.scatter(points[:, 0], points[:, 1], s=3 + 6 * strength, color=colour, alpha=strength, linewidths=0)
            axes.set_title(name)
            _square(axes, limits)


def density2d(
    path: Path,
    density: Array,
    extent: tuple[float, float, float, float],
    *,
    label: str = "density",
    truth: Array | None = None,
    samples: Array | None = None,
    lowest: float | None = None,
) -> None:
    """Draw a density, or a log-density, on a grid, beside the true one on the same colour scale.

    Args:
        path: the PNG file.
        density: (H, W) values, finite where they matter; row i is the i-th y from below, column j the j-th x.
        extent: (left, right, bottom, top) of the outermost cells' edges.
        label: what the values are, written at the colour bar.
        truth: (H, W) the true values on the same grid.
        samples: (N, 2) points drawn over the first panel.
        lowest: values below are drawn like this one; use it for log-densities, whose tails have no end.
    """
    fields = {"model": _array(density)}
    if truth is not None:
        fields["truth"] = _array(truth)
    values = np.concatenate([field.ravel() for field in fields.values()])
    values = values[np.isfinite(values)]
    low = float(values.min()) if lowest is None else lowest
    with sheet(path, len(fields), width=3.6, height=3.4, shared=True) as (figure, panels):
        for axes, (name, field) in zip(panels, fields.items(), strict=True):
            picture = axes.imshow(
                field, origin="lower", extent=extent, cmap=_DENSITY, vmin=low, vmax=float(values.max())
            )
            axes.set_title(name)
            _square(axes, extent)
        if samples is not None:
            points = _array(samples)
            panels[0].scatter(points[:, 0], points[:, 1], s=4, color="white", edgecolors="black", linewidths=0.3)
        bar = figure.colorbar(picture, ax=panels, label=label, shrink=0.85)
        bar.outline.set_visible(False)


def _draw_curves(axes: Axes, series: Series, x_label: str, y_label: str, references: Mapping[str, float]) -> None:
    lines = {name: (_array(x), _array(y)) for name, (x, y) in series.items()}
    for name, (x, y) in lines.items():
        few = len(x) <= 40
        axes.plot(x, y, label=name, marker="o" if few else None, markersize=3, clip_on=False)
    for i, (name, level) in enumerate(references.items(), start=len(lines)):
        axes.axhline(level, label=name, color=PALETTE[i % len(PALETTE)], linestyle=(0, (4, 3)), linewidth=1.2)
    heights = [y for _, y in lines.values()] + [np.array(list(references.values()))]
    if _spans_decades(np.concatenate(heights)):
        axes.set_yscale("log")
        plain_ticks(axes.yaxis)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(False, axis="x")
    if len(lines) + len(references) > 1:
        axes.legend()


def curves(
    path: Path,
    series: Series,
    *,
    x_label: str = "step",
    y_label: str = "",
    references: Mapping[str, float] | None = None,
) -> None:
    """Draw values against steps; the vertical axis is logarithmic where positive values span a factor above 10.

    Args:
        path: the PNG file.
        series: (steps, values), each (N,), by name.
        x_label: what the steps are.
        y_label: what the values are.
        references: levels drawn across as dashed lines, by name.
    """
    with sheet(path) as (_, panels):
        _draw_curves(panels[0], series, x_label, y_label, references or {})


def curves_svg(series: Series, *, x_label: str = "step", references: Mapping[str, float] | None = None) -> str:
    """The same drawing as `curves`, as an ``<svg>`` element to stand in a page.

    Its colours are the page's variables ``--ink``, ``--muted``, ``--rule`` and ``--series-0`` to ``--series-5``, so it
    follows the page from light to dark.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.1), layout="constrained", facecolor="none")
        _draw_curves(figure.subplots(), series, x_label, "", references or {})
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" role="img">', text, count=1)
    text = text.replace("xlink:href", "href")
    variables = {INK: "ink", MUTED: "muted", RULE: "rule"} | {c: f"series-{i}" for i, c in enumerate(PALETTE)}
    for colour, name in variables.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"font-family: [^;\"]*;?", "", text)  # the page's own


def loss_by_noise(
    path: Path, sigma: Array, mean: Array, low: Array, high: Array, *, label: str = "loss", band: str = ""
) -> None:
    """Draw the mean loss at each noise level, with its spread, against the logarithm of the level.

    Args:
        path: the PNG file.
        sigma: (K,) noise levels, positive.
        mean: (K,) mean loss at each level.
        low: (K,) lower edge of the band.
        high: (K,) upper edge of the band.
        label: what the loss is.
        band: what the band shows, e.g. "quartiles".
    """
    levels, order = np.sort(_array(sigma)), np.argsort(_array(sigma))
    centre, bottom, top = (_array(values)[order] for values in (mean, low, high))
    with sheet(path) as (_, panels):
        axes = panels[0]
        axes.fill_between(levels, bottom, top, color=PALETTE[0], alpha=0.18, linewidth=0, label=band or None)
        axes.plot(levels, centre, color=PALETTE[0], marker="o", markersize=3, label="mean")
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)
        if _spans_decades(np.concatenate([centre, bottom])):
            axes.set_yscale("log")
            plain_ticks(axes.yaxis)
        axes.set_xlabel("noise level σ")
        axes.set_ylabel(label)
        if band:
            axes.legend()


def residual_by_noise(path: Path, sigma: Array, relative: Array) -> None:
    """Draw the relative residual of the score Fokker-Planck equation against the noise level.

    Args:
        path: the PNG file.
        sigma: (K,) noise levels, positive.
        relative: (K,) residual at each level over the size of the score's time derivative.
    """
    series = {"residual / rate of the score": (_array(sigma), _array(relative))}
    with sheet(path) as (_, panels):
        axes = panels[0]
        _draw_curves(axes, series, "noise level σ", "relative residual", {})
        axes.set_xscale("log")
        plain_ticks(axes.xaxis)


def paths(path: Path, trajectories: Array, times: Array | None = None) -> None:
    """Draw trajectories: in one dimension against time, in two as lines from where they begin (grey) to where they end.

    Args:
        path: the PNG file.
        trajectories: (N, T, D) with D = 1 or 2: N trajectories at T times, in the order they were travelled.
        times: (T,) the time of each point; by default 0, 1, ... Used for D = 1 only.
    """
    states = _array(trajectories)
    if states.ndim != 3 or states.shape[2] not in (1, 2):
        raise ValueError(f"trajectories must be (N, T, 1 or 2), got shape {states.shape}")
    count, length, dimension = states.shape
    strength = min(0.9, max(0.12, 12 / count))
    with sheet(path, width=4.2 if dimension == 2 else 5.4, height=4.2 if dimension == 2 else 3.4) as (_, panels):
        axes = panels[0]
        if dimension == 1:
            clock = np.arange(length) if times is None else _array(times)
            axes.plot(clock, states[:, :, 0].T, color=PALETTE[0], alpha=strength, linewidth=0.9)
            axes.set_xlim(clock[0], clock[-1])  # sampling runs from noise to data, so time may fall
            axes.set_xlabel("step" if times is None else "time t")
            axes.set_ylabel("x")
            return
        axes.plot(states[:, :, 0].T, states[:, :, 1].T, color=PALETTE[0], alpha=strength, linewidth=0.7)
        for index, colour, name in ((0, MUTED, "begin"), (-1, PALETTE[1], "end")):
            axes.scatter(
                states[:, index, 0], states[:, index, 1], s=7, color=colour, linewidths=0, zorder=3, label=name
            )
        axes.legend(loc="upper right")
        _square(axes, _bounds(states.reshape(-1, 2)))


def histogram(
    path: Path,
    groups: Mapping[str, Array],
    *,
    x_label: str = "",
    bins: int = 40,
    references: Mapping[str, float] | None = None,
) -> None:
    """Draw the distributions of several samples over the same bins, each with area one.

    Args:
        path: the PNG file.
        groups: (N,) values by name; non-finite ones are left out.
        x_label: what the values are.
        bins: number of bins over the common range.
        references: values marked by vertical dashed lines, by name.
    """
    finite = {name: values[np.isfinite(values)] for name, values in ((n, _array(v)) for n, v in groups.items())}
    edges = np.histogram_bin_edges(np.concatenate(list(finite.values())), bins=bins)
    with sheet(path) as (_, panels):
        axes = panels[0]
        for i, (name, values) in enumerate(finite.items()):
            colour = PALETTE[i % len(PALETTE)]
            axes.hist(values, edges.tolist(), density=True, histtype="stepfilled", color=colour, alpha=0.15)
            axes.hist(values, edges.tolist(), density=True, histtype="step", color=colour, linewidth=1.4, label=name)
        for i, (name, value) in enumerate((references or {}).items(), start=len(finite)):
            axes.axvline(value, color=PALETTE[i % len(PALETTE)], linestyle=(0, (4, 3)), linewidth=1.2, label=name)
        axes.set_xlabel(x_label)
        axes.set_ylabel("density")
        axes.grid(False, axis="x")
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] * 1.1)
        if len(finite) + len(references or {}) > 1:
            axes.legend()
