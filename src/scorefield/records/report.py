"""The page of a run: ``report.html``, one file with everything in it, made from the run directory's files alone.

Nothing is fetched and nothing runs: pictures are embedded, curves are drawn as SVG, there is no script. A run that is
still going, was stopped, or failed in one part has a page too, which says what is missing. All text from the run is
escaped, so a name or a config value cannot become markup.
"""

import math
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scorefield.records.files import write_atomically
from scorefield.records.journal import Journal
from scorefield.records.markup import document, duration, fields, is_number, number, picture, plain, row, section, words
from scorefield.records.result import Result
from scorefield.records.rundir import RunDir, step_of

_POINTS = 240  # of a curve; longer ones are averaged in blocks
_THUMBNAILS = 6
_CARDS = 8
_BRIEF = 24  # longer values of the protocol are left to the table of every number
_PROTOCOL_ON_CARD = 6
_HEAD = ("step", "images", "time", "phase")


def write_report(run_dir: RunDir | Path) -> Path:
    """Write ``report.html`` from whatever the run directory holds by now, in one piece.

    Args:
        run_dir: the run's directory, finished or not.

    Returns:
        The page's path.
    """
    run = run_dir if isinstance(run_dir, RunDir) else RunDir(run_dir)
    missing: list[str] = []
    config = _config(run, missing)
    records = _journal(run, missing)
    result = _result(run, missing)
    if not (run.final_samples.exists() or run.sample_grids()):
        missing.append("samples: no grid has been drawn yet")

    name = result.experiment if result else str(_lookup(config, "experiment", "name") or run.path.resolve().name)
    seed = result.seed if result else _lookup(config, "seed")
    body = [
        _head(name, seed, records, result),
        _missing(missing),
        _cards(records, result),
        _samples(run),
        _curves(records, result),
        _figures(run),
        _metric_table(result),
        _cost(result),
        _origin(run, result),
    ]
    page = document(_titled(name, seed), body)
    write_atomically(run.report, page.encode())
    return run.report


# What the run directory holds


