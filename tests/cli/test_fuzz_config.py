"""Mutated command lines and files: each is accepted as asked, or refused with a message and code 2; never a traceback.

60 command lines and fewer files by default; SCOREFIELD_FUZZ sets another number, and the slow variant takes 2000.
"""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scorefield.cli.app import refuse_mistakes
from scorefield.cli.compose import conf_dir, jobs

EXAMPLES = int(os.environ.get("SCOREFIELD_FUZZ", "60"))
# A hang is an example that takes longer; the usual one takes a fifth of a second.
LIMIT = settings(
    deadline=timedelta(seconds=30), suppress_health_check=list(HealthCheck), print_blob=True, derandomize=True
)


def paths(node: Any, at: str = "") -> list[str]:
    """Every key of a configuration."""
    if not isinstance(node, dict):
        return []
    here = [f"{at}.{key}" if at else str(key) for key in node]
    return here + [path for key, value in node.items() for path in paths(value, f"{at}.{key}" if at else str(key))]


(DEFAULT,) = jobs("train", [])
KEYS = sorted(path for path in paths(DEFAULT.values) if path != "run_dir")
# callbacks and logger take any name, if what it stands for is one.
CLOSED = [key for key in KEYS if key.count(".") != 1 or not key.startswith(("callbacks.", "logger."))]
GROUPS = sorted(entry.name for entry in os.scandir(conf_dir()) if entry.is_dir())
OPTIONS = {
    group: sorted(entry.name.removesuffix(".yaml") for entry in os.scandir(Path(conf_dir()) / group) if entry.is_file())
    for group in GROUPS
}

NUMBERS = [
    "0",
    "-1",
    "1",
    "2",
    "3.5",
    "-0.0",
    "1e308",
    "1e400",
    "-1e-320",
    ".inf",
    "nan",
    "9" * 30,
    "1_000",
    "0x10",
    "08",
]
ODD = [
    *[
        "null",
        "true",
        "no",
        "",
        "''",
        '""',
        "[]",
        "{}",
        "[1,[2,[3]]]",
        "{a: 1}",
        "{_target_: os.getcwd}",
        "[1,2",
        "{a:",
    ],
    *["${steps}", "${name}", "${nothing}", "${data}", "${oc.env:HOME}", "${oc.env:NOT_SET_AT_ALL}", "${${name}}", "${"],
    *["${hydra:job.name}", "${oc.create:{a: 1}}", "${now:%Y}", "???", "a=b", "a,b", "1,2,3", "range(3)", "glob(*)"],
    *[
        "choice(1,2)",
        "int(x)",
        "interval(0,1)",
        "é漢字🙂",
        "\u202e",
        "a b",
        "~",
        "+",
        "@",
        "../..",
        "/etc",
        "x" * 5000,
        "\\",
    ],
    *["scorefield.nets.MLP", "builtins.print", "torch.nn.Linear", "{_target_: scorefield.kernels.Stay}", "\ud800"],
]
VALUES = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(ODD),
    st.sampled_from([option for options in OPTIONS.values() for option in options]),
    st.integers().map(str),
    st.floats().map(str),
    st.text(max_size=12),
)


@st.composite
def misspelt(draw: st.DrawFn, word: str) -> str:
    """The word with one letter too many, too few, or another."""
    at = draw(st.integers(0, len(word) - 1))
    return draw(st.sampled_from([word[:at] + "q" + word[at:], word[:at] + word[at + 1 :] + "q", word + "_"]))


@st.composite
def override(draw: st.DrawFn) -> tuple[str, bool]:
    """An override, and whether it must be refused: its key is misspelt."""
    kind = draw(st.sampled_from(["value", "value", "typo", "group", "group typo", "garbage"]))
    prefix = draw(st.sampled_from(["", "", "", "+", "++"]))
    if kind == "value":
        sign = draw(st.sampled_from([prefix, "~"]))
        key = draw(st.sampled_from(KEYS))
        return (f"~{key}" if sign == "~" else f"{sign}{key}={draw(VALUES)}"), False
    if kind == "typo":
        outer, dot, inner = draw(st.sampled_from(CLOSED)).rpartition(".")
        return f"{prefix}{outer}{dot}{draw(misspelt(inner))}={draw(st.sampled_from(['3', 'x', '[1]']))}", True
    group = draw(st.sampled_from(GROUPS))
    if kind == "group":
        return f"{draw(st.sampled_from(['', '', '~', '+']))}{group}={draw(st.sampled_from(OPTIONS[group]))}", False
    if kind == "group typo":
        option = draw(misspelt(draw(st.sampled_from(OPTIONS[group]))))
        return f"{group}={option}", option not in OPTIONS[group]
    text = draw(st.text(max_size=20)).lstrip("-")  # a dash would be a flag, which argparse answers
    return draw(st.sampled_from([text, f"{text}={draw(VALUES)}", f"{draw(st.sampled_from(KEYS))}.{text}=1"])), False


