"""A process that dies takes its run with it, soon and with its traceback; nobody is left waiting."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.test_two_processes import launch

ROOT = Path(__file__).parents[2]

# How, which process, when, and what is said. "alone": the other one computes for ten minutes and meets nobody.
DEATHS = {
    "the first raises in a step": ("raises", 0, "step", [], "DyingError: this process has had enough"),
    "the second raises in an evaluation": ("raises", 1, "evaluation", [], "DyingError: this process has had enough"),
    "the first is killed": ("is_killed", 0, "step", ["alone"], ""),
    "the second is killed": ("is_killed", 1, "step", ["alone"], "process 1 was killed by signal 9"),
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("death", DEATHS)
def test_a_process_that_dies_ends_the_run(tmp_path, death):
    how, rank, when, more, said = DEATHS[death]
    env = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_PORT")}
    with (tmp_path / "log.txt").open("w+") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.training.dying", str(tmp_path), how, str(rank), when, *more],
            cwd=ROOT,
            env={**env, "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=120)
            died = next(float(line.split()[-1]) for line in (tmp_path / "death.txt").read_text().splitlines())
            while _alive(process.pid) and time.time() - died < 60:
                time.sleep(0.1)
            assert not _alive(process.pid), "a process is left over"
            assert time.time() - died < 60
        finally:
            if _alive(process.pid):
                os.killpg(process.pid, 9)
        text = (tmp_path / "log.txt").read_text()
    assert code != 0
    assert said in text
    if how == "raises":
        assert f"[rank{rank}]: Traceback" in text


@pytest.mark.timeout(180)
def test_a_process_does_not_end_before_its_threads(tmp_path):
    launch("tests.training.leaving", str(tmp_path))


def _alive(group: int) -> bool:
    """Whether any process of a session is left; those that have ended and not been waited for do not count."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has ended in between
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False
