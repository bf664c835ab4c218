"""Runs that Weights & Biases has not seen yet, and the report of a sweep, through its public packages."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scorefield.errors import UserError

_PATIENCE = 600.0  # seconds for the upload of one run


def offline_runs(folder: Path) -> list[Path]:
    """The offline runs below a folder that have not been uploaded, oldest first.

    Raises:
        UserError: the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give a run, a sweep, or a folder that holds them")
    return sorted(_waiting(folder), key=lambda path: path.name)


def _waiting(folder: Path) -> Iterator[Path]:
    for top, names, files in os.walk(folder):
        path = Path(top)
        if path.name.startswith("offline-run-"):
            names.clear()
            if any(f.endswith(".wandb") for f in files) and not any(f.endswith(".wandb.synced") for f in files):
                yield path


def require_login() -> None:
    """Refuse to go on where W&B knows no key.

    Raises:
        UserError: nobody has logged in.
    """
    import wandb

    if not wandb.api.api_key:
        raise UserError("W&B has no key here; run `wandb login`, or set WANDB_API_KEY, and give the command again")


def upload(run: Path) -> str:
    """Send an offline run to the server; returns why that has not worked, nothing where it has.

    Args:
        run: its folder, ``offline-run-*``.
    """
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_MODE"}
    command = [sys.executable, "-m", "wandb", "sync", "--mark-synced", str(run)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        return f"the server has not answered in {_PATIENCE:g} s"
    if done.returncode == 0 and any(run.glob("*.wandb.synced")):
        return ""
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return lines[-1] if lines else f"wandb sync ended with code {done.returncode}"


def write_report(
    project: str, entity: str | None, group: str, table: str, curves: Sequence[str], finals: Sequence[str]
) -> str:
    """Write the report of a sweep and return its address.

    Args:
        project: W&B project.
        entity: its owner; None for the one that is logged in.
        group: the group of the sweep's runs.
        table: the sweep's table, in Markdown.
        curves: names that are logged while the runs train, drawn against the images seen.
        finals: names of the final numbers, drawn as bars.

    Raises:
        UserError: the package that writes reports is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
    except ImportError:
        raise UserError("reports need wandb-workspaces: pip install 'scorefield[reports]'") from None
    if re.search(r"['\"\\]", group):
        raise UserError(f"the group {group!r} holds quotes, which a report's filter cannot; rename the sweep's folder")
    owner: dict[str, Any] = {} if entity is None else {"entity": entity}
    runs = reports.Runset(project=project, name=group, filters=f"Group == '{group}'", **owner)
    panels: list[Any] = [
        *(reports.LinePlot(title=name, x="images", y=[name]) for name in curves),
        *(reports.BarPlot(title=name, metrics=[reports.SummaryMetric(name)]) for name in finals),
        reports.MediaBrowser(title="the same noise", media_keys=["samples"]),
        reports.RunComparer(diff_only=True),
    ]
    report = reports.Report(project=project, title=group, description="A sweep of scorefield", **owner)
    report.blocks = [reports.MarkdownBlock(table), reports.PanelGrid(runsets=[runs], panels=panels)]
    report.save()
    return str(report.url)
