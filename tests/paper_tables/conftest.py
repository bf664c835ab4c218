import json
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parents[2] / "experiments" / "paper_tables"
sys.path.insert(0, str(HOME))  # the experiments are no installed package


@pytest.fixture(autouse=True)
def _float64():
    """Commands choose their precision themselves: the laws' float64 does not hold here."""


MODELS = """
scales:
  small: {seeds: [0, 1, 2], train: [experiment=digits_table], evaluate: ["only=[quality]"]}
  paper: {seeds: [0], train: [trainer=gpu], evaluate: [trainer=gpu]}
models:
  first: {small: [schedule=vp], paper: [experiment=ddpm_cifar10_vp]}
  twin: {small: [schedule=vp], paper: [experiment=ddpmpp_cifar10_vp]}
  big: {small: null, paper: [experiment=ncsnpp_cifar10_ve]}
"""
TABLE = """
title: A table
source: {paper: P, authors: A, arxiv: "1", year: 2020, table: Table 1, protocol: 50000 samples}
small: the digits
columns:
  fid: {title: FID, better: lower, small: fd_digits, paper: fid}
  is: {title: IS, better: higher, small: inception_score_digits, paper: null}
  nfe: {title: NFE, better: lower, small: fd_digits.nfe, paper: fid.nfe}
rows:
  - method: Theirs
    published: [{metric: fid, dataset: cifar10, value: 8.5, std: 0.25}]
  - method: Long chain
    key: long
    small_name: short chain
    model: first
    published: [{metric: fid, dataset: cifar10, value: 3.17}, {metric: is, dataset: cifar10, verified: false}]
  - method: Other sampler
    key: sampled
    model: twin
    evaluate: {small: [sampler=ddim], paper: [sampler=ddim]}
    published: []
  - method: Large
    key: large
    model: big
    missing: {small: too large}
    published: []
statements:
  - {says: the chain is better, because: theorem 1, kind: theory, metric: fid, better: long, than: [sampled]}
  - {says: its score is higher, because: table 1, kind: paper, metric: is, better: long, than: [sampled]}
unavailable:
  - {table: Table 2, why: not verified}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with one made-up table, in the place of the real ones."""
    from paper_table import pages, tables

    home = tmp_path / "tables"
    (home / "made_up").mkdir(parents=True)
    (home / "models.yaml").write_text(MODELS)
    (home / "made_up" / "table.yaml").write_text(TABLE)
    (home / "README.md").write_text("# Tables\n\n<!-- index: here -->\n<!-- end of the index -->\n")
    monkeypatch.setattr(tables, "HOME", home)
    monkeypatch.setattr(pages, "HOME", home)
    return home


@pytest.fixture
def table(home):
    from paper_table.tables import everything

    (made,) = everything(home)
    return made


@pytest.fixture
def plan(home):
    from paper_table.tables import read_plan

    return read_plan(home)


def row_records(values: dict[str, list[float]], commands: list[str] | None = None) -> list[dict]:
    """Records of one row with the given values by column, one for each seed."""
    count = len(next(iter(values.values())))
    return [
        {
            "seed": seed,
            "commands": commands or [f"scorefield train seed={seed}"],
            "result": f"outputs/r{seed}/result.json",
            "sha256": f"{seed}" * 64,
            "config_hash": "abcd1234",
            "values": {column: numbers[seed] for column, numbers in values.items()},
            "protocol": {},
            "cost": {"train_seconds": 10.0, "validation_seconds": 0.0, "evaluation_seconds": 2.0},
            "versions": {},
            "git": {"commit": "c" * 40, "dirty": False},
        }
        for seed in range(count)
    ]


def write_result(path: Path, metrics: dict, config_hash: str = "abcd1234", **cost: float) -> None:
    """A run's record with the given metrics, each {"value": ..., protocol ...}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "schema": "scorefield-result/1",
        "experiment": "made_up",
        "seed": 0,
        "config_hash": config_hash,
        "command": "scorefield train",
        "metrics": metrics,
        "cost": cost,
        "versions": {},
        "git": None,
    }
    path.write_text(json.dumps(record))
