"""Tolerances judge as they read, claims are reported whatever they do, and the exit code tells of every miss."""

import json
import math
import re

import pytest
import run
import torch
from lecture import claims
from lecture.claims import read, select
from lecture.fitting import newton
from lecture.tolerances import Above, Below, Between, Equal, Relative, Within, from_fields
from lecture.verdicts import judge

ONE = "- {quantity: q, expected: 2.0, within: 0.5, kind: analytic}"


@pytest.mark.parametrize(
    ("fields", "rule", "text", "met", "missed"),
    [
        ({"within": 0.5}, Within(0.5), "± 0.5", [1.5, 2.0, 2.5], [1.49, 2.51]),
        ({"relative": 0.25}, Relative(0.25), "± 25 %", [1.5, 2.5], [1.49, 2.51]),
        ({"below": 3}, Below(3), "< 3", [-10.0, 2.9], [3.0, math.inf]),
        ({"above": 3}, Above(3), "> 3", [3.1, math.inf], [3.0, -math.inf]),
        ({"between": [1, 3]}, Between(1, 3), "1 to 3", [1.0, 3.0], [0.99, 3.01]),
        ({"equal": True}, Equal(), "equal", [2.0], [2.0000001]),
    ],
)
def test_tolerances(fields, rule, text, met, missed):
    assert from_fields(fields) == rule
    assert str(rule) == text
    assert all(rule.met(value, 2.0) for value in met)
    assert not any(rule.met(value, 2.0) for value in [*missed, math.nan])


def test_a_relative_tolerance_of_a_negative_number():
    assert Relative(0.01).met(-50.9, -50.5)
    assert not Relative(0.01).met(-51.1, -50.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "exactly one of"),
        ({"within": 1, "below": 2}, "exactly one of"),
        ({"within": "1e-3"}, r"write 1.0e-10"),
        ({"within": -1}, "must not be negative"),
        ({"below": True}, "must be a number"),
        ({"between": 3}, "list of two"),
        ({"between": [3, 1]}, "is empty"),
        ({"equal": False}, "must be true"),
    ],
)
def test_tolerances_that_say_nothing_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        from_fields(fields)


@pytest.mark.parametrize(
    ("checks", "more", "words"),
    [
        ("- {quantity: q, within: 1, kind: analytic}", "", "needs the expected value"),
        ("- {quantity: q, expected: 1e-3, within: 1, kind: analytic}", "", "expected='1e-3'"),
        ("- {quantity: q, expected: 1, within: 1, kind: guess}", "", "kind='guess'"),
        ("- {quantity: q, expected: 1, near: 1, within: 1, kind: analytic}", "", "knows no near"),
        ("- {expected: 1, within: 1, kind: analytic}", "", "lacks 'quantity'"),
        (ONE, "colour: red", "colour"),
    ],
)
def test_configurations_that_are_not_complete_are_refused(fabricated, checks, more, words):
    fabricated("L1_01_one", checks, "return {'q': 2.0}", more=more)
    with pytest.raises(ValueError, match=words):
        read(claims.HOME / "L1_01_one")


def test_a_setting_that_yaml_reads_as_text_is_refused(fabricated):
    fabricated("L1_01_one", ONE, "return {'q': 2.0}", settings="{seed: 1e-3}")
    with pytest.raises(ValueError, match="seed='1e-3'"):
        read(claims.HOME / "L1_01_one")


def test_values_that_are_lacking_or_no_numbers_are_missed(fabricated):
    fabricated("L1_01_one", ONE, "return {'q': 2.0}")
    (claim,) = select([])
    assert judge(claim, {"q": 2.2, "r": 1.0}, 0.0).met
    assert judge(claim, {"q": 2.2, "r": 1.0}, 0.0).also == {"r": 1.0}
    assert not judge(claim, {}, 0.0).met
    assert not judge(claim, {"q": math.nan}, 0.0).met
    assert not judge(claim, {"q": 2.2}, 0.0, error="it broke").met


def verdicts(path):
    found = json.loads((path / "verdicts.json").read_text())
    assert all(list(line) == ["claim", "quantity", "value", "expected", "tolerance", "met"] for line in found)
    return {line["claim"]: line for line in found}


