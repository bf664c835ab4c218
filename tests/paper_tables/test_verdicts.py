"""Statements are judged from paired seeds, and a failing one fails."""

import math

import numpy as np
import pytest
from paper_table.tables import Statement
from paper_table.verdicts import judge

from tests.paper_tables.conftest import row_records


def statement(**given) -> Statement:
    fields = {"says": "s", "because": "b", "kind": "theory", "metric": "fid"}
    return Statement(**{**fields, "better": "long", "than": ("sampled",), **given})


def both(long: list[float], sampled: list[float], column: str = "fid") -> dict:
    return {"long": row_records({column: long}), "sampled": row_records({column: sampled})}


def test_a_clear_improvement_is_met_and_its_contrary_is_not(table):
    better, worse = [3.0, 3.2, 3.1], [4.0, 4.4, 4.2]
    met, not_met = judge(table, statement(), both(better, worse)), judge(table, statement(), both(worse, better))
    assert (met.word, met.holds, met.n) == ("met", 3, 3)
    assert (not_met.word, not_met.holds, not_met.n) == ("not met", 0, 3)
    assert met.margin == pytest.approx(1.1) == -not_met.margin


def test_higher_is_better_where_the_column_says_so(table):
    said = statement(metric="is")
    assert judge(table, said, both([9.0, 9.1], [8.0, 8.2], "is")).met is True
    assert judge(table, said, both([8.0, 8.2], [9.0, 9.1], "is")).met is False


def test_seeds_are_paired(table):
    """Seeds that differ by ten times the improvement do not hide it, since each is compared with itself."""
    level = np.array([3.0, 13.0, 23.0])
    assert judge(table, statement(), both(level.tolist(), (level + np.array([0.9, 1.0, 1.1])).tolist())).met is True


def test_the_margin_is_held_against_its_standard_error(table):
    """Gains -1, 0, 2.2 have mean 0.4 and standard error 0.95; gains -0.2, 1, 1.6 have 0.8 and 0.53."""
    zeros = [5.0, 5.0, 5.0]
    for gains, met in (([-1.0, 0.0, 2.2], False), ([-0.2, 1.0, 1.6], True)):
        verdict = judge(table, statement(), both(zeros, [5.0 + gain for gain in gains]))
        assert verdict.met is met
        assert verdict.error == pytest.approx(np.std(gains, ddof=1) / math.sqrt(3))
        assert verdict.margin == pytest.approx(np.mean(gains))
        assert verdict.holds == sum(gain > 0 for gain in gains)


def test_no_difference_is_not_met(table):
    assert judge(table, statement(), both([5.0, 5.0], [5.0, 5.0])).met is False


def test_one_seed_decides_nothing(table):
    verdict = judge(table, statement(), both([3.0], [9.0]))
    assert (verdict.met, verdict.word, verdict.margin) == (None, "not decided", 6.0)


def test_seeds_that_only_one_row_has_do_not_count(table):
    verdict = judge(table, statement(), both([3.0, 3.0, 99.0], [4.0, 5.0]))
    assert (verdict.n, verdict.met) == (2, True)


def test_without_runs_there_is_no_verdict(table):
    for rows in ({}, {"long": row_records({"fid": [1.0, 2.0]})}):
        verdict = judge(table, statement(), rows)
        assert (verdict.met, verdict.word) == (None, "not run")


def test_against_several_rows_the_narrowest_counts(table):
    rows = {**both([3.0, 3.1], [4.0, 4.2]), "large": row_records({"fid": [3.05, 3.0]})}
    verdict = judge(table, statement(than=("sampled", "large")), rows)
    assert verdict.met is False
    assert "Large" in verdict.detail
    assert judge(table, statement(than=("sampled", "large")), both([3.0, 3.1], [4.0, 4.2])).met is None


@pytest.mark.parametrize(
    ("bound", "values", "met"),
    [
        ({"above": 0.9}, [0.98, 0.99], True),
        ({"above": 0.9}, [0.85, 0.8], False),
        ({"below": 0.5}, [0.2, 0.3], True),
        ({"below": 0.5}, [0.7, 0.4], False),
        ({"below": 0.001}, [0.0, 0.0], True),
    ],
)
def test_a_bound_is_kept_or_not(table, bound, values, met):
    said = Statement("s", "b", "theory", "fid", row="long", **bound)
    assert judge(table, said, {"long": row_records({"fid": values})}).met is met