def _config(run: RunDir, missing: list[str]) -> Any:
    try:
        return yaml.safe_load(run.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        missing.append("config.yaml: the resolved config was not written")
    except (yaml.YAMLError, UnicodeDecodeError):
        missing.append("config.yaml: not readable as YAML")
    return None


def _journal(run: RunDir, missing: list[str]) -> list[dict[str, Any]]:
    try:
        records = Journal(run.metrics).read()
    except ValueError as error:
        missing.append(f"metrics.jsonl: {error}")
        return []
    if not records:
        missing.append("metrics.jsonl: nothing has been recorded yet")
    return records


def _result(run: RunDir, missing: list[str]) -> Result | None:
    try:
        return Result.read(run.result)
    except FileNotFoundError:
        missing.append("result.json: the run has not finished")
    except (ValueError, TypeError, KeyError) as error:
        missing.append(f"result.json: not readable ({error})")
    return None


def _lookup(config: Any, *names: str) -> Any:
    """The first of the names that the config's top level gives a plain value."""
    values = (config.get(name) for name in names) if isinstance(config, Mapping) else ()
    return next((value for value in values if isinstance(value, str | int)), None)


def _titled(name: str, seed: Any) -> str:
    return name if seed is None else f"{name}, seed {seed}"


# The parts of the page, from top to bottom


def _head(name: str, seed: Any, records: list[dict[str, Any]], result: Result | None) -> str:
    if result:
        facts = ['<span class="badge">finished</span>']
    elif records:
        facts = [f'<span class="badge open">unfinished, last heard at step {plain(records[-1]["step"])}</span>']
    else:
        facts = ['<span class="badge open">nothing recorded</span>']
    if seed is not None:
        facts.append(f"<span>seed <b>{escape(str(seed))}</b></span>")
    if result:
        if "train_seconds" in result.cost:
            facts.append(f"<span>trained <b>{duration(result.cost['train_seconds'])}</b></span>")
        if "parameters" in result.cost:
            facts.append(f"<span>parameters <b>{plain(result.cost['parameters'])}</b></span>")
        facts.append(f"<span>config <code>{escape(result.config_hash)}</code></span>")
    return f'<header>\n<h1>{escape(name)}</h1>\n<p class="byline">{" ".join(facts)}</p>\n</header>'


def _missing(missing: list[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in missing)
    return f'<aside class="missing"><b>Not here yet</b><ul>{items}</ul></aside>' if items else ""


def _cards(records: list[dict[str, Any]], result: Result | None) -> str:
    if result:
        measured = {name: (m.value, m.protocol) for name, m in result.metrics.items()}
    else:
        measured = {
            name: (float(record[name]), {"at step": record["step"], "measured in": record["phase"]})
            for record in records
            for name in record
            if name not in _HEAD and is_number(record[name])
        }
    cards = (_card(name, value, protocol) for name, (value, protocol) in list(measured.items())[:_CARDS])
    return row("cards", cards)


def _card(name: str, value: float, protocol: Mapping[str, Any]) -> str:
    against = _against(value, protocol.get("floor"))
    brief = {key: inner for key, inner in protocol.items() if len(plain(inner)) <= _BRIEF}
    shown = {key: inner for key, inner in brief.items() if not (against and key == "floor")}
    below = " · ".join(fields(shown)[:_PROTOCOL_ON_CARD])
    full = escape("; ".join(f"{key}: {plain(inner)}" for key, inner in protocol.items()))
    return (
        f'<div class="card" title="{full}"><span class="name">{escape(name)}</span>'
        f'<span class="number">{number(value)}</span>{against}<p class="protocol">{below}</p></div>'
    )


def _against(value: float, floor: Any) -> str:
    """The value beside its floor, what the same measure gives for held-out data: a ratio and a bar with a mark at 1."""
    if not is_number(floor) or floor <= 0 or not 0 <= value < math.inf:
        return ""
    ratio = value / floor
    full = max(1.0, ratio) * 1.1  # the bar's right end, so that the mark never touches it
    return (
        f'<span class="against"><b>{ratio:.2f} ×</b> the floor of {number(floor)}</span>'
        f'<span class="meter"><i style="width:{100 * ratio / full:.1f}%"></i>'
        f'<u style="left:{100 / full:.1f}%"></u></span>'
    )


def _samples(run: RunDir) -> str:
    grids = run.sample_grids()
    if run.final_samples.exists():
        last = picture(run.final_samples, "Samples of the finished model", "panel")
    elif grids:
        last = picture(grids[-1], f"Samples after step {plain(step_of(grids[-1]))}", "panel")
    else:
        last = ""
    pictures = [
        last,
        picture(run.real_samples, "Real data", "panel"),
        picture(run.trajectory, "From noise to samples", "panel"),
    ]
    picked = sorted({round(i) for i in np.linspace(0, len(grids) - 1, min(len(grids), _THUMBNAILS))}) if grids else []
    strip = (
        [picture(grids[i], f"step {plain(step_of(grids[i]))}", "thumbnail") for i in picked] if len(grids) > 1 else []
    )
    thumbnails = f'<div class="panel strip-panel"><h3>The same noise during training</h3>{row("strip", strip)}</div>'
    return section("Samples", row("pictures", pictures), thumbnails if strip else "")


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `_POINTS` points: means over blocks of neighbouring records."""
    blocks = min(len(steps), _POINTS)
    split = (np.array_split(array, blocks) for array in (steps, values))
    return tuple(np.array([block.mean() for block in parts]) for parts in split)  # type: ignore[return-value]


def _curves(records: list[dict[str, Any]], result: Result | None) -> str:
    """One chart for each recorded name, training and validation in the same one."""
    series: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for record in records:
        for name, value in record.items():
            if record["phase"] != "final" and name not in _HEAD and is_number(value):
                series.setdefault(name, {}).setdefault(record["phase"], []).append((record["step"], float(value)))
    charts = [_chart(name, phases, result) for name, phases in series.items()]
    longest = max((len(points) for phases in series.values() for points in phases.values()), default=0)
    block = math.ceil(longest / _POINTS)
    note = f"Long curves are means over up to {block} neighbouring records." if block > 1 else ""
    return section("Training", row("charts", charts), note and f'<p class="note">{note}</p>')


def _chart(name: str, phases: Mapping[str, list[tuple[int, float]]], result: Result | None) -> str:
    from scorefield.records.figures import curves_svg  # loads matplotlib

    lines, left_out = {}, 0
    for phase, points in phases.items():
        pairs = np.array(points, dtype=float)
        finite = np.isfinite(pairs[:, 1])
        left_out += int((~finite).sum())
        if finite.any():
            lines[phase] = _thinned(*pairs[finite].T)
    if not lines or max(len(steps) for steps, _ in lines.values()) < 2:
        return ""
    protocol = result.metrics[name].protocol if result and name in result.metrics else {}
    references = {"floor": float(protocol["floor"])} if is_number(protocol.get("floor")) else {}
    drawing = curves_svg(lines, references=references)
    note = f'<p class="note">Non-finite records left out: {left_out}.</p>' if left_out else ""
    return f'<div class="panel"><h3>{escape(name)}</h3>{drawing}{note}</div>'


def _figures(run: RunDir) -> str:
    by_noise = run.figure("loss_by_noise")
    ordered = sorted(run.figures(), key=lambda path: path != by_noise)
    captions = (path.stem.replace("_", " ").capitalize() for path in ordered)
    pictures = (picture(path, caption, "panel plot") for path, caption in zip(ordered, captions, strict=True))
    return section("Figures", row("charts", pictures))


def _metric_table(result: Result | None) -> str:
    if not result or not result.metrics:
        return ""
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="value">{number(measurement.value)}</td>'
        f'<td class="fields">{" ".join(f"<span>{field}</span>" for field in fields(measurement.protocol))}</td></tr>'
        for name, measurement in result.metrics.items()
    )
    head = "<thead><tr><th>metric</th><th>value</th><th>how it was measured</th></tr></thead>"
    return section("Every number", f'<div class="panel scroll"><table>{head}<tbody>\n{rows}\n</tbody></table></div>')


def _pairs(title: str, values: Mapping[str, str]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{words(name)}</th><td class="value">{escape(value)}</td></tr>'
        for name, value in values.items()
    )
    return f'<div class="panel"><h3>{escape(title)}</h3><table><tbody>{rows}</tbody></table></div>' if rows else ""


def _cost(result: Result | None) -> str:
    if not result:
        return ""
    cost = {
        name.replace("_seconds", " time"): duration(value) if name.endswith("_seconds") else plain(value)
        for name, value in result.cost.items()
    }
    tables = (_pairs("Cost", cost), _pairs("Versions", result.versions))
    return section("Cost and versions", row("tables", tables))


def _origin(run: RunDir, result: Result | None) -> str:
    """Where the numbers come from: code, command and config."""
    parts = []
    if result and result.git:
        dirty = ", with changes that are not committed" if result.git.get("dirty") else ""
        parts.append(f"<p>Code: commit <code>{escape(str(result.git.get('commit')))}</code>{dirty}.</p>")
    if result and result.command:
        parts.append(f'<div class="panel"><h3>Command</h3><pre>{escape(result.command)}</pre></div>')
    if run.config.exists():
        text = escape(run.config.read_text(encoding="utf-8", errors="replace"))
        parts.append(f'<details class="panel"><summary>Resolved config</summary><pre>{text}</pre></details>')
    return section("Making it again", *parts)
