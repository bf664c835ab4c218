"""What a rendered table says: numbers, scale, protocol, verdicts, commands, hashes; and that it is up to date."""

import re

import pytest
from paper_table import pages, records, render
from paper_table.jobs import jobs
from paper_table.tables import HOME, everything, read, read_plan

from scorefield.records.files import write_atomically
from tests.paper_tables.conftest import row_records

PLAN = read_plan()
TABLES = {table.name: table for table in everything()}


@pytest.fixture
def rendered(table, plan):
    rows = {
        "long": row_records({"fid": [3.0, 3.5], "is": [4.0, 4.0], "nfe": [50.0, 50.0]}),
        "sampled": row_records({"fid": [4.0, 5.0], "is": [4.5, 5.0], "nfe": [51.0, 51.0]}),
    }
    records.save(table, "small", rows)
    render.write(table, plan)
    return (table.folder / "table.md").read_text()


def cells(text: str, name: str) -> list[str]:
    """The cells of the row that begins with a name."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_published_and_obtained_stand_side_by_side(rendered):
    head = cells(rendered, "row | FID")
    assert head[1:3] == ["FID, published", "fd_digits (for FID), scale=small"]
    assert cells(rendered, "Long chain (small: short chain)")[1:] == [
        "3.17",
        "3.25 ± 0.35 (small, n=2)",
        "not verified",
        "4 (small, n=2)",
        "50 (small, n=2)",
    ]
    assert cells(rendered, "Theirs")[1:] == ["8.5 ± 0.25", "", "", "", ""]
    assert cells(rendered, "Large")[2] == "– (small)"


def test_every_obtained_number_says_its_scale(rendered):
    numbers = rendered.partition("| row | FID")[2].partition("## Statements")[0]
    obtained = [cell for line in numbers.splitlines() for cell in line.split("|") if "±" in cell or "n=" in cell]
    assert len(obtained) == 7  # six of ours and one published
    assert all("(small, n=2)" in cell for cell in obtained if "8.5" not in cell)


def test_verdicts_are_told_as_they_are(rendered):
    assert "| the chain is better | theorem 1 | theory | **met** | 1.25 ± 0.25 | 2 of 2 |" in rendered
    assert "| its score is higher | table 1 | paper | **not met** | -0.75 ± 0.25 | 0 of 2 |" in rendered
    assert "Of 2: 1 met, 1 not met." in rendered


def test_protocol_source_and_what_is_not_there_are_told(rendered):
    assert "A 2020, *P*, arXiv:1, Table 1. 50000 samples." in rendered
    assert "- scale=small: The digits." in rendered
    assert "; not run here." in rendered
    assert "- Table 2: not verified" in rendered


def test_each_row_has_its_commands_and_each_run_its_hash(rendered, table, plan):
    for row in table.own.values():
        assert f"`made_up:{row.key}`" in rendered
        for scale in ("small", "paper"):
            assert all(f"`{job.line}`" in rendered for job in jobs(row, scale, 0, plan))
    assert "  - small: not made: too large" in rendered
    assert "python experiments/paper_tables/run.py made_up --scale small\n" in rendered
    assert rendered.count(f"`{'1' * 16}`") == 2


def test_the_figure_is_drawn_where_there_is_something(rendered, table, plan):
    assert (table.folder / "table.png").read_bytes().startswith(b"\x89PNG")
    assert "](table.png)" in rendered
    (table.folder / "table.png").unlink()
    records.path_of(table, "small").unlink()
    render.write(table, plan)
    assert not (table.folder / "table.png").exists()
    assert "](table.png)" not in (table.folder / "table.md").read_text()


def test_the_index_counts_rows_verdicts_and_each_run_once(rendered, table, home):
    """Both rows name the same command: its twelve seconds a seed are counted once."""
    pages.write_index([table])
    text = (home / "README.md").read_text()
    assert "| [made_up](made_up/table.md) | A table | 2 of 3 | 1 met, 1 not met |" in text
    assert "2 runs, 24 s of training and evaluation in all." in text
    pages.write_index([table])
    assert (home / "README.md").read_text() == text


@pytest.mark.parametrize(
    ("find", "put", "message"),
    [
        ("kind: theory, metric: fid, better: long", "kind: theory, metric: fid, better: lnog", "row 'lnog'"),
        ("model: first", "model: frist", "model 'frist'"),
        ("    missing: {small: too large}\n", "", "missing does not say why"),
        ("metric: is, better", "metric: iss, better", "'iss', which is no column"),
        ("{metric: is, dataset: cifar10, verified: false}", "{metric: kid, value: 1}", "'kid', which is no column"),
        ("key: sampled", "key: long", "key of two rows"),
        ("title: A table", "name: A table", "name"),
    ],
)
def test_a_wrong_table_is_refused(home, plan, find, put, message):
    path = home / "made_up" / "table.yaml"
    text = path.read_text()
    assert text.count(find) == 1
    write_atomically(path, text.replace(find, put).encode())
    with pytest.raises(ValueError, match=rf"made_up/table.yaml: .*{message}"):
        read(path.parent, plan)


@pytest.mark.parametrize("name", TABLES)
def test_the_kept_pages_are_those_of_the_kept_records(name):
    table = TABLES[name]
    loaded = {scale: records.load(table, scale) for scale in ("small", "paper")}
    verdicts = [render.judge(table, statement, loaded["small"]) for statement in table.statements]
    figure = table.folder / "table.png"
    page = render.page(table, PLAN, loaded, verdicts, figure if figure.exists() else None)
    assert (table.folder / "table.md").read_text() == page


@pytest.mark.parametrize("name", TABLES)
def test_the_kept_records_are_of_todays_commands(name):
    table = TABLES[name]
    for scale in ("small", "paper"):
        for key, of_row in records.load(table, scale).items():
            for one in of_row:
                asked = jobs(table.own[key], scale, one["seed"], PLAN)
                assert one["commands"] == [job.line for job in asked], (name, key)
                assert re.fullmatch("[0-9a-f]{64}", one["sha256"])
                assert one["git"]["dirty"] is False


def test_the_kept_index_is_todays():
    text = (HOME / "README.md").read_text()
    assert pages.index(list(TABLES.values())) in text
