"""The scripts of experiments/ import each other by name, as they do when they are run."""

import sys
from pathlib import Path

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture(autouse=True)
def beside(monkeypatch):
    for name in ("calibration", "digits"):
        monkeypatch.syspath_prepend(EXPERIMENTS / name)
    yield
    for name in ("calibrate", "peers", "compare"):
        sys.modules.pop(name, None)
