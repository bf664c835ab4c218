"""Every claim is whole: configuration, page, experiment; and the quickest of them are run."""

import json
import re
from pathlib import Path

import pytest
import run
from lecture import pages
from lecture.claims import HOME, by_name, everything, load_module

CLAIMS = {claim.name: claim for claim in everything()}
QUICK = ["L1.4", "L1.8", "L1.16"]


def test_the_first_lecture_is_complete():
    assert {f"L1.{i}" for i in range(1, 17)} | {"L1.1b", "L2.1", "L2.2"} <= CLAIMS.keys()


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_is_whole(name):
    claim = CLAIMS[name]
    assert claim.checks
    assert len({check.quantity for check in claim.checks}) == len(claim.checks)
    assert claim.time == "a viewer's question" or re.fullmatch(r"(\d:)?\d?\d:\d\d", claim.time)
    module = load_module(by_name(claim.experiment).folder)
    module.Settings(**claim.settings)
    assert callable(module.measure)
    figure = f"outputs/lectures/figures/{name}.png"
    assert figure in claim.page
    assert "**Measured**" in claim.page


def test_pages_say_what_the_configurations_say():
    for path, text in pages.all_pages().items():
        assert path.read_text() == text, f"{path}: run `python experiments/lectures/run.py --pages`"


def test_links_of_the_pages_lead_somewhere():
    for path in pages.all_pages():
        for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
            assert (path.parent / target).exists(), (path, target)


def test_folders_hold_claims_only():
    folders = {path.parent.name for path in HOME.glob("*/config.yaml")} | {p.parent.name for p in HOME.glob("L*/*.py")}
    assert folders == {claim.folder.name for claim in CLAIMS.values()}


def test_the_quickest_claims_are_met(tmp_path):
    assert run.main([*QUICK, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "verdicts.json").read_text())
    assert {line["claim"] for line in found} == set(QUICK)
    assert all(line["met"] for line in found)
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == set(QUICK)


@pytest.mark.slow
def test_two_processes_give_the_same_numbers(tmp_path):
    values = []
    for jobs in ("1", "2"):
        assert run.main(["L1.4", "L1.16", "--jobs", jobs, "--output", str(tmp_path / jobs)]) == 0
        values.append((tmp_path / jobs / "verdicts.json").read_text())
    assert values[0] == values[1]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_claim_is_met(tmp_path):
    assert run.main(["--jobs", "2", "--output", str(Path(tmp_path))]) == 0
