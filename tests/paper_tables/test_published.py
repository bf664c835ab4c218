"""The published numbers are those that were transcribed, and what is not verified is left blank."""

from collections import Counter
from pathlib import Path

import pytest
import yaml
from paper_table.tables import HOME, Column, Published, Statement, everything

from tests.conftest import SHARED

PAPERS = SHARED / "papers"
FILES = {
    "ddpm_table1": "ddpm",
    "ddpm_table2": "ddpm",
    "edm_table2": "edm",
    "flow_matching_table1": "flow_matching",
    "ncsn_table1": "ncsn",
    "ncsnv2_table1": "ncsnv2",
    "score_sde_table1": "score_sde",
    "score_sde_table2": "score_sde",
    "score_sde_table3": "score_sde",
    "scoreflow_headline": "scoreflow",
    "scoreflow_table2": "scoreflow",
}
TABLES = {table.name: table for table in everything()}


def transcribed(name: str) -> Path:
    path = PAPERS / f"{FILES[name]}.yaml"
    if not path.is_file():
        pytest.skip("the transcriptions of the papers' tables are not on this machine")
    return path


@pytest.mark.parametrize("name", FILES)
def test_published_numbers_are_the_transcribed_ones(name):
    """Number by number and in both directions: none is missing, none is added, and unverified ones are blank."""
    content, table = yaml.safe_load(transcribed(name).read_text()), TABLES[name]
    (theirs,) = [each for each in content["tables"] if each["table"] == table.source["table"]]
    assert table.source["paper"] == content["title"]
    assert (table.source["arxiv"], table.source["year"]) == (content["arxiv"], content["year"])
    keys = next((tuple(row.config) for row in table.rows if row.config), ())
    expected, found = Counter(), Counter()
    for number in theirs["rows"]:
        named = tuple(number["config"][key] for key in keys if key in number["config"])
        told = (number["value"], number.get("std")) if number["verified"] else (None, None)
        expected[(number.get("group"), number["method"], named, number["metric"], number.get("dataset"), *told)] += 1
    for row in table.rows:
        for number in row.published:
            place = (row.group, row.method, tuple(row.config.values()), number.metric, number.dataset)
            found[(*place, number.value, number.std)] += 1
    assert found == expected


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_verified_says_so(name):
    content, table = yaml.safe_load(transcribed(name).read_text()), TABLES[name]
    (theirs,) = [each for each in content["tables"] if each["table"] == table.source["table"]]
    unverified = sum(not number["verified"] for number in theirs["rows"])
    assert sum(not number.verified for row in table.rows for number in row.published) == unverified


def test_a_number_that_is_not_verified_has_no_value():
    with pytest.raises(ValueError, match="leave its value out"):
        Published("fid", "cifar10", 3.17, verified=False)


def test_every_folder_is_compared():
    assert set(FILES) | {"sliced_score_matching_cost"} == set(TABLES)
    assert all((HOME / name / "table.yaml").is_file() for name in TABLES)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_better_of_a_column_is_the_papers(table):
    if table.name not in FILES:
        return
    content = yaml.safe_load(transcribed(table.name).read_text())
    (theirs,) = [each for each in content["tables"] if each["table"] == table.source["table"]]
    for name, better in theirs["better"].items():
        assert table.columns[name].better == better


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Column("FID", "smaller"), "must be lower or higher"),
        (lambda: Statement("s", "b", "hope", "fid", "a", ("b",)), "must be theory or paper"),
        (lambda: Statement("s", "b", "theory", "fid"), "needs better and than, or row"),
        (lambda: Statement("s", "b", "theory", "fid", row="a"), "needs better and than, or row"),
        (lambda: Statement("s", "b", "theory", "fid", row="a", above=1.0, below=2.0), "needs better and than, or row"),
    ],
)
def test_a_declaration_that_says_nothing_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
