"""What a person sees of a sweep: a bar and the newest line of each job on a terminal, plain lines elsewhere."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scorefield.cli.sweep import Sweep


@contextmanager
def watching(sweep: Sweep) -> Iterator[Callable[[str], None]]:
    """Show how a sweep comes on for as long as the context lasts; gives a function that says a line.

    Every line goes to sweep.log as well.
    """
    log = (sweep.path / "sweep.log").open("a", encoding="utf-8", buffering=1)
    console = Console(file=sys.stdout)

    def say(line: str) -> None:
        print(line, file=log)
        text = f"[{len(sweep.of('finished'))}/{len(sweep.jobs)}] {line}"
        if console.is_terminal:
            console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    with log:
        if not console.is_terminal:
            yield say
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("jobs", total=len(sweep.jobs))
            ended = threading.Event()
            thread = threading.Thread(target=_refresh, args=(sweep, progress, bar, ended), daemon=True)
            thread.start()
            try:
                yield say
            finally:
                ended.set()
                thread.join()


def _refresh(sweep: Sweep, progress: Progress, bar: int, ended: threading.Event) -> None:
    """Bring the bars up to date twice a second."""
    shown: dict[str, int] = {}
    while not ended.wait(0.5):
        progress.update(bar, completed=len(sweep.of("finished", "failed", "interrupted")))  # type: ignore[arg-type]
        running = {job.directory: job for job in sweep.of("running")}
        for name in [name for name in shown if name not in running]:
            progress.remove_task(shown.pop(name))  # type: ignore[arg-type]
        for name, job in running.items():
            if name not in shown:
                shown[name] = progress.add_task("", total=None)
            progress.update(shown[name], description=f"{name}: {newest_line(sweep, job)}")  # type: ignore[arg-type]


def newest_line(sweep: Sweep, job: "object") -> str:
    """What a job said last."""
    from scorefield.cli.sweep import Job

    assert isinstance(job, Job)
    try:
        with sweep.log(job).open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - 400))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:60] if lines else ""