def test_errors_and_misses_are_reported_and_the_others_go_on(fabricated, tmp_path, capsys):
    fabricated("L1_01_met", ONE, "return {'q': 2.4}")
    fabricated("L1_02_missed", ONE, "return {'q': 2.6}")
    fabricated("L1_03_broken", ONE, "raise RuntimeError('no <luck>')")
    fabricated("L1_04_silent", ONE, "return {'another': 2.0}")
    fabricated("L1_05_endless", ONE, "return {'q': float('inf')}")
    fabricated("L1_06_unfit", ONE, "return {'q': 2.0}", settings="{unknown: 1}")
    output = tmp_path / "out"
    assert run.main(["--output", str(output)]) == 1
    found = verdicts(output)
    assert {name: line["met"] for name, line in found.items()} == {f"L1.{i}": i == 1 for i in range(1, 7)}
    assert found["L1.1"] == {
        "claim": "L1.1", "quantity": "q", "value": 2.4, "expected": 2.0, "tolerance": "± 0.5", "met": True
    }  # fmt: skip
    assert [found[f"L1.{i}"]["value"] for i in (2, 3, 4, 5, 6)] == [2.6, None, None, None, None]
    told = capsys.readouterr().out
    assert "missed: L1.2, L1.3, L1.4, L1.5, L1.6" in told
    assert "RuntimeError: no <luck>" in told
    assert "did not measure 'q'" in told
    page = (output / "index.html").read_text()
    assert "no &lt;luck&gt;" in page
    assert "A &lt;claim&gt;" in page
    assert "<em>says</em>" in page
    assert page.count("data:image/png;base64,") == 5  # all but the one that never began to draw
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_a_claim_that_ends_its_process_is_missed_and_the_others_go_on(fabricated, tmp_path, capsys):
    fabricated("L1_01_fatal", ONE, "import os; os._exit(1)")
    fabricated("L1_02_met", ONE, "return {'q': 2.4}")
    assert run.main(["--jobs", "2", "--output", str(tmp_path / "out")]) == 1
    assert {name: line["met"] for name, line in verdicts(tmp_path / "out").items()} == {"L1.1": False, "L1.2": True}
    assert "its process was killed" in capsys.readouterr().out


def test_a_claim_that_draws_nothing_is_missed(fabricated, tmp_path):
    fabricated("L1_01_one", ONE, "figure.unlink(); return {'q': 2.0}")
    assert run.main(["--output", str(tmp_path / "out")]) == 1


def test_all_met_exits_with_zero_and_a_former_figure_goes(fabricated, tmp_path, capsys):
    fabricated("L1_01_one", ONE, "return {'q': 2.0}")
    fabricated("L1_01b_same", ONE, "raise RuntimeError", more="experiment: L1.1")
    assert run.main(["L1.1b", "--output", str(tmp_path / "out")]) == 0
    assert verdicts(tmp_path / "out").keys() == {"L1.1b"}
    assert "all 1 claims met" in capsys.readouterr().out


def test_another_seed(fabricated, tmp_path):
    fabricated("L1_01_one", ONE, "return {'q': 2.0 + settings.seed}", settings="{seed: 0}")
    fabricated("L1_02_other", ONE, "return {'q': 2.0}")
    assert run.main(["--seed", "5", "--output", str(tmp_path / "out")]) == 1
    assert {name: line["value"] for name, line in verdicts(tmp_path / "out").items()} == {"L1.1": 7.0, "L1.2": 2.0}


def test_links_between_pages_lead_down_the_one_page(fabricated, tmp_path):
    fabricated("L1_01_one", ONE, "return {'q': 2.0}")
    page = claims.HOME / "L1_01_one" / "README.md"
    page.write_text("# A claim\n\nAs [before](../L1_01_one/README.md).\n")
    assert run.main(["--output", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "index.html").read_text()
    assert '<a href="#L1.1">before</a>' in text
    assert '<section id="L1.1">' in text


def test_newton_ends_in_the_minimum_of_each_quadratic():
    parameter = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    at, curvature = torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.0, 4.0]], dtype=torch.float64)
    found = newton(lambda: (curvature * (parameter - at).square()).sum() + 7, parameter)
    torch.testing.assert_close(found, at, rtol=1e-14, atol=0)


def test_names_that_no_claim_has(fabricated, tmp_path, capsys):
    fabricated("L1_12_one", ONE, "return {'q': 2.0}")
    assert run.main(["L1.21", "--output", str(tmp_path / "out")]) == 2
    assert "no claim 'L1.21'; did you mean L1.12?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