def answered(capsys, arguments: list[str]) -> bool:
    """Whether a command line is accepted; if it is not, then with code 2 and a message."""
    code: Any = None
    try:
        refuse_mistakes("train", arguments)
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr().err
    if code is None:
        return True
    assert code == 2
    assert "nothing was started" in said.splitlines()[-1]
    assert not any(noise in said for noise in ("Traceback", "HYDRA_FULL_ERROR", "the configuration is wrong")), said
    return False


def check_overrides(capsys, overrides: list[tuple[str, bool]]) -> None:
    arguments = [text for text, _ in overrides]
    if answered(capsys, arguments):
        assert not any(wrong for _, wrong in overrides), "a misspelt key was let in"
        for argument in arguments:
            assert_as_asked(argument, arguments)


def assert_as_asked(argument: str, arguments: list[str]) -> None:
    """An accepted number stands where it was asked for, unless it was asked for twice."""
    key, equals, text = argument.lstrip("+").partition("=")
    if not equals or key not in KEYS or any(a is not argument and key.split(".")[0] in a for a in arguments):
        return
    try:
        number = float(text)
    except ValueError:
        return
    (composed,) = jobs("train", arguments)
    value: Any = composed.values
    for part in key.split("."):
        value = value[part]
    assert float(value) == number


LINES = st.lists(override(), min_size=1, max_size=4)


@given(LINES)
@settings(LIMIT, max_examples=EXAMPLES)
def test_command_lines(capsys, overrides):
    check_overrides(capsys, overrides)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(LINES)
@settings(LIMIT, max_examples=2000)
def test_many_command_lines(capsys, overrides):
    check_overrides(capsys, overrides)


TREES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(ODD)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=6), st.sampled_from(KEYS)), inner, max_size=3),
    ),
    max_leaves=6,
)


@st.composite
def experiment(draw: st.DrawFn) -> bytes:
    """An experiment file with one of its values replaced, or no YAML at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode(errors="replace"))))
    tree: dict[str, Any] = {"name": "fuzz", "data_std": 0.7, "steps": 100}
    *outer, last = draw(st.sampled_from(KEYS)).split(".")
    node = tree
    for key in outer:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            return b"steps: {x: 1}"
    node[last] = draw(TREES)
    text = "# @package _global_\n" + yaml.safe_dump(tree, allow_unicode=draw(st.booleans()))
    return text.encode(errors="replace")


@given(experiment())
@settings(LIMIT, max_examples=max(EXAMPLES // 3, 1))
def test_files(tmp_path_factory, capsys, content):
    folder = tmp_path_factory.mktemp("conf")
    (folder / "experiment").mkdir()
    (folder / "experiment" / "fuzz.yaml").write_bytes(content)
    answered(capsys, ["--config-dir", str(folder), "experiment=fuzz"])


@given(st.sampled_from(CLOSED), st.data())
@settings(LIMIT, max_examples=max(EXAMPLES // 5, 1))
def test_a_misspelt_key_in_a_file_is_refused(tmp_path_factory, capsys, key, data):
    *outer, last = key.split(".")
    tree: dict[str, Any] = {data.draw(misspelt(last)): 3}
    for name in reversed(outer):
        tree = {name: tree}
    folder = tmp_path_factory.mktemp("conf")
    (folder / "experiment").mkdir()
    base = {"name": "fuzz", "data_std": 0.7, "steps": 100}
    text = "# @package _global_\n" + yaml.safe_dump({**base, **tree})
    (folder / "experiment" / "fuzz.yaml").write_text(text)
    assert not answered(capsys, ["--config-dir", str(folder), "experiment=fuzz"])
