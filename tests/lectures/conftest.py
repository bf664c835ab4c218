import sys
from pathlib import Path

import pytest

LECTURES = Path(__file__).parents[2] / "experiments" / "lectures"
sys.path.insert(0, str(LECTURES))  # the experiments are no installed package


@pytest.fixture
def fabricated(monkeypatch, tmp_path):
    """Makes claims in a folder of their own, from a few lines each, and puts them in the place of the real ones."""
    from lecture import claims

    home = tmp_path / "claims"
    home.mkdir()
    monkeypatch.setattr(claims, "HOME", home)

    def make(folder: str, checks: str, body: str, settings: str = "{}", more: str = "") -> None:
        path = home / folder
        path.mkdir()
        (path / "config.yaml").write_text(
            f'title: A <claim>\ntime: "1:00"\nsource: nowhere\nreferences: []\nsettings: {settings}\n{more}\n'
            f"checks:\n{checks}\n"
        )
        (path / "README.md").write_text("# A claim\n\nWhat it *says*.\n")
        (path / "claim.py").write_text(
            "from dataclasses import dataclass\nfrom scorefield.records.style import sheet\n\n\n"
            "@dataclass\nclass Settings:\n    seed: int = 0\n\n\n"
            "def measure(settings, figure):\n"
            "    with sheet(figure) as (_, (axes,)):\n        axes.plot([0, 1])\n"
            f"    {body}\n"
        )

    return make


@pytest.fixture(autouse=True)
def _float64():
    """Claims choose their precision themselves: the laws' float64 does not hold here."""
